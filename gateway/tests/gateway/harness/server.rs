//! A server with the module.

use super::{Json, SOON, Signal, signal, text_of};
use presence_testkit::Stop;
use std::io::Write;

pub struct Server {
    process: presence_testkit::Server,
    pub port: u16,
}

impl Server {
    pub async fn start() -> Server {
        let settings = [("appendonly", "yes"), ("appendfsync", "no")];
        let process = presence_testkit::Server::with(&settings);
        Server { port: process.port, process }
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

    /// The owners, and how many live sessions each of them has.
    pub async fn owners(&self) -> std::collections::HashMap<String, usize> {
        let reply: Vec<Vec<redis::Value>> = self.ask("PRESENCE.OWNER LIST").await;
        let read = |v: &redis::Value| redis::from_redis_value::<String>(v.clone()).unwrap();
        reply.iter().map(|o| (read(&o[1]), read(&o[3]).parse().unwrap())).collect()
    }

    /// The owner of a user's first session; None if it has a lease of its own, or does not exist.
    pub async fn owner(&self, space: &str, user: &str) -> Option<String> {
        let reply: redis::Value = self.ask_words(&["PRESENCE.USER", space, user]).await;
        let redis::Value::Array(fields) = reply else { return None };
        let sessions: Vec<Vec<redis::Value>> = redis::from_redis_value(fields[5].clone()).unwrap();
        let session = sessions.first()?;
        let at = session.iter().position(|v| *v == redis::Value::BulkString(b"owner".into()));
        redis::from_redis_value(session[at? + 1].clone()).unwrap()
    }

    pub async fn count(&self, space: &str) -> i64 {
        self.ask_words(&["PRESENCE.COUNT", space, "SESSIONS"]).await
    }

    /// SIGKILL, and a start with the append-only file.
    pub async fn restart(&mut self) {
        self.process.restart(Stop::Kill);
    }

    /// SIGKILL, and a start with the last snapshot.
    pub async fn restart_from_snapshot(&mut self) {
        let conf = self.process.dir().join("redis.conf");
        let mut conf = std::fs::OpenOptions::new().append(true).open(conf).unwrap();
        // The last of two lines counts.
        writeln!(conf, "appendonly no").unwrap();
        self.restart().await;
    }

    /// With STOP the server does not reply any more; with CONT it continues.
    pub fn signal(&self, which: Signal) {
        signal(self.process.pid(), which);
    }

    pub fn kill(&mut self) {
        self.process.stop(Stop::Kill);
    }
}
