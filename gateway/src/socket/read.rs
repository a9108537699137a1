//! What comes in: the client's actions.

use super::rate::RateLimit;
use super::{Ended, SPACE_IS_CLOSED, Session, UNAVAILABLE};
use crate::core::action::{Action, parse_action};
use crate::core::peer::PeerMessage;
use crate::core::protocol;
use crate::hub::CloseReason;
use crate::presence::SessionState;
use axum::extract::ws::{Message, WebSocket};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use tokio::time::timeout;

impl Session {
    /// Handles one message after the other. It reads the next one when the server has done what the last one asked for.
    /// So a client that sends all the time slows itself down.
    pub(super) async fn read(&mut self, stream: &mut SplitStream<WebSocket>) -> Ended {
        let silence = self.app.settings.ping * 2 + Duration::from_secs(5);
        let mut rate = RateLimit::new(self.app.settings.rate);
        loop {
            let bytes = match timeout(silence, stream.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => axum::body::Bytes::from(text),
                Ok(Some(Ok(Message::Binary(bytes)))) => bytes,
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                // Closed, broken, or it does not even answer pings.
                _ => return Ended::Disconnected,
            };
            rate.wait().await;
            match parse_action(&bytes, &self.key.1) {
                Ok(Action::Leave) => return Ended::Left,
                Ok(action) => match self.act(action).await {
                    Ok(SessionState::Live) => {}
                    Ok(SessionState::Moved) => return Ended::Closed(CloseReason::Replaced),
                    Ok(SessionState::Gone) => {
                        Session::correct(&self.handle, self.key.clone(), false).await;
                        return Ended::Closed(CloseReason::Expired);
                    }
                    Err(error) => self.send(protocol::error(match error.code() {
                        Some("CLOSED") => SPACE_IS_CLOSED,
                        _ => UNAVAILABLE,
                    })),
                },
                Err(why) => self.send(protocol::error(&why)),
            }
        }
    }

    /// Does what the client asks for. Returns the state of its session.
    async fn act(&mut self, action: Action) -> redis::RedisResult<SessionState> {
        let (app, space, key) = (&self.app, &self.handle.space, &self.key);
        if let Action::Simulate(what) = action {
            self.send(app.simulator.handle(space, what));
            return Ok(SessionState::Live);
        }
        // Set before the renewal is sent: a recheck compares the lease with it, and must not take an older renewal for
        // the last one.
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let renewed = app.presence.renew(space, key, self.conn, app.settings.ttl);
        match action {
            Action::Cursor(text) => {
                let channel = app.hubs.channels(space).peers;
                let cursor = PeerMessage::Cursor { from: key.1.clone(), text }.json();
                Ok(tokio::try_join!(renewed, app.presence.publish(&channel, &cursor))?.0)
            }
            Action::Message(text) => {
                Ok(tokio::try_join!(renewed, app.presence.message(space, key, &text))?.0)
            }
            Action::Status(status) => {
                self.meta.status = status;
                app.presence.update(space, key, self.conn, &self.meta).await
            }
            Action::Ping | Action::Leave | Action::Simulate(_) => renewed.await,
        }
    }

    /// Sends a message to this client alone. If its queue is full, the message is dropped.
    fn send(&self, text: String) {
        let _ = self.out.try_send(text.into());
    }
}
