//! A small hash table whose entries lie with their tags in cache lines.
//!
//! Open addressing over lines of 64 bytes, each with twelve numbers and a byte of each number's
//! hash, as in F14 (Bronson and Shi 2019): one line is fetched to find a number, where tables
//! that keep tags and numbers apart prefetch two. A line counts the entries that found it full and
//! went on, so that a search knows where to end, and removals leave nothing behind.
//!
//! Entries are ordered: the line is chosen by the hash's leading bits, so a walk along the lines
//! is a walk along the hashes.

/// Entries a line: a tag and a number each, and the counter, make 64 bytes.
const WIDTH: usize = 12;
const EMPTY: u8 = 0;
/// Bytes a line: as many as a cache line has.
pub const LINE: usize = 64;

const _: () = assert!(size_of::<Line>() == LINE);

/// The server's allocator need not align to more than 16 bytes. Jemalloc aligns what is made of
/// multiples of 64 bytes to that; elsewhere an entry may lie on two cache lines, and that is all.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
struct Line {
    tags: [u8; WIDTH],
    /// How many entries that belong here, or came by, went on to a later line.
    passed: u32,
    ids: [u32; WIDTH],
}

/// Numbers by hash, some hundreds at most: what changes its size moves all of them.
#[derive(Clone, Default)]
pub struct BucketTable {
    lines: Vec<Line>,
    len: usize,
}

/// So many lines have room for so many entries, and for a third more.
fn lines_for(entries: usize) -> usize {
    (entries * 4).div_ceil(WIDTH * 3)
}

/// A byte of the hash that the choice of the line does not depend on; never [`EMPTY`].
fn tag(hash: u64) -> u8 {
    (hash as u8).max(1)
}

/// Which of so many lines a hash belongs to. `skip` leading bits are the same for the whole table.
pub fn home_of(hash: u64, skip: u32, lines: usize) -> usize {
    let leading = hash.checked_shl(skip).unwrap_or(0) >> 32;
    ((leading * lines as u64) >> 32) as usize
}

impl BucketTable {
    /// Number of entries.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// An empty table with room for so many.
    pub fn with_room(entries: usize) -> Self {
        BucketTable { lines: vec![Line::default(); lines_for(entries)], len: 0 }
    }

    /// Number of cache lines.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// The line that a hash belongs to. `skip` leading bits are the same for the whole table.
    pub fn home(&self, hash: u64, skip: u32) -> usize {
        home_of(hash, skip, self.lines.len())
    }

    /// Where the lines begin, and how many there are.
    pub fn at(&self) -> (*const u8, usize) {
        (self.lines.as_ptr().cast(), self.lines.len())
    }

    /// The first hash, less the table's own bits, that belongs to a line or a later one.
    fn begin_of(&self, line: usize, skip: u32) -> u64 {
        let leading = ((line as u64) << 32).div_ceil(self.lines.len().max(1) as u64);
        (leading << 32).checked_shr(skip).unwrap_or(0)
    }

    fn after(&self, line: usize) -> usize {
        if line + 1 < self.lines.len() { line + 1 } else { 0 }
    }

    /// The lines in which an entry can be that belongs to this one.
    fn probe(&self, home: usize) -> impl Iterator<Item = (usize, &Line)> {
        let mut next = Some(home);
        (0..self.lines.len()).map_while(move |_| {
            let at = next?;
            let line = self.lines.get(at)?;
            next = (line.passed > 0).then(|| self.after(at));
            Some((at, line))
        })
    }

    /// Where the entry is of which `is` says that it is the one: its line and its place there.
    fn place(
        &self,
        hash: u64,
        skip: u32,
        mut is: impl FnMut(u32) -> bool,
    ) -> Option<(usize, usize)> {
        let tag = tag(hash);
        self.probe(self.home(hash, skip)).find_map(|(at, line)| {
            let mut same = same_as(&line.tags, tag);
            while same != 0 {
                let place = same.trailing_zeros() as usize / 8;
                if line.ids.get(place).is_some_and(|id| is(*id)) {
                    return Some((at, place));
                }
                same &= same - 1;
            }
            None
        })
    }

    /// The beginning of a line, for who can have it brought near before it is needed.
    pub fn tags_at(&self, line: usize) -> &[u8] {
        self.lines.get(line).map_or(&[], |line| &line.tags)
    }

    /// A number of a line that is most probably the one stored under `hash`, if anything is.
    pub fn guess_at(&self, line: usize, hash: u64) -> Option<u32> {
        let line = self.lines.get(line)?;
        let same = same_as(&line.tags, tag(hash));
        line.ids.get(same.trailing_zeros() as usize / 8).copied()
    }

    /// The number stored under `hash` of which `is` says that it is the one.
    pub fn find(&self, hash: u64, skip: u32, is: impl FnMut(u32) -> bool) -> Option<u32> {
        let (line, place) = self.place(hash, skip, is)?;
        self.lines.get(line)?.ids.get(place).copied()
    }

    /// Files a number. `hash_again` gives the hash of any stored number.
    pub fn insert(&mut self, hash: u64, skip: u32, id: u32, hash_again: impl Fn(u32) -> u64) {
        // Nine of ten places: a search of what is there looks at 1.1 lines on the average.
        if (self.len + 1) * 10 > self.lines.len() * WIDTH * 9 {
            let lines = self.lines.len();
            self.resize(lines + (lines / 2).max(1), skip, hash_again);
        }
        self.put(hash, skip, id);
    }

    fn put(&mut self, hash: u64, skip: u32, id: u32) {
        let mut at = self.home(hash, skip);
        for _ in 0..self.lines.len() {
            let after = self.after(at);
            let Some(line) = self.lines.get_mut(at) else { return };
            let mut places = line.tags.iter_mut().zip(&mut line.ids);
            if let Some((free, place)) = places.find(|(tag, _)| **tag == EMPTY) {
                (*free, *place) = (tag(hash), id);
                self.len += 1;
                return;
            }
            line.passed += 1;
            at = after;
        }
    }

    /// Takes out the number stored under `hash` of which `is` says that it is the one.
    pub fn remove(
        &mut self,
        hash: u64,
        skip: u32,
        is: impl FnMut(u32) -> bool,
        hash_again: impl Fn(u32) -> u64,
    ) -> Option<u32> {
        let (found, place) = self.place(hash, skip, is)?;
        let mut at = self.home(hash, skip);
        while at != found {
            let after = self.after(at);
            let line = self.lines.get_mut(at)?;
            line.passed = line.passed.saturating_sub(1);
            at = after;
        }
        let line = self.lines.get_mut(found)?;
        *line.tags.get_mut(place)? = EMPTY;
        let id = *line.ids.get(place)?;
        self.len -= 1;
        let enough = lines_for(self.len);
        if enough * 3 < self.lines.len() {
            self.resize(enough, skip, hash_again);
        }
        Some(id)
    }

    /// Replaces one stored number by another of the same hash.
    pub fn replace(&mut self, hash: u64, skip: u32, old: u32, new: u32) {
        if let Some((line, place)) = self.place(hash, skip, |id| id == old)
            && let Some(id) = self.lines.get_mut(line).and_then(|line| line.ids.get_mut(place))
        {
            *id = new;
        }
    }

    fn resize(&mut self, lines: usize, skip: u32, hash_again: impl Fn(u32) -> u64) {
        let old =
            std::mem::replace(self, BucketTable { lines: vec![Line::default(); lines], len: 0 });
        for id in old.ids() {
            self.put(hash_again(id), skip, id);
        }
    }

    /// All numbers, in no order.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.lines.iter().flat_map(Line::ids)
    }

    /// The entries that may belong to the line that `hash` belongs to, others among them; and the
    /// first hash, less the table's own bits, of the line after it, or none where it is the last.
    pub fn line_of(&self, hash: u64, skip: u32) -> (impl Iterator<Item = u32> + '_, Option<u64>) {
        let home = self.home(hash, skip);
        let next = (home + 1 < self.lines.len()).then(|| self.begin_of(home + 1, skip));
        (self.probe(home).flat_map(|(_, line)| line.ids()), next)
    }
}

impl Line {
    fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.tags.iter().zip(self.ids).filter(|(tag, _)| **tag != EMPTY).map(|(_, id)| id)
    }
}

/// A bit in the byte of each tag that is this one, the first tag lowest. It must be exact: what is left in
/// an empty place would be taken for an entry.
fn same_as(tags: &[u8; WIDTH], tag: u8) -> u128 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const SEVENS: u64 = ONES * 0x7f;
    let [a, b, c, d, e, f, g, h, more @ ..] = *tags;
    let wanted = ONES * u64::from(tag);
    let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ wanted;
    let second = (u64::from(u32::from_le_bytes(more)) ^ wanted) | !0 << 32;
    // The highest bit of a byte stays 0 where the byte is 0, and none carries into the next (Hacker's
    // Delight, 6-1).
    let zero = |bytes: u64| u128::from(!(((bytes & SEVENS) + SEVENS) | bytes | SEVENS));
    zero(second) << 64 | zero(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_exactly() {
        for (tag, other) in (0..=255u8).flat_map(|tag| (0..=255u8).map(move |other| (tag, other))) {
            for at in 0..WIDTH {
                // Each place beside each other, with the tag below, above and apart.
                let mut tags = [other; WIDTH];
                tags[at] = tag;
                tags[(at + 5) % WIDTH] = tag;
                let naive = tags
                    .iter()
                    .enumerate()
                    .map(|(place, it)| if *it == tag { 0x80 << (place * 8) } else { 0u128 });
                assert_eq!(same_as(&tags, tag), naive.sum(), "{tags:?} {tag}");
            }
        }
    }
}
