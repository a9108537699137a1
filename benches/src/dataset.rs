//! Who is there: the same people, the same names and the same metadata for every system.

/// Bytes of a session's metadata.
const META_BYTES: usize = 120;

/// More are not called than these of a very large shape, so that the requests fit into memory.
const MOST_CALLS: usize = 400_000;

/// `members` sessions, one a user, spread evenly over `spaces` spaces.
#[derive(Clone, Copy)]
pub struct Shape {
    /// In tables and in the names of samples.
    pub name: &'static str,
    /// What the names of its spaces begin with; shapes of one server differ in it.
    pub prefix: &'static str,
    pub spaces: usize,
    pub members: usize,
    /// Whether sessions have metadata.
    pub meta: bool,
}

impl Shape {
    /// Space after space gets its next member.
    pub fn space_of(&self, member: usize) -> String {
        format!("{}:{:06}", self.prefix, member % self.spaces)
    }

    /// Everybody twice, each time in another order; the spaces round robin, within a space at random.
    ///
    /// Twice, because who always comes in the same order always has the oldest lease of all, and to a
    /// sorted set that is a special case: take the first, append it. People are not as regular.
    pub fn order(&self) -> Vec<usize> {
        let mut random = Random(7);
        let mut order = self.shuffled(&mut random);
        order.extend(self.shuffled(&mut random));
        order.truncate(MOST_CALLS);
        order
    }

    fn shuffled(&self, random: &mut Random) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.members).collect();
        let each = self.members / self.spaces;
        for space in 0..self.spaces {
            for at in (1..each).rev() {
                let other = random.below(at + 1);
                order.swap(at * self.spaces + space, other * self.spaces + space);
            }
        }
        order
    }
}

/// The same numbers in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// 10 bytes.
pub fn user(member: usize) -> String {
    let mut text = String::with_capacity(10);
    text.push('u');
    push_digits(&mut text, member as u64, 10, 9);
    text
}

/// 36 bytes, as a UUID.
pub fn session(member: usize) -> String {
    let mut random = Random(member as u64 ^ 0x5e55_1011);
    let (a, b) = (random.next(), random.next());
    let mut text = String::with_capacity(36);
    for (part, digits) in [(a >> 32, 8), (a >> 16, 4), (a, 4), (b >> 48, 4), (b, 12)] {
        if !text.is_empty() {
            text.push('-');
        }
        push_digits(&mut text, part, 16, digits);
    }
    text
}

/// A JSON object of 120 bytes.
pub fn meta(member: usize) -> String {
    let mut text = String::with_capacity(META_BYTES);
    text.push_str("{\"name\":\"Member ");
    push_digits(&mut text, member as u64, 10, 9);
    text.push_str("\",\"device\":\"browser\",\"status\":\"here\",\"avatar\":\"/a/");
    push_digits(&mut text, Random(member as u64).next(), 16, 16);
    text.push_str(".png\",\"note\":\"");
    while text.len() < META_BYTES - 2 {
        text.push('.');
    }
    text.push_str("\"}");
    text
}

/// The last digits of a number. By hand: this is done millions of times before the clock runs.
fn push_digits(text: &mut String, number: u64, base: u64, digits: u32) {
    for place in (0..digits).rev() {
        let digit = (number / base.pow(place)) % base;
        text.push(char::from(b"0123456789abcdef"[digit as usize]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_long_as_is_said() {
        for member in [0, 1, 99_999, 1_000_000, 123_456_789] {
            assert_eq!(user(member).len(), 10);
            assert_eq!(session(member).len(), 36);
            assert_eq!(meta(member).len(), 120);
        }
    }

    #[test]
    fn the_order_has_everybody_twice_and_the_spaces_round_robin() {
        let shape = Shape { name: "", prefix: "", spaces: 8, members: 80, meta: true };
        let order = shape.order();
        assert!(order.iter().enumerate().all(|(at, member)| member % 8 == at % 8));
        assert_ne!(order[..80], order[80..]);
        for half in order.chunks(80) {
            let mut sorted = half.to_vec();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq(0..80));
            assert_ne!(half, sorted);
        }
    }
}
