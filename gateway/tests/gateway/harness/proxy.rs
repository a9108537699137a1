//! A connection to the server that a test can cut.

use super::Server;
use tokio::net::TcpStream;

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

    /// Ends all connections and accepts no new ones until `restore`.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    pub fn restore(&self) {
        self.up.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}
