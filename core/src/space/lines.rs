//! The lines of history that a space had before the present one.
//!
//! A server that loads a dataset, or a replica that is promoted, may lack the last events that the
//! server before it published. Its first event in a space begins a new line: a later epoch, while
//! the seq goes on. So no id is given out twice. For each past line the space keeps its epoch and
//! the seqs that it knows of it. A follower whose last id is among these has seen nothing that was
//! lost; one whose last id is beyond them has.
//!
//! A line is needed only while all events after it are kept: without them the answer is `gap`
//! anyway. So lines are part of the history and are dropped with it.

/// The maximum number of past lines; with the present one, a space knows eight.
const MAX_PAST_LINES: usize = 7;

/// A line of history that has ended: the events `first` to `last` have this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastLine {
    pub epoch: u64,
    pub first: u64,
    pub last: u64,
}

/// Past lines, oldest first, without gaps between their seqs.
#[derive(Clone, Default)]
pub struct Lines(Vec<PastLine>);

impl Lines {
    pub fn as_slice(&self) -> &[PastLine] {
        &self.0
    }

    pub fn push(&mut self, line: PastLine) {
        if self.0.len() >= MAX_PAST_LINES {
            self.0.remove(0);
        }
        self.0.push(line);
    }

    /// Drops the lines that end before `seq`. Returns whether any are left.
    pub fn keep_from(&mut self, seq: u64) -> bool {
        self.0.retain(|line| line.last >= seq);
        !self.0.is_empty()
    }

    pub fn heap_bytes(&self) -> usize {
        super::allocated(size_of::<Lines>())
            + super::allocated(self.0.capacity() * size_of::<PastLine>())
    }
}
