//! Clients that move from one gateway to another, and gateways that say something about them too late.

use crate::harness::*;
use futures_util::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CLIENTS: usize = 200;
const AT_A_TIME: usize = 8;

/// What happens while clients move.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Nothing,
    /// The server ends all subscriptions, again and again.
    Subscriptions,
    /// The gateways' links to the server are cut, in turns and together.
    Links,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    ConnectThenClose,
    CloseThenConnect,
}

/// Connects until it gets in.
async fn get_in(gateway: &Gateway, path: &str) -> Client {
    let end = std::time::Instant::now() + SOON;
    loop {
        let mut client = gateway.connect(path).await;
        match client.next_or_close().await {
            Ok(first) if first["id"].is_string() => {
                client.first = first;
                return client;
            }
            // The link is cut at that moment.
            Ok(refused) => assert_eq!(
                text_of(&refused["error"]),
                "presence is not available, try again",
                "{path}"
            ),
            Err(_) => {}
        }
        assert!(std::time::Instant::now() < end, "{path} does not get in");
        tokio::time::sleep(ms(20)).await;
    }
}

async fn move_client(n: usize, old: Client, to: &Gateway, space: &str, order: Order) -> Client {
    let (id, token) = (old.id(), old.token());
    let path = format!("/{space}?identity=user{n}&id={id}&token={token}");
    let close = async |old: Client| match n % 2 {
        0 => old.drop_connection(),
        _ => drop(tokio::spawn(old.close())),
    };
    let new = if order == Order::ConnectThenClose {
        let new = get_in(to, &path).await;
        close(old).await;
        new
    } else {
        close(old).await;
        get_in(to, &path).await
    };
    assert_eq!((new.id(), new.token()), (id, token));
    new
}

/// Moves all clients, some at a time.
async fn move_all(old: Vec<Client>, to: &Gateway, space: &str, order: Order) -> Vec<Client> {
    let mut moved = Vec::new();
    let mut left = old.into_iter().enumerate();
    loop {
        let some: Vec<_> = left.by_ref().take(AT_A_TIME).collect();
        if some.is_empty() {
            return moved;
        }
        let some = some.into_iter().map(|(n, old)| move_client(n, old, to, space, order));
        moved.extend(join_all(some).await);
    }
}

/// Repeats the fault until `stop` is set. All links are up at the end.
async fn make(fault: Fault, server: &Server, links: &[Proxy; 2], stop: Arc<AtomicBool>) {
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match fault {
            Fault::Nothing => {}
            Fault::Subscriptions => {
                let _: i64 = server.ask("CLIENT KILL TYPE pubsub").await;
            }
            Fault::Links => {
                let cut: Vec<&Proxy> = links
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| round % 3 != *n)
                    .map(|(_, p)| p)
                    .collect();
                cut.iter().for_each(|link| link.cut());
                tokio::time::sleep(ms(60)).await;
                cut.iter().for_each(|link| link.mend());
            }
        }
        tokio::time::sleep(ms(90)).await;
    }
}

/// No client is closed, no leave is announced, and no lease is cut.
async fn everybody_moves(linger: Option<&str>, order: Order) {
    let server = Server::start().await;
    let _: String = server.ask("CONFIG SET presence.history-length 100000").await;
    let links = [Proxy::to(server.port), Proxy::to(server.port)];
    let names = ["one", "two"];
    let gateways = [0, 1].map(|n| {
        let linger = linger.map(|ms| ("LINGER_MS", ms));
        let settings: Vec<_> = [("GATEWAY_ID", names[n])].into_iter().chain(linger).collect();
        Gateway::try_with(&url_of(&links[n]), &settings).unwrap()
    });
    let other = Gateway::with(&server, &[("GATEWAY_ID", "other")]).await;
    // Without a linger, a client whose old socket closes before it has a new one is gone in between.
    let silent = linger != Some("0") || order == Order::ConnectThenClose;
    for fault in [Fault::Nothing, Fault::Subscriptions, Fault::Links] {
        let space = format!("{fault:?}");
        let mut watcher = other.join(&format!("/{space}?identity=watcher")).await;
        let paths: Vec<String> =
            (0..CLIENTS).map(|n| format!("/{space}?identity=user{n}")).collect();
        let mut clients = Vec::new();
        for some in paths.chunks(AT_A_TIME) {
            clients.extend(join_all(some.iter().map(|path| gateways[0].join(path))).await);
        }
        for _ in 0..CLIENTS {
            assert_eq!(watcher.next().await["event"], "remote join");
        }
        // A reload at the same gateway, to the other one, and back.
        for (from, to) in [(0, 0), (0, 1), (1, 0)] {
            let what = format!("{fault:?}, {order:?}, linger {linger:?}, from {from} to {to}");
            join_all(clients.iter_mut().map(Client::so_far)).await;
            let stop = Arc::new(AtomicBool::new(false));
            let moving = async {
                let old = std::mem::take(&mut clients);
                let moved = move_all(old, &gateways[to], &space, order).await;
                stop.store(true, Ordering::Relaxed);
                moved
            };
            let (moved, ()) = tokio::join!(moving, make(fault, &server, &links, stop.clone()));
            clients = moved;
            if from != to {
                // The gateway that they left has sent its last command.
                eventually("the former gateway to be done", async || {
                    let channel = format!("presence:{space}");
                    let (_, n): (String, i64) =
                        server.ask(&format!("PUBSUB NUMSUB {channel}")).await;
                    let well = join_all([&gateways[to], &other].map(|g| g.get("/health"))).await;
                    n == 2 && well.iter().all(|(code, _)| *code == 200)
                })
                .await;
                // The new gateway owns them all, and the old one none.
                let owners = server.owners().await;
                let expected = [("other", 1), (names[from], 0), (names[to], CLIENTS)];
                for (name, sessions) in expected {
                    assert_eq!(owners.get(name), Some(&sessions), "{what}: {owners:?}");
                }
            }
            let pinged = join_all(clients.iter_mut().map(async |client| {
                client.send(r#"{"action":"ping"}"#).await;
                client.so_far().await
            }));
            for (n, told) in pinged.await.into_iter().enumerate() {
                assert!(!silent || told.is_empty(), "{what}: client {n} got {told:?}");
            }
            let mut told = watcher.so_far().await;
            assert!(!silent || told.is_empty(), "{what}: {told:?}");
            // Users who left have joined again, or are about to.
            while told.iter().filter(|m| m["event"] == "remote join").count() * 2 != told.len() {
                told.push(watcher.next().await);
            }
            let events = server.events(&space).await;
            assert!(!silent || events.len() == CLIENTS + 1, "{what}: {events:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_connects_and_then_closes() {
    everybody_moves(None, Order::ConnectThenClose).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_connects_and_then_closes_without_linger() {
    everybody_moves(Some("0"), Order::ConnectThenClose).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_closes_and_then_connects() {
    everybody_moves(None, Order::CloseThenConnect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_closes_and_then_connects_without_linger() {
    everybody_moves(Some("0"), Order::CloseThenConnect).await;
}

/// The first gateway learns of the closed socket and of the move at the same moment, late.
#[tokio::test]
async fn a_suspended_gateway_ends_no_session() {
    let server = Server::start().await;
    let one = Gateway::with(&server, &[("LINGER_MS", "0")]).await;
    let two = Gateway::with(&server, &[("LINGER_MS", "0")]).await;
    let mut watcher = two.join("/s?identity=watcher").await;
    for round in 0..10 {
        let old = one.join("/s?identity=alice").await;
        watcher.expect("remote join", &old.own()).await;
        let path = format!("/s?identity=alice&id={}&token={}", old.id(), old.token());
        one.signal("STOP");
        let mut new = two.join(&path).await;
        old.drop_connection();
        one.signal("CONT");
        eventually("the first gateway to be done", async || {
            let (_, n): (String, i64) = server.ask("PUBSUB NUMSUB presence:s").await;
            n == 1
        })
        .await;
        new.send(r#"{"action":"ping"}"#).await;
        assert!(new.so_far().await.is_empty(), "round {round}");
        assert!(watcher.so_far().await.is_empty(), "round {round}");
        new.send(r#"{"action":"leave"}"#).await;
        watcher.expect("remote leave", &new.own()).await;
    }
}

/// The gateway is suspended for longer than the lease. Then there is a new session with the old name.
#[tokio::test]
async fn a_late_offline_does_not_end_a_later_session_of_the_same_name() {
    let server = Server::start().await;
    let short = [("LINGER_MS", "0"), ("OWNER_TTL", "1500")];
    let one = Gateway::with(&server, &short).await;
    let two = Gateway::with(&server, &[("LINGER_MS", "0")]).await;
    let mut watcher = two.join("/s?identity=watcher").await;
    let old = one.join("/s?identity=alice").await;
    watcher.expect("remote join", &old.own()).await;
    one.signal("STOP");
    watcher.expect("remote leave", &old.own()).await;
    let path = format!("/s?identity=alice&id={}&token={}", old.id(), old.token());
    let mut new = two.join(&path).await;
    assert_eq!(new.id(), old.id());
    watcher.expect("remote join", &new.own()).await;
    old.drop_connection();
    one.signal("CONT");
    eventually("the first gateway to be done", async || {
        let (_, n): (String, i64) = server.ask("PUBSUB NUMSUB presence:s").await;
        n == 1
    })
    .await;
    new.send(r#"{"action":"ping"}"#).await;
    assert!(new.so_far().await.is_empty());
    assert!(watcher.so_far().await.is_empty());
}

/// The message that a session has moved is lost. The old socket learns it all the same.
#[tokio::test]
async fn an_old_socket_learns_that_its_session_has_moved() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("OWNER_TTL", "1500")]).await;
    let _: i64 = server.ask("PRESENCE.OWNER RENEW other PX 60000").await;
    for subscribed_again in [false, true] {
        let mut old = gateway.join("/s?identity=alice&id=mine").await;
        // As another gateway does it, which then sends no message.
        let _: i64 = server.ask("PRESENCE.ONLINE s alice SESSION mine OWNER other").await;
        if subscribed_again {
            let _: i64 = server.ask("CLIENT KILL TYPE pubsub").await;
        }
        let (messages, code) = old.until_close().await;
        assert!(text_of(&messages[0]["error"]).contains("newer connection"), "{messages:?}");
        assert_eq!(code, Some(4002));
        // It has not changed the session.
        assert_eq!(server.owner("s", "alice").await.as_deref(), Some("other"));
        let _: i64 = server.ask("PRESENCE.OFFLINE s alice").await;
    }
}

/// A status that comes too late does not overwrite that of the connection that has the session now.
#[tokio::test]
async fn a_late_status_does_not_count() {
    let server = Server::start().await;
    let (one, two) = (Gateway::start(&server).await, Gateway::start(&server).await);
    let mut old = one.join("/s?identity=alice").await;
    let path = format!("/s?identity=alice&id={}&token={}&status=new", old.id(), old.token());
    one.signal("STOP");
    let mut new = two.join(&path).await;
    old.send(r#"{"action":"status","status":"old"}"#).await;
    one.signal("CONT");
    assert_eq!(old.until_close().await.1, Some(4002));
    assert!(new.so_far().await.is_empty());
    let detailed = two.join("/s?identity=bob&events=1").await;
    let list = detailed.first["clients"].as_array().unwrap();
    assert_eq!(list.iter().find(|c| c["identity"] == "alice").unwrap()["status"], "new");
}

/// Another program has cut the lease of a session while the gateway was not subscribed.
#[tokio::test]
async fn a_cut_session_is_taken_back_after_the_subscription_broke() {
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("GATEWAY_ID", "one")]).await;
    let mut alice = gateway.join("/s?identity=alice").await;
    assert_eq!(server.owner("s", "alice").await.as_deref(), Some("one"));
    let cut = "PRESENCE.OFFLINE s alice LINGER 5000".to_string();
    server.transaction(&[cut, "CLIENT KILL TYPE pubsub".into()]).await;
    eventually("the owner", async || server.owner("s", "alice").await.is_some()).await;
    assert!(alice.so_far().await.is_empty());
}

/// The owner comes with the token while a client without it waits for the answers of other gateways.
#[tokio::test]
async fn the_owner_comes_while_other_gateways_are_asked() {
    use futures_util::StreamExt;
    let server = Server::start().await;
    let gateway = Gateway::start(&server).await;
    let mut watcher = gateway.join("/s?identity=watcher").await;
    let alice = gateway.join("/s?identity=alice").await;
    watcher.expect("remote join", &alice.own()).await;
    let (id, token, own) = (alice.id(), alice.token(), alice.own());
    alice.close().await;
    // One more subscriber, so that the question waits for an answer.
    let client = redis::Client::open(server.url()).unwrap();
    let mut channel = client.get_async_pubsub().await.unwrap();
    channel.subscribe("presence-gateway:s").await.unwrap();
    let mut asked = gateway.connect(&format!("/s?identity=alice&id={id}")).await;
    let mut messages = channel.on_message();
    loop {
        let message = tokio::time::timeout(SOON, messages.next()).await.unwrap().unwrap();
        if String::from_utf8_lossy(message.get_payload_bytes()).contains("\"ask\"") {
            break;
        }
    }
    let mut owner = gateway.join(&format!("/s?identity=alice&id={id}&token={token}")).await;
    assert_eq!(owner.own(), own);
    asked.first = asked.next().await;
    assert_ne!(asked.id(), id);
    owner.expect("remote join", &asked.own()).await;
    assert!(owner.so_far().await.is_empty());
}
