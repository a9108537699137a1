//! What goes out: queued messages, and pings.

use super::{CLOSE_WITHIN, Ended, SEND_WITHIN};
use crate::App;
use crate::core::protocol;
use crate::hub::CloseReason;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use futures_util::SinkExt;
use futures_util::stream::SplitSink;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Sends what is queued, and pings, until the socket is to be closed or the client cannot be reached.
pub(super) async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut queue: mpsc::Receiver<Utf8Bytes>,
    mut close: oneshot::Receiver<CloseReason>,
    app: &App,
) -> Ended {
    let mut ping = tokio::time::interval(app.settings.ping);
    ping.reset();
    let mut restart = app.restart.clone();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            why = &mut close => {
                let Ok(why) = why else { return Ended::Disconnected };
                // Messages that were queued before are sent first, unless they took too long.
                if why != CloseReason::Slow {
                    let rest = std::iter::from_fn(|| queue.try_recv().ok());
                    let _ = timeout(CLOSE_WITHIN, send_all(sink, rest)).await;
                }
                return Ended::Closed(why);
            }
            () = async { drop(restart.wait_for(|restart| *restart).await) } => {
                return Ended::Closed(CloseReason::Restart);
            }
            _ = ping.tick() => {
                // Longhouse's ping, which its clients know, and the protocol's, which browsers answer by themselves.
                batch.push(protocol::PING.into());
                let sent = timeout(SEND_WITHIN, sink.feed(Message::Ping(Default::default()))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return Ended::Disconnected;
                }
            }
            n = queue.recv_many(&mut batch, 64) => if n == 0 {
                return Ended::Disconnected;
            }
        }
        if !matches!(timeout(SEND_WITHIN, send_all(sink, batch.drain(..))).await, Ok(Ok(()))) {
            return Ended::Disconnected;
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
