//! What hubs are asked to do, and their replies.

use crate::core::event::{EventId, Meta};
use crate::core::room::Key;
use crate::sessions::{OwnSession, SessionState};
use axum::extract::ws::Utf8Bytes;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

pub enum HubCommand {
    /// The space is subscribed, for the first time or again: no later event is missed. `server`: the server's run, if it
    /// is known.
    Subscribed {
        server: Option<Arc<str>>,
    },
    /// The subscription is lost. Events until the next one are missed.
    Unsubscribed,
    /// An event, as it was published.
    Event(Vec<u8>),
    /// A message on the peer channel.
    PeerMessage(Vec<u8>),
    Claim {
        claim: Claim,
        reply: oneshot::Sender<Claimed>,
    },
    /// What was claimed is not going to be attached.
    Abandon {
        key: Key,
    },
    Attach {
        attach: Attach,
        reply: oneshot::Sender<Attached>,
    },
    /// A socket closed. The reply comes when the hub does not know it any more.
    Detach {
        conn: u64,
        reply: oneshot::Sender<()>,
    },
    /// A client is active: if its session does not exist, the room is out of date.
    Check,
    /// The owner of this gateway's sessions does not have this one.
    Recheck {
        key: Key,
    },
    /// The server has said at `said` whether a session is live. If the room says otherwise, it is out of date. The reply
    /// comes when the room is right.
    Correct {
        key: Key,
        live: bool,
        said: Instant,
        reply: oneshot::Sender<()>,
    },
    /// The state of sessions that were in doubt; None if the server did not reply.
    Rechecked {
        conns: Vec<u64>,
        found: Option<Vec<(u64, SessionState)>>,
    },
    /// A session may have waited too long for its event.
    Overdue,
    /// The time to answer the question `nonce` is over.
    AskOver {
        nonce: u64,
    },
    Stop,
}

pub struct Claim {
    pub identity: String,
    pub id: Option<String>,
    /// The hash of the token.
    pub token: Option<String>,
}

/// What a client may do with an id.
#[derive(Debug)]
pub enum Claimed {
    /// Take a new id.
    New,
    /// Begin a session with this id.
    Free,
    /// Continue the session, which has this metadata.
    Resume(Meta),
    /// Nothing: the room cannot be read.
    Refused(String),
}

/// A socket whose session is live. `at` is the space's last event after it began or was continued.
pub struct Attach {
    pub session: Arc<OwnSession>,
    pub at: EventId,
    pub resumed: bool,
    /// For the first message, if the client is to get it.
    pub token: Option<String>,
    pub detail: bool,
    pub out: mpsc::Sender<Utf8Bytes>,
    pub close: oneshot::Sender<CloseReason>,
}

#[derive(Debug, PartialEq)]
pub enum Attached {
    /// The first message is queued.
    Yes,
    /// Another client got the same id in the same moment.
    Conflict,
    /// The session has ended already.
    Gone,
    /// A newer connection of this gateway has the session.
    Replaced,
}

/// Why the gateway closes a socket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CloseReason {
    Expired,
    Replaced,
    SpaceClosed,
    Slow,
    Restart,
}
