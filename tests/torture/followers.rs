//! Followers: at each node one that knows who is online in each space, by the recipe of docs/events.md.
//!
//! Snapshot, then the events that are published; `EVENTS … AFTER` where an event is not the next one of the same epoch,
//! after each reconnect, and now and then. What one believes must fit each event that it applies, and whenever nothing
//! changes it must be what the node that it follows says.

use crate::generator::SPACES;
use crate::harness::*;
use crate::history::{Event, SpaceRead};
use crate::nodes::{Place, read_space};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A node that does not answer, or that is gone, is asked again so often.
const AGAIN: Duration = Duration::from_millis(30);
/// So often all spaces are asked for, whether or not something is published.
const QUIET: Duration = Duration::from_secs(2);

/// What is known of one space.
#[derive(Default)]
struct View {
    /// The last event that was applied; none before the first snapshot.
    last: Option<(i64, u64)>,
    users: BTreeSet<String>,
    /// Users who were there by the events, but not shown, when the snapshot was read: their leases were over as far as
    /// the node knew. A replica that has not received their renewals or their grace shows them again later, without an
    /// event.
    hidden: BTreeSet<String>,
    /// Whether it is to be asked for.
    is_stale: bool,
}

struct State {
    node: usize,
    port: u16,
    views: BTreeMap<&'static str, View>,
    misled: Vec<String>,
    /// How many events were applied, snapshots read, and questions answered without a gap.
    counts: [usize; 3],
}

pub struct Follower {
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    pub fn start(node: usize, port: u16) -> Follower {
        let views = SPACES.iter().map(|space| (*space, View::default())).collect();
        let state = State { node, port, views, misled: Vec::new(), counts: [0; 3] };
        let (state, over) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (shared, end) = (state.clone(), over.clone());
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                // The connection is lost, or the node does not answer: again.
                let _ = follow(&shared, &end);
                thread::sleep(AGAIN);
            }
        });
        Follower { state, over, thread: Some(thread) }
    }

    /// Asks the node, where nothing changes now, and compares.
    pub fn compare(&self, c: &mut Conn) -> Result<(), String> {
        let mut state = self.state.lock().unwrap();
        for space in SPACES {
            state.ask(c, space)?;
            let read = read_space(c, space, &Place::of(space))?;
            state.compare(&read);
        }
        Ok(())
    }

    /// Ends it. Returns what was wrong, and how much it has seen.
    pub fn end(mut self) -> (Vec<String>, [usize; 3]) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let mut state = self.state.lock().unwrap();
        (std::mem::take(&mut state.misled), state.counts)
    }
}

fn follow(state: &Mutex<State>, over: &AtomicBool) -> Result<(), String> {
    let port = state.lock().unwrap().port;
    let channels = SPACES.map(|space| format!("presence:{space}"));
    let mut published = Subscriber::by(Conn::dial(port)?, "SUBSCRIBE", &channels)?;
    let mut c = Conn::dial(port)?;
    let mut asked = None;
    while !over.load(Ordering::Relaxed) {
        let message = published.poll(AGAIN)?;
        let mut state = state.lock().unwrap();
        if let Some(event) =
            message.and_then(|m| Event::parse(&String::from_utf8_lossy(&m.payload)))
        {
            state.take(&event);
        }
        if asked.is_none_or(|asked: Instant| asked.elapsed() > QUIET) {
            state.views.values_mut().for_each(|view| view.is_stale = true);
            asked = Some(Instant::now());
        }
        for space in
            SPACES.into_iter().filter(|space| state.views[space].is_stale).collect::<Vec<_>>()
        {
            state.ask(&mut c, space)?;
        }
    }
    Ok(())
}

impl State {
    fn wrong(&mut self, text: String) {
        self.misled.push(format!("the follower at node {}: {text}", self.node));
    }

    /// An event that was published.
    fn take(&mut self, event: &Event) {
        let Some(view) = self.views.get_mut(event.space.as_str()) else { return };
        match view.last {
            Some((epoch, seq)) if event.epoch == epoch && event.seq <= seq => {}
            Some((epoch, seq)) if event.id() == (epoch, seq + 1) => self.apply(event),
            _ => view.is_stale = true,
        }
    }

    fn apply(&mut self, event: &Event) {
        self.counts[0] += 1;
        let Some(view) = self.views.get_mut(event.space.as_str()) else { return };
        let (last, user) = (view.last.replace(event.id()), &event.who.0);
        let fits = match event.kind.as_str() {
            "join" => {
                view.hidden.remove(user);
                view.users.insert(user.clone())
            }
            "add" | "update" | "remove" => true,
            // Who had lapsed when the snapshot was read was not in it.
            "leave" => {
                view.hidden.remove(user);
                view.users.remove(user);
                true
            }
            "close" => {
                view.hidden.clear();
                view.users.clear();
                true
            }
            _ => true,
        };
        if !fits {
            self.wrong(format!("{user} is there already, after {last:?}: {}", event.raw));
        }
    }

    fn ask(&mut self, c: &mut Conn, space: &'static str) -> Result<(), String> {
        let last = self.views[space].last;
        if let Some((epoch, seq)) = last {
            let after = format!("{epoch}-{seq}");
            let reply = c.try_cmd(["PRESENCE.EVENTS", space, "AFTER", &after])?;
            let [id, gap, events] = fields(&reply, ["id", "gap", "events"]);
            if matches!(gap, Value::Int(0) | Value::Boolean(false)) {
                for raw in texts(events) {
                    self.apply(&Event::parse(&raw).ok_or(format!("no event: {raw}"))?);
                }
                let (id, view) = (parse_id(&text(id)), &self.views[space]);
                if view.last != Some(id) {
                    let text =
                        format!("{space}: AFTER {after} ends at {:?}, not at {id:?}", view.last);
                    self.wrong(text);
                }
                self.counts[2] += 1;
                self.views.get_mut(space).unwrap().is_stale = false;
                return Ok(());
            }
        }
        let read = read_space(c, space, &Place::of(space))?;
        let users: BTreeSet<_> = read.members.keys().map(|who| who.0.clone()).collect();
        let hidden = there(&read).difference(&users).cloned().collect();
        self.views.insert(space, View { last: Some(read.id), users, hidden, is_stale: false });
        self.counts[1] += 1;
        Ok(())
    }

    /// All who are shown are known, and all who are known are there as far as events tell.
    fn compare(&mut self, read: &SpaceRead) {
        let Some(view) = self.views.get(read.space.as_str()) else { return };
        let shown: BTreeSet<_> = read.members.keys().map(|who| who.0.clone()).collect();
        let there = there(read);
        let missing: Vec<_> =
            shown.difference(&view.users).filter(|user| !view.hidden.contains(*user)).collect();
        let ghosts: Vec<_> = view.users.difference(&there).collect();
        if !missing.is_empty() || !ghosts.is_empty() || view.last != Some(read.id) {
            let text = format!(
                "{} at {:?}, it is at {:?}: it lacks {missing:?} and shows {ghosts:?}",
                read.space, read.id, view.last
            );
            self.wrong(text);
        }
    }
}

/// Who is there by the events.
fn there(read: &SpaceRead) -> BTreeSet<String> {
    let mut there = BTreeSet::new();
    for event in &read.events {
        match event.kind.as_str() {
            "join" => drop(there.insert(event.who.0.clone())),
            "leave" => drop(there.remove(&event.who.0)),
            "close" => there.clear(),
            _ => {}
        }
    }
    there
}
