//! Starts the server's process, and waits until it answers.

use crate::server::Running;
use crate::time::START_DEADLINE;
use crate::{Conn, ms, texts};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Instant;

/// What to run: a name on PATH, or a path. Servers start in directories of their own, so a relative one is made
/// absolute. Links are not resolved, because the server's name can decide what it is.
pub fn server_path() -> PathBuf {
    let path = std::env::var_os("PRESENCE_SERVER").unwrap_or_else(|| "redis-server".into());
    match Path::new(&path).components().count() {
        1 => PathBuf::from(path),
        _ => std::path::absolute(path).unwrap(),
    }
}

pub fn module_path() -> PathBuf {
    let path = match std::env::var_os("PRESENCE_MODULE") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/presence.so"),
    };
    path.canonicalize()
        .unwrap_or_else(|e| panic!("no module at {}: {e}; `make build` first", path.display()))
}

/// A port below the range that the kernel hands to outgoing connections, and on which no process listens.
/// (Cluster bus ports, 10000 higher, stay below 65536.)
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() as u16).wrapping_mul(37);
    loop {
        let port = 10_000 + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000);
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

/// Runs the server and waits until it answers as the one in `dir`; else the end of its log.
pub(crate) fn launch(dir: &Path, port: u16) -> Result<Running, String> {
    let output = std::fs::File::create(dir.join("output")).unwrap();
    let mut child = Command::new(server_path())
        .arg(dir.join("redis.conf"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", server_path().display()));
    let end = Instant::now() + START_DEADLINE;
    loop {
        if child.try_wait().unwrap().is_some() {
            return Err(tail(&log_of(dir)));
        }
        if let Some(pid) = answers_from(port, dir) {
            return Ok(Running { child, pid });
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no answer in {START_DEADLINE:?}\n{}", tail(&log_of(dir))));
        }
        thread::sleep(ms(5));
    }
}

/// The pid of the server on `port`, if it has loaded its data and is the one that lives in `dir`.
fn answers_from(port: u16, dir: &Path) -> Option<u32> {
    let mut c = Conn::to(port)?;
    c.try_cmd("PING").ok()?;
    let there = texts(&c.try_cmd("CONFIG GET dir").ok()?);
    if there.get(1).map(Path::new).and_then(|d| d.canonicalize().ok()) != dir.canonicalize().ok() {
        return None;
    }
    c.info("server").get("process_id")?.parse().ok()
}

pub(crate) fn log_of(dir: &Path) -> String {
    let read = |name| {
        String::from_utf8_lossy(&std::fs::read(dir.join(name)).unwrap_or_default()).into_owned()
    };
    read("output") + &read("log")
}

pub fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
