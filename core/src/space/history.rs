//! The last events of a space, as they were published.
//!
//! Events are kept in pages, so that a history of a million events grows and shrinks by a page at
//! a time. An event that is no longer kept is hidden from readers at once; its memory is freed by
//! later events and by the sweep, a bounded number of events at a time.
//!
//! The times of events never decrease from the oldest to the newest. If the clock was set back, the
//! events from before that count as old as the first event after it: no event is kept longer than
//! the events that follow it.

use super::lines::{Lines, PastLine};
use super::{SeenLimits, Timestamp, allocated};
use std::collections::VecDeque;

/// Events per page.
const PAGE: usize = 64;
/// Maximum number of old events that one new event removes. The sweep removes the rest.
const REMOVED_PER_PUSH: usize = 64;

/// How much of the past a space keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events at most; 0 keeps none.
    pub length: u64,
    /// Age at most (ms); 0 keeps none.
    pub ttl: u64,
    /// Which users are remembered after they have left.
    pub seen: SeenLimits,
}

impl Retention {
    /// Keeps events, and remembers nobody.
    pub const fn of_events(length: u64, ttl: u64) -> Self {
        Retention { length, ttl, seen: SeenLimits::NOBODY }
    }

    fn keeps_none(self) -> bool {
        self.length == 0 || self.ttl == 0
    }
}

#[derive(Clone)]
struct StoredEvent {
    at: Timestamp,
    text: Box<[u8]>,
}

/// Events without holes, oldest first; the newest has the space's current seq. And the past lines
/// of history that they reach back to.
#[derive(Clone)]
pub struct History {
    /// All pages but the last are full, and none is empty.
    pages: VecDeque<Vec<StoredEvent>>,
    /// Number of events that were removed from the first page.
    removed: usize,
    /// Number of the oldest events that are no longer kept and have still to be removed.
    excess: usize,
    /// Whether the times do not decrease. False only while a snapshot with other times is restored, or
    /// after an AOF with such times.
    in_order: bool,
    text_bytes: usize,
    page_bytes: usize,
    /// Absent where there are none, as in most spaces.
    lines: Option<Box<Lines>>,
}

impl Default for History {
    fn default() -> Self {
        History {
            pages: VecDeque::with_capacity(1),
            removed: 0,
            excess: 0,
            in_order: true,
            text_bytes: 0,
            page_bytes: 0,
            lines: None,
        }
    }
}

fn page_bytes(page: &Vec<StoredEvent>) -> usize {
    allocated(page.capacity() * size_of::<StoredEvent>())
}

impl History {
    /// Number of events in memory.
    pub fn len(&self) -> usize {
        let last = self.pages.back().map_or(0, Vec::len);
        (self.pages.len().saturating_sub(1) * PAGE + last).saturating_sub(self.removed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of the newest events that were kept when the last event was added.
    pub fn live(&self) -> usize {
        self.len().saturating_sub(self.excess)
    }

    /// Whether there are events whose memory the sweep has to free.
    pub fn has_excess(&self) -> bool {
        self.excess > 0
    }

    #[inline]
    fn get(&self, at: usize) -> Option<&StoredEvent> {
        let at = self.removed + at;
        self.pages.get(at / PAGE)?.get(at % PAGE)
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut StoredEvent> {
        let at = self.removed + at;
        self.pages.get_mut(at / PAGE)?.get_mut(at % PAGE)
    }

    /// Appends the newest event and removes what `retention` no longer keeps at `at`, or as much of
    /// it as one call may remove.
    pub fn push(&mut self, at: Timestamp, text: &[u8], retention: Retention) {
        if retention.keeps_none() && self.is_empty() {
            return;
        }
        self.append(at, text);
        self.put_in_order();
        for _ in 0..REMOVED_PER_PUSH {
            if !self.has_surplus(at, retention) {
                return;
            }
            self.remove_oldest();
        }
        if self.has_surplus(at, retention) {
            self.excess = self.len() - self.kept(at, retention);
        }
    }

    /// The past lines of history, oldest first.
    pub fn lines(&self) -> &[PastLine] {
        self.lines.as_deref().map_or(&[], Lines::as_slice)
    }

    /// Adds the line that ends.
    pub fn add_line(&mut self, line: PastLine) {
        self.lines.get_or_insert_default().push(line);
    }

    /// Forgets the lines that no kept event follows directly. `seq` is that of the newest event.
    pub fn forget_lines(&mut self, seq: u64) {
        let from = seq.saturating_sub(self.live() as u64);
        if let Some(lines) = &mut self.lines
            && !lines.keep_from(from)
        {
            self.lines = None;
        }
    }

    /// Whether the oldest event is no longer kept.
    fn has_surplus(&self, at: Timestamp, retention: Retention) -> bool {
        let is_over = |oldest: &StoredEvent| is_over(oldest.at, at, retention);
        self.excess > 0 || self.len() as u64 > retention.length || self.get(0).is_some_and(is_over)
    }

    /// Appends an event of a snapshot.
    pub fn append(&mut self, at: Timestamp, text: &[u8]) {
        let newest = self.pages.back().and_then(|page| page.last());
        self.in_order &= newest.is_none_or(|newest| newest.at <= at);
        let is_first = self.pages.is_empty();
        if self.pages.back().is_none_or(|page| page.len() == PAGE) {
            self.pages.push_back(Vec::new());
        }
        let Some(page) = self.pages.back_mut() else { return };
        if page.len() == page.capacity() {
            self.page_bytes -= page_bytes(page);
            // The second page and those behind it are most probably filled.
            let more = if is_first || !page.is_empty() { page.len().max(1) } else { PAGE };
            page.reserve_exact(more.min(PAGE - page.len()));
            self.page_bytes += page_bytes(page);
        }
        self.text_bytes += allocated(text.len());
        page.push(StoredEvent { at, text: text.into() });
    }

    /// Makes the times not decrease: gives each event the earliest time of those that follow it.
    pub fn put_in_order(&mut self) {
        if self.in_order {
            return;
        }
        let mut earliest = Timestamp::MAX;
        for n in (0..self.len()).rev() {
            let Some(event) = self.get_mut(n) else { break };
            earliest = earliest.min(event.at);
            event.at = earliest;
        }
        self.in_order = true;
    }

    fn remove_oldest(&mut self) {
        let Some(oldest) = self.get_mut(0) else { return };
        let text = std::mem::take(&mut oldest.text);
        self.text_bytes -= allocated(text.len());
        self.removed += 1;
        self.excess = self.excess.saturating_sub(1);
        let is_only = self.pages.len() == 1;
        let Some(page) = self.pages.front_mut() else { return };
        if self.removed >= page.len() {
            self.page_bytes -= page_bytes(page);
            self.pages.pop_front();
            self.removed = 0;
            if self.pages.len() * 4 < self.pages.capacity() {
                self.pages.shrink_to(self.pages.len() * 2);
            }
        } else if is_only && self.removed * 2 >= page.len() {
            // What a busy hour needed is not kept for the quiet ones.
            self.page_bytes -= page_bytes(page);
            page.drain(..self.removed);
            self.removed = 0;
            if page.len() * 4 < page.capacity() {
                page.shrink_to(page.len() * 2);
            }
            self.page_bytes += page_bytes(page);
        }
        if self.pages.is_empty() {
            *self = History::default();
        }
    }

    /// Removes the oldest events so that `keep` remain.
    pub fn truncate_to(&mut self, keep: usize) {
        for _ in keep..self.len() {
            self.remove_oldest();
        }
    }

    /// The moment at which the last event is no longer kept.
    pub fn ends_at(&self, retention: Retention) -> Option<Timestamp> {
        let newest = self.get(self.len().checked_sub(1)?)?;
        let keeps_none = retention.keeps_none() || self.live() == 0;
        Some(if keeps_none { 0 } else { newest.at.saturating_add(retention.ttl) })
    }

    /// How many of the newest events are kept at `now`.
    pub fn kept(&self, now: Timestamp, retention: Retention) -> usize {
        if retention.keeps_none() {
            return 0;
        }
        let is_kept =
            |n: usize| self.get(n).is_some_and(|event| !is_over(event.at, now, retention));
        let length = usize::try_from(retention.length).unwrap_or(usize::MAX);
        let (mut from, end) = (self.len() - self.live().min(length), self.len());
        if !self.in_order {
            return (from..end).rev().take_while(|n| is_kept(*n)).count();
        }
        // The first that is kept: most of the time, that is the first of all.
        if is_kept(from) {
            return end - from;
        }
        let mut to = end;
        while from < to {
            let middle = from + (to - from) / 2;
            if is_kept(middle) {
                to = middle;
            } else {
                from = middle + 1;
            }
        }
        end - from
    }

    /// The newest `count` events, oldest first, each with its moment.
    pub fn newest(&self, count: usize) -> impl Iterator<Item = (Timestamp, &[u8])> {
        let skip = self.removed + self.len().saturating_sub(count);
        let first = self.pages.get(skip / PAGE).and_then(|page| page.get(skip % PAGE..));
        let rest = self.pages.iter().skip(skip / PAGE + 1);
        first.unwrap_or_default().iter().chain(rest.flatten()).map(|event| (event.at, &*event.text))
    }

    pub fn heap_bytes(&self) -> usize {
        let pages = allocated(self.pages.capacity() * size_of::<Vec<StoredEvent>>());
        let lines = self.lines.as_ref().map_or(0, |lines| lines.heap_bytes());
        self.text_bytes + self.page_bytes + pages + lines
    }
}

/// Whether an event of `at` is older than is kept.
fn is_over(at: Timestamp, now: Timestamp, retention: Retention) -> bool {
    at.saturating_add(retention.ttl) <= now
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(history: &History, count: usize) -> Vec<String> {
        history.newest(count).map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect()
    }

    #[test]
    fn keeps_the_last_and_the_young() {
        let retention = Retention::of_events(3, 10);
        let mut history = History::default();
        for at in 0..5u64 {
            history.push(at, at.to_string().as_bytes(), retention);
        }
        assert_eq!(texts(&history, 9), ["2", "3", "4"]);
        assert_eq!(history.kept(11, retention), 3);
        assert_eq!(history.kept(12, retention), 2);
        assert_eq!(history.ends_at(retention), Some(14));
        assert_eq!(history.kept(14, retention), 0);
        history.push(13, b"13", retention);
        assert_eq!(texts(&history, 9), ["4", "13"]);
        history.truncate_to(1);
        assert_eq!(texts(&history, 9), ["13"]);
        for at in 13..1013 {
            history.push(at, b"x", Retention::of_events(1000, 10_000));
        }
        let busy = history.heap_bytes();
        for _ in 0..20 {
            history.push(1013, b"x", retention);
        }
        assert!(history.heap_bytes() * 20 < busy, "{} of {busy}", history.heap_bytes());
        history.push(13, b"none", Retention::of_events(0, 10));
        assert_eq!((history.len(), history.heap_bytes()), (0, History::default().heap_bytes()));
    }

    /// The events of a history as a list: each with its time, and how many of the oldest are hidden.
    #[derive(Default)]
    struct Model {
        events: Vec<(Timestamp, String)>,
        hidden: usize,
    }

    impl Model {
        /// The first event such that neither it nor one behind it is too old.
        fn first_kept(&self, now: Timestamp, retention: Retention) -> usize {
            let old = self.events.iter().rposition(|(at, _)| at + retention.ttl <= now);
            let young = old.map_or(0, |old| old + 1);
            let last = self.events.len().saturating_sub(retention.length as usize);
            let first = if retention.ttl == 0 { self.events.len() } else { young.max(last) };
            first.max(self.hidden)
        }

        fn texts(&self, from: usize) -> Vec<String> {
            self.events[from..].iter().map(|(_, text)| text.clone()).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever the times, what is kept, until when, and what the sweep finds agree.
        #[test]
        fn any_order_of_times_is_survived(
            steps in prop::collection::vec(
                (0..400u64, prop_oneof![Just(0u64), Just(1), Just(3), Just(90), Just(500)],
                    prop_oneof![Just(0u64), 1..300u64], 0..8u8, 1..90usize), 1..60),
        ) {
            let (mut history, mut model) = (History::default(), Model::default());
            let mut n = 0;
            for (now, length, ttl, what, times) in steps {
                let retention = Retention::of_events(length, ttl);
                for i in 0..times {
                    n += 1;
                    let text = n.to_string();
                    match what {
                        // A snapshot is loaded, in which times are in any order.
                        0 => {
                            history.append(now * (i as u64 % 7) % 400, text.as_bytes());
                            model.events.push((now * (i as u64 % 7) % 400, text));
                        }
                        1 => break,
                        2 => {
                            let keep = history.live().saturating_sub(i);
                            history.truncate_to(keep);
                            model.hidden = model.hidden.max(model.events.len() - keep);
                            break;
                        }
                        _ => {
                            history.push(now, text.as_bytes(), retention);
                            model.events.push((now, text));
                            model.hidden = model.first_kept(now, retention);
                            prop_assert_eq!(texts(&history, history.live()), model.texts(model.hidden));
                        }
                    }
                }
                for later in [now, now + 1, now + 50, now + 1000] {
                    let kept = history.kept(later, retention);
                    prop_assert_eq!(
                        texts(&history, kept), model.texts(model.first_kept(later, retention)));
                    let is_due = history.ends_at(retention).is_none_or(|ends| ends <= later);
                    prop_assert_eq!(is_due, kept == 0, "due when nothing is kept");
                }
                let bytes: usize = history.pages.iter().map(page_bytes).sum();
                let of_texts: usize =
                    history.newest(usize::MAX).map(|(_, text)| allocated(text.len())).sum();
                prop_assert_eq!((bytes, of_texts), (history.page_bytes, history.text_bytes));
                prop_assert!(history.len() >= history.live());
            }
            history.truncate_to(0);
            prop_assert_eq!(history.heap_bytes(), History::default().heap_bytes());
        }
    }

    #[test]
    fn one_event_removes_a_bounded_number_of_old_ones() {
        let long = Retention::of_events(100_000, 1000);
        let mut history = History::default();
        for _ in 0..10_000 {
            history.push(1, b"old", long);
        }
        history.push(2000, b"new", long);
        assert_eq!((history.len(), history.live()), (10_001 - REMOVED_PER_PUSH, 1));
        assert_eq!(texts(&history, history.live()), ["new"]);
        assert!(history.has_excess());
        let mut pushes = 1;
        while history.has_excess() {
            history.push(2000, b"new", long);
            pushes += 1;
        }
        assert_eq!((history.len(), pushes), (pushes, 10_000usize.div_ceil(REMOVED_PER_PUSH)));
    }
}
