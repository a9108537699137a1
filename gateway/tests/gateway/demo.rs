//! What the page uses beyond Longhouse's protocol: events, messages, status, simulated users.

use crate::harness::*;

#[tokio::test]
async fn events_messages_and_status() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut alice = gateway.join("/s?identity=alice&events=1&status=here").await;
    assert_eq!(alice.own()["status"], "here");
    assert_eq!(alice.first["space"], "s");
    assert_eq!(alice.first["ttl"], 60_000);
    let bob = gateway.join("/s?identity=bob&events=1").await;
    let event = alice.next().await;
    assert_eq!(event["event"], "space");
    assert_eq!((&event["data"]["type"], &event["data"]["users"]), (&json!("join"), &json!(2)));
    assert_eq!(event["data"]["client"], bob.own());
    alice.send(r#"{"action":"status","status":"away"}"#).await;
    let event = alice.next().await;
    assert_eq!(event["data"]["type"], "update");
    assert_eq!(event["data"]["client"]["status"], "away");
    alice.send(r#"{"action":"message","text":"hello"}"#).await;
    let event = alice.next().await;
    assert_eq!(
        (&event["data"]["type"], &event["data"]["message"]),
        (&json!("message"), &json!("hello"))
    );
    // A status survives a new connection that brings none.
    let path = format!("/s?identity=alice&events=1&id={}&token={}", alice.id(), alice.token());
    let again = gateway.join(&path).await;
    assert_eq!(again.own()["status"], "away");
    // A leave at once, without the linger.
    alice = again;
    alice.send(r#"{"action":"leave"}"#).await;
    alice.until_close().await;
    eventually("the leave", async || server.count("s").await == 1).await;
    assert_eq!(server.events("s").await.last().unwrap(), "leave alice (offline)");
}

#[tokio::test]
async fn simulated_users_join_and_crash() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("CROWD", "300")]).await;
    let mut alice = gateway.join("/s?identity=alice&events=1").await;
    assert_eq!(alice.first["crowd"], 300);
    alice.send(r#"{"action":"crowd","do":"come"}"#).await;
    alice.send(r#"{"action":"crowd","do":"come"}"#).await; // one is enough
    eventually("the simulated users", async || server.count("s").await == 301).await;
    // They stay for longer than their lease.
    tokio::time::sleep(ms(5000)).await;
    assert_eq!(server.count("s").await, 301);
    alice.send(r#"{"action":"crowd","do":"crash"}"#).await;
    let (mut joins, mut leaves) = (0, 0);
    while leaves < 300 {
        let message = alice.next().await;
        match message["data"]["type"].as_str() {
            Some("join") => joins += 1,
            Some("leave") => {
                assert_eq!(message["data"]["reason"], "timeout");
                leaves += 1;
            }
            _ => assert_eq!(message["event"], "crowd", "{message}"),
        }
    }
    assert_eq!(joins, 300);
    assert_eq!(server.count("s").await, 1);
}

#[tokio::test]
async fn simulations_are_limited() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut client = gateway.join("/s?identity=a").await;
    client.send(r#"{"action":"crowd","do":"come"}"#).await;
    assert!(client.next().await["error"].is_string(), "only where it is switched on");
    let gateway = Gateway::with(&server, &[("CROWD", "10")]).await;
    let mut answers = Vec::new();
    let mut clients = Vec::new();
    for n in 0..6 {
        let mut client = gateway.join(&format!("/room{n}?identity=a&events=1")).await;
        client.send(r#"{"action":"crowd","do":"come"}"#).await;
        let answer = loop {
            let message = client.next().await;
            if message["event"] != "space" {
                break message;
            }
        };
        answers.push(answer["state"] == "here");
        clients.push(client);
    }
    assert_eq!(answers, [true, true, true, true, false, false]);
}
