//! How a client gets in: it claims an id, begins or continues the session, and attaches to the hub.

use super::{SPACE_IS_CLOSED, Session, UNAVAILABLE};
use crate::App;
use crate::core::event::Meta;
use crate::core::hello::Hello;
use crate::core::room::Key;
use crate::core::token;
use crate::hub::{Attach, Attached, Claim, Claimed, CloseReason, HubCommand, HubHandle};
use crate::presence::Condition;
use crate::random;
use crate::sessions::{Begun, OwnSession};
use axum::extract::ws::Utf8Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{mpsc, oneshot};

/// How often a client tries to get in. Each attempt fails only if the id was taken, or its session ended, since the
/// room was read.
const ATTEMPTS: u32 = 6;

/// Why a client does not get in.
pub(super) enum Refusal {
    Unavailable(String),
    /// A newer connection of the same client was faster.
    Replaced,
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Refusal {
        Refusal::Unavailable(why.into())
    }
}

/// The system has no random numbers.
impl From<getrandom::Error> for Refusal {
    fn from(error: getrandom::Error) -> Refusal {
        eprintln!("gateway: {error}");
        UNAVAILABLE.into()
    }
}

/// A session that a client may begin or continue.
struct Grant {
    key: Key,
    meta: Meta,
    token: Option<String>,
    resumed: bool,
}

/// The claim of an id, which is given up if no socket is attached.
struct Reserved<'a> {
    hub: &'a UnboundedSender<HubCommand>,
    key: Option<Key>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let _ = self.hub.send(HubCommand::Abandon { key });
        }
    }
}

/// A client on its way in.
struct Join {
    app: Arc<App>,
    handle: HubHandle,
    hello: Hello,
    out: mpsc::Sender<Utf8Bytes>,
}

/// What comes of one attempt, if the client is not refused.
enum Attempt {
    In(Arc<OwnSession>, oneshot::Receiver<CloseReason>),
    /// The room was out of date.
    Again,
    /// Another client has the id.
    AgainWithNewId,
}

impl Session {
    pub(super) async fn join(
        app: Arc<App>,
        hello: Hello,
        out: mpsc::Sender<Utf8Bytes>,
    ) -> Result<(Session, oneshot::Receiver<CloseReason>), Refusal> {
        let handle = app.hubs.handle(&format!("{}{}", app.settings.prefix, hello.space));
        let mut join = Join { app, handle, hello, out };
        for number in 0..ATTEMPTS {
            let grant = join.claim().await?;
            match join.attempt(grant, number).await? {
                Attempt::In(own, close) => {
                    let Join { app, handle, out, .. } = join;
                    return Ok((Session { app, handle, own, out }, close));
                }
                Attempt::Again => {}
                Attempt::AgainWithNewId => join.hello.id = None,
            }
        }
        Err(UNAVAILABLE.into())
    }
}

impl Join {
    /// Which session the client may have.
    async fn claim(&self) -> Result<Grant, Refusal> {
        let hello = &self.hello;
        let claim = Claim {
            identity: hello.identity.clone(),
            id: hello.id.clone(),
            token: hello.token.as_deref().map(token::hash),
        };
        let (reply, claimed) = oneshot::channel();
        let _ = self.handle.hub.send(HubCommand::Claim { claim, reply });
        let claimed = claimed.await.map_err(|_| UNAVAILABLE)?;
        let mut meta = Meta {
            username: hello.username.clone(),
            status: hello.status.clone(),
            token_hash: None,
        };
        let asked_for = hello.id.clone().unwrap_or_default();
        let resumed = matches!(claimed, Claimed::Resume(_));
        let (id, token) = match claimed {
            Claimed::Refused(why) => return Err(Refusal::Unavailable(why)),
            Claimed::New => (random::uuid()?, Some(random::token()?)),
            // A client that comes back too late keeps its token.
            Claimed::Free => match &hello.token {
                Some(token) => (asked_for, Some(token.clone())),
                None => (asked_for, Some(random::token()?)),
            },
            Claimed::Resume(former) => {
                meta.token_hash = former.token_hash;
                if meta.status.is_empty() {
                    meta.status = former.status;
                }
                (asked_for, hello.token.clone())
            }
        };
        if !resumed {
            meta.token_hash = token.as_deref().map(token::hash);
        }
        Ok(Grant { key: (hello.identity.clone(), id), meta, token, resumed })
    }

    /// Begins or continues the session, and attaches to the hub.
    async fn attempt(&self, grant: Grant, number: u32) -> Result<Attempt, Refusal> {
        let Join { app, handle, .. } = self;
        let Grant { key, meta, token, resumed } = grant;
        let mut reserved = Reserved { hub: &handle.hub, key: Some(key.clone()) };
        let name = (handle.space.clone(), key.clone());
        let (conn, linger) = (app.conns.next(), app.settings.linger);
        let own = OwnSession::new(app.presence.clone(), &app.sessions, name, conn, meta, linger);
        let condition = if resumed { Condition::Present } else { Condition::Absent };
        let at = match own.begin(condition).await.map_err(refusal)? {
            Begun::At(at) => at,
            Begun::Newer => return Ok(Attempt::Again),
            Begun::Unmet => {
                drop(reserved);
                self.correct_room(key, !resumed, number).await;
                return Ok(Attempt::Again);
            }
        };
        let (close_sender, close) = oneshot::channel();
        let attach = Attach {
            session: own.clone(),
            at,
            resumed,
            token,
            detail: self.hello.events,
            out: self.out.clone(),
            close: close_sender,
        };
        reserved.key = None; // From here on the hub has it.
        drop(reserved);
        let (reply, attached) = oneshot::channel();
        let _ = handle.hub.send(HubCommand::Attach { attach, reply });
        match attached.await.map_err(|_| UNAVAILABLE)? {
            Attached::Yes => Ok(Attempt::In(own, close)),
            Attached::Conflict => {
                let _ = own.end(0).await;
                Ok(Attempt::AgainWithNewId)
            }
            Attached::Gone => {
                own.release();
                Ok(Attempt::Again)
            }
            Attached::Replaced => Err(Refusal::Replaced),
        }
    }

    /// The room did not know whether the session is live. The next attempt decides by what the server has now.
    async fn correct_room(&self, key: Key, live: bool, number: u32) {
        Session::correct(&self.handle, key, live).await;
        if number > 1 {
            tokio::time::sleep(Duration::from_millis(20 << number)).await;
        }
    }
}

fn refusal(error: redis::RedisError) -> Refusal {
    match error.code() {
        Some("CLOSED") => SPACE_IS_CLOSED.into(),
        Some(code) => Refusal::Unavailable(format!("refused: {code}")),
        None => UNAVAILABLE.into(),
    }
}
