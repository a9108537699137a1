//! One client's socket, from its first message to its last.

use crate::App;
use crate::core::event::Meta;
use crate::core::protocol::{self, Action, Hello, Side};
use crate::core::room::Key;
use crate::hub::{Attach, Attached, Claim, Claimed, End, Share, ToHub};
use crate::store::{Begun, If, SessionState};
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Whoever takes longer to take a message is gone.
const SEND_WITHIN: Duration = Duration::from_secs(10);
const JOIN_WITHIN: Duration = Duration::from_secs(15);
/// Time for the other side to read why it was closed.
const FAREWELL: Duration = Duration::from_secs(2);
const REPLACED: &str = "this id has a newer connection";
const UNAVAILABLE: &str = "presence is not to be had just now, try again";

/// A client that is in.
struct Session {
    app: Arc<App>,
    share: Share,
    conn: u64,
    key: Key,
    meta: Meta,
    out: mpsc::Sender<Utf8Bytes>,
    renewed: Arc<Mutex<Instant>>,
}

/// An id that was claimed; given back if nothing comes of it.
struct Reserved<'a> {
    hub: &'a UnboundedSender<ToHub>,
    key: Option<Key>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let _ = self.hub.send(ToHub::Abandon { key });
        }
    }
}

/// Why a client does not get in.
enum Refusal {
    Unavailable(String),
    /// A newer connection of it was quicker.
    Replaced,
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Refusal {
        Refusal::Unavailable(why.into())
    }
}

/// How it ended.
#[derive(Debug)]
enum Ended {
    /// The client closed, or its connection broke.
    Closed,
    /// It said that it leaves.
    Left,
    /// It has to go.
    Told(End),
}

pub async fn serve(mut socket: WebSocket, app: Arc<App>, path: String, query: String) {
    let hello = match Hello::parse(&path, &query) {
        Ok(hello) => hello,
        Err(why) => return refuse(&mut socket, &why, 1008).await,
    };
    let (out, queue) = mpsc::channel(app.settings.queue);
    let joined = timeout(JOIN_WITHIN, Session::join(app.clone(), hello, out)).await;
    let (mut session, ending) = match joined {
        Ok(Ok(joined)) => joined,
        Ok(Err(Refusal::Unavailable(why))) => return refuse(&mut socket, &why, 1013).await,
        Ok(Err(Refusal::Replaced)) => return refuse(&mut socket, REPLACED, 4002).await,
        Err(_) => return refuse(&mut socket, UNAVAILABLE, 1013).await,
    };
    let (mut sink, mut stream) = socket.split();
    let ended = tokio::select! {
        ended = session.read(&mut stream) => ended,
        ended = write(&mut sink, queue, ending, &app) => ended,
    };
    session.leave(&ended).await;
    if let Ended::Told(why) = ended {
        let (text, code, reason) = farewell(why);
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        let said = async {
            if let Some(text) = text {
                sink.send(Message::text(text)).await?;
            }
            sink.send(close).await
        };
        let _ = timeout(FAREWELL, said).await;
    }
    // What is still unread would make the system reset the connection, and the farewell would be lost.
    let _ = timeout(FAREWELL, async {
        let _ = sink.close().await;
        while let Some(Ok(_)) = stream.next().await {}
    })
    .await;
}

fn farewell(why: End) -> (Option<String>, u16, &'static str) {
    match why {
        End::Expired => (Some(protocol::EXPIRED.into()), 4001, "expired"),
        End::Replaced => (Some(protocol::error(REPLACED)), 4002, "replaced"),
        End::Closed => (Some(r#"{"event":"closed"}"#.into()), 4003, "space closed"),
        End::Slow => {
            let text = "too slow, messages were dropped: connect again with your id";
            (Some(protocol::error(text)), 1013, "too slow")
        }
        End::Restart => (None, 1012, "restart"),
    }
}

async fn refuse(socket: &mut WebSocket, why: &str, code: u16) {
    let said = async {
        socket.send(Message::text(protocol::error(why))).await?;
        let reason: String = why.chars().take(30).collect();
        socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await?;
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    };
    let _ = timeout(FAREWELL, said).await;
}

/// Sends what is queued, and a sign of life now and then, until the client has to go or cannot be reached.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<Utf8Bytes>,
    mut ending: oneshot::Receiver<End>,
    app: &App,
) -> Ended {
    let mut ping = tokio::time::interval(app.settings.ping);
    ping.reset();
    let mut restart = app.restart.clone();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            why = &mut ending => {
                let Ok(why) = why else { return Ended::Closed };
                // What was told before it comes before it, unless that is what took too long.
                if why != End::Slow {
                    let rest = std::iter::from_fn(|| queue.try_recv().ok());
                    let _ = timeout(FAREWELL, send_all(sink, rest)).await;
                }
                return Ended::Told(why);
            }
            () = async { drop(restart.wait_for(|restart| *restart).await) } => {
                return Ended::Told(End::Restart);
            }
            _ = ping.tick() => {
                // Longhouse's, which clients know; and the protocol's, which browsers answer by themselves.
                batch.push(protocol::PING.into());
                let sent = timeout(SEND_WITHIN, sink.feed(Message::Ping(Default::default()))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return Ended::Closed;
                }
            }
            n = queue.recv_many(&mut batch, 64) => if n == 0 {
                return Ended::Closed;
            }
        }
        if !matches!(timeout(SEND_WITHIN, send_all(sink, batch.drain(..))).await, Ok(Ok(()))) {
            return Ended::Closed;
        }
    }
}

async fn send_all(
    sink: &mut SplitSink<WebSocket, Message>,
    texts: impl Iterator<Item = Utf8Bytes>,
) -> Result<(), axum::Error> {
    for text in texts {
        sink.feed(Message::Text(text)).await?;
    }
    sink.flush().await
}

impl Session {
    // -----------------------------------------------------------------------------------------------------------------
    // Coming and going

    async fn join(
        app: Arc<App>,
        hello: Hello,
        out: mpsc::Sender<Utf8Bytes>,
    ) -> Result<(Session, oneshot::Receiver<End>), Refusal> {
        let share = app.hubs.share(&format!("{}{}", app.settings.prefix, hello.space));
        let mut wanted = hello.id.clone();
        // Each turn but the last is somebody else's doing: the id was taken, or lapsed, between two looks.
        for turn in 0..6 {
            let claim = Claim {
                identity: hello.identity.clone(),
                id: wanted.clone(),
                token: hello.token.as_deref().map(hash),
            };
            let (reply, claimed) = oneshot::channel();
            let _ = share.hub.send(ToHub::Claim { claim, reply });
            let claimed = claimed.await.map_err(|_| UNAVAILABLE)?;
            let mut meta = Meta {
                username: hello.username.clone(),
                status: hello.status.clone(),
                owner: None,
            };
            let id = wanted.clone().unwrap_or_default();
            let new_id = matches!(claimed, Claimed::New);
            let (id, token, resumed) = match claimed {
                Claimed::Refused(why) => return Err(Refusal::Unavailable(why)),
                Claimed::New => (uuid(), Some(secret()), false),
                // Coming back too late, it keeps its token.
                Claimed::Free => (id, Some(hello.token.clone().unwrap_or_else(secret)), false),
                Claimed::Resume(was) => {
                    meta.owner = was.owner;
                    if meta.status.is_empty() {
                        meta.status = was.status;
                    }
                    (id, hello.token.clone(), true)
                }
            };
            if !resumed {
                meta.owner = token.as_deref().map(hash);
            }
            let key = (hello.identity.clone(), id);
            let mut reserved = Reserved { hub: &share.hub, key: Some(key.clone()) };
            let condition = if resumed { If::Present } else { If::Absent };
            let renewed = Arc::new(Mutex::new(Instant::now()));
            let conn = app.conns.next();
            let begun = app.store.online(&share.space, &key, &meta, condition, conn, new_id).await;
            let at = match begun {
                Ok(Begun::At(at)) => at,
                Ok(Begun::Newer) => {
                    drop(reserved);
                    continue;
                }
                Ok(Begun::Unmet) => {
                    drop(reserved);
                    // The room did not know. The next turn decides by what the server has now.
                    correct(&share, key, !resumed).await;
                    if turn > 1 {
                        tokio::time::sleep(Duration::from_millis(20 << turn)).await;
                    }
                    continue;
                }
                Err(error) => {
                    return Err(match error.code() {
                        Some("CLOSED") => "this space is closed".into(),
                        Some(code) => Refusal::Unavailable(format!("refused: {code}")),
                        None => UNAVAILABLE.into(),
                    });
                }
            };
            let (reply, attached) = oneshot::channel();
            let (end, ending) = oneshot::channel();
            let attach = Attach {
                conn,
                key: key.clone(),
                at,
                resumed,
                token,
                detail: hello.events,
                out: out.clone(),
                end,
                renewed: renewed.clone(),
            };
            reserved.key = None; // the hub's from here on
            drop(reserved);
            let _ = share.hub.send(ToHub::Attach { attach, reply });
            match attached.await.map_err(|_| UNAVAILABLE)? {
                Attached::Yes => {
                    let session = Session { app, share, conn, key, meta, out, renewed };
                    return Ok((session, ending));
                }
                Attached::Conflict => {
                    let _ = app.store.offline(&share.space, &key, conn, 0).await;
                    wanted = None;
                }
                Attached::Gone => {}
                Attached::Replaced => return Err(Refusal::Replaced),
            }
        }
        Err(UNAVAILABLE.into())
    }

    async fn leave(&self, ended: &Ended) {
        let (reply, own) = oneshot::channel();
        let _ = self.share.hub.send(ToHub::Detach { conn: self.conn, reply });
        // Not its own any more: it went on at another socket, or ended.
        if !own.await.unwrap_or(false) {
            return;
        }
        let linger = match ended {
            Ended::Closed => self.app.settings.linger,
            Ended::Left => 0,
            // It is to come back, here or elsewhere, as long as its lease lasts.
            Ended::Told(_) => return,
        };
        let store = &self.app.store;
        let ended = store.offline(&self.share.space, &self.key, self.conn, linger).await;
        if ended.is_ok_and(|state| state == SessionState::Live) && linger > 0 {
            let (user, session) = self.key.clone();
            let side = self.app.hubs.channels(&self.share.space).side;
            let _ = store.publish(&side, &Side::Closed { user, session }.json()).await;
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // What the client sends

    /// Takes one message after the other: the next is read when what the last one asked of the server is done. So a
    /// client that sends without end slows down itself.
    async fn read(&mut self, stream: &mut SplitStream<WebSocket>) -> Ended {
        let silence = self.app.settings.ping * 2 + Duration::from_secs(5);
        let mut pace = Pace::new(self.app.settings.rate);
        loop {
            let bytes = match timeout(silence, stream.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => axum::body::Bytes::from(text),
                Ok(Some(Ok(Message::Binary(bytes)))) => bytes,
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                // Closed, broken, or not a sign of life though it was asked for one.
                _ => return Ended::Closed,
            };
            pace.wait().await;
            match protocol::parse_action(&bytes, &self.key.1) {
                Ok(Action::Leave) => return Ended::Left,
                Ok(action) => match self.act(action).await {
                    Ok(SessionState::Live) => {}
                    Ok(SessionState::Moved) => return Ended::Told(End::Replaced),
                    Ok(SessionState::Gone) => {
                        correct(&self.share, self.key.clone(), false).await;
                        return Ended::Told(End::Expired);
                    }
                    Err(error) => self.say(protocol::error(match error.code() {
                        Some("CLOSED") => "this space is closed",
                        _ => UNAVAILABLE,
                    })),
                },
                Err(why) => self.say(protocol::error(&why)),
            }
        }
    }

    /// Does what the client asked for, and tells how its session is.
    async fn act(&mut self, action: Action) -> redis::RedisResult<SessionState> {
        let (app, space, key) = (&self.app, &self.share.space, &self.key);
        if let Action::Crowd(what) = action {
            let told = app.crowds.ask(space, what);
            self.say(told);
            return Ok(SessionState::Live);
        }
        // Before it is sent: whoever compares the lease with it must not take an older renewal for the last one.
        *self.renewed.lock().unwrap_or_else(|e| e.into_inner()) = Instant::now();
        let renewed = app.store.renew(space, key, self.conn, app.settings.ttl);
        match action {
            Action::Cursor(text) => {
                let side = app.hubs.channels(space).side;
                let cursor = Side::Cursor { from: key.1.clone(), text }.json();
                Ok(tokio::try_join!(renewed, app.store.publish(&side, &cursor))?.0)
            }
            Action::Message(text) => {
                Ok(tokio::try_join!(renewed, app.store.message(space, key, &text))?.0)
            }
            Action::Status(status) => {
                self.meta.status = status;
                app.store.update(space, key, self.conn, &self.meta).await
            }
            Action::Ping | Action::Leave | Action::Crowd(_) => renewed.await,
        }
    }

    /// To this client alone. One that does not read its own errors misses them.
    fn say(&self, text: String) {
        let _ = self.out.try_send(text.into());
    }
}

/// The server has said whether a session is live. The room knows it when this returns.
async fn correct(share: &Share, key: Key, live: bool) {
    let (reply, done) = oneshot::channel();
    let _ = share.hub.send(ToHub::Correct { key, live, said: Instant::now(), reply });
    let _ = done.await;
}

/// At most so many messages a second, twice as many at once after a quiet time.
struct Pace {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Pace {
    fn new(rate: u32) -> Pace {
        Pace { rate: rate.into(), left: 2.0 * f64::from(rate), at: Instant::now() }
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        let earned = (now - self.at).as_secs_f64() * self.rate;
        self.left = (self.left + earned).min(2.0 * self.rate) - 1.0;
        self.at = now;
        if self.left < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-self.left / self.rate)).await;
        }
    }
}

fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

fn secret() -> String {
    hex(&random_bytes())
}

/// Of a token, for metadata, which everybody with access to the server may see.
fn hash(token: &str) -> String {
    hex(&Sha256::digest(token)[..16])
}

/// A random UUID (version 4).
fn uuid() -> String {
    let mut bytes = random_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}
