//! WebSocket clients.

use super::{Json, Message, SOON, json, rand, text_of};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

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

    /// The messages until the socket closes, and the close code.
    pub async fn until_close(&mut self) -> (Vec<Json>, Option<u16>) {
        let mut messages = Vec::new();
        loop {
            match self.next_or_close().await {
                Ok(message) => messages.push(message),
                Err(frame) => return (messages, frame.map(|f| u16::from(f.code))),
            }
        }
    }

    /// All messages that were sent before: those that arrive before the reply to a message of its own.
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

    /// Breaks the connection without a close frame.
    pub fn drop_connection(self) {
        drop(self.ws);
    }
}
