//! A server with the module, gateways in front of it, and WebSocket clients.
//!
//! Each test has its own of everything, on free loopback ports, ended when dropped. What is waited for has a generous
//! deadline; what must not happen is proven by something that comes after it, not by waiting.
//!
//! `PRESENCE_SERVER` names the server's binary (default `redis-server`), `PRESENCE_MODULE` the module (default
//! `target/release/presence.so` of this project).

use futures_util::{SinkExt, StreamExt};
pub use presence_testkit::{Signal, not_tested, signal};
pub use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
pub use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Long enough for anything that ought to happen at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Polls until it holds; fails the test after SOON.
pub async fn eventually<F: std::future::Future<Output = bool>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(ms(20)).await;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The server

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

    /// False where somebody else took the port first.
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

    /// What happened in a space: "join alice", "leave alice (timeout)".
    pub async fn story(&self, space: &str) -> Vec<String> {
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

    /// SIGKILL, and a new start with what the append-only file has.
    pub async fn restart(&mut self) {
        self.kill();
        assert!(self.launch().await, "the port is taken");
    }

    /// SIGKILL, and a new start with the last snapshot.
    pub async fn restart_from_snapshot(&mut self) {
        self.kill();
        self.append_only = false;
        assert!(self.launch().await, "the port is taken");
    }

    /// STOP and CONT: a server that is there and does not answer, and goes on.
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

// ---------------------------------------------------------------------------------------------------------------------
// A link to the server that can be cut

pub struct Proxy {
    port: u16,
    up: tokio::sync::watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server: &Server) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), server.port);
        let (up, is_up) = tokio::sync::watch::channel(true);
        let accepting = tokio::spawn(async move {
            loop {
                let (mut inbound, _) = listener.accept().await.unwrap();
                let mut is_up = is_up.clone();
                if !*is_up.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    let mut outbound = TcpStream::connect(("127.0.0.1", to)).await?;
                    tokio::select! {
                        ended = tokio::io::copy_bidirectional(&mut inbound, &mut outbound) => ended.map(drop),
                        _ = is_up.changed() => Ok(()),
                    }
                });
            }
        });
        Proxy { port, up, accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends all connections, and takes no more until it is mended.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    pub fn mend(&self) {
        self.up.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Gateways

pub struct Gateway {
    child: Child,
    pub address: String,
}

impl Gateway {
    pub async fn start(server: &Server) -> Gateway {
        Gateway::with(server, &[]).await
    }

    /// With settings.
    pub async fn with(server: &Server, settings: &[(&str, &str)]) -> Gateway {
        Gateway::try_with(&server.url(), settings)
            .unwrap_or_else(|| panic!("the gateway did not start"))
    }

    /// None where it ends instead of listening.
    pub fn try_with(redis: &str, settings: &[(&str, &str)]) -> Option<Gateway> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_presence-gateway"))
            .envs([("PORT", "0"), ("REDIS_URL", redis), ("PRESENCE_TTL", "60000")])
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the gateway");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim().strip_prefix("gateway: http://") else {
            let _ = child.wait();
            return None;
        };
        let address = address.to_string();
        Some(Gateway { child, address })
    }

    /// Connects, and takes the first message.
    pub async fn join(&self, path_and_query: &str) -> Client {
        let mut client = self.connect(path_and_query).await;
        client.first = client.next().await;
        assert!(client.first["id"].is_string(), "{}", client.first);
        client
    }

    pub async fn connect(&self, path_and_query: &str) -> Client {
        self.connect_with(path_and_query, WebSocketConfig::default()).await
    }

    pub async fn connect_with(&self, path_and_query: &str, config: WebSocketConfig) -> Client {
        let url = format!("ws://{}{path_and_query}", self.address);
        let (ws, _) = tokio_tungstenite::connect_async_with_config(url, Some(config), false)
            .await
            .expect("connect");
        Client { ws, first: Json::Null }
    }

    /// STOP and CONT: a gateway that stands still for a moment.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// SIGKILL: a crash.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
    }

    /// SIGTERM, and its exit status.
    pub async fn end(mut self) -> bool {
        signal(self.child.id(), Signal::TERM);
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < end, "the gateway does not end");
            tokio::time::sleep(ms(20)).await;
        }
    }

    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The status line's code and the body of a GET.
    pub async fn get(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Clients

pub struct Client {
    pub ws: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The first message.
    pub first: Json,
}

impl Client {
    pub fn id(&self) -> String {
        text_of(&self.first["id"])
    }

    pub fn token(&self) -> String {
        text_of(&self.first["token"])
    }

    /// Itself, as the first message lists it.
    pub fn own(&self) -> Json {
        let list = self.first["clients"].as_array().unwrap();
        list.iter().find(|c| c["id"] == self.first["id"]).expect("oneself in the list").clone()
    }

    /// Identities in the first message, sorted.
    pub fn identities(&self) -> Vec<String> {
        let list = self.first["clients"].as_array().unwrap();
        let mut names: Vec<String> = list.iter().map(|c| text_of(&c["identity"])).collect();
        names.sort();
        names
    }

    pub async fn send(&mut self, text: impl ToString) {
        self.ws.send(Message::text(text.to_string())).await.expect("send");
    }

    /// The next message but the server's pings. Fails the test if none comes, or the socket closes.
    pub async fn next(&mut self) -> Json {
        match self.next_or_close().await {
            Ok(message) => message,
            Err(close) => panic!("closed: {close:?}"),
        }
    }

    /// The next message, or why the socket closed.
    pub async fn next_or_close(&mut self) -> Result<Json, Option<CloseFrame>> {
        loop {
            let next = tokio::time::timeout(SOON, self.ws.next()).await;
            match next.expect("no message within the deadline") {
                Some(Ok(Message::Text(text))) => {
                    let message: Json = serde_json::from_str(&text).expect("a message is JSON");
                    if message != json!({"ping": true}) {
                        return Ok(message);
                    }
                }
                Some(Ok(Message::Close(frame))) => return Err(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// What comes until the socket closes, and the code it closes with.
    pub async fn until_close(&mut self) -> (Vec<Json>, Option<u16>) {
        let mut messages = Vec::new();
        loop {
            match self.next_or_close().await {
                Ok(message) => messages.push(message),
                Err(frame) => return (messages, frame.map(|f| u16::from(f.code))),
            }
        }
    }

    /// Everything that was on its way: what has come when the answer to a message of its own is here.
    pub async fn so_far(&mut self) -> Vec<Json> {
        let mark = format!("mark{}", rand());
        self.send(json!({"action": mark})).await;
        let mut messages = Vec::new();
        loop {
            let message = self.next().await;
            if message["error"].as_str().is_some_and(|e| e.ends_with(&mark)) {
                return messages;
            }
            messages.push(message);
        }
    }

    /// The next message is this event about this client.
    pub async fn expect(&mut self, event: &str, client: &Json) {
        let message = self.next().await;
        assert_eq!(message, json!({"event": event, "client": client}));
    }

    pub async fn close(mut self) {
        let _ = self.ws.close(None).await;
        while let Some(Ok(_)) = self.ws.next().await {}
    }

    /// The connection breaks without a word.
    pub fn drop_connection(self) {
        drop(self.ws);
    }
}

pub fn text_of(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_string()
}

pub fn rand() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32
}
