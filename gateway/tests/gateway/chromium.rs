//! A headless Chromium, driven by its DevTools protocol.

use crate::harness::*;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

pub struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
    wire: Arc<Wire>,
}

/// One tab.
pub struct Tab {
    wire: Arc<Wire>,
    session: String,
    target: String,
}

struct Wire {
    out: tokio::sync::Mutex<SplitSink<Socket, Message>>,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: u64,
    waiting: HashMap<u64, oneshot::Sender<Json>>,
    /// What a page complained of, by session.
    complaints: Vec<(String, String)>,
}

impl Browser {
    /// None where there is no Chromium, which is reported. `PRESENCE_BROWSER=required` makes that a failure.
    pub async fn start() -> Option<Browser> {
        let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
        let runs = |name: &&&str| {
            let tried = Command::new(name).arg("--version").output();
            tried.is_ok_and(|output| output.status.success())
        };
        let Some(program) = names.iter().find(runs) else {
            assert!(std::env::var("PRESENCE_BROWSER").is_err(), "no chromium, and it is required");
            not_tested("there is no chromium (apt-get install chromium)");
            return None;
        };
        let profile = tempfile::Builder::new().prefix("gateway-chromium-").tempdir().unwrap();
        let mut child = Command::new(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-extensions", "--disable-background-networking"])
            .args(["--remote-debugging-port=0", "--remote-allow-origins=*", "--lang=en-GB"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start chromium");
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let (mut address, mut all) = (None, String::new());
        while address.is_none() {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "chromium does not start: {all}");
            address = line.trim().strip_prefix("DevTools listening on ").map(str::to_string);
            all += &line;
        }
        // It continues to write, and must not block.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let mut config = tokio_tungstenite::tungstenite::protocol::WebSocketConfig::default();
        config.max_message_size = None;
        config.max_frame_size = None;
        let (socket, _) =
            tokio_tungstenite::connect_async_with_config(address.unwrap(), Some(config), false)
                .await
                .expect("connect to chromium");
        let (out, incoming) = socket.split();
        let wire = Arc::new(Wire { out: tokio::sync::Mutex::new(out), shared: Mutex::default() });
        tokio::spawn(listen(wire.clone(), incoming));
        Some(Browser { child, _profile: profile, wire })
    }

    /// A new tab that shows the address.
    pub async fn open(&self, url: &str) -> Tab {
        let target = self.wire.ask("", "Target.createTarget", json!({"url": "about:blank"})).await;
        let target = text_of(&target["targetId"]);
        let attach = json!({"targetId": target, "flatten": true});
        let session = self.wire.ask("", "Target.attachToTarget", attach).await;
        let tab = Tab { wire: self.wire.clone(), session: text_of(&session["sessionId"]), target };
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            tab.ask(&format!("{domain}.enable"), json!({})).await;
        }
        tab.ask("Emulation.setFocusEmulationEnabled", json!({"enabled": true})).await;
        tab.size(1200, 900).await;
        tab.ask("Page.navigate", json!({ "url": url })).await;
        tab.until("document.readyState === 'complete' && location.href !== 'about:blank'").await;
        tab
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn listen(wire: Arc<Wire>, mut incoming: SplitStream<Socket>) {
    while let Some(Ok(message)) = incoming.next().await {
        let Ok(text) = message.to_text() else { continue };
        let Ok(message) = serde_json::from_str::<Json>(text) else { continue };
        let mut shared = wire.shared.lock().unwrap();
        if let Some(id) = message["id"].as_u64() {
            if let Some(waiting) = shared.waiting.remove(&id) {
                let _ = waiting.send(message);
            }
            continue;
        }
        let session = text_of(&message["sessionId"]);
        let params = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                shared.complaints.push((session, params["exceptionDetails"].to_string()));
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                shared.complaints.push((session, params["entry"].to_string()));
            }
            _ => {}
        }
    }
}

impl Wire {
    async fn ask(&self, session: &str, method: &str, params: Json) -> Json {
        let (sender, reply) = oneshot::channel();
        let id = {
            let mut shared = self.shared.lock().unwrap();
            shared.asked += 1;
            let id = shared.asked;
            shared.waiting.insert(id, sender);
            id
        };
        let mut request = json!({"id": id, "method": method, "params": params});
        if !session.is_empty() {
            request["sessionId"] = session.into();
        }
        self.out.lock().await.send(Message::text(request.to_string())).await.expect("chromium");
        let reply = tokio::time::timeout(3 * SOON, reply).await;
        let reply = reply.unwrap_or_else(|_| panic!("chromium does not answer {method}"));
        let reply = reply.expect("chromium is there");
        assert!(reply["error"].is_null(), "{method}: {}", reply["error"]);
        reply["result"].clone()
    }
}

impl Tab {
    pub async fn ask(&self, method: &str, params: Json) -> Json {
        self.wire.ask(&self.session, method, params).await
    }

    /// The value of an expression.
    pub async fn eval(&self, expression: &str) -> Json {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let reply = self.ask("Runtime.evaluate", params).await;
        assert!(reply["exceptionDetails"].is_null(), "{expression}: {reply}");
        reply["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        let end = Instant::now() + 3 * SOON;
        loop {
            let params = json!({"expression": expression, "returnByValue": true});
            // In the middle of a navigation there is nothing to evaluate in.
            let reply = self.ask("Runtime.evaluate", params).await;
            if reply["result"]["value"] == true {
                return;
            }
            if Instant::now() > end {
                let page = self.eval("document.body.innerText").await;
                panic!("timed out: {expression} ({reply}); the page:\n{page}");
            }
            tokio::time::sleep(ms(50)).await;
        }
    }

    /// The text of an element.
    pub async fn text(&self, selector: &str) -> String {
        text_of(
            &self
                .eval(&format!("document.querySelector({})?.innerText ?? ''", json!(selector)))
                .await,
        )
    }

    /// Waits until an element's text holds another one.
    pub async fn shows(&self, selector: &str, text: &str) {
        let selector = json!(selector);
        let text = json!(text);
        self.until(&format!(
            "(document.querySelector({selector})?.innerText ?? '').includes({text})"
        ))
        .await;
    }

    pub async fn click(&self, selector: &str) {
        self.eval(&format!("document.querySelector({}).click()", json!(selector))).await;
    }

    /// Types into what has the focus.
    pub async fn type_text(&self, text: &str) {
        self.ask("Input.insertText", json!({ "text": text })).await;
    }

    /// Presses one key: Tab, Enter.
    pub async fn key(&self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            _ => panic!("no such key here: {key}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key,
                "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.ask("Input.dispatchKeyEvent", event).await;
        }
    }

    pub async fn size(&self, width: u32, height: u32) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    pub async fn reload(&self) {
        self.eval("window.beforeReload = true").await;
        self.ask("Page.reload", json!({})).await;
        self.until("!window.beforeReload && document.readyState === 'complete'").await;
    }

    pub async fn close(self) {
        self.wire.ask("", "Target.closeTarget", json!({"targetId": self.target})).await;
    }

    /// Errors in the page so far.
    pub fn complaints(&self) -> Vec<String> {
        let shared = self.wire.shared.lock().unwrap();
        let own = shared.complaints.iter().filter(|(session, _)| *session == self.session);
        own.map(|(_, text)| text.clone()).collect()
    }
}
