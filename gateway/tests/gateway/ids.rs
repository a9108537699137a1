//! Clients get their id back, and other clients do not get it.

use crate::harness::*;

#[tokio::test]
async fn coming_back_is_no_event() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut watcher = gateway.join("/s?identity=watcher").await;
    let first = gateway.join("/s?identity=alice&username=Al").await;
    watcher.expect("remote join", &first.own()).await;
    let (id, token, own) = (first.id(), first.token(), first.own());
    first.close().await;
    // As Longhouse's clients do it.
    let second = gateway.join(&format!("/s?identity=alice&username=Al&id={id}")).await;
    assert_eq!((second.id(), second.own()), (id.clone(), own.clone()));
    second.drop_connection();
    // With the token.
    let third = gateway.join(&format!("/s?identity=alice&username=Al&id={id}&token={token}")).await;
    assert_eq!((third.id(), third.own()), (id.clone(), own.clone()));
    assert_eq!(third.token(), token);
    assert!(watcher.so_far().await.is_empty());
    assert_eq!(server.events("s").await, ["join watcher", "join alice"]);
    assert_eq!(server.count("s").await, 2);
}

#[tokio::test]
async fn an_unused_id_is_free() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("LINGER_MS", "50")]).await;
    let first = gateway.join("/s?identity=alice&id=my-own").await;
    assert_eq!(first.id(), "my-own");
    let token = first.token();
    first.close().await;
    eventually("the leave", async || server.count("s").await == 0).await;
    let late = gateway.join(&format!("/s?identity=alice&id=my-own&token={token}")).await;
    assert_eq!((late.id(), late.token()), ("my-own".into(), token));
    let other = gateway.join("/s?identity=bob&id=my-own").await;
    assert_ne!(other.id(), "my-own");
}

#[tokio::test]
async fn no_other_client_takes_over_an_id() {
    let server = Server::start().await;
    let (one, two) = (Gateway::start(&server).await, Gateway::start(&server).await);
    let mut alice = one.join("/s?identity=alice").await;
    let id = alice.id();
    for gateway in [&one, &two] {
        for query in [
            format!("identity=mallory&id={id}"),
            format!("identity=alice&id={id}"),
            format!("identity=alice&id={id}&token=00"),
            format!("identity=mallory&id={id}&token={}", alice.token()),
        ] {
            let mut mallory = gateway.join(&format!("/s?{query}")).await;
            assert_ne!(mallory.id(), id, "{query}");
            alice.expect("remote join", &mallory.own()).await;
            mallory.send(r#"{"action":"leave"}"#).await;
            let own = mallory.own();
            mallory.until_close().await;
            alice.expect("remote leave", &own).await;
        }
    }
    // After her connection broke, her identity gets the id back, and another identity does not.
    let token = alice.token();
    alice.drop_connection();
    let mallory = two.join(&format!("/s?identity=mallory&id={id}")).await;
    assert_ne!(mallory.id(), id);
    eventually("the socket to be gone", async || {
        let back = two.join(&format!("/s?identity=alice&id={id}")).await;
        back.id() == id
    })
    .await;
    // The owner gets it back from a client without the token.
    let mut squatter = two.join(&format!("/s?identity=alice&id={id}")).await;
    if squatter.id() != id {
        // The last one's socket was still open.
        squatter = eventually_join(&two, &format!("/s?identity=alice&id={id}"), &id).await;
    }
    assert!(squatter.token().is_empty(), "only the owner gets the token");
    let owner = one.join(&format!("/s?identity=alice&id={id}&token={token}")).await;
    assert_eq!(owner.id(), id);
    let (messages, code) = squatter.until_close().await;
    assert!(text_of(&messages.last().unwrap()["error"]).contains("newer connection"));
    assert_eq!(code, Some(4002));
}

async fn eventually_join(gateway: &Gateway, path: &str, id: &str) -> Client {
    let end = std::time::Instant::now() + SOON;
    loop {
        let client = gateway.join(path).await;
        if client.id() == id {
            return client;
        }
        assert!(std::time::Instant::now() < end, "the id does not come free");
        client.close().await;
    }
}

#[tokio::test]
async fn only_with_the_token_if_so_configured() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("RESUME_BY_IDENTITY", "0")]).await;
    let alice = gateway.join("/s?identity=alice").await;
    let (id, token) = (alice.id(), alice.token());
    alice.close().await;
    let other = gateway.join(&format!("/s?identity=alice&id={id}")).await;
    assert_ne!(other.id(), id);
    let owner = gateway.join(&format!("/s?identity=alice&id={id}&token={token}")).await;
    assert_eq!(owner.id(), id);
}

#[tokio::test]
async fn one_id_for_two_at_the_same_moment() {
    let server = Server::start().await;
    let (one, two) = (Gateway::start(&server).await, Gateway::start(&server).await);
    for round in 0..20 {
        let path = |who: &str| format!("/s{round}?identity={who}&id=same");
        let (alice, bob) = (path("alice"), path("bob"));
        let (a, b) = tokio::join!(one.join(&alice), two.join(&bob));
        assert_ne!(a.id(), b.id(), "round {round}");
        // And of one identity, whose two tabs were given one id.
        let path = format!("/t{round}?identity=alice&id=same");
        let (a, b) = tokio::join!(one.join(&path), two.join(&path));
        assert_ne!(a.id(), b.id(), "round {round}");
    }
}

/// A duplicated tab, both with the token: exactly one of them keeps the id.
#[tokio::test]
async fn the_owner_twice_at_the_same_moment() {
    let server = Server::start().await;
    let (one, two) = (Gateway::start(&server).await, Gateway::start(&server).await);
    let mut alice = one.join("/s?identity=alice").await;
    let path = format!("/s?identity=alice&id={}&token={}", alice.id(), alice.token());
    for round in 0..20 {
        let (mut a, mut b) = tokio::join!(one.join(&path), two.join(&path));
        alice.until_close().await;
        assert_eq!((a.id(), b.id()), (alice.id(), alice.id()));
        let (loser, a_stays) = tokio::select! {
            message = a.next_or_close() => (message, false),
            message = b.next_or_close() => (message, true),
        };
        let loser = loser.expect("a reason");
        assert!(text_of(&loser["error"]).contains("newer connection"), "round {round}: {loser}");
        alice = if a_stays { a } else { b };
        alice.send(r#"{"action":"ping"}"#).await;
        assert!(alice.so_far().await.is_empty(), "round {round}");
    }
    assert_eq!(server.events("s").await, ["join alice"]);
}

#[tokio::test]
async fn no_secret_is_sent() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut bob = gateway.join("/s?identity=bob&events=1").await;
    let mut plain = gateway.join("/s?identity=plain").await;
    let mut alice = gateway.join("/s?identity=alice&events=1&status=here").await;
    alice.send(r#"{"action":"status","status":"there"}"#).await;
    alice.send(r#"{"action":"message","text":"hello"}"#).await;
    alice.so_far().await;
    let (token, id) = (alice.token(), alice.id());
    let reply: Vec<redis::Value> = server.ask("PRESENCE.USER s alice").await;
    let text = format!("{reply:?}");
    let owner = text.split("owner").nth(1).unwrap();
    let hash: String = owner.chars().filter(char::is_ascii_hexdigit).take(32).collect();
    assert_eq!(hash.len(), 32);
    assert!(!text.contains(&token), "in the server is the hash");
    alice.close().await;
    let late = gateway.join("/s?identity=late&events=1").await;
    let mut told = vec![late.first.clone()];
    told.extend(bob.so_far().await);
    told.extend(plain.so_far().await);
    let told = format!("{told:?}");
    assert!(told.contains(&id));
    assert!(!told.contains(&token) && !told.contains(&hash) && !told.contains("owner"), "{told}");
}

/// An old socket's end must not cut the lease of the session that has moved on to a new one.
#[tokio::test]
async fn the_old_socket_closes_after_the_new_one_came() {
    let server = Server::start().await;
    let settings = [("LINGER_MS", "700"), ("PRESENCE_TTL", "60000")];
    let one = Gateway::with(&server, &settings).await;
    let two = Gateway::with(&server, &settings).await;
    let mut watcher = one.join("/s?identity=watcher").await;
    for gateway in [&one, &two] {
        let old = one.join("/s?identity=alice").await;
        watcher.expect("remote join", &old.own()).await;
        let (id, token) = (old.id(), old.token());
        let path = format!("/s?identity=alice&id={id}&token={token}");
        // Both at once, in whichever order they arrive.
        let (new, ()) = tokio::join!(gateway.join(&path), old.close());
        assert_eq!(new.id(), id);
        // Well past the linger; nothing else could show that nothing happens.
        tokio::time::sleep(ms(1500)).await;
        assert!(watcher.so_far().await.is_empty());
        // What an old gateway does that is very late.
        let _: i64 = server.ask("PRESENCE.OWNER RENEW late").await;
        let offline = format!("PRESENCE.OFFLINE s alice SESSION {id} LINGER 700 OWNER late");
        let _: i64 = server.ask(&offline).await;
        tokio::time::sleep(ms(1500)).await;
        assert!(watcher.so_far().await.is_empty());
        let own = new.own();
        new.close().await;
        watcher.expect("remote leave", &own).await;
    }
}
