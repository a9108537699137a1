//! The last events of a server, of all spaces, in the order in which they happened: what `PRESENCE.FEED` reads.
//!
//! - Layout: events are numbered from 0 in each run of the server, and lie one behind the other in segments of bytes.
//! - Growth: a segment is allocated when it is needed, the first ones are small. So a server with few events has little.
//! - Limit: all segments together take at most the size of the ring. The oldest segment is freed as a whole, so up to
//!   a sixteenth of the ring is empty, or a quarter of a small one.
//! - Position: the number of the next event, with the run in front. Whoever reads cannot tell it from any other text.
//! - Invariant: the numbers of the events that are kept have no gap; they end before [`Feed::end`].

use std::collections::VecDeque;

/// No segment is larger, unless one event is.
const LARGEST_SEGMENT: usize = 64 << 10;
const SMALLEST_SEGMENT: usize = 1 << 10;
/// A ring is made of so many segments, or more if it is very large.
const SEGMENTS: usize = 16;
/// What a segment takes beside its bytes.
const OVERHEAD: usize = size_of::<Segment>();
/// Database, length of the name, length of the text.
const HEADER: usize = 12;

struct Segment {
    /// The number of its first event.
    first: u64,
    bytes: Vec<u8>,
}

impl Segment {
    fn size(&self) -> usize {
        self.bytes.capacity().saturating_add(OVERHEAD)
    }

    fn events(&self) -> impl Iterator<Item = FeedEvent<'_>> {
        let mut rest = self.bytes.as_slice();
        (self.first..).map_while(move |number| FeedEvent::take(&mut rest, number))
    }
}

/// An event that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedEvent<'a> {
    pub number: u64,
    /// The database in which it happened.
    pub db: i32,
    /// The whole name of the space, which the text may have only a part of.
    pub space: &'a [u8],
    pub text: &'a [u8],
}

impl<'a> FeedEvent<'a> {
    /// Takes the first event off the bytes of a segment.
    fn take(bytes: &mut &'a [u8], number: u64) -> Option<Self> {
        let (db, rest) = bytes.split_first_chunk()?;
        let (space, rest) = take_length(rest)?;
        let (text, rest) = take_length(rest)?;
        let (space, rest) = rest.split_at_checked(space)?;
        let (text, rest) = rest.split_at_checked(text)?;
        *bytes = rest;
        Some(FeedEvent { number, db: i32::from_le_bytes(*db), space, text })
    }
}

fn take_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    Some((usize::try_from(u32::from_le_bytes(*length)).ok()?, rest))
}

/// The ring.
pub struct Feed {
    /// Tells the positions of this run of the server from those of others.
    run: u64,
    limit: usize,
    /// The oldest is in front.
    segments: VecDeque<Segment>,
    /// What the segments take.
    size: usize,
    /// The number of the next event.
    end: u64,
    /// Events may be missing between an earlier number and this one, although no number says so.
    unbroken_from: u64,
}

impl Feed {
    /// One that keeps nothing.
    pub fn new(run: u64) -> Self {
        Feed { run, limit: 0, segments: VecDeque::new(), size: 0, end: 0, unbroken_from: 0 }
    }

    /// The most bytes that the ring takes; 0 if there is none.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The bytes that the ring takes now.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many events are kept.
    pub fn len(&self) -> u64 {
        self.end - self.begin()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of the next event.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The number of the first event that is kept.
    pub fn begin(&self) -> u64 {
        self.segments.front().map_or(self.end, |segment| segment.first)
    }

    /// Whether events after this number may be missing. No position has a number beyond [`Self::end`].
    pub fn has_gap_after(&self, number: u64) -> bool {
        number < self.begin().max(self.unbroken_from) || number > self.end
    }

    /// Changes the size of the ring. What does not fit any more is given back at once.
    pub fn resize(&mut self, limit: usize) {
        if limit == self.limit {
            return;
        }
        if limit == 0 {
            self.segments = VecDeque::new();
            self.size = 0;
            // What happens from now on is not numbered.
            self.interrupt();
        }
        let is_smaller = limit < std::mem::replace(&mut self.limit, limit);
        if is_smaller && self.size > limit {
            self.repack();
        }
    }

    /// Puts the newest events into segments that suit the limit.
    fn repack(&mut self) {
        self.size = 0;
        let old = std::mem::take(&mut self.segments);
        let mut newer = 0_usize;
        let too_old = |segment: &Segment| {
            newer = newer.saturating_add(segment.bytes.len());
            newer.saturating_sub(segment.bytes.len()) > self.limit
        };
        let dropped = old.iter().rev().position(too_old).map_or(0, |kept| old.len() - kept);
        for segment in old.into_iter().skip(dropped) {
            for event in segment.events() {
                self.store(event.number, event.db, event.space, event.text);
            }
        }
    }

    /// Events happen elsewhere that this feed does not get: all positions that were given out have a gap.
    pub fn interrupt(&mut self) {
        if self.segments.is_empty() {
            self.end += 1;
            self.unbroken_from = self.end;
            return;
        }
        // An event that nobody is shown keeps the numbers without a gap.
        self.unbroken_from = self.end + 1;
        let limit = std::mem::replace(&mut self.limit, usize::MAX);
        self.push(NOBODY, b"", b"");
        self.limit = limit;
        self.make_room(0);
    }

    /// Adds an event. One that is larger than the ring pushes out all others and is not kept.
    pub fn push(&mut self, db: i32, space: &[u8], text: &[u8]) {
        if self.limit == 0 {
            return;
        }
        let number = self.end;
        self.end += 1;
        self.store(number, db, space, text);
    }

    fn store(&mut self, number: u64, db: i32, space: &[u8], text: &[u8]) {
        let needed = HEADER.saturating_add(space.len()).saturating_add(text.len());
        let lengths = [u32::try_from(space.len()), u32::try_from(text.len())];
        let ([Ok(space_length), Ok(text_length)], true) =
            (lengths, needed.saturating_add(OVERHEAD) <= self.limit)
        else {
            self.segments.clear();
            self.size = 0;
            return;
        };
        let has_room = |segment: &Segment| segment.bytes.capacity() - segment.bytes.len() >= needed;
        if !self.segments.back().is_some_and(has_room) {
            self.add_segment(number, needed);
        }
        let Some(Segment { bytes, .. }) = self.segments.back_mut() else { return };
        bytes.extend_from_slice(&db.to_le_bytes());
        bytes.extend_from_slice(&space_length.to_le_bytes());
        bytes.extend_from_slice(&text_length.to_le_bytes());
        bytes.extend_from_slice(space);
        bytes.extend_from_slice(text);
    }

    /// Adds a segment for at least so many bytes.
    fn add_segment(&mut self, first: u64, needed: usize) {
        let largest = (self.limit / SEGMENTS).clamp(SMALLEST_SEGMENT, LARGEST_SEGMENT);
        let usual = (self.size / 4).clamp(SMALLEST_SEGMENT, largest);
        let capacity = usual.min(self.limit / 4).max(needed);
        self.make_room(capacity.saturating_add(OVERHEAD));
        let segment = Segment { first, bytes: Vec::with_capacity(capacity) };
        self.size = self.size.saturating_add(segment.size());
        self.segments.push_back(segment);
    }

    /// Frees the oldest segments until there is room for so many bytes.
    fn make_room(&mut self, bytes: usize) {
        while self.size.saturating_add(bytes) > self.limit {
            let Some(oldest) = self.segments.pop_front() else { return };
            self.size = self.size.saturating_sub(oldest.size());
        }
    }

    /// The events from this number on, or from the first that is kept.
    pub fn events_from(&self, number: u64) -> impl Iterator<Item = FeedEvent<'_>> {
        // The segment before the first one that begins behind the number.
        let at = self.segments.partition_point(|segment| segment.first <= number);
        let segments = self.segments.range(at.saturating_sub(1)..);
        segments.flat_map(Segment::events).skip_while(move |event| event.number < number)
    }

    /// The text of a position: the next event that its owner has not seen has this number.
    pub fn position(&self, number: u64) -> String {
        format!("{}-{number}", self.run)
    }

    /// The number of a position; `Elsewhere` is one of another run.
    pub fn parse(&self, position: &[u8]) -> Option<Position> {
        let text = std::str::from_utf8(position).ok()?;
        let (run, number) = text.split_once('-')?;
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(run) || !is_number(number) {
            return None;
        }
        let (run, number): (u64, u64) = (run.parse().ok()?, number.parse().ok()?);
        // A number beyond the end was never given out.
        Some(if run == self.run && number <= self.end {
            Position::Here(number)
        } else {
            Position::Elsewhere
        })
    }
}

/// The database of the event that stands for an interruption.
const NOBODY: i32 = -1;

/// What a position says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The number of the next event.
    Here(u64),
    /// It is of another run of a server.
    Elsewhere,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(feed: &Feed, from: u64) -> Vec<(u64, i32, String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        feed.events_from(from).map(|e| (e.number, e.db, text(e.space), text(e.text))).collect()
    }

    #[test]
    fn feed_positions_have_one_form() {
        let mut feed = Feed::new(171);
        feed.resize(10_000);
        (0..3).for_each(|_| feed.push(0, b"s", b"e"));
        assert_eq!(feed.position(3), "171-3");
        assert_eq!(feed.parse(b"171-3"), Some(Position::Here(3)));
        assert_eq!(feed.parse(b"171-4"), Some(Position::Elsewhere));
        assert_eq!(feed.parse(b"172-3"), Some(Position::Elsewhere));
        for bad in [
            "",
            "-",
            "$",
            "0",
            "ab-3",
            "-3",
            "0xab-3",
            "171-",
            "171",
            "171--1",
            "171-+1",
            "171-1-2",
            "171-99999999999999999999",
            "17\u{e9}-3",
        ] {
            assert_eq!(feed.parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(feed.parse(b"171-\xff"), None);
    }

    #[test]
    fn feed_a_ring_of_few_bytes_works() {
        for limit in [1, 50, 100, 300, 1024, 16_384] {
            let mut feed = Feed::new(1);
            feed.resize(limit);
            (0..1000).for_each(|n| feed.push(0, b"space", format!("event {n}").as_bytes()));
            assert!(feed.size() <= limit, "{limit}: {}", feed.size());
            assert_eq!(feed.end(), 1000);
            assert_eq!(feed.len(), texts(&feed, 0).len() as u64);
            assert_eq!(feed.is_empty(), limit <= 50, "{limit}");
        }
    }

    #[test]
    fn feed_an_event_that_does_not_fit_pushes_out_all() {
        let mut feed = Feed::new(1);
        feed.resize(2000);
        feed.push(0, b"s", b"one");
        feed.push(0, b"s", &[b'x'; 2000]);
        assert!(feed.is_empty() && feed.has_gap_after(0) && feed.has_gap_after(1));
        assert!(!feed.has_gap_after(2));
        feed.push(0, b"s", &[b'y'; 1900]);
        assert_eq!(texts(&feed, 0).len(), 1);
        assert!(!feed.has_gap_after(2) && feed.size() <= 2000);
    }

    #[test]
    fn feed_little_is_allocated_for_little() {
        let mut feed = Feed::new(1);
        feed.resize(1 << 20);
        assert_eq!(feed.size(), 0);
        feed.push(0, b"s", b"event");
        assert!(feed.size() <= 2048, "{}", feed.size());
        (0..100_000).for_each(|_| feed.push(0, b"s", &[b'x'; 100]));
        let kept = feed.len() * 113;
        assert!(kept > (1 << 20) * 14 / 16, "only {kept} bytes of events are kept");
        // The newest stay, as many as fit.
        for limit in [500_000, 16_384, 2000, 200] {
            feed.resize(limit);
            assert!(feed.size() <= limit && feed.len() * 113 > limit as u64 / 2, "{limit}");
            assert_eq!(feed.events_from(0).last().unwrap().number, 99_999 + 1);
        }
        feed.resize(0);
        assert_eq!((feed.size(), feed.len()), (0, 0));
    }

    /// What can happen to a feed.
    #[derive(Clone, Debug)]
    enum Step {
        Push(i32, String, usize),
        Resize(usize),
        Interrupt,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..3, "[a-c]{0,20}", prop_oneof![9 => 0_usize..200, 1 => 0_usize..5000])
                .prop_map(|(db, space, length)| Step::Push(db, space, length)),
            2 => prop_oneof![Just(0), 1_usize..200, 200_usize..20_000].prop_map(Step::Resize),
            1 => Just(Step::Interrupt),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// The model is all that ever happened: who reads from any number gets all of it from there on, or is told of
        /// a gap.
        #[test]
        fn feed_agrees_with_a_list(steps in prop::collection::vec(step(), 1..200)) {
            let mut feed = Feed::new(7);
            feed.resize(5000);
            // All that happened, and the position behind it; None is something that the feed did not get.
            let mut log: Vec<Option<(i32, String, String)>> = Vec::new();
            // Each position that was given out, and how much of the log is before it.
            let mut given = vec![(feed.end(), 0)];
            for step in steps {
                match step {
                    Step::Push(db, space, length) => {
                        let text = "x".repeat(length);
                        feed.push(db, space.as_bytes(), text.as_bytes());
                        log.push((feed.limit() > 0).then_some((db, space, text)));
                    }
                    Step::Resize(limit) => feed.resize(limit),
                    Step::Interrupt => {
                        feed.interrupt();
                        log.push(None);
                    }
                }
                prop_assert!(feed.size() <= feed.limit());
                // Nobody reads while there is no ring.
                if feed.limit() > 0 {
                    given.push((feed.end(), log.len()));
                }
                for (position, before) in given.iter().rev().step_by(9) {
                    let told: Vec<_> = texts(&feed, *position)
                        .into_iter()
                        .filter(|(_, db, ..)| *db >= 0)
                        .map(|(_, db, space, text)| Some((db, space, text)))
                        .collect();
                    if feed.has_gap_after(*position) {
                        // What is told is the end of what happened, however much.
                        let happened: Vec<_> = log.iter().filter(|e| e.is_some()).collect();
                        prop_assert!(happened.ends_with(&told.iter().collect::<Vec<_>>()));
                    } else {
                        prop_assert_eq!(&told[..], &log[*before..]);
                    }
                    let numbers: Vec<_> = texts(&feed, *position).iter().map(|e| e.0).collect();
                    prop_assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
                    if let Some(last) = numbers.last() {
                        prop_assert_eq!(*last + 1, feed.end());
                    }
                }
            }
        }
    }
}
