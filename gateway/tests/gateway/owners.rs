//! Owners: one lease for all sessions of a gateway.

use crate::harness::*;

/// The gateway dies. Clients that come back elsewhere were never gone; the others leave once, after the linger.
#[tokio::test]
async fn a_gateway_is_killed() {
    let server = Server::start().await;
    let one = Gateway::with(&server, &[("LINGER_MS", "4000")]).await;
    let two = Gateway::start(&server).await;
    let mut watcher = two.join("/s?identity=watcher").await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(one.join(&format!("/s?identity=user{n}")).await);
        watcher.expect("remote join", &clients[n].own()).await;
    }
    one.kill();
    let (back, lost) = clients.split_at_mut(10);
    for (n, client) in back.iter_mut().enumerate() {
        let path = format!("/s?identity=user{n}&id={}&token={}", client.id(), client.token());
        let again = two.join(&path).await;
        assert_eq!(again.own(), client.own());
        *client = again;
    }
    let mut left = Vec::new();
    for _ in lost.iter() {
        let message = watcher.next().await;
        assert_eq!(message["event"], "remote leave");
        left.push(text_of(&message["client"]["id"]));
    }
    left.sort();
    let mut expected: Vec<String> = lost.iter().map(Client::id).collect();
    expected.sort();
    assert_eq!(left, expected);
    assert!(watcher.so_far().await.is_empty());
    let events = server.events("s").await;
    assert_eq!(events.iter().filter(|e| e.ends_with("(timeout)")).count(), 10, "{events:?}");
    assert_eq!(events.len(), 31, "{events:?}");
}

/// The server ends the owner. The clients are still connected, so their sessions come back.
#[tokio::test]
async fn an_owner_that_has_ended_is_made_again() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("GATEWAY_ID", "one")]).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    let owned: i64 = server.ask("PRESENCE.OWNER RENEW one PX 1").await;
    assert_eq!(owned, 1);
    eventually("the session to come back", async || {
        server.events("s").await == ["join alice", "leave alice (timeout)", "join alice"]
    })
    .await;
    eventually("the owner", async || server.owner("s", "alice").await.is_some()).await;
    assert!(alice.so_far().await.is_empty(), "the client is not concerned");
    // A newcomer makes the owner, too.
    let _: i64 = server.ask("PRESENCE.OWNER END one").await;
    assert_eq!(alice.until_close().await.1, Some(4001));
    let bob = gateway.join("/s?identity=bob").await;
    assert_eq!(bob.identities(), ["bob"]);
}

/// The connection of the owner breaks, and no session ends.
#[tokio::test]
async fn a_broken_bond_is_made_again() {
    let server = Server::start().await;
    let settings = [("GATEWAY_ID", "one"), ("LINGER_MS", "0")];
    let gateway = Gateway::with(&server, &settings).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    for _ in 0..3 {
        let _: i64 = server.ask("CLIENT KILL TYPE normal SKIPME yes").await;
        eventually("the bond", async || {
            let owners: Vec<Vec<redis::Value>> = server.ask("PRESENCE.OWNER LIST").await;
            redis::from_redis_value::<i64>(owners[0][7].clone()).unwrap() == 1
        })
        .await;
    }
    assert!(alice.so_far().await.is_empty());
    assert_eq!(server.events("s").await, ["join alice"]);
}

/// A gateway that comes back under its name finds sessions without connections.
#[tokio::test]
async fn sessions_of_a_former_life_end() {
    let server = Server::start().await;
    let settings = [("GATEWAY_ID", "one"), ("OWNER_TTL", "1500"), ("LINGER_MS", "100")];
    let _: i64 = server.ask("PRESENCE.OWNER RENEW one PX 60000").await;
    let _: i64 = server.ask("PRESENCE.ONLINE s ghost OWNER one").await;
    let _gateway = Gateway::with(&server, &settings).await;
    eventually("the ghost to leave", async || server.count("s").await == 0).await;
    assert_eq!(server.events("s").await, ["join ghost", "leave ghost (offline)"]);
}

/// Pings of clients are not passed on to the server.
#[tokio::test]
async fn no_command_per_heartbeat() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(gateway.join(&format!("/s?identity=user{n}")).await);
    }
    let _: String = server.ask("CONFIG RESETSTAT").await;
    for _ in 0..20 {
        for client in &mut clients {
            client.send(r#"{"action":"ping"}"#).await;
        }
    }
    for client in &mut clients {
        client.so_far().await;
    }
    let stats: String = server.ask("INFO commandstats").await;
    assert!(!stats.contains("presence.online"), "{stats}");
}
