//! The socket of one client, from its first message to its last.

mod join;
mod rate;
mod read;
mod write;

use crate::App;
use crate::core::hello::Hello;
use crate::core::protocol;
use crate::core::room::Key;
use crate::hub::{CloseReason, HubCommand, HubHandle};
use crate::sessions::OwnSession;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::{SinkExt, StreamExt};
use join::Refusal;
use std::sync::Arc;
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
    own: Arc<OwnSession>,
    out: mpsc::Sender<Utf8Bytes>,
}

/// How a socket ended.
#[derive(Debug)]
enum Ended {
    /// The client closed it, or the connection broke.
    Disconnected,
    /// The client sent `leave`.
    Left,
    /// The client sent nothing for too long.
    TimedOut,
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
    let why = match ended {
        Ended::Closed(why) => Some(why),
        Ended::TimedOut => Some(CloseReason::Expired),
        Ended::Disconnected | Ended::Left => None,
    };
    if let Some(why) = why {
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
        let (reply, done) = oneshot::channel();
        let _ = self.handle.hub.send(HubCommand::Detach { conn: self.own.conn, reply });
        let _ = done.await;
        let linger = match ended {
            Ended::Disconnected => self.app.settings.linger,
            Ended::Left | Ended::TimedOut => 0,
            // It can come back until the time is over in which it must send something.
            Ended::Closed(CloseReason::Slow) => self.app.settings.ttl,
            // The session has ended, or is another connection's. At a restart the owner ends with a linger.
            Ended::Closed(_) => return self.own.release(),
        };
        if let Err(error) = self.own.end(linger).await {
            eprintln!("gateway: cannot end a session: {error}");
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
