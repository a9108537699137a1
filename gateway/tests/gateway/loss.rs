//! What the gateway shows after the server has lost data.

use crate::harness::*;

/// A room that was deleted without an event. A client that comes back with id and token gets in at the first attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_to_a_deleted_room_gets_in_at_once() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    for (n, loss) in
        ["DEL s", "UNLINK s", "FLUSHALL", "PEXPIRE s 0", "RENAME s t"].iter().enumerate()
    {
        let mut clients = Vec::new();
        for user in 0..3 {
            clients.push(gateway.join(&format!("/s?identity={n}-{user}")).await);
        }
        let _: redis::Value = server.ask(loss).await;
        for (user, client) in clients.iter_mut().enumerate() {
            let path =
                format!("/s?identity={n}-{user}&id={}&token={}", client.id(), client.token());
            let back = gateway.join(&path).await;
            assert_eq!((back.id(), back.token()), (client.id(), client.token()), "{loss}");
            assert_eq!(back.identities().len(), user + 1, "{loss}");
            *client = back;
        }
        for client in clients {
            client.close().await;
        }
        let _: redis::Value = server.ask("DEL s").await;
    }
}

/// A client whose ping is answered by "no such session" proves that the room is out of date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_ping_shows_that_the_room_is_deleted() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut clients = Vec::new();
    for user in 0..3 {
        clients.push(gateway.join(&format!("/s?identity={user}")).await);
    }
    let _: i64 = server.ask("DEL s").await;
    let began = std::time::Instant::now();
    clients[0].send(r#"{"action":"ping"}"#).await;
    for client in &mut clients {
        let (messages, code) = client.until_close().await;
        assert_eq!(messages.last(), Some(&json!({"event": "expired"})));
        assert_eq!(code, Some(4001));
    }
    // Before the room is looked at anyway.
    assert!(began.elapsed() < ms(4000), "{:?}", began.elapsed());
}

/// The server crashes and comes back from a snapshot that lacks a join. Another one comes before the gateway is there
/// again. Servers that go on in the same epoch give it the id of the lost one. `own`: the lost session is a client's of
/// the gateway, and not of another program.
async fn comes_back_without_the_last_event(own: bool) {
    let mut server = Server::start().await;
    let _: String = server.ask("CONFIG SET appendonly no").await;
    let link = Proxy::to(server.port);
    let gateway = Gateway::try_with(&url_of(&link), &[]).unwrap();
    let mut stays = gateway.join("/s?identity=stays").await;
    let mut detailed = gateway.join("/s?identity=detailed&events=1").await;
    stays.so_far().await;
    let _: String = server.ask("SAVE").await;
    let mut lost = None;
    if own {
        lost = Some(gateway.join("/s?identity=lost").await);
    } else {
        let _: i64 = server.ask("PRESENCE.ONLINE s lost SESSION phone PX 600000").await;
    }
    assert_eq!(stays.next().await["client"]["identity"], "lost");
    detailed.next().await;
    link.cut();
    server.restart_from_snapshot().await;
    let _: i64 = server.ask("PRESENCE.ONLINE s late SESSION phone PX 600000").await;
    link.mend();
    if let Some(mut lost) = lost {
        assert_eq!(lost.until_close().await.1, Some(4001));
    }
    let mut told = [stays.next().await, stays.next().await];
    told.sort_by_key(|m| text_of(&m["event"]));
    let brief: Vec<(String, String)> =
        told.iter().map(|m| (text_of(&m["event"]), text_of(&m["client"]["identity"]))).collect();
    let pair = |event: &str, who: &str| (event.to_string(), who.to_string());
    assert_eq!(brief, [pair("remote join", "late"), pair("remote leave", "lost")]);
    let resync = detailed.next().await;
    assert_eq!(resync["event"], "resync");
    let mut list: Vec<String> =
        resync["clients"].as_array().unwrap().iter().map(|c| text_of(&c["identity"])).collect();
    list.sort();
    assert_eq!(list, ["detailed", "late", "stays"]);
    let newcomer = gateway.join("/s?identity=newcomer").await;
    assert_eq!(newcomer.identities(), ["detailed", "late", "newcomer", "stays"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_comes_back_without_the_last_event() {
    comes_back_without_the_last_event(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_comes_back_without_the_last_client() {
    comes_back_without_the_last_event(true).await;
}

/// Nothing was lost: clients are told nothing, in whichever epoch the events are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_comes_back_with_everything() {
    let mut server = Server::start().await;
    let _: String = server.ask("CONFIG SET appendonly no").await;
    let link = Proxy::to(server.port);
    let gateway = Gateway::try_with(&url_of(&link), &[]).unwrap();
    let mut plain = gateway.join("/s?identity=plain").await;
    let mut detailed = gateway.join("/s?identity=detailed&events=1").await;
    plain.so_far().await;
    for round in 0..3 {
        let _: String = server.ask("SAVE").await;
        link.cut();
        server.restart_from_snapshot().await;
        let user = format!("user{round}");
        let _: i64 = server.ask(&format!("PRESENCE.ONLINE s {user} SESSION phone PX 600000")).await;
        link.mend();
        let join = plain.next().await;
        assert_eq!(
            (&join["event"], &join["client"]["identity"]),
            (&json!("remote join"), &json!(user))
        );
        let event = detailed.next().await;
        assert_eq!(
            (&event["event"], &event["data"]["user"]),
            (&json!("space"), &json!(user)),
            "round {round}: {event}"
        );
        assert!(plain.so_far().await.is_empty());
        assert!(detailed.so_far().await.is_empty());
    }
}
