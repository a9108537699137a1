//! Gateways.

use super::{Client, Json, SOON, Server, Signal, ms, signal};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

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

    /// None if it ends instead of listening.
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

    /// With STOP the gateway is suspended; with CONT it continues.
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
