//! The last events of a space, as they were published.

use super::Timestamp;
use std::collections::VecDeque;

/// How much history a space keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events at most; 0 keeps none.
    pub length: u64,
    /// Age at most (ms); 0 keeps none.
    pub ttl: u64,
}

impl Retention {
    fn keeps_none(self) -> bool {
        self.length == 0 || self.ttl == 0
    }
}

#[derive(Clone)]
struct Kept {
    at: Timestamp,
    text: Box<[u8]>,
}

/// Events without holes, oldest first; the newest has the space's current seq.
#[derive(Clone, Default)]
pub struct History {
    events: VecDeque<Kept>,
    text_bytes: usize,
}

impl History {
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Appends the newest event and lets go of what `retention` no longer keeps at `at`.
    pub fn push(&mut self, at: Timestamp, text: &[u8], retention: Retention) {
        if retention.keeps_none() {
            self.clear();
            return;
        }
        self.append(at, text);
        while self.events.len() as u64 > retention.length
            || self.events.front().is_some_and(|oldest| is_over(oldest.at, at, retention))
        {
            self.drop_oldest();
        }
    }

    /// Appends without asking whether it is still kept.
    pub fn append(&mut self, at: Timestamp, text: &[u8]) {
        self.text_bytes += super::allocated(text.len());
        self.events.push_back(Kept { at, text: text.into() });
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.events.pop_front() {
            self.text_bytes -= super::allocated(oldest.text.len());
        }
        if self.events.is_empty() {
            self.clear();
        } else if self.events.len() * 4 < self.events.capacity() {
            // What a busy hour needed is not kept for the quiet ones.
            self.events.shrink_to(self.events.len() * 2);
        }
    }

    pub fn clear(&mut self) {
        *self = History::default();
    }

    /// Lets go of the oldest events so that `keep` remain.
    pub fn truncate_to(&mut self, keep: usize) {
        while self.events.len() > keep {
            self.drop_oldest();
        }
    }

    /// The moment at which the last event is no longer kept.
    pub fn ends_at(&self, retention: Retention) -> Option<Timestamp> {
        let newest = self.events.back()?;
        Some(if retention.keeps_none() { 0 } else { newest.at.saturating_add(retention.ttl) })
    }

    /// How many of the newest events are kept at `now`. Events are in the order in which they
    /// happened, but clocks can be set back: the oldest that is kept decides.
    pub fn kept(&self, now: Timestamp, retention: Retention) -> usize {
        if retention.keeps_none() {
            return 0;
        }
        let over = self.events.partition_point(|event| is_over(event.at, now, retention));
        (self.events.len() - over).min(usize::try_from(retention.length).unwrap_or(usize::MAX))
    }

    /// The newest `count` events, oldest first, each with its moment.
    pub fn newest(&self, count: usize) -> impl Iterator<Item = (Timestamp, &[u8])> {
        let skip = self.events.len().saturating_sub(count);
        self.events.iter().skip(skip).map(|event| (event.at, &*event.text))
    }

    pub fn heap_bytes(&self) -> usize {
        self.text_bytes + super::allocated(self.events.capacity() * size_of::<Kept>())
    }
}

/// Whether an event of `at` is older than is kept.
fn is_over(at: Timestamp, now: Timestamp, retention: Retention) -> bool {
    at.saturating_add(retention.ttl) <= now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(history: &History, count: usize) -> Vec<String> {
        history.newest(count).map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect()
    }

    #[test]
    fn keeps_the_last_and_the_young() {
        let retention = Retention { length: 3, ttl: 10 };
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
            history.push(at, b"x", Retention { length: 1000, ttl: 10_000 });
        }
        let busy = history.heap_bytes();
        history.push(1013, b"x", retention);
        assert!(history.heap_bytes() * 20 < busy, "{} of {busy}", history.heap_bytes());
        history.push(13, b"none", Retention { length: 0, ttl: 10 });
        assert_eq!((history.len(), history.heap_bytes()), (0, 0));
    }
}
