//! A gateway with few rights, and with a server without memory.

use crate::harness::*;

/// The rights that README.md lists are enough.
#[tokio::test]
async fn with_the_documented_rights() {
    let server = Server::start().await;
    let readme = include_str!("../../README.md");
    let (_, rights) = readme.split_once("<!-- rights: begin").expect("where the rights begin");
    let (rights, _) = rights.split_once("<!-- rights: end").expect("where the rights end");
    let mut words: Vec<&str> =
        "ACL SETUSER web on >secret resetchannels ~room:* &presence:* &presence-gateway:*"
            .split(' ')
            .collect();
    let module = ["online", "offline", "user", "space", "events", "message", "owner"];
    let module = module.map(|name| format!("+presence.{name}"));
    words.extend(module.iter().map(String::as_str));
    words.extend(
        rights.split(|c: char| c.is_whitespace() || c == '`').filter(|w| w.starts_with('+')),
    );
    assert!(words.contains(&"+subscribe") && !words.contains(&"+eval"), "{words:?}");
    let _: String = server.ask_words(&words).await;
    let url = format!("redis://web:secret@127.0.0.1:{}", server.port);
    let settings = [("SPACE_PREFIX", "room:")];
    let one = Gateway::try_with(&url, &settings).unwrap();
    let two = Gateway::try_with(&url, &settings).unwrap();
    let mut watcher = two.join("/s?identity=watcher").await;
    let mut old = one.join("/s?identity=alice").await;
    watcher.expect("remote join", &old.own()).await;
    let path = format!("/s?identity=alice&id={}&token={}", old.id(), old.token());
    let mut new = two.join(&path).await;
    assert_eq!(old.until_close().await.1, Some(4002));
    new.send(r#"{"action":"status","status":"here"}"#).await;
    new.send(r#"{"action":"message","text":"hello"}"#).await;
    new.send(r#"{"action":"cursor"}"#).await;
    assert!(new.so_far().await.is_empty());
    assert_eq!(watcher.next().await["action"], "cursor");
    let keys: Vec<String> = server.ask("KEYS *").await;
    assert_eq!(keys, ["room:s"], "the gateway needs no keys of its own");
    // A lease that was cut, and a subscription that broke.
    let cut = format!("PRESENCE.OFFLINE room:s alice SESSION {} LINGER 5000", new.id());
    server.transaction(&[cut, "CLIENT KILL TYPE pubsub".into()]).await;
    eventually("the owner", async || server.owner("room:s", "alice").await.is_some()).await;
    let denied: Vec<redis::Value> = server.ask("ACL LOG").await;
    // The client library sends CLIENT SETINFO, as README.md says.
    let denied = denied.iter().map(|entry| format!("{entry:?}"));
    let denied: Vec<String> = denied.filter(|entry| !entry.contains("client|setinfo")).collect();
    assert!(denied.is_empty(), "{denied:?}");
    new.send(r#"{"action":"leave"}"#).await;
    watcher.expect("remote leave", &new.own()).await;
}

/// A server without memory. Clients that are there stay, and can come back.
#[tokio::test]
async fn without_memory() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut watcher = gateway.join("/s?identity=watcher").await;
    let alice = gateway.join("/s?identity=alice&id=mine").await;
    watcher.expect("remote join", &alice.own()).await;
    let _: String = server.ask("CONFIG SET maxmemory 1").await;
    let path = format!("/s?identity=alice&id=mine&token={}", alice.token());
    let mut again = gateway.join(&path).await;
    again.send(r#"{"action":"ping"}"#).await;
    assert!(again.so_far().await.is_empty());
    again.send(r#"{"action":"leave"}"#).await;
    watcher.expect("remote leave", &again.own()).await;
}
