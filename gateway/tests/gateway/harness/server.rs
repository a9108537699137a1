//! A server with the module.

use super::{Json, SOON, Signal, free_port, ms, signal, text_of};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

pub struct Server {
    dir: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
    append_only: bool,
}

impl Server {
    pub async fn start() -> Server {
        let mut dir = tempfile::Builder::new().prefix("gateway-test-").tempdir().unwrap();
        for _ in 0..20 {
            let mut server = Server { dir, port: free_port(), child: None, append_only: true };
            if server.launch().await {
                return server;
            }
            dir = server.take_dir();
        }
        panic!("no free port found");
    }

    fn take_dir(&mut self) -> tempfile::TempDir {
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// False if another process took the port first.
    async fn launch(&mut self) -> bool {
        let module = std::env::var_os("PRESENCE_MODULE").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/presence.so")),
            PathBuf::from,
        );
        let program = std::env::var_os("PRESENCE_SERVER").unwrap_or_else(|| "redis-server".into());
        let program = match PathBuf::from(&program).components().count() {
            1 => PathBuf::from(program),
            _ => std::path::absolute(program).unwrap(),
        };
        let conf = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsave \"\"\nappendonly {}\nappendfsync no\nlogfile log\n\
             crash-log-enabled no\nenable-debug-command yes\nloadmodule {}\n",
            self.port,
            self.dir.path().display(),
            if self.append_only { "yes" } else { "no" },
            module.canonicalize().expect("the module: make build").display()
        );
        std::fs::write(self.dir.path().join("redis.conf"), conf).unwrap();
        let child = Command::new(program)
            .arg(self.dir.path().join("redis.conf"))
            .current_dir(self.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the server");
        self.child = Some(child);
        let end = Instant::now() + SOON;
        loop {
            if let Ok(mut c) = self.try_connect().await {
                let pong: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut c).await;
                if pong.is_ok() {
                    return true;
                }
            }
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                assert!(log.contains("Address already in use"), "the server did not start: {log}");
                return false;
            }
            assert!(Instant::now() < end, "the server does not answer");
            tokio::time::sleep(ms(20)).await;
        }
    }

    async fn try_connect(&self) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(SOON));
        let client = redis::Client::open(self.url())?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A command split at white space, on a connection of its own.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.ask_words(&words).await
    }

    pub async fn ask_words<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.try_connect().await.expect("connect");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Commands between which nothing else can happen.
    pub async fn transaction(&self, commands: &[String]) {
        let mut connection = self.try_connect().await.expect("connect");
        let mut pipe = redis::pipe();
        pipe.atomic();
        for command in commands {
            let words: Vec<&str> = command.split_whitespace().collect();
            pipe.cmd(words[0]).arg(&words[1..]);
        }
        let replies: redis::Value = pipe.query_async(&mut connection).await.expect("transaction");
        drop(replies);
    }

    /// The events of a space: "join alice", "leave alice (timeout)".
    pub async fn events(&self, space: &str) -> Vec<String> {
        let reply: Vec<redis::Value> = self.ask_words(&["PRESENCE.EVENTS", space]).await;
        let events: Vec<String> = redis::from_redis_value(reply[5].clone()).unwrap();
        let brief = |text: &String| {
            let event: Json = serde_json::from_str(text).unwrap();
            let mut brief = format!("{} {}", text_of(&event["type"]), text_of(&event["user"]));
            if let Some(reason) = event["reason"].as_str() {
                brief += &format!(" ({reason})");
            }
            brief
        };
        events.iter().map(brief).collect()
    }

    /// The user and the time left, in ms, of each session in a space.
    pub async fn leases(&self, space: &str) -> Vec<(String, i64)> {
        let (seconds, micros): (i64, i64) = self.ask("TIME").await;
        let now = seconds * 1000 + micros / 1000;
        let page: Vec<redis::Value> =
            self.ask_words(&["PRESENCE.SPACE", space, "WITHSESSIONS"]).await;
        let members: Vec<Vec<redis::Value>> = redis::from_redis_value(page[9].clone()).unwrap();
        let mut leases = Vec::new();
        for member in members {
            let user: String = redis::from_redis_value(member[1].clone()).unwrap();
            let sessions: Vec<Vec<redis::Value>> =
                redis::from_redis_value(member[3].clone()).unwrap();
            for session in sessions {
                let at = session
                    .iter()
                    .position(|v| *v == redis::Value::BulkString(b"expires_at".into()));
                let ends: i64 = redis::from_redis_value(session[at.unwrap() + 1].clone()).unwrap();
                leases.push((user.clone(), ends - now));
            }
        }
        leases
    }

    pub async fn count(&self, space: &str) -> i64 {
        self.ask_words(&["PRESENCE.COUNT", space, "SESSIONS"]).await
    }

    /// SIGKILL, and a start with the append-only file.
    pub async fn restart(&mut self) {
        self.kill();
        assert!(self.launch().await, "the port is taken");
    }

    /// SIGKILL, and a start with the last snapshot.
    pub async fn restart_from_snapshot(&mut self) {
        self.kill();
        self.append_only = false;
        assert!(self.launch().await, "the port is taken");
    }

    /// With STOP the server does not reply any more; with CONT it continues.
    pub fn signal(&self, which: Signal) {
        signal(self.child.as_ref().expect("it runs").id(), which);
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
