//! A server of the benchmark's own: its life, its core, its processor time.

use crate::resp::Client;
use crate::{Options, Result};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const START_DEADLINE: Duration = Duration::from_secs(120);

pub struct Server {
    child: Child,
    pid: u32,
    pub port: u16,
    pub client: Client,
    dir: PathBuf,
}

impl Server {
    /// A server with the module and the baseline, empty, that writes nothing to disk by itself.
    pub fn start(options: &Options, settings: &[(&str, &str)]) -> Result<Server> {
        let dir = new_dir()?;
        Server::start_in(options, settings, dir)
    }

    /// The same in a folder that may hold a `dump.rdb`.
    fn start_in(options: &Options, settings: &[(&str, &str)], dir: PathBuf) -> Result<Server> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let shown = dir.display();
        let mut conf = format!(
            "port {port}\nbind 127.0.0.1\ndir {shown}\nlogfile {shown}/log\nsave \"\"\nappendonly no\n\
             enable-debug-command yes\nloadmodule {}\nloadmodule {}\n\
             presence.lease-ttl-ms 7200000\n",
            options.module.display(),
            options.baseline.display(),
        );
        for (name, value) in settings {
            conf += &format!("{name} \"{value}\"\n");
        }
        std::fs::write(dir.join("server.conf"), conf)?;
        let core = options.server_core;
        let mut command = Command::new(&options.server);
        command.arg(dir.join("server.conf")).stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: between fork and exec only these two system calls are made.
        unsafe {
            command.pre_exec(move || {
                // Whatever ends the benchmark ends its servers.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if let Some(core) = core {
                    pin(core);
                }
                Ok(())
            })
        };
        let mut child = command.spawn()?;
        let client = match wait_for(port, &mut child) {
            Ok(client) => client,
            Err(error) => {
                // Nothing is lost if it is gone already.
                let _ = child.kill();
                let _ = child.wait();
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                let _ = std::fs::remove_dir_all(&dir);
                let end: Vec<&str> = log.lines().rev().take(15).collect();
                let end: Vec<&str> = end.into_iter().rev().collect();
                return Err(format!("{error}; the end of its log:\n{}", end.join("\n")).into());
            }
        };
        let mut server = Server { child, pid: 0, port, client, dir };
        server.pid = server.info("server", "process_id")?.parse()?;
        Ok(server)
    }

    /// Ends it without saving and starts it again on what is in its folder.
    pub fn restart(mut self, options: &Options, settings: &[(&str, &str)]) -> Result<Server> {
        let dir = std::mem::take(&mut self.dir);
        drop(self);
        Server::start_in(options, settings, dir)
    }

    /// Processor time of the thread that serves clients, in nanoseconds.
    pub fn cpu_ns(&self) -> Result<u64> {
        let task = format!("/proc/{0}/task/{0}", self.pid);
        if let Ok(text) = std::fs::read_to_string(format!("{task}/schedstat"))
            && let Some(Ok(ns)) = text.split(' ').next().map(str::parse::<u64>)
            && ns > 0
        {
            return Ok(ns);
        }
        // A kernel without scheduler statistics: clock ticks.
        let text = std::fs::read_to_string(format!("{task}/stat"))?;
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        // SAFETY: asks for a constant of the system.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        Ok(ticks * (1_000_000_000 / per_second))
    }

    /// One field of INFO.
    pub fn info(&mut self, section: &str, field: &str) -> Result<String> {
        let text = self.client.call(&["INFO", section])?.text()?;
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(|value| value.trim_end().to_string())
            .ok_or_else(|| format!("no {field} in INFO {section}").into())
    }

    pub fn used_memory(&mut self) -> Result<f64> {
        Ok(self.info("memory", "used_memory")?.parse()?)
    }

    /// Microseconds spent in these commands since the last CONFIG RESETSTAT.
    pub fn usec_in(&mut self, commands: &[&str]) -> Result<f64> {
        let text = self.client.call(&["INFO", "commandstats"])?.text()?;
        let mut sum = 0.0;
        for line in text.lines() {
            let Some((name, fields)) =
                line.strip_prefix("cmdstat_").and_then(|rest| rest.split_once(':'))
            else {
                continue;
            };
            if commands.contains(&name) {
                let usec = fields.split(',').find_map(|field| field.strip_prefix("usec="));
                sum += usec.ok_or("no usec in commandstats")?.parse::<f64>()?;
            }
        }
        Ok(sum)
    }

    /// Has it run before others on its core, where that is allowed: for what is measured by the clock.
    /// The work of strangers on this machine is not what is to be seen there.
    pub fn prefer(&self) {
        prefer(self.pid);
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has nothing to save. An error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.dir.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn wait_for(port: u16, child: &mut Child) -> Result<Client> {
    let end = Instant::now() + START_DEADLINE;
    loop {
        if let Ok(mut client) = Client::connect(port) {
            // Refused while it loads its data.
            if client.call(&["PING"]).is_ok() {
                return Ok(client);
            }
        }
        if let Some(status) = child.try_wait()? {
            return Err(format!("the server ended ({status})").into());
        }
        if Instant::now() > end {
            return Err("the server does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn new_dir() -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{DIRS}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = std::env::temp_dir().join(name);
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

/// Has a thread, 0 being the calling one, run before others, where that is allowed.
pub fn prefer(thread: u32) {
    // SAFETY: a system call without pointers; where it is refused everything stays as it is.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, -10) };
}

/// The clock that servers and the benchmark share, in unix microseconds.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as i64
}

pub fn now_ms() -> i64 {
    now_us() / 1000
}

const DIRS: &str = "presence-bench-";

/// Removes what earlier runs left that were killed: their servers went with them.
pub fn tidy_up() -> Result<()> {
    for entry in std::fs::read_dir(std::env::temp_dir())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(DIRS) else { continue };
        let Some(Ok(pid)) = rest.split('-').next().map(str::parse::<i32>) else { continue };
        // SAFETY: signal 0 only asks whether there is such a process.
        if unsafe { libc::kill(pid, 0) } != 0 {
            // Somebody else's, perhaps; then it stays.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// The cores this process may use.
pub fn cores() -> Vec<usize> {
    // SAFETY: the set is plain data, and the call fills it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|core| libc::CPU_ISSET(*core, &set)).collect()
    }
}

/// Keeps the calling thread, and what it starts, on one core.
pub fn pin(core: usize) {
    // SAFETY: the set is plain data. Where the system refuses, everything runs where it likes.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}
