//! Many clients.

use crate::harness::*;
use std::collections::HashSet;

/// Each client learns of all others, by the list and the joins after it, once each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_150_joins() {
    let server = Server::start().await;
    let gateways = [Gateway::start(&server).await, Gateway::start(&server).await];
    let paths: Vec<String> = (0..150).map(|n| format!("/s?identity=user{n}")).collect();
    let joins = paths.iter().enumerate().map(|(n, path)| gateways[n % 2].join(path));
    let mut clients = futures_util::future::join_all(joins).await;
    let all: HashSet<String> = clients.iter().map(Client::id).collect();
    assert_eq!(all.len(), 150);
    for client in &mut clients {
        let list = client.first["clients"].as_array().unwrap();
        let mut known: Vec<String> = list.iter().map(|c| text_of(&c["id"])).collect();
        while known.len() < 150 {
            let message = client.next().await;
            assert_eq!(message["event"], "remote join");
            known.push(text_of(&message["client"]["id"]));
        }
        assert_eq!(known.iter().cloned().collect::<HashSet<_>>(), all);
    }
}

/// 2,000 sockets in 40 rooms: all get in, and all pings and cursors are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_sockets() {
    const ROOMS: usize = 40;
    const EACH: usize = 50;
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("PRESENCE_TTL", "600000")]).await;
    let mut rooms: Vec<Vec<Client>> = Vec::new();
    for room in 0..ROOMS {
        let paths: Vec<String> =
            (0..EACH).map(|n| format!("/room{room}?identity=user{n}")).collect();
        let joins = paths.iter().map(|path| gateway.join(path));
        rooms.push(futures_util::future::join_all(joins).await);
    }
    let stats: Json = serde_json::from_str(&gateway.get("/stats").await.1).unwrap();
    assert_eq!(stats["sessions"], ROOMS * EACH);
    for room in &mut rooms {
        for client in room.iter_mut() {
            client.send(r#"{"action":"ping"}"#).await;
        }
        let id = room[0].id();
        room[0].send(r#"{"action":"cursor","x":1}"#).await;
        for (n, client) in room.iter_mut().enumerate() {
            let mut known = client.first["clients"].as_array().unwrap().len();
            let mut cursor = n == 0;
            while known < EACH || !cursor {
                let message = client.next().await;
                match message["event"].as_str() {
                    Some("remote join") => known += 1,
                    _ => {
                        assert_eq!(message, json!({"action": "cursor", "x": 1, "clientId": id}));
                        cursor = true;
                    }
                }
            }
            assert_eq!(known, EACH);
        }
    }
    // All of them leave at once.
    let subscribed: Vec<String> = server.ask("PUBSUB CHANNELS presence:*").await;
    assert_eq!(subscribed.len(), ROOMS);
    drop(rooms);
    eventually("everybody to be gone", async || {
        let stats: Json = serde_json::from_str(&gateway.get("/stats").await.1).unwrap();
        stats["sessions"] == 0
    })
    .await;
}
