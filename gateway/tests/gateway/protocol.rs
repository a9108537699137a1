//! Longhouse's protocol, as its clients know it.

use crate::harness::*;

#[tokio::test]
async fn the_first_message_and_remote_events() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("LINGER_MS", "300")]).await;
    let mut alice = gateway.join("/lobby?identity=alice%40example.com&username=Al%20I%20%22").await;
    let own = alice.own();
    assert_eq!(own["identity"], "alice@example.com");
    assert_eq!(own["username"], "Al I \"");
    let joined = text_of(&own["joinedAt"]);
    assert!(joined.len() == 24 && joined.ends_with('Z') && &joined[19..20] == ".", "{joined}");
    let mut keys: Vec<&String> = own.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["id", "identity", "joinedAt", "username"]);

    let bob = gateway.join("/lobby?identity=bob").await;
    assert_eq!(bob.identities(), ["alice@example.com", "bob"]);
    assert_eq!(bob.own()["username"], "");
    assert!(bob.first["clients"].as_array().unwrap().contains(&own));
    alice.expect("remote join", &bob.own()).await;

    // A second tab of alice is a client of its own.
    let tab = gateway.join("/lobby?identity=alice%40example.com").await;
    assert_ne!(tab.id(), alice.id());
    alice.expect("remote join", &tab.own()).await;
    let left = tab.own();
    tab.close().await;
    alice.expect("remote leave", &left).await;
    let left = bob.own();
    bob.drop_connection();
    alice.expect("remote leave", &left).await;
    assert_eq!(server.count("lobby").await, 1);
    // It has received nothing about itself.
    assert!(alice.so_far().await.is_empty());
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_ended() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("PRESENCE_TTL", "1500")]).await;
    let mut quiet = gateway.join("/s?identity=quiet").await;
    let mut lively = gateway.join("/s?identity=lively").await;
    quiet.expect("remote join", &lively.own()).await;
    let began = std::time::Instant::now();
    let messages = loop {
        lively.send(r#"{"action":"ping"}"#).await;
        let seen = lively.so_far().await;
        if !seen.is_empty() {
            break seen;
        }
        assert!(began.elapsed() < SOON, "the quiet one stays");
        tokio::time::sleep(ms(100)).await;
    };
    assert_eq!(messages, [json!({"event": "remote leave", "client": quiet.own()})]);
    let (messages, code) = quiet.until_close().await;
    assert_eq!(messages.last().unwrap(), &json!({"event": "expired"}));
    assert_eq!(code, Some(4001));
    assert_eq!(server.count("s").await, 1);
    assert_eq!(server.events("s").await, ["join quiet", "join lively", "leave quiet (offline)"]);
}

/// Every action says that the client is there, and a pong does not.
#[tokio::test]
async fn actions_keep_a_client() {
    let server = Server::start().await;
    let settings = [("PRESENCE_TTL", "1500"), ("PING_MS", "100")];
    let gateway = Gateway::with(&server, &settings).await;
    let mut quiet = gateway.join("/s?identity=quiet").await;
    let actions = [
        r#"{"action":"cursor"}"#,
        r#"{"action":"message","text":"hi"}"#,
        r#"{"action":"status","status":"here"}"#,
    ];
    let mut clients = Vec::new();
    for n in 0..actions.len() {
        clients.push(gateway.join(&format!("/s?identity=user{n}")).await);
    }
    let quiet = tokio::spawn(async move { quiet.until_close().await });
    while !quiet.is_finished() {
        for (client, action) in clients.iter_mut().zip(actions) {
            client.send(action).await;
        }
        tokio::time::sleep(ms(100)).await;
    }
    // It has answered every ping.
    assert_eq!(quiet.await.unwrap().1, Some(4001));
    for client in &mut clients {
        client.so_far().await;
    }
}

#[tokio::test]
async fn cursors_go_to_the_others() {
    let server = Server::start().await;
    let (one, two) = (Gateway::start(&server).await, Gateway::start(&server).await);
    let mut alice = one.join("/s?identity=alice").await;
    let mut bob = one.join("/s?identity=bob").await;
    let mut carol = two.join("/s?identity=carol").await;
    let mut other = one.join("/t?identity=other").await;
    alice.expect("remote join", &bob.own()).await;
    alice.expect("remote join", &carol.own()).await;
    bob.expect("remote join", &carol.own()).await;
    let cursor = r#"{"action":"cursor","x":1.5,"to":{"line":[1,null,"|="]},"big":123456789012345678901234,"clientId":"carol"}"#;
    alice.send(cursor).await;
    for client in [&mut bob, &mut carol] {
        let mut got = client.next().await;
        assert_eq!(
            got["clientId"],
            alice.id().as_str(),
            "the real sender, and not the one in the message"
        );
        let mut sent: Json = serde_json::from_str(cursor).unwrap();
        sent.as_object_mut().unwrap().remove("clientId");
        got.as_object_mut().unwrap().remove("clientId");
        assert_eq!(got, sent);
    }
    assert!(alice.so_far().await.is_empty(), "not to oneself");
    assert!(other.so_far().await.is_empty(), "not to another space");
    assert_eq!(server.events("s").await.len(), 3, "cursors are no events");
}

#[tokio::test]
async fn errors() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    for path in ["/s", "/s?identity=", "/?identity=a", "/s?identity=%ff", "/%80?identity=a"] {
        let (messages, code) = gateway.connect(path).await.until_close().await;
        assert!(messages.len() == 1 && messages[0]["error"].is_string(), "{path}: {messages:?}");
        assert_eq!(code, Some(1008), "{path}");
    }
    let mut client = gateway.join("/s?identity=a").await;
    for bad in ["nonsense", "null", "[]", "{}", "5", r#"{"action":"fly"}"#, r#"{"action":null}"#] {
        client.send(bad).await;
        assert!(client.next().await["error"].is_string(), "{bad}");
    }
    // It is still in.
    client.send(r#"{"action":"ping"}"#).await;
    assert!(client.so_far().await.is_empty());
    assert_eq!(server.count("s").await, 1);
    // A key of another type is an error.
    let _: String = server.ask("SET text 1").await;
    let (messages, _) = gateway.connect("/text?identity=a").await.until_close().await;
    assert!(text_of(&messages[0]["error"]).contains("WRONGTYPE"), "{messages:?}");
}

#[tokio::test]
async fn spaces_are_apart() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut clients = Vec::new();
    for space in ["*", "a", "a%7C*", "a/b", "a%00b", "%F0%9F%98%80", "presence:a", "health"] {
        let client = gateway.join(&format!("/{space}?identity=*%7Cx")).await;
        assert_eq!(client.identities(), ["*|x"], "{space}");
        clients.push(client);
    }
    let last = clients.pop().unwrap();
    let mut same = gateway.join("/health?identity=y").await;
    assert_eq!(same.identities(), ["*|x", "y"]);
    same.send(r#"{"action":"cursor"}"#).await;
    assert!(same.so_far().await.is_empty());
    clients.push(last);
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.so_far().await.len(), if n == 7 { 2 } else { 0 });
    }
}

#[tokio::test]
async fn pings_of_the_server() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("PING_MS", "200")]).await;
    let mut client = gateway.join("/s?identity=a").await;
    use futures_util::StreamExt;
    let (mut texts, mut frames) = (0, 0);
    while texts < 3 || frames < 3 {
        let next = tokio::time::timeout(SOON, client.ws.next()).await;
        match next.expect("a ping").unwrap().unwrap() {
            Message::Text(text) if text.as_str() == r#"{"ping":true}"# => texts += 1,
            Message::Ping(_) => frames += 1,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_space_that_is_closed_or_deleted() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut client = gateway.join("/s?identity=a").await;
    let _: i64 = server.ask("PRESENCE.CLOSE s").await;
    let (messages, code) = client.until_close().await;
    assert_eq!((&messages[..], code), (&[json!({"event": "closed"})][..], Some(4003)));
    let (messages, _) = gateway.connect("/s?identity=a").await.until_close().await;
    assert!(text_of(&messages[0]["error"]).contains("closed"), "{messages:?}");

    // A deletion publishes nothing, and the gateway finds it.
    let mut pinging = gateway.join("/t?identity=a").await;
    let _: i64 = server.ask("DEL t").await;
    pinging.send(r#"{"action":"ping"}"#).await;
    let (messages, _) = pinging.until_close().await;
    assert_eq!(messages, [json!({"event": "expired"})]);
    let mut silent = gateway.join("/u?identity=a").await;
    let mut other = gateway.join("/u?identity=b").await;
    silent.expect("remote join", &other.own()).await;
    let _: i64 = server.ask("DEL u").await;
    let again = gateway.join("/u?identity=c").await;
    for client in [&mut silent, &mut other] {
        let (messages, _) = client.until_close().await;
        assert_eq!(messages.last().unwrap(), &json!({"event": "expired"}));
    }
    assert_eq!(again.identities(), ["c"]);
}

#[tokio::test]
async fn what_is_not_a_socket() {
    let mut server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    eventually("health", async || gateway.get("/health").await == (200, "ok".into())).await;
    assert_eq!(gateway.get("/nothing").await.0, 404);
    assert_eq!(gateway.get("/lobby?identity=a").await.0, 404);
    let _client = gateway.join("/s?identity=a").await;
    let (code, stats) = gateway.get("/stats").await;
    let stats: Json = serde_json::from_str(&stats).unwrap();
    assert_eq!((code, &stats["users"]), (200, &json!(1)));
    server.kill();
    eventually("bad health", async || gateway.get("/health").await.0 == 503).await;
    assert!(Gateway::try_with(&server.url(), &[]).is_none(), "there is no server");
}
