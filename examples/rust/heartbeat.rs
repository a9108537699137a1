//! Keeps a session online until its standard input ends (Ctrl-D, or the program that started it).
//!
//!     cargo run --example heartbeat SPACE USER SESSION [redis://127.0.0.1:6379]
//!
//! A heartbeat every third of the lease, so that two may be lost, and not exactly every third: a thousand clients that
//! were started by one restart should not beat in the same moment. Each carries the metadata, which makes no event as
//! long as it is the same, and is there again where the server lost the session. A server that is away is tried again
//! soon: the lease runs on.
//!
//! PRESENCE_LEASE_MS is the lease (30000). PRESENCE_LINGER_MS (0) is for one that is restarted: where it is back with
//! the same session in this time, nobody has noticed that it was gone. Needs the crates `redis` and `rand`.

use redis::{Client, Connection, RedisResult};
use std::io::Read;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

const META: &str = r#"{"client":"heartbeat.rs"}"#;

struct Session {
    client: Client,
    connection: Option<Connection>,
    space: String,
    user: String,
    session: String,
    lease_ms: u64,
    linger_ms: u64,
}

impl Session {
    /// The connection there is, or a new one.
    fn connection(&mut self) -> RedisResult<&mut Connection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let third = Duration::from_millis(self.lease_ms / 3);
                let connection = self.client.get_connection_with_timeout(third)?;
                // A reply that comes later is no use.
                connection.set_read_timeout(Some(third))?;
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// True where the user was not online before this call.
    fn beat(&mut self) -> RedisResult<bool> {
        let mut command = redis::cmd("PRESENCE.ONLINE");
        command.arg(&self.space).arg(&self.user).arg("SESSION").arg(&self.session);
        command.arg("META").arg(META).arg("PX").arg(self.lease_ms);
        command.query(self.connection()?)
    }

    /// Who knows that it goes says so: nobody has to wait for the end of the lease.
    fn leave(&mut self) -> RedisResult<()> {
        let mut command = redis::cmd("PRESENCE.OFFLINE");
        command.arg(&self.space).arg(&self.user).arg("SESSION").arg(&self.session);
        command.arg("LINGER").arg(self.linger_ms);
        command.query(self.connection()?)
    }
}

fn main() -> RedisResult<()> {
    let mut words = std::env::args().skip(1);
    let (Some(space), Some(user), Some(session)) = (words.next(), words.next(), words.next())
    else {
        eprintln!("usage: heartbeat SPACE USER SESSION [redis://127.0.0.1:6379]");
        std::process::exit(1);
    };
    let url = words.next().unwrap_or_else(|| "redis://127.0.0.1:6379".into());
    let setting = |name| std::env::var(name).ok().and_then(|ms| ms.parse().ok());
    let lease_ms = setting("PRESENCE_LEASE_MS").unwrap_or(30_000);
    let linger_ms = setting("PRESENCE_LINGER_MS").unwrap_or(0);
    let client = Client::open(url)?;
    let mut session =
        Session { client, connection: None, space, user, session, lease_ms, linger_ms };

    let (end, ended) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(end);
    });

    let mut said = false;
    loop {
        let pause_ms = match session.beat() {
            Ok(came) => {
                if came || !said {
                    println!("{}", if said { "online again" } else { "online" });
                    said = true;
                }
                lease_ms as f64 / 3.0 * rand::random_range(0.8..1.0)
            }
            // CLOSED, WRONGTYPE: it would be told the same again.
            Err(error) if error.code().is_some_and(|code| code != "LOADING") => return Err(error),
            Err(error) => {
                eprintln!("heartbeat: {error}; trying again");
                session.connection = None;
                (lease_ms as f64 / 10.0).min(500.0)
            }
        };
        let pause = Duration::from_millis(pause_ms as u64);
        if ended.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            break;
        }
    }
    session.leave()?;
    println!("offline");
    Ok(())
}
