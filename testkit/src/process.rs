//! Signals.

use rustix::process::{Pid, kill_process};
use std::io;

pub use rustix::process::Signal;

/// Sends a signal to a process. Fails the test where that is not possible.
#[track_caller]
pub fn signal(pid: u32, signal: Signal) {
    if let Err(error) = try_signal(pid, signal) {
        panic!("cannot send {signal:?} to process {pid}: {error}");
    }
}

/// Sends a signal to a process that may have ended already.
pub fn try_signal(pid: u32, signal: Signal) -> io::Result<()> {
    // 0 and negative numbers are process groups: never those.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(kill_process(pid, signal)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    #[test]
    fn a_signal_arrives() {
        for wanted in [Signal::TERM, Signal::KILL] {
            let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            signal(child.id(), wanted);
            assert_eq!(child.wait().unwrap().signal(), Some(wanted.as_raw()));
        }
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        let mut child =
            Command::new("cat").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        child.wait().unwrap();
        assert!(try_signal(child.id(), Signal::TERM).is_err());
        assert!(std::panic::catch_unwind(|| signal(child.id(), Signal::TERM)).is_err());
    }

    #[test]
    fn a_process_group_is_never_signalled() {
        for pid in [0, -1i32 as u32, i32::MIN as u32] {
            assert_eq!(
                try_signal(pid, Signal::TERM).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
    }
}
