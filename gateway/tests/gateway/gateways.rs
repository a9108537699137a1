//! Several gateways with one server, and what happens when one of them, or the server, ends.

use crate::harness::*;

#[tokio::test]
async fn sessions_survive_a_gateway_that_dies() {
    let server = Server::start().await;
    let (one, two) = (Gateway::start(&server).await, Gateway::start(&server).await);
    let mut watcher = two.join("/s?identity=watcher").await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(one.join(&format!("/s?identity=user{n}")).await);
        watcher.expect("remote join", &clients[n].own()).await;
    }
    one.kill();
    for (n, client) in clients.iter_mut().enumerate() {
        client.until_close().await;
        // Half of them know of tokens.
        let token = if n % 2 == 0 { format!("&token={}", client.token()) } else { String::new() };
        let again = two.join(&format!("/s?identity=user{n}&id={}{token}", client.id())).await;
        assert_eq!((again.id(), again.own()), (client.id(), client.own()));
        assert_eq!(again.identities().len(), 21);
        *client = again;
    }
    assert!(watcher.so_far().await.is_empty(), "no session ended");
    assert_eq!(server.events("s").await.len(), 21);
}

#[tokio::test]
async fn sessions_survive_a_gateway_that_is_ended() {
    let server = Server::start().await;
    let (one, two) =
        (Gateway::with(&server, &[("LINGER_MS", "1")]).await, Gateway::start(&server).await);
    let mut watcher = two.join("/s?identity=watcher").await;
    let mut client = one.join("/s?identity=a").await;
    watcher.expect("remote join", &client.own()).await;
    assert!(one.end().await, "it ends as it should");
    assert_eq!(client.until_close().await, (vec![], Some(1012)));
    let again =
        two.join(&format!("/s?identity=a&id={}&token={}", client.id(), client.token())).await;
    assert_eq!(again.own(), client.own());
    assert!(watcher.so_far().await.is_empty());
}

#[tokio::test]
async fn one_subscription_per_space() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut clients = Vec::new();
    for n in 0..50 {
        clients.push(gateway.join(&format!("/s?identity=user{n}")).await);
    }
    let subscribers = async || -> i64 {
        let reply: (String, i64) = server.ask("PUBSUB NUMSUB presence:s").await;
        reply.1
    };
    assert_eq!(subscribers().await, 1);
    for client in clients {
        client.close().await;
    }
    eventually("the subscription to end", async || subscribers().await == 0).await;
}

#[tokio::test]
async fn sessions_of_other_programs_are_seen() {
    let server = Server::start().await;
    let _: i64 = server.ask("PRESENCE.ONLINE s bob SESSION phone").await;
    let gateway = Gateway::start(&server).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    assert_eq!(alice.identities(), ["alice", "bob"]);
    let _: i64 = server.ask("PRESENCE.ONLINE s carol SESSION phone").await;
    let carol = alice.next().await;
    assert_eq!(
        (&carol["client"]["identity"], &carol["client"]["id"]),
        (&json!("carol"), &json!("carol/phone"))
    );
    // Their ids cannot be taken over.
    for id in ["phone", "bob%2Fphone"] {
        let mut client = gateway.connect(&format!("/s?identity=bob&id={id}")).await;
        let first = client.next().await;
        assert!(first["error"].is_string() || first["id"] != "phone", "{first}");
    }
}

#[tokio::test]
async fn the_server_restarts() {
    let mut server = Server::start().await;
    let _: String = server.ask("CONFIG SET appendfsync always").await;
    let gateway = Gateway::start(&server).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    let bob = gateway.join("/s?identity=bob").await;
    alice.expect("remote join", &bob.own()).await;
    server.restart().await;
    // Sessions were kept, and sockets never closed; the subscription comes back.
    let carol = loop {
        let mut client = gateway.connect("/s?identity=carol").await;
        match client.next_or_close().await {
            Ok(first) if first["id"].is_string() => {
                client.first = first;
                break client;
            }
            _ => tokio::time::sleep(ms(50)).await,
        }
    };
    assert_eq!(carol.identities(), ["alice", "bob", "carol"]);
    alice.expect("remote join", &carol.own()).await;
    alice.send(r#"{"action":"ping"}"#).await;
    assert!(alice.so_far().await.is_empty());
}

/// The gateway reads the events that the subscription missed.
#[tokio::test]
async fn a_subscription_that_breaks_misses_nothing() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    for round in 0..10 {
        let _: redis::Value = server.ask("CLIENT KILL TYPE pubsub").await;
        let user = format!("user{round}");
        let _: i64 = server.ask(&format!("PRESENCE.ONLINE s {user}")).await;
        let join = alice.next().await;
        assert_eq!(
            (&join["event"], &join["client"]["identity"]),
            (&json!("remote join"), &json!(user))
        );
        if round % 3 == 2 {
            let _: redis::Value = server.ask("CLIENT KILL TYPE pubsub").await;
            let _: i64 = server.ask(&format!("PRESENCE.OFFLINE s {user}")).await;
            let leave = alice.next().await;
            assert_eq!(
                (&leave["event"], &leave["client"]["identity"]),
                (&json!("remote leave"), &json!(user))
            );
        }
    }
}

#[tokio::test]
async fn too_much_was_missed_for_the_history() {
    let server = Server::start().await;
    let _: String = server.ask("CONFIG SET presence.history-length 2").await;
    let gateway = Gateway::start(&server).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    let mut detailed = gateway.join("/s?identity=detailed&events=1").await;
    alice
        .expect("remote join", &{
            let mut own = detailed.own();
            own.as_object_mut().unwrap().remove("status");
            own
        })
        .await;
    detailed.so_far().await;
    // All of this while nothing is subscribed.
    let mut commands = vec!["CLIENT KILL TYPE pubsub".to_string()];
    commands.extend((1..=9).map(|n| format!("PRESENCE.ONLINE s user{n}")));
    commands.push("PRESENCE.OFFLINE s user5".into());
    server.transaction(&commands).await;
    let mut joined = Vec::new();
    for _ in 0..8 {
        let message = alice.next().await;
        assert_eq!(message["event"], "remote join");
        joined.push(text_of(&message["client"]["identity"]));
    }
    joined.sort();
    assert_eq!(joined, ["user1", "user2", "user3", "user4", "user6", "user7", "user8", "user9"]);
    let resync = loop {
        let message = detailed.next().await;
        if message["event"] == "resync" {
            break message;
        }
    };
    assert_eq!(resync["clients"].as_array().unwrap().len(), 10);
}

/// A connection to a server that hangs looks like a quiet one. Only a request shows the difference.
#[tokio::test]
async fn the_server_hangs() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    server.signal(Signal::STOP);
    eventually("bad health", async || gateway.get("/health").await.0 == 503).await;
    server.signal(Signal::CONT);
    eventually("health", async || gateway.get("/health").await.0 == 200).await;
    let _: i64 = server.ask("PRESENCE.ONLINE s bob").await;
    let join = alice.next().await;
    assert_eq!(
        (&join["event"], &join["client"]["identity"]),
        (&json!("remote join"), &json!("bob"))
    );
}
