//! How to follow a space: what an event that arrives means, and what a reply of `PRESENCE.EVENTS` means.
//!
//! The ids of one epoch have no gaps, so the next number in the same epoch is the next event. An event of another epoch
//! proves nothing, also if its number is the next one: after a crash or a failover the server continues the numbers in
//! a new epoch, and events that were seen before may be lost. Only the server knows. It is asked for the events after
//! the last id, and says `gap` if they do not continue what was seen.

use super::event::{Event, EventId};

/// What to do with an event that arrives on the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is known already.
    Skip,
    /// It is the next one.
    Apply,
    /// Ask the server for the events after the last id.
    Ask,
}

/// `last`: the last event that was applied. `ended_epoch`: an epoch that has ended, as the server has said since.
pub fn step(last: EventId, ended_epoch: Option<u64>, event: EventId) -> Step {
    if event.epoch == last.epoch {
        return match last.seq.checked_add(1) {
            _ if event.seq <= last.seq => Step::Skip,
            Some(next) if event.seq == next => Step::Apply,
            _ => Step::Ask,
        };
    }
    if ended_epoch == Some(event.epoch) {
        return Step::Skip;
    }
    Step::Ask
}

/// A reply of `PRESENCE.EVENTS space AFTER last`.
pub struct EventsAfter {
    /// The id of the last event of the space.
    pub id: EventId,
    /// The events do not continue what came up to `last`.
    pub gap: bool,
    pub events: Vec<Event>,
}

impl EventsAfter {
    /// Whether these are all events after `last`. If not, read the snapshot.
    pub fn continues(&self, last: EventId) -> bool {
        let mut at = last;
        for event in &self.events {
            let next = event.id;
            if next.epoch < at.epoch || at.seq.checked_add(1) != Some(next.seq) {
                return false;
            }
            at = next;
        }
        !self.gap && at == self.id
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Kind, Meta};
    use super::super::room::{Member, Offer, Room};
    use super::*;
    use std::collections::{BTreeSet, VecDeque};

    fn id(text: &str) -> EventId {
        EventId::parse(text).unwrap()
    }

    fn event(id: EventId, kind: Kind, user: &str) -> Event {
        Event {
            id,
            kind,
            user: user.into(),
            session: String::new(),
            joined_at: 0,
            meta: Meta::default(),
            reason: None,
            message: None,
            users: 0,
            at: 0,
        }
    }

    fn since(last: &str, gap: bool, ids: &[&str]) -> EventsAfter {
        let events = ids.iter().map(|i| event(id(i), Kind::Message, "")).collect();
        EventsAfter { id: id(last), gap, events }
    }

    #[test]
    fn the_next_number_of_the_same_epoch_is_the_next_event() {
        assert_eq!(step(id("5-7"), None, id("5-8")), Step::Apply);
        assert_eq!(step(id("5-7"), None, id("5-7")), Step::Skip);
        assert_eq!(step(id("5-7"), None, id("5-1")), Step::Skip);
        assert_eq!(step(id("5-7"), None, id("5-9")), Step::Ask);
        let end = EventId { epoch: 5, seq: u64::MAX };
        assert_eq!(step(end, None, end), Step::Skip);
    }

    #[test]
    fn another_epoch_proves_nothing() {
        // The number goes on after a crash, and events were lost or were not.
        assert_eq!(step(id("5-7"), None, id("6-8")), Step::Ask);
        assert_eq!(step(id("5-7"), None, id("6-5")), Step::Ask);
        // The space was deleted and made again.
        assert_eq!(step(id("5-7"), None, id("6-1")), Step::Ask);
        // The space did not exist, and may be deleted again since.
        assert_eq!(step(id("0-0"), None, id("6-1")), Step::Ask);
        // The clock was set back.
        assert_eq!(step(id("5-7"), None, id("4-1")), Step::Ask);
    }

    #[test]
    fn late_events_of_an_ended_epoch_are_asked_about_once() {
        assert_eq!(step(id("6-9"), None, id("5-8")), Step::Ask);
        assert_eq!(step(id("6-9"), Some(5), id("5-9")), Step::Skip);
        assert_eq!(step(id("6-9"), Some(5), id("7-10")), Step::Ask);
        assert_eq!(step(id("6-9"), Some(5), id("6-10")), Step::Apply);
    }

    #[test]
    fn what_continues() {
        let last = id("5-7");
        assert!(since("5-7", false, &[]).continues(last));
        assert!(since("5-9", false, &["5-8", "5-9"]).continues(last));
        // A load or a promotion, and nothing was lost; two of them.
        assert!(since("6-8", false, &["6-8"]).continues(last));
        assert!(since("8-10", false, &["5-8", "6-9", "8-10"]).continues(last));
    }

    #[test]
    fn what_does_not_continue() {
        let last = id("5-7");
        // Replies of a correct server: lost events, events that are no longer kept, a space that was deleted.
        for reply in [
            since("6-8", true, &["6-8"]),
            since("5-6", true, &[]),
            since("5-30", true, &["5-29", "5-30"]),
            since("6-1", true, &["6-1"]),
            since("0-0", true, &[]),
        ] {
            assert!(!reply.continues(last));
        }
        // Replies that a correct server does not send.
        for reply in [
            since("5-9", false, &["5-9"]),
            since("5-9", false, &["5-8"]),
            since("4-8", false, &["4-8"]),
            since("5-6", false, &[]),
            since("6-7", false, &["6-7"]),
            since("6-1", false, &["6-1"]),
            since("6-9", false, &[]),
        ] {
            assert!(!reply.continues(last));
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // A follower and a server with one space, at random

    #[derive(Clone, Default)]
    struct Space {
        users: BTreeSet<String>,
        /// Epochs, and the last number of each that is known.
        lines: Vec<(u64, u64)>,
        history: VecDeque<Event>,
    }

    struct Server {
        /// Whether a load begins a new epoch.
        lines: bool,
        clock: u64,
        loaded: bool,
        space: Option<Space>,
        saved: Option<Space>,
        /// Published and not received yet.
        channel: VecDeque<Event>,
    }

    impl Server {
        fn last(&self) -> EventId {
            let line = self.space.as_ref().and_then(|s| s.lines.last());
            line.map_or_else(EventId::default, |&(epoch, seq)| EventId { epoch, seq })
        }

        fn happen(&mut self, kind: Kind, user: &str) {
            self.clock += 1;
            let last = self.last();
            let space = self.space.get_or_insert_with(Space::default);
            let new_line = last.seq == 0 || self.loaded && self.lines;
            self.loaded = false;
            if new_line {
                space.lines.push((self.clock, last.seq));
            }
            let line = space.lines.last_mut().unwrap();
            line.1 += 1;
            let event = event(EventId { epoch: line.0, seq: line.1 }, kind, user);
            match kind {
                Kind::Join => drop(space.users.insert(user.into())),
                _ => drop(space.users.remove(user)),
            }
            space.history.push_back(event.clone());
            if space.history.len() > 4 {
                space.history.pop_front();
            }
            self.channel.push_back(event);
        }

        fn events_after(&self, after: EventId) -> EventsAfter {
            let Some(space) = &self.space else {
                return EventsAfter { id: EventId::default(), gap: true, events: Vec::new() };
            };
            let known = space.lines.iter().any(|&(e, n)| e == after.epoch && after.seq <= n);
            let events: Vec<Event> =
                space.history.iter().filter(|e| e.id.seq > after.seq).cloned().collect();
            let whole = events.len() as u64 == self.last().seq.saturating_sub(after.seq);
            EventsAfter { id: self.last(), gap: !known || !whole, events }
        }

        fn snapshot(&self) -> Room {
            let users = self.space.iter().flat_map(|s| &s.users);
            Room::new(self.last(), users.map(|u| Member::new(u, "", 0, Meta::default())))
        }
    }

    /// What the hub does, without the sockets.
    fn catch_up(room: &mut Room, server: &Server, verify: bool) {
        let since = server.events_after(room.last);
        let continues = since.continues(room.last);
        if continues {
            since.events.iter().for_each(|event| drop(room.apply(event)));
        }
        if !continues || verify {
            room.become_room(server.snapshot());
        }
    }

    fn receive(room: &mut Room, server: &Server, event: &Event) {
        if room.offer(event) == Offer::Ask {
            catch_up(room, server, false);
            room.note_ended_epoch(event.id.epoch);
        }
    }

    fn names(room: &Room) -> Vec<String> {
        let mut names: Vec<String> = room.shown().map(|m| m.user.clone()).collect();
        names.sort();
        names
    }

    /// Joins, leaves, saves, crashes that lose events, deletes, and a subscription that breaks, loses events and is
    /// late. When everything has arrived, the follower knows who is there.
    #[test]
    fn a_follower_has_the_right_list_after_any_crash() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        for round in 0..4000 {
            let lines = round % 2 == 0;
            let mut server = Server {
                lines,
                clock: 0,
                loaded: false,
                space: None,
                saved: None,
                channel: VecDeque::new(),
            };
            let mut room = server.snapshot();
            let mut steps = Vec::new();
            for _ in 0..below(30) {
                let user = format!("u{}", below(3));
                match below(12) {
                    0..=3 => {
                        steps.push(format!("join {user}"));
                        server.happen(Kind::Join, &user);
                    }
                    4 | 5 => {
                        steps.push(format!("leave {user}"));
                        server.happen(Kind::Leave, &user);
                    }
                    6 => {
                        steps.push("save".into());
                        server.saved = server.space.clone();
                    }
                    7 => {
                        steps.push("crash".into());
                        server.channel.clear();
                        server.space = server.saved.clone();
                        server.loaded = true;
                        for _ in 0..below(4) {
                            let user = format!("u{}", below(3));
                            steps.push(format!("join {user}, before it is subscribed"));
                            server.happen(Kind::Join, &user);
                            server.channel.clear();
                        }
                        // It is subscribed again, and sees that the server is another one.
                        catch_up(&mut room, &server, !lines);
                    }
                    8 => {
                        steps.push("the subscription breaks".into());
                        server.channel.clear();
                        catch_up(&mut room, &server, false);
                    }
                    9 if below(3) == 0 => {
                        steps.push("del".into());
                        server.space = None;
                    }
                    10 if lines => {
                        // The subscription stays, and so does what is on its way.
                        steps.push("a replica that lacks events is promoted".into());
                        server.space = server.saved.clone();
                        server.loaded = true;
                    }
                    _ => {
                        for _ in 0..below(4) {
                            if let Some(event) = server.channel.pop_front() {
                                steps.push(format!("receive {}", event.id));
                                receive(&mut room, &server, &event);
                            }
                        }
                    }
                }
            }
            while let Some(event) = server.channel.pop_front() {
                receive(&mut room, &server, &event);
            }
            // The audit.
            if room.last != server.last() {
                catch_up(&mut room, &server, false);
            }
            assert_eq!(room.last, server.last(), "round {round}: {steps:#?}");
            assert_eq!(names(&room), names(&server.snapshot()), "round {round}: {steps:#?}");
        }
    }
}
