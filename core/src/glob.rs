//! Glob patterns as in `KEYS`: `*`, `?`, `[abc]`, `[a-c]`, `[^a]` and `\` before an ordinary character.
//!
//! A pattern is a row of tokens, each of which matches one byte, and each of which may have a `*` before it.
//! [`Glob::matches`] walks over the name once. It keeps the set of all numbers of tokens that the bytes so far can
//! have matched, as bits:
//!
//! - layout: for each byte value one row of bits, one bit per token that this byte matches;
//! - step: the set moves on by one where the byte matches, and stays where there is a `*`;
//! - cost: bytes of the name × tokens / 64, whatever the pattern and the name are. No pattern makes it slow;
//! - memory: 2 KiB per 64 tokens, until the pattern is dropped.
//!
//! It differs from the server's own matching in two cases: `*` matches the empty name, and ranges compare bytes
//! from 0 to 255 on every platform.

#![deny(clippy::arithmetic_side_effects)]

/// The longest pattern. Every name of [`MAX_SPACE_BYTES`](crate::space::MAX_SPACE_BYTES) can be written as one, with a
/// backslash before each byte.
pub const MAX_PATTERN_BYTES: usize = 1024;

const BITS: usize = u64::BITS as usize;
const VALUES: usize = 256;

/// A pattern, ready to be compared with many names.
#[derive(Clone, Debug)]
pub struct Glob {
    /// How many tokens there are.
    tokens: usize,
    /// Bit n: a `*` stands before token n; for `tokens` at the end.
    stars: Vec<u64>,
    /// For each byte value `stars.len()` words. Bit n: the byte matches token n.
    rows: Vec<u64>,
}

impl Glob {
    /// None if the pattern is longer than [`MAX_PATTERN_BYTES`].
    pub fn new(pattern: &[u8]) -> Option<Self> {
        if pattern.len() > MAX_PATTERN_BYTES {
            return None;
        }
        let mut tokens = Tokens { rest: pattern };
        let words = tokens.clone().filter(|token| *token != Token::Star).count() / BITS;
        let words = words.saturating_add(1);
        let mut glob =
            Glob { tokens: 0, stars: vec![0; words], rows: vec![0; words.saturating_mul(VALUES)] };
        tokens.by_ref().for_each(|token| glob.push(token));
        Some(glob)
    }

    fn push(&mut self, token: Token<'_>) {
        let (word, bit) = (self.tokens / BITS, 1 << (self.tokens % BITS));
        if token == Token::Star {
            self.stars.get_mut(word).into_iter().for_each(|word| *word |= bit);
            return;
        }
        for (value, row) in (0..=u8::MAX).zip(self.rows.chunks_exact_mut(self.stars.len())) {
            if token.matches(value) {
                row.get_mut(word).into_iter().for_each(|word| *word |= bit);
            }
        }
        self.tokens = self.tokens.saturating_add(1);
    }

    /// How much work a byte of a name is: 1 for nearly every pattern.
    pub fn words(&self) -> usize {
        self.stars.len()
    }

    pub fn matches(&self, name: &[u8]) -> bool {
        // Each token matches one byte.
        if name.len() < self.tokens {
            return false;
        }
        match self.stars.as_slice() {
            // Nearly every pattern.
            [stars] => self.matches_short(*stars, name),
            _ => self.matches_long(name),
        }
    }

    fn matches_short(&self, stars: u64, name: &[u8]) -> bool {
        let mut reached: u64 = 1;
        for byte in name {
            let row = self.rows.get(usize::from(*byte)).copied().unwrap_or(0);
            reached = ((reached & row) << 1) | (reached & stars);
            if reached == 0 {
                return false;
            }
        }
        reached >> self.tokens & 1 == 1
    }

    fn matches_long(&self, name: &[u8]) -> bool {
        let words = self.stars.len();
        let mut reached = vec![0; words];
        reached.first_mut().into_iter().for_each(|word| *word = 1);
        for byte in name {
            let at = usize::from(*byte).saturating_mul(words);
            let row = self.rows.get(at..at.saturating_add(words)).unwrap_or_default();
            let (mut carry, mut any) = (0, 0);
            for ((word, row), stars) in reached.iter_mut().zip(row).zip(&self.stars) {
                let matched = *word & row;
                *word = (matched << 1) | carry | (*word & stars);
                carry = matched >> (BITS - 1);
                any |= *word;
            }
            if any == 0 {
                return false;
            }
        }
        let last = reached.get(self.tokens / BITS).copied().unwrap_or(0);
        last >> (self.tokens % BITS) & 1 == 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token<'a> {
    Star,
    Any,
    Byte(u8),
    /// What is between the brackets, and whether `^` stands before it.
    Class(&'a [u8], bool),
}

impl Token<'_> {
    fn matches(self, byte: u8) -> bool {
        match self {
            Token::Star => false,
            Token::Any => true,
            Token::Byte(other) => byte == other,
            Token::Class(members, negated) => class_has(members, byte) != negated,
        }
    }
}

/// Whether one of the members of a class is the byte.
fn class_has(mut members: &[u8], byte: u8) -> bool {
    loop {
        let (found, rest) = match members {
            [b'\\', member, rest @ ..] => (*member == byte, rest),
            [from, b'-', to, rest @ ..] => ((*from.min(to)..=*from.max(to)).contains(&byte), rest),
            [member, rest @ ..] => (*member == byte, rest),
            [] => return false,
        };
        if found {
            return true;
        }
        members = rest;
    }
}

/// The tokens of a pattern.
#[derive(Clone)]
struct Tokens<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let (token, rest) = match self.rest {
            [b'*', rest @ ..] => (Token::Star, rest),
            [b'?', rest @ ..] => (Token::Any, rest),
            [b'[', b'^', rest @ ..] => class(rest, true),
            [b'[', rest @ ..] => class(rest, false),
            [b'\\', byte, rest @ ..] | [byte, rest @ ..] => (Token::Byte(*byte), rest),
            [] => return None,
        };
        self.rest = rest;
        Some(token)
    }
}

/// A class, from behind its bracket. One that is not closed ends with the pattern.
fn class(pattern: &[u8], negated: bool) -> (Token<'_>, &[u8]) {
    let mut rest = pattern;
    loop {
        let length = pattern.len().saturating_sub(rest.len());
        rest = match rest {
            [b'\\', _, rest @ ..] => rest,
            [b']', after @ ..] => {
                return (Token::Class(pattern.get(..length).unwrap_or_default(), negated), after);
            }
            [_, b'-', _, rest @ ..] | [_, rest @ ..] => rest,
            [] => return (Token::Class(pattern, negated), &[]),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_match(pattern: &[u8], name: &[u8]) -> bool {
        Glob::new(pattern).is_some_and(|glob| glob.matches(name))
    }

    /// `stringmatchlen` of Redis 7.0, line by line; a byte beyond the end is NUL, as in the server. The two
    /// differences that the head of this file names are left out here too.
    fn naive(mut pattern: &[u8], mut name: &[u8]) -> bool {
        let at = |bytes: &[u8], index: usize| bytes.get(index).copied().unwrap_or(0);
        let skip = |bytes: &mut &[u8]| *bytes = bytes.get(1..).unwrap_or_default();
        if name.is_empty() && pattern.iter().all(|byte| *byte == b'*') {
            return true;
        }
        while !pattern.is_empty() && !name.is_empty() {
            match pattern[0] {
                b'*' => {
                    while at(pattern, 1) == b'*' {
                        skip(&mut pattern);
                    }
                    return pattern.len() == 1
                        || (0..name.len()).any(|from| naive(&pattern[1..], &name[from..]));
                }
                b'?' => skip(&mut name),
                b'[' => {
                    skip(&mut pattern);
                    let negated = at(pattern, 0) == b'^';
                    if negated {
                        skip(&mut pattern);
                    }
                    let mut found = false;
                    let mut ended = false;
                    loop {
                        if pattern.len() >= 2 && pattern[0] == b'\\' {
                            skip(&mut pattern);
                            found |= pattern[0] == name[0];
                        } else if at(pattern, 0) == b']' {
                            break;
                        } else if pattern.is_empty() {
                            ended = true;
                            break;
                        } else if pattern.len() >= 3 && pattern[1] == b'-' {
                            let (from, to) = (pattern[0], pattern[2]);
                            skip(&mut pattern);
                            skip(&mut pattern);
                            found |= (from.min(to)..=from.max(to)).contains(&name[0]);
                        } else {
                            found |= pattern[0] == name[0];
                        }
                        skip(&mut pattern);
                    }
                    if found == negated {
                        return false;
                    }
                    skip(&mut name);
                    if ended {
                        return name.is_empty();
                    }
                }
                byte => {
                    let byte = if byte == b'\\' && pattern.len() >= 2 {
                        skip(&mut pattern);
                        pattern[0]
                    } else {
                        byte
                    };
                    if byte != name[0] {
                        return false;
                    }
                    skip(&mut name);
                }
            }
            skip(&mut pattern);
            if name.is_empty() {
                while at(pattern, 0) == b'*' {
                    skip(&mut pattern);
                }
                break;
            }
        }
        pattern.is_empty() && name.is_empty()
    }

    #[test]
    fn glob_matches_as_keys_does() {
        for (pattern, matched, other) in [
            ("room:*", "room:1", "rooms:1"),
            ("room:*", "room:", "room"),
            ("*", "", "\0x"),
            ("", "", "a"),
            ("h?llo", "hallo", "hllo"),
            ("h[ae]llo", "hello", "hillo"),
            ("h[^e]llo", "hallo", "hello"),
            ("h[a-b]llo", "hbllo", "hcllo"),
            ("h[b-a]llo", "hallo", "hcllo"),
            (r"h\*llo", "h*llo", "hallo"),
            (r"[\]\\]", "]", "["),
            ("a*b*c", "a-b-b-c", "a-c-b"),
            ("*:1", "room:1:1", "room:1:2"),
            (r"end\", r"end\", "end"),
            ("[^", "x", ""),
            ("[ab", "b", "c"),
        ] {
            assert!(is_match(pattern.as_bytes(), matched.as_bytes()), "{pattern} {matched}");
            if pattern != "*" {
                assert!(!is_match(pattern.as_bytes(), other.as_bytes()), "{pattern} {other}");
            }
        }
    }

    #[test]
    fn glob_a_pattern_that_is_too_long_is_refused() {
        assert!(Glob::new(&[b'a'; MAX_PATTERN_BYTES]).is_some());
        assert!(Glob::new(&[b'a'; MAX_PATTERN_BYTES + 1]).is_none());
    }

    #[test]
    fn glob_long_patterns_cross_the_words() {
        for length in [62, 63, 64, 65, 127, 128, 129, 1000] {
            let name = vec![b'a'; length];
            let pattern = [name.as_slice(), b"*z"].concat();
            assert!(is_match(&name, &name) && !is_match(&name, &name[1..]));
            assert!(!is_match(&pattern, &name));
            assert!(is_match(&pattern, &[name.as_slice(), b"--z"].concat()));
        }
    }

    #[test]
    fn glob_hostile_patterns_are_not_slow() {
        // By backtracking these take longer than anybody waits.
        let pattern = "*a".repeat(1000) + "*b";
        let name = "a".repeat(4096);
        assert!((0..20).all(|_| !is_match(pattern.as_bytes(), name.as_bytes())));
    }

    fn text(letters: &'static [u8], length: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(letters), 0..length)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn glob_agrees_with_the_server(
            pattern in text(b"aabbc**?[]^-\\", 10),
            name in text(b"aaabbc]-^\\*", 10),
        ) {
            prop_assert_eq!(is_match(&pattern, &name), naive(&pattern, &name));
        }

        #[test]
        fn glob_long_agrees_with_short(
            pattern in text(b"ab*?", 12),
            name in text(b"ab", 12),
            fill in 55_usize..70,
        ) {
            let fill = vec![b'x'; fill];
            let long = |text: &[u8]| [fill.as_slice(), text].concat();
            prop_assert_eq!(is_match(&long(&pattern), &long(&name)), naive(&pattern, &name));
        }
    }
}
