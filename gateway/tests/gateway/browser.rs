//! The page, in a real browser.

use crate::chromium::{Browser, Tab};
use crate::harness::*;
use std::path::Path;

/// Opens the page and joins, as a person does.
async fn join_by_page(browser: &Browser, gateway: &Gateway, name: &str, room: &str) -> Tab {
    let tab = browser.open(&format!("http://{}/?room={room}", gateway.address)).await;
    tab.until("document.getElementById('room').value !== ''").await;
    tab.eval("document.getElementById('name').value = ''; document.getElementById('name').focus()")
        .await;
    tab.type_text(name).await;
    tab.key("Enter").await;
    tab.shows("#connection", "Connected").await;
    tab
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tabs() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("LINGER_MS", "500")]).await;
    let one = join_by_page(&browser, &gateway, "Ada", "r").await;
    one.shows("#people", "Ada (you)").await;
    one.shows("#people", "1 session").await;
    let two = join_by_page(&browser, &gateway, "Ada", "r").await;
    for tab in [&one, &two] {
        tab.shows("#people", "2 sessions").await;
        assert_eq!(tab.text("#users").await, "1");
    }
    let other = join_by_page(&browser, &gateway, "<b>Grace & co</b>", "r").await;
    one.shows("#people", "<b>Grace & co</b>").await;
    one.shows("#events", "join").await;

    other.eval("document.getElementById('message').focus()").await;
    other.type_text("hello <i>all</i>").await;
    other.key("Enter").await;
    for tab in [&one, &two, &other] {
        tab.shows("#messages", "hello <i>all</i>").await;
    }
    one.eval("document.getElementById('status').focus()").await;
    one.type_text("at lunch").await;
    one.key("Enter").await;
    other.shows("#people", "“at lunch”").await;
    for tab in [&one, &other] {
        tab.shows("#events", "update").await;
    }

    // The ids of the module, without a gap.
    let seqs =
        "[...document.querySelectorAll('#events .id')].map((e) => +e.innerText.split('-')[1])";
    let seqs: Vec<i64> = serde_json::from_value(one.eval(seqs).await).unwrap();
    assert!(seqs.len() >= 4 && seqs.windows(2).all(|w| w[0] == w[1] + 1), "{seqs:?}");

    two.close().await;
    one.shows("#people", "1 session").await;
    other.shows("#events", "remove").await;
    other.click("#leave").await;
    one.shows("#events", "leave").await;
    one.until("document.getElementById('users').innerText === '1'").await;
    one.until("[...document.querySelectorAll('.chart output')].every((o) => o.innerText !== '–')")
        .await;
    for tab in [&one, &other] {
        assert_eq!(tab.complaints(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_invisible() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start().await;
    // No loaded machine reloads a page slower than that.
    let gateway = Gateway::with(&server, &[("LINGER_MS", "60000")]).await;
    let tab = join_by_page(&browser, &gateway, "Ada", "r").await;
    let mut watcher = gateway.join("/r?identity=watcher").await;
    let id = "JSON.parse(sessionStorage.getItem('id')).id";
    let before = tab.eval(id).await;
    for _ in 0..3 {
        tab.reload().await;
        tab.shows("#connection", "Connected").await;
        tab.shows("#people", "watcher").await;
        assert_eq!(tab.text("#sessions").await, "2");
        assert_eq!(tab.eval(id).await, before);
    }
    assert!(watcher.so_far().await.is_empty(), "no leave, no join");
    assert_eq!(server.events("r").await, ["join Ada", "join watcher"]);
    assert_eq!(tab.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_crashes() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start().await;
    let other = Gateway::start(&server).await;
    let mut watcher = other.join("/r?identity=watcher").await;
    let gateway = Gateway::start(&server).await;
    let address = gateway.address.clone();
    let port = address.rsplit(':').next().unwrap().to_string();
    let tab = join_by_page(&browser, &gateway, "Ada", "r").await;
    watcher.next().await;
    gateway.kill();
    tab.shows("#connection", "Connecting again").await;
    // What was known stays in sight.
    tab.shows("#people", "watcher").await;
    let _again = Gateway::with(&server, &[("PORT", &port)]).await;
    tab.until("document.getElementById('connection').innerText === 'Connected'").await;
    tab.eval("document.getElementById('message').focus()").await;
    tab.type_text("still here").await;
    tab.key("Enter").await;
    tab.shows("#messages", "still here").await;
    assert!(watcher.so_far().await.is_empty(), "no session ended");
    assert_eq!(server.events("r").await, ["join watcher", "join Ada", "message Ada"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_come_and_crash() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("CROWD", "1000")]).await;
    let tab = join_by_page(&browser, &gateway, "Ada", "r").await;
    tab.shows("#come", "1,000").await;
    tab.click("#come").await;
    tab.until("document.getElementById('users').innerText === '1,001'").await;
    tab.shows("#more", "and 1,000 more").await;
    assert_eq!(tab.eval("document.querySelectorAll('#dots i').length").await, 1000);
    tab.click("#crash").await;
    tab.until("document.getElementById('users').innerText === '1'").await;
    tab.shows("#events", "timeout").await;
    assert_eq!(tab.eval("document.querySelectorAll('#dots i').length").await, 0);
    let events = server.events("r").await;
    assert!(events.iter().all(|e| e.ends_with("(timeout)")), "the last events: {events:?}");
    assert_eq!(tab.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_everybody() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("CROWD", "50")]).await;
    // By the keyboard alone: name, room, in.
    let tab = browser.open(&format!("http://{}/", gateway.address)).await;
    tab.until("document.getElementById('room').value === 'lobby'").await;
    let focused = "document.activeElement.id";
    for _ in 0..10 {
        if tab.eval(focused).await == "name" {
            break;
        }
        tab.key("Tab").await;
    }
    tab.type_text("Ada").await;
    tab.key("Tab").await;
    assert_eq!(tab.eval(focused).await, "room");
    tab.key("Tab").await;
    tab.key("Enter").await;
    tab.shows("#connection", "Connected").await;

    // Every control has a name that a screen reader can say.
    let tree = tab.ask("Accessibility.getFullAXTree", json!({})).await;
    let mut controls = 0;
    for node in tree["nodes"].as_array().unwrap() {
        let role = text_of(&node["role"]["value"]);
        if ["button", "textbox", "list", "log"].contains(&role.as_str()) && node["ignored"] == false
        {
            controls += 1;
            assert!(!text_of(&node["name"]["value"]).is_empty(), "{node}");
        }
    }
    assert!(controls >= 9, "{controls}");

    // A join is announced.
    let _bob = gateway.join("/lobby?identity=Bob").await;
    tab.shows("#announce", "Bob came").await;

    // At a phone's width nothing sticks out, full or empty.
    tab.click("#come").await;
    tab.until("document.getElementById('users').innerText === '52'").await;
    for width in [320, 390, 768, 1200] {
        tab.size(width, 800).await;
        let wide = "document.scrollingElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(tab.eval(wide).await, 0, "at {width}");
    }
    // Light and dark, ink and paper differ.
    for scheme in ["light", "dark"] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        tab.ask("Emulation.setEmulatedMedia", features).await;
        let light =
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((n) => n > 128)";
        assert_eq!(tab.eval(light).await, scheme == "light");
    }
    assert_eq!(tab.complaints(), [""; 0]);
}

/// `make screenshot`: the page, as README.md shows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes docs/demo.png"]
async fn screenshot() {
    let browser = Browser::start().await.expect("a browser");
    let server = Server::start().await;
    let gateway = Gateway::with(&server, &[("CROWD", "1000")]).await;
    let tab = join_by_page(&browser, &gateway, "Ada", "lobby").await;
    tab.size(1100, 880).await;
    tab.click("#come").await;
    tab.until("document.getElementById('users').innerText === '1,001'").await;
    // The charts have something to show when they have come, stayed, gone and come again.
    tokio::time::sleep(ms(9000)).await;
    tab.click("#crash").await;
    tab.until("document.getElementById('users').innerText === '1'").await;
    tokio::time::sleep(ms(3000)).await;
    let mut people = Vec::new();
    for (name, status, words) in [
        ("Grace", "in a meeting", "The compiler is up again."),
        ("Alan", "", "Did anybody see a leave too many?"),
        ("Edsger", "writing", "Not one. The ids have no holes."),
    ] {
        let path =
            format!("/lobby?identity={name}&username={name}&status={}", status.replace(' ', "+"));
        let mut client = gateway.join(&path).await;
        if name == "Grace" {
            people.push(gateway.join(&path).await);
        }
        tokio::time::sleep(ms(300)).await;
        client.send(json!({"action": "message", "text": words})).await;
        people.push(client);
    }
    tab.click("#come").await;
    tab.until("document.getElementById('users').innerText === '1,004'").await;
    for client in &mut people {
        client.send(r#"{"action":"ping"}"#).await;
    }
    people[2].send(json!({"action": "status", "status": "back"})).await;
    people[1].send(json!({"action": "message", "text": "A thousand in two seconds, then."})).await;
    tokio::time::sleep(ms(4000)).await;
    // The whole page, without a bar to scroll it.
    let height = tab.eval("document.documentElement.scrollHeight").await.as_u64().unwrap();
    tab.size(1100, height as u32).await;
    let shot = tab.ask("Page.captureScreenshot", json!({"format": "png"})).await;
    use base64::Engine;
    let png = base64::engine::general_purpose::STANDARD.decode(text_of(&shot["data"])).unwrap();
    assert!(png.len() < 300_000, "{} bytes are too many for a picture in a README", png.len());
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    std::fs::create_dir_all(&docs).unwrap();
    std::fs::write(docs.join("demo.png"), png).unwrap();
}
