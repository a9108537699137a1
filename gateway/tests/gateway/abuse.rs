//! Nothing that a client sends harms the gateway or other clients.

use crate::harness::*;
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Numbers that are the same in each run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// Valid messages, cut, changed and put together.
#[tokio::test]
async fn strange_messages() {
    let server = Server::start().await;
    let mut gateway = Gateway::with(&server, &[("MESSAGE_RATE", "100000")]).await;
    let mut watcher = gateway.join("/s?identity=watcher").await;
    let seeds = [
        r#"{"action":"ping"}"#,
        r#"{"action":"cursor","x":[1,{"y":null}],"clientId":"z"}"#,
        r#"{"action":"message","text":"\u0000\ud83d\ude00"}"#,
        r#"{"action":"status","status":"%s%n"}"#,
        r#"{"action":"crowd","do":"come"}"#,
        r#"{"action":"ping","action":5,"x":1e999,"y":"\ud800"}"#,
        "[[[[[[[[",
        "\u{0}",
    ];
    let mut numbers = Numbers(42);
    for round in 0..20 {
        let mut client = gateway.join("/s?identity=mallory").await;
        for _ in 0..100 {
            let mut text = seeds[numbers.below(seeds.len())].as_bytes().to_vec();
            for _ in 0..numbers.below(6) {
                let at = numbers.below(text.len().max(1));
                match numbers.below(4) {
                    0 => text.truncate(at),
                    1 => text.insert(at.min(text.len()), numbers.next() as u8),
                    2 if at < text.len() => text[at] = numbers.next() as u8,
                    _ => text.extend_from_slice(seeds[numbers.below(seeds.len())].as_bytes()),
                }
            }
            let message = match String::from_utf8(text) {
                Ok(text) => Message::text(text),
                Err(bytes) => Message::binary(bytes.into_bytes()),
            };
            client.ws.send(message).await.unwrap();
            // Its replies are read, so that it is not too slow.
            if round % 2 == 0 {
                client.so_far().await;
            }
        }
        client.so_far().await;
    }
    let big = format!(r#"{{"action":"cursor","x":"{}"}}"#, "x".repeat(100_000));
    let mut client = gateway.join("/s?identity=mallory").await;
    let _ = client.ws.send(Message::text(big)).await;
    client.until_close().await;
    watcher.so_far().await;
    assert!(gateway.alive());
    assert_eq!(gateway.join("/t?identity=x").await.identities(), ["x"]);
}

/// Bytes that are no HTTP, and frames that are no WebSocket.
#[tokio::test]
async fn strange_bytes() {
    let server = Server::start().await;
    let mut gateway = Gateway::start(&server).await;
    let mut numbers = Numbers(7);
    let upgrade = "GET /s?identity=m HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for round in 0..60 {
        let mut stream = tokio::net::TcpStream::connect(&gateway.address).await.unwrap();
        if round % 3 != 0 {
            stream.write_all(upgrade.as_bytes()).await.unwrap();
            let mut some = [0; 64];
            let _ = stream.read(&mut some).await;
        }
        let n = 1 + numbers.below(300);
        let bytes = numbers.bytes(n);
        let _ = stream.write_all(&bytes).await;
        if round % 2 == 0 {
            let _ = stream.shutdown().await;
        }
    }
    for path in [
        "/%",
        "/%zz?identity=%",
        "/s?&&&==&identity=a&identity",
        "//?identity=a",
        "/s?identity=a&id=%00",
    ] {
        let mut client = gateway.connect(path).await;
        let first = client.next().await;
        assert!(first["id"].is_string() || first["error"].is_string(), "{path}: {first}");
    }
    assert!(gateway.alive());
    assert_eq!(gateway.get("/health").await.0, 200);
}

/// A client that does not read is closed. The others are not affected, and its session stays live until the lease ends.
#[tokio::test]
async fn a_slow_client_is_closed_and_the_others_stay() {
    let server = Server::start().await;
    let settings = [("QUEUE", "64"), ("MESSAGE_RATE", "100000")];
    let gateway = Gateway::with(&server, &settings).await;
    let mut slow = gateway.join("/s?identity=slow").await;
    let mut reader = gateway.join("/s?identity=reader").await;
    let mut sender = gateway.join("/s?identity=sender").await;
    reader.expect("remote join", &sender.own()).await;
    // Until the system's buffers on both sides, and then the queue, are full: the slow one is the only one that does
    // not read, and one that is dropped shows in nothing but its own socket.
    let payload = "x".repeat(30_000);
    // The sender is never more than half a queue ahead of the one that reads.
    let ahead = Arc::new(Semaphore::new(32));
    let read = ahead.clone();
    let reading = tokio::spawn(async move {
        for n in 0..1500 {
            let message = reader.next().await;
            assert_eq!(message["n"], n);
            read.add_permits(1);
        }
        reader
    });
    for n in 0..1500 {
        ahead.acquire().await.unwrap().forget();
        sender.send(json!({"action": "cursor", "n": n, "x": payload})).await;
    }
    let mut reader = reading.await.unwrap();
    let (messages, code) = slow.until_close().await;
    assert!(messages.len() < 1500, "it was dropped");
    if let Some(last) = messages.last().filter(|m| m["error"].is_string()) {
        assert!(text_of(&last["error"]).contains("too slow"), "{last}");
        assert_eq!(code, Some(1013));
    }
    assert_eq!(server.count("s").await, 3, "its session lives on");
    let token = slow.token();
    let again = gateway.join(&format!("/s?identity=slow&id={}&token={token}", slow.id())).await;
    assert_eq!(again.own(), slow.own());
    assert!(reader.so_far().await.iter().all(|m| m["event"] != "remote leave"));
}

/// A slow client that reads in the end gets the reason.
#[tokio::test]
async fn a_slow_client_gets_the_reason() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("QUEUE", "16"), ("MESSAGE_RATE", "100000")]).await;
    let mut slow = gateway.connect_with("/s?identity=slow", WebSocketConfig::default()).await;
    slow.first = slow.next().await;
    let mut sender = gateway.join("/s?identity=sender").await;
    let payload = "x".repeat(30_000);
    let mut told = Vec::new();
    for n in 0.. {
        sender.send(json!({"action": "cursor", "n": n, "x": payload})).await;
        // Fills up what lies between, then reads all of it.
        if n % 400 == 399 {
            while let Ok(Some(Ok(message))) = tokio::time::timeout(ms(500), slow.ws.next()).await {
                told.push(message);
            }
            if matches!(told.last(), Some(Message::Close(_))) {
                break;
            }
        }
        assert!(n < 10_000, "it is never dropped");
    }
    let Some(Message::Close(Some(frame))) = told.pop() else { panic!("no close") };
    assert_eq!(u16::from(frame.code), 1013);
    assert!(told.pop().unwrap().to_text().unwrap().contains("too slow"));
}

#[tokio::test]
async fn too_many_clients() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("MAX_CLIENTS", "2")]).await;
    let _one = gateway.join("/s?identity=a").await;
    let two = gateway.join("/s?identity=b").await;
    let url = format!("ws://{}/s?identity=c", gateway.address);
    assert!(tokio_tungstenite::connect_async(&url).await.is_err());
    two.close().await;
    eventually("a free seat", async || tokio_tungstenite::connect_async(&url).await.is_ok()).await;
}
