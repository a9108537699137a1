//! What comes in: the client's actions.

use super::rate::RateLimit;
use super::{Ended, SPACE_IS_CLOSED, Session, UNAVAILABLE};
use crate::core::action::{Action, parse_action};
use crate::core::peer::PeerMessage;
use crate::core::protocol;
use crate::hub::{CloseReason, HubCommand};
use crate::sessions::SessionState;
use axum::extract::ws::{Message, WebSocket};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use std::time::{Duration, Instant};
use tokio::time::timeout;

impl Session {
    /// Handles one message after the other. It reads the next one when the server has done what the last one asked for.
    /// So a client that sends all the time slows itself down.
    pub(super) async fn read(&mut self, stream: &mut SplitStream<WebSocket>) -> Ended {
        let silence = self.app.settings.ping * 2 + Duration::from_secs(5);
        let ttl = Duration::from_millis(self.app.settings.ttl);
        let mut rate = RateLimit::new(self.app.settings.rate);
        let mut active = Instant::now();
        loop {
            let left = ttl.saturating_sub(active.elapsed());
            let bytes = match timeout(left.min(silence), stream.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => axum::body::Bytes::from(text),
                Ok(Some(Ok(Message::Binary(bytes)))) => bytes,
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) if left.is_zero() => {
                    return Ended::TimedOut;
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                Err(_) if left <= silence => return Ended::TimedOut,
                // Closed, broken, or it does not even answer pings.
                _ => return Ended::Disconnected,
            };
            rate.wait().await;
            match parse_action(&bytes, &self.own.key().1) {
                Ok(Action::Leave) => return Ended::Left,
                Ok(Action::Simulate(what)) => {
                    self.send(self.app.simulator.handle(&self.handle.space, what));
                }
                Ok(action) => {
                    active = Instant::now();
                    if let Some(ended) = self.act(action).await {
                        return ended;
                    }
                }
                Err(why) => self.send(protocol::error(&why)),
            }
        }
    }

    /// Does what the client asks for. Returns how the socket ends, if it does.
    async fn act(&self, action: Action) -> Option<Ended> {
        let (app, space, key) = (&self.app, &self.handle.space, self.own.key());
        // The server does not hear of every action, so the hub makes sure that the session is still there.
        let _ = self.handle.hub.send(HubCommand::Check);
        let result = match action {
            Action::Cursor(text) => {
                let channel = app.hubs.channels(space).peers;
                let cursor = PeerMessage::Cursor { from: key.1.clone(), text }.json();
                app.presence.publish(&channel, &cursor).await.map(|_| SessionState::Live)
            }
            Action::Message(text) => {
                app.presence.message(space, key, &text).await.map(|_| SessionState::Live)
            }
            Action::Status(status) => self.own.set_status(status).await,
            Action::Ping | Action::Leave | Action::Simulate(_) => Ok(SessionState::Live),
        };
        match result {
            Ok(SessionState::Live) => None,
            Ok(SessionState::Moved) => Some(Ended::Closed(CloseReason::Replaced)),
            Ok(SessionState::Gone) => {
                Session::correct(&self.handle, key.clone(), false).await;
                Some(Ended::Closed(CloseReason::Expired))
            }
            Err(error) => {
                self.send(protocol::error(match error.code() {
                    Some("CLOSED") => SPACE_IS_CLOSED,
                    _ => UNAVAILABLE,
                }));
                None
            }
        }
    }

    /// Sends a message to this client alone. If its queue is full, the message is dropped.
    fn send(&self, text: String) {
        let _ = self.out.try_send(text.into());
    }
}
