//! One task a space: it follows the space, knows the sockets of this gateway that are in it, and tells them.
//!
//! It alone holds the room and the list of sockets. So a client is added in the same step in which the list for its
//! first message is made, and no join can fall between the two.

use crate::core::claim::{Asked, Verdict, decide};
use crate::core::event::{Event, EventId, Meta};
use crate::core::protocol::{self, Detail, Side};
use crate::core::room::{Change, Key, Offer, Room};
use crate::feed::{Channels, ToFeed};
use crate::store::{Own, SessionState, Store};
use axum::extract::ws::Utf8Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

/// How long other gateways have to say that they hold a socket.
const ASK_FOR: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(500);
/// A session whose event has not arrived by then is asked for.
const EVENT_WITHIN: Duration = Duration::from_millis(100);
/// A space that was deleted, or whose last event got lost, is noticed by then.
const AUDIT_EVERY: Duration = Duration::from_secs(5);

pub enum ToHub {
    /// Subscribed, for the first time or again: from here on nothing is missed. `server`: its run, if it is known.
    Subscribed {
        server: Option<Arc<str>>,
    },
    /// The subscription is lost, and with it what happens until the next one.
    Unsubscribed,
    Event(Vec<u8>),
    Side(Vec<u8>),
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
    /// A socket closed. The reply says whether its session was its own to the end.
    Detach {
        conn: u64,
        reply: oneshot::Sender<bool>,
    },
    /// The server has just said that a session is there, or that it is not. If the room says otherwise, the room is
    /// out of date. The reply comes when it is right.
    Correct {
        key: Key,
        live: bool,
        said: Instant,
        reply: oneshot::Sender<()>,
    },
    /// What is with sessions that were in doubt; None if the server did not say.
    Rechecked {
        conns: Vec<u64>,
        found: Option<Vec<(u64, SessionState)>>,
    },
    /// A session may have waited too long for its event.
    Overdue,
    /// Time is over for those who were asked.
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

/// What may be done with an id.
#[derive(Debug)]
pub enum Claimed {
    New,
    Free,
    Resume(Meta),
    /// There is no room to be had.
    Refused(String),
}

/// A socket whose session is in the space since `at`.
pub struct Attach {
    pub conn: u64,
    pub key: Key,
    pub at: EventId,
    pub resumed: bool,
    /// For the first message, where the client is to know it.
    pub token: Option<String>,
    pub detail: bool,
    pub out: mpsc::Sender<Utf8Bytes>,
    pub end: oneshot::Sender<End>,
    pub renewed: Arc<Mutex<Instant>>,
}

#[derive(Debug, PartialEq)]
pub enum Attached {
    /// The first message is on its way.
    Yes,
    /// Somebody else got the same id in the same moment.
    Conflict,
    /// The session has ended already.
    Gone,
    /// A newer connection of this gateway has the session.
    Replaced,
}

/// Why a socket has to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Expired,
    Replaced,
    Closed,
    Slow,
    Restart,
}

/// What the hubs of a gateway share.
pub struct Shared {
    pub store: Store,
    pub ttl: u64,
    pub by_identity: bool,
    pub crowd: usize,
}

// ---------------------------------------------------------------------------------------------------------------------
// The hubs of a gateway

pub struct Hubs {
    shared: Arc<Shared>,
    feed: UnboundedSender<ToFeed>,
    channel_prefix: String,
    running: Mutex<HashMap<String, (UnboundedSender<ToHub>, usize)>>,
}

/// A share in a space's hub. The hub ends with the last one.
pub struct Share {
    hubs: Arc<Hubs>,
    pub space: String,
    pub hub: UnboundedSender<ToHub>,
}

impl Hubs {
    pub fn new(shared: Arc<Shared>, feed: UnboundedSender<ToFeed>, channel_prefix: String) -> Hubs {
        Hubs { shared, feed, channel_prefix, running: Mutex::default() }
    }

    pub fn channels(&self, space: &str) -> Channels {
        Channels {
            events: format!("{}{space}", self.channel_prefix),
            side: format!("presence-gateway:{space}"),
        }
    }

    pub fn share(self: &Arc<Self>, space: &str) -> Share {
        let mut running = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let (hub, shares) = running.entry(space.to_string()).or_insert_with(|| {
            let (sender, inbox) = mpsc::unbounded_channel();
            let channels = self.channels(space);
            let hub = Hub::new(self.shared.clone(), space, &channels.side, sender.clone());
            tokio::spawn(hub.run(inbox));
            let _ = self.feed.send(ToFeed::Follow { channels, hub: sender.clone() });
            (sender, 0)
        });
        *shares += 1;
        Share { hubs: self.clone(), space: space.to_string(), hub: hub.clone() }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut running = self.hubs.running.lock().unwrap_or_else(|e| e.into_inner());
        let Some((hub, shares)) = running.get_mut(&self.space) else { return };
        *shares -= 1;
        if *shares == 0 {
            let _ = hub.send(ToHub::Stop);
            let channels = self.hubs.channels(&self.space);
            let _ = self.hubs.feed.send(ToFeed::Leave { channels });
            running.remove(&self.space);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// One hub

struct Conn {
    key: Key,
    detail: bool,
    out: mpsc::Sender<Utf8Bytes>,
    end: oneshot::Sender<End>,
    renewed: Arc<Mutex<Instant>>,
    /// Its `Replaced` is on the way: one that arrives before it is older.
    announcing: bool,
}

struct Waiting {
    since: Instant,
    attach: Attach,
    reply: oneshot::Sender<Attached>,
}

#[derive(Default)]
struct Claims {
    count: usize,
    /// Another gateway said something about the session in the meantime.
    recheck: bool,
}

struct Asking {
    key: Key,
    /// The question has come by on the channel: whoever asks the same after it is later.
    asked: bool,
    reply: oneshot::Sender<Claimed>,
}

struct Hub {
    shared: Arc<Shared>,
    space: String,
    side: String,
    me: UnboundedSender<ToHub>,
    room: Room,
    /// Followed, and the room is what the space is.
    ready: bool,
    /// Why it is not, where the server said so.
    trouble: Option<String>,
    /// Claims that came before it was.
    early: Vec<ToHub>,
    conns: HashMap<u64, Conn>,
    by_key: HashMap<Key, u64>,
    /// Claimed and not attached yet: for those who ask, as good as held.
    claimed: HashMap<Key, Claims>,
    waiting: Vec<Waiting>,
    asking: HashMap<u64, Asking>,
    subscribed: bool,
    /// The run of the server.
    server: Option<Arc<str>>,
    /// The room is of this run. Another run may have given out ids of lost events again.
    verified: bool,
    /// When the last snapshot was asked for.
    snapshot_at: Option<Instant>,
    /// Connections whose sessions are to be rechecked at the next tick.
    to_recheck: Vec<u64>,
    audited: Instant,
}

/// How much to read from the server.
#[derive(Clone, Copy, PartialEq)]
enum Read {
    /// The events since the last one; a snapshot only if they do not continue.
    Events,
    /// A snapshot too.
    Snapshot,
}

impl Hub {
    fn new(shared: Arc<Shared>, space: &str, side: &str, me: UnboundedSender<ToHub>) -> Hub {
        Hub {
            shared,
            space: space.into(),
            side: side.into(),
            me,
            room: Room::default(),
            ready: false,
            trouble: None,
            early: Vec::new(),
            conns: HashMap::new(),
            by_key: HashMap::new(),
            claimed: HashMap::new(),
            waiting: Vec::new(),
            asking: HashMap::new(),
            subscribed: false,
            server: None,
            verified: false,
            snapshot_at: None,
            to_recheck: Vec::new(),
            audited: Instant::now(),
        }
    }

    async fn run(mut self, mut inbox: UnboundedReceiver<ToHub>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(ToHub::Stop) | None => return,
                    Some(message) => self.handle(message).await,
                },
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    async fn handle(&mut self, message: ToHub) {
        match message {
            ToHub::Subscribed { server } => {
                self.subscribed = true;
                if server.is_none() || self.server != server {
                    self.verified = false;
                }
                self.server = server;
                self.catch_up(Read::Events).await;
                // What other gateways said about our sessions in the meantime was missed.
                self.to_recheck = self.conns.keys().copied().collect();
                self.recheck_pending();
            }
            ToHub::Unsubscribed => {
                self.subscribed = false;
                self.ready = false;
                self.trouble = None;
                // Answers of other gateways are lost: they are asked again.
                for (_, Asking { key: (identity, id), reply, .. }) in self.asking.drain() {
                    let claim = Claim { identity, id: Some(id), token: None };
                    self.early.push(ToHub::Claim { claim, reply });
                }
            }
            ToHub::Event(text) => self.event(&text).await,
            ToHub::Side(text) => self.side(&text),
            ToHub::Claim { claim, reply } if self.ready => self.claim(claim, reply),
            ToHub::Claim { claim, reply } => match &self.trouble {
                Some(why) => drop(reply.send(Claimed::Refused(why.clone()))),
                None => self.early.push(ToHub::Claim { claim, reply }),
            },
            ToHub::Abandon { key } => drop(self.unclaim(&key)),
            ToHub::Attach { attach, reply } => {
                self.waiting.push(Waiting { since: Instant::now(), attach, reply });
                self.attach_waiting();
                if !self.waiting.is_empty() {
                    let me = self.me.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(EVENT_WITHIN).await;
                        let _ = me.send(ToHub::Overdue);
                    });
                }
            }
            ToHub::Overdue => self.ask_for_overdue().await,
            ToHub::Correct { key, live, said, reply } => {
                self.correct(&key, live, said).await;
                let _ = reply.send(());
            }
            ToHub::Rechecked { conns, found: None } => self.to_recheck.extend(conns),
            ToHub::Rechecked { found: Some(found), .. } => self.rechecked(found).await,
            ToHub::Detach { conn, reply } => drop(reply.send(self.drop_conn(conn).is_some())),
            ToHub::AskOver { nonce } => {
                let Some(Asking { key, reply, .. }) = self.asking.remove(&nonce) else { return };
                // Decided again: who has the token may have come in the meantime.
                let (verdict, meta) = self.decide(&key, None);
                match verdict {
                    Verdict::ResumeIfUnheld => {
                        self.claimed.entry(key).or_default().count += 1;
                        let _ = reply.send(Claimed::Resume(meta));
                    }
                    other => self.grant(other, key, meta, reply),
                }
            }
            ToHub::Stop => {}
        }
    }

    async fn tick(&mut self) {
        if self.subscribed && !self.ready {
            self.catch_up(Read::Events).await;
        }
        self.ask_for_overdue().await;
        self.recheck_pending();
        if self.ready && self.audited.elapsed() > AUDIT_EVERY {
            self.audited = Instant::now();
            let known = self.room.last;
            if self.shared.store.last_id(&self.space).await.is_ok_and(|last| last != known) {
                self.catch_up(Read::Events).await;
            }
        }
    }

    async fn ask_for_overdue(&mut self) {
        if self.ready && self.waiting.iter().any(|w| w.since.elapsed() >= EVENT_WITHIN) {
            self.catch_up(Read::Events).await;
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Following the space

    async fn event(&mut self, text: &[u8]) {
        if !self.ready {
            return; // the snapshot is still to be read, and will hold it
        }
        let Some(event) = Event::parse(text) else { return };
        match self.room.offer(&event) {
            Offer::Old => {}
            Offer::Ask => {
                self.catch_up(Read::Events).await;
                if self.ready {
                    self.room.note_ended_epoch(event.id.epoch);
                }
            }
            Offer::Applied(changes) => self.tell_event(&event, &changes),
        }
        self.attach_waiting();
    }

    /// What happened since the room's last event: by the events, or by a snapshot where they are no longer kept.
    async fn catch_up(&mut self, read: Read) {
        match self.try_catch_up(read).await {
            Ok(()) => {
                self.ready = true;
                self.verified = true;
                self.trouble = None;
                for message in std::mem::take(&mut self.early) {
                    if let ToHub::Claim { claim, reply } = message {
                        self.claim(claim, reply);
                    }
                }
                self.attach_waiting();
            }
            Err(error) => {
                eprintln!("gateway: {}: {error}", self.space.escape_debug());
                self.ready = false;
                // What the server answered is the client's to know; a lost connection heals by itself.
                if let Some(code) = error.code() {
                    self.trouble = Some(format!("this space is not to be had: {code}"));
                    for message in std::mem::take(&mut self.early) {
                        if let ToHub::Claim { reply, .. } = message {
                            let why = self.trouble.clone().unwrap_or_default();
                            let _ = reply.send(Claimed::Refused(why));
                        }
                    }
                }
            }
        }
    }

    async fn try_catch_up(&mut self, read: Read) -> redis::RedisResult<()> {
        let store = self.shared.store.clone();
        let mut continues = false;
        if self.room.last != EventId::default() {
            let since = store.events_after(&self.space, self.room.last).await?;
            continues = since.continues(self.room.last);
            if continues {
                for event in since.events {
                    let changes = self.room.apply(&event);
                    self.tell_event(&event, &changes);
                }
            }
        }
        if continues && self.verified && read == Read::Events {
            return Ok(());
        }
        let asked = Instant::now();
        let fresh = store.snapshot(&self.space).await?;
        self.snapshot_at = Some(asked);
        let changes = self.room.become_room(fresh);
        self.tell_changes(&changes);
        let lost = !continues || !changes.is_empty();
        if lost && self.conns.values().any(|c| c.detail) {
            let text = protocol::resync(&self.list(true), self.room.last).into();
            self.send(&text, |conn| conn.detail);
        }
        // Whoever's session is in no snapshot any more has lost it, and is told.
        let gone: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| self.room.get(&c.key).is_none())
            .map(|(conn, _)| *conn)
            .collect();
        gone.into_iter().for_each(|conn| self.end(conn, End::Expired));
        Ok(())
    }

    /// The server has said at `said` whether this session is live.
    async fn correct(&mut self, key: &Key, live: bool, said: Instant) {
        let right = |hub: &Hub| hub.room.get(key).is_some() == live;
        if !self.ready || right(self) {
            return;
        }
        self.catch_up(Read::Events).await;
        let looked = self.snapshot_at.is_some_and(|at| at > said);
        if self.ready && !right(self) && !looked {
            self.catch_up(Read::Snapshot).await;
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Telling

    fn tell_event(&mut self, event: &Event, changes: &[Change]) {
        let closed = event.kind == crate::core::event::Kind::Close;
        for change in changes {
            if let Change::Left(member) = change {
                // Its own socket hears that it is over.
                if let Some(conn) = self.by_key.get(&member.key()).copied() {
                    self.end(conn, if closed { End::Closed } else { End::Expired });
                }
            }
        }
        self.tell_changes(changes);
        if self.conns.values().any(|c| c.detail) {
            let text = protocol::space_event(event).into();
            self.send(&text, |conn| conn.detail);
        }
    }

    /// Joins and leaves, to those who do not get every event.
    fn tell_changes(&mut self, changes: &[Change]) {
        if self.conns.values().all(|c| c.detail) {
            return;
        }
        for change in changes {
            let (member, text) = match change {
                Change::Joined(member) => (member, protocol::remote_join(member)),
                Change::Left(member) => (member, protocol::remote_leave(member)),
                Change::Updated(_) => continue,
            };
            let (key, text) = (member.key(), text.into());
            self.send(&text, |conn| !conn.detail && conn.key != key);
        }
    }

    /// Puts a message into the queues of some. Whose queue is full is too slow, and goes; the others are not kept
    /// waiting.
    fn send(&mut self, text: &Utf8Bytes, whom: impl Fn(&Conn) -> bool) {
        // Closed is one whose task is gone: there is nobody to be told.
        let failed: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| whom(c) && c.out.try_send(text.clone()).is_err())
            .map(|(conn, _)| *conn)
            .collect();
        failed.into_iter().for_each(|conn| self.end(conn, End::Slow));
    }

    /// The socket has to go, and is nobody's from now on.
    fn end(&mut self, conn: u64, why: End) {
        if let Some(conn) = self.drop_conn(conn) {
            let _ = conn.end.send(why);
        }
    }

    fn drop_conn(&mut self, conn: u64) -> Option<Conn> {
        let dropped = self.conns.remove(&conn)?;
        if self.by_key.get(&dropped.key) == Some(&conn) {
            self.by_key.remove(&dropped.key);
        }
        Some(dropped)
    }

    fn list(&self, detail: bool) -> String {
        let shown = self.room.shown();
        protocol::list(shown.map(|m| if detail { &*m.json_with_status } else { &*m.json }))
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Coming in

    fn claim(&mut self, claim: Claim, reply: oneshot::Sender<Claimed>) {
        let Some(id) = claim.id else {
            let _ = reply.send(Claimed::New);
            return;
        };
        let key = (claim.identity, id);
        let (verdict, meta) = self.decide(&key, claim.token.as_deref());
        self.grant(verdict, key, meta, reply);
    }

    /// Who may have the id, and the metadata of the session that is there.
    fn decide(&self, key: &Key, token: Option<&str>) -> (Verdict, Meta) {
        let found = self.room.by_id(&key.1).or_else(|| self.room.get(key));
        let asked = Asked { identity: &key.0, token };
        let held = self.by_key.contains_key(key) || self.claimed.contains_key(key);
        let verdict = decide(&asked, found.map(|m| &**m), held, self.shared.by_identity);
        (verdict, found.map(|m| m.meta.clone()).unwrap_or_default())
    }

    fn grant(&mut self, verdict: Verdict, key: Key, meta: Meta, reply: oneshot::Sender<Claimed>) {
        match verdict {
            Verdict::New => drop(reply.send(Claimed::New)),
            Verdict::Free => {
                self.claimed.entry(key).or_default().count += 1;
                let _ = reply.send(Claimed::Free);
            }
            Verdict::Resume => {
                self.claimed.entry(key).or_default().count += 1;
                let _ = reply.send(Claimed::Resume(meta));
            }
            Verdict::ResumeIfUnheld => self.ask_others(key, reply),
        }
    }

    fn ask_others(&mut self, key: Key, reply: oneshot::Sender<Claimed>) {
        let nonce = random();
        let (user, session) = key.clone();
        let question = Side::Ask { user, session, nonce }.json();
        self.asking.insert(nonce, Asking { key, asked: false, reply });
        let (store, side, me) = (self.shared.store.clone(), self.side.clone(), self.me.clone());
        tokio::spawn(async move {
            // The one that certainly hears it is this gateway itself.
            let alone = store.publish(&side, &question).await.is_ok_and(|heard| heard <= 1);
            if !alone {
                tokio::time::sleep(ASK_FOR).await;
            }
            let _ = me.send(ToHub::AskOver { nonce });
        });
    }

    /// One claim less. True where another gateway said something about the session since.
    fn unclaim(&mut self, key: &Key) -> bool {
        let Some(claims) = self.claimed.get_mut(key) else { return false };
        claims.count = claims.count.saturating_sub(1);
        let recheck = claims.recheck;
        if claims.count == 0 {
            self.claimed.remove(key);
        }
        recheck
    }

    /// Takes in those whose event the room has reached.
    fn attach_waiting(&mut self) {
        if !self.ready {
            return;
        }
        let last = self.room.last;
        let (ripe, unripe) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| w.attach.at <= last);
        self.waiting = unripe;
        let ripe: Vec<Waiting> = ripe;
        for Waiting { attach, reply, .. } in ripe {
            if reply.is_closed() {
                self.unclaim(&attach.key);
                continue; // it has waited too long, and is gone
            }
            let attached = self.attach(attach);
            let _ = reply.send(attached);
        }
    }

    fn attach(&mut self, attach: Attach) -> Attached {
        let recheck = self.unclaim(&attach.key);
        if self.room.get(&attach.key).is_none() {
            return Attached::Gone;
        }
        let id = attach.key.1.clone();
        if !attach.resumed && self.room.count_id(&id) > 1 {
            return Attached::Conflict;
        }
        if let Some(former) = self.by_key.get(&attach.key).copied() {
            // As the server decided it, in whichever order the two come here.
            if former > attach.conn {
                return Attached::Replaced;
            }
            self.end(former, End::Replaced);
        }
        if attach.resumed {
            let (user, session) = attach.key.clone();
            let (conn, marked) = (attach.conn, self.shared.store.fenced);
            self.publish(Side::Replaced { user, session, conn, marked });
        }
        let detail = Detail {
            space: &self.space,
            last: self.room.last,
            ttl: self.shared.ttl,
            crowd: self.shared.crowd,
        };
        let list = self.list(attach.detail);
        let detail = attach.detail.then_some(&detail);
        let first = protocol::welcome(&id, attach.token.as_deref(), &list, detail);
        let Attach { conn, key, detail, out, end, renewed, resumed, .. } = attach;
        let _ = out.try_send(first.into());
        self.by_key.insert(key.clone(), conn);
        let announcing = resumed;
        self.conns.insert(conn, Conn { key: key.clone(), detail, out, end, renewed, announcing });
        if recheck {
            self.recheck(vec![conn]);
        }
        Attached::Yes
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Other gateways

    fn publish(&self, side: Side) {
        let (store, channel) = (self.shared.store.clone(), self.side.clone());
        tokio::spawn(async move { store.publish(&channel, &side.json()).await });
    }

    fn side(&mut self, text: &[u8]) {
        match Side::parse(text) {
            Some(Side::Cursor { from, text }) => {
                let text = text.into();
                self.send(&text, |conn| conn.key.1 != from);
            }
            Some(Side::Ask { user, session, nonce }) => {
                let key = (user, session);
                if let Some(own) = self.asking.get_mut(&nonce) {
                    own.asked = true;
                    return;
                }
                let before = self.asking.values().any(|a| a.asked && a.key == key);
                if before || self.by_key.contains_key(&key) || self.claimed.contains_key(&key) {
                    self.publish(Side::Held { nonce });
                }
            }
            Some(Side::Held { nonce }) => {
                if let Some(asking) = self.asking.remove(&nonce) {
                    let _ = asking.reply.send(Claimed::New);
                }
            }
            Some(Side::Replaced { user, session, conn, marked }) => {
                let key = (user, session);
                if let Some(claims) = self.claimed.get_mut(&key) {
                    claims.recheck = true;
                }
                let Some(held) = self.by_key.get(&key).copied() else { return };
                let Some(holder) = self.conns.get_mut(&held) else { return };
                if held == conn {
                    holder.announcing = false;
                } else if marked && self.shared.store.fenced {
                    self.recheck(vec![held]);
                } else if !holder.announcing {
                    self.end(held, End::Replaced);
                }
            }
            Some(Side::Closed { user, session }) => {
                let key = (user, session);
                if let Some(claims) = self.claimed.get_mut(&key) {
                    claims.recheck = true;
                }
                if let Some(conn) = self.by_key.get(&key).copied() {
                    self.recheck(vec![conn]);
                }
            }
            None => {}
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Sessions in doubt

    /// Looks whether the sessions of these connections are still theirs. A lease that somebody else has cut becomes
    /// again what the client was given.
    fn recheck(&self, conns: Vec<u64>) {
        let own: Vec<Own> = conns
            .iter()
            .filter_map(|conn| self.conns.get(conn).map(|c| (*conn, c)))
            .map(|(conn, c)| Own { conn, key: c.key.clone(), renewed: c.renewed.clone() })
            .collect();
        if own.is_empty() {
            return;
        }
        let (store, space, me) = (self.shared.store.clone(), self.space.clone(), self.me.clone());
        tokio::spawn(async move {
            let found = store.recheck(&space, &own).await.ok();
            let _ = me.send(ToHub::Rechecked { conns, found });
        });
    }

    fn recheck_pending(&mut self) {
        if self.ready && !self.to_recheck.is_empty() {
            let conns = std::mem::take(&mut self.to_recheck);
            self.recheck(conns);
        }
    }

    async fn rechecked(&mut self, found: Vec<(u64, SessionState)>) {
        let said = Instant::now();
        for (conn, state) in found {
            match state {
                SessionState::Live => {}
                SessionState::Moved => self.end(conn, End::Replaced),
                SessionState::Gone => {
                    if let Some(key) = self.conns.get(&conn).map(|c| c.key.clone()) {
                        self.correct(&key, false, said).await;
                    }
                }
            }
        }
    }
}

pub fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    u64::from_le_bytes(bytes)
}
