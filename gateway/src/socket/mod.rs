//! The socket of one client, from its first message to its last.

mod join;
mod rate;
mod read;
mod write;

use crate::App;
use crate::core::event::Meta;
use crate::core::hello::Hello;
use crate::core::peer::PeerMessage;
use crate::core::protocol;
use crate::core::room::Key;
use crate::hub::{CloseReason, HubCommand, HubHandle};
use crate::presence::SessionState;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::{SinkExt, StreamExt};
use join::Refusal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// A client that does not take a message in this time is gone.
const SEND_WITHIN: Duration = Duration::from_secs(10);
const JOIN_WITHIN: Duration = Duration::from_secs(15);
/// Time for the client to read why its socket closes.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
const REPLACED: &str = "this id has a newer connection";
const UNAVAILABLE: &str = "presence is not available, try again";
const SPACE_IS_CLOSED: &str = "this space is closed";

/// A client whose session is live.
struct Session {
    app: Arc<App>,
    handle: HubHandle,
    conn: u64,
    key: Key,
    meta: Meta,
    out: mpsc::Sender<Utf8Bytes>,
    renewed: Arc<Mutex<Instant>>,
}

/// How a socket ended.
#[derive(Debug)]
enum Ended {
    /// The client closed it, or the connection broke.
    Disconnected,
    /// The client sent `leave`.
    Left,
    /// The gateway closes it.
    Closed(CloseReason),
}

pub async fn serve(mut socket: WebSocket, app: Arc<App>, path: String, query: String) {
    let hello = match Hello::parse(&path, &query) {
        Ok(hello) => hello,
        Err(why) => return refuse(&mut socket, &why, 1008).await,
    };
    let (out, queue) = mpsc::channel(app.settings.queue);
    let joined = timeout(JOIN_WITHIN, Session::join(app.clone(), hello, out)).await;
    let (mut session, close) = match joined {
        Ok(Ok(joined)) => joined,
        Ok(Err(Refusal::Unavailable(why))) => return refuse(&mut socket, &why, 1013).await,
        Ok(Err(Refusal::Replaced)) => return refuse(&mut socket, REPLACED, 4002).await,
        Err(_) => return refuse(&mut socket, UNAVAILABLE, 1013).await,
    };
    let (mut sink, mut stream) = socket.split();
    let ended = tokio::select! {
        ended = session.read(&mut stream) => ended,
        ended = write::write(&mut sink, queue, close, &app) => ended,
    };
    session.leave(&ended).await;
    if let Ended::Closed(why) = ended {
        let (text, code, reason) = last_words(why);
        let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
        let sent = async {
            if let Some(text) = text {
                sink.send(Message::text(text)).await?;
            }
            sink.send(close).await
        };
        let _ = timeout(CLOSE_WITHIN, sent).await;
    }
    // If input were still unread, the system would reset the connection, and the last message would be lost.
    let _ = timeout(CLOSE_WITHIN, async {
        let _ = sink.close().await;
        while let Some(Ok(_)) = stream.next().await {}
    })
    .await;
}

/// The last message, the close code and its reason.
fn last_words(why: CloseReason) -> (Option<String>, u16, &'static str) {
    match why {
        CloseReason::Expired => (Some(protocol::EXPIRED.into()), 4001, "expired"),
        CloseReason::Replaced => (Some(protocol::error(REPLACED)), 4002, "replaced"),
        CloseReason::SpaceClosed => (Some(protocol::CLOSED.into()), 4003, "space closed"),
        CloseReason::Slow => {
            let text = "too slow, messages were dropped: connect again with your id";
            (Some(protocol::error(text)), 1013, "too slow")
        }
        CloseReason::Restart => (None, 1012, "restart"),
    }
}

async fn refuse(socket: &mut WebSocket, why: &str, code: u16) {
    let sent = async {
        socket.send(Message::text(protocol::error(why))).await?;
        let reason: String = why.chars().take(30).collect();
        socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await?;
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    };
    let _ = timeout(CLOSE_WITHIN, sent).await;
}

impl Session {
    async fn leave(&self, ended: &Ended) {
        let (reply, own) = oneshot::channel();
        let _ = self.handle.hub.send(HubCommand::Detach { conn: self.conn, reply });
        // If the session is not its own any more, it goes on at another socket, or has ended.
        if !own.await.unwrap_or(false) {
            return;
        }
        let linger = match ended {
            Ended::Disconnected => self.app.settings.linger,
            Ended::Left => 0,
            // The client can come back, here or at another gateway, as long as its lease lasts.
            Ended::Closed(_) => return,
        };
        let presence = &self.app.presence;
        let state = presence.offline(&self.handle.space, &self.key, self.conn, linger).await;
        if state.is_ok_and(|state| state == SessionState::Live) && linger > 0 {
            let (user, session) = self.key.clone();
            let channel = self.app.hubs.channels(&self.handle.space).peers;
            let _ = presence.publish(&channel, &PeerMessage::Closed { user, session }.json()).await;
        }
    }

    /// Tells the hub whether the session is live, as the server has just said. The room is right when this returns.
    async fn correct(handle: &HubHandle, key: Key, live: bool) {
        let (reply, done) = oneshot::channel();
        let said = Instant::now();
        let _ = handle.hub.send(HubCommand::Correct { key, live, said, reply });
        let _ = done.await;
    }
}
