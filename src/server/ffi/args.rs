//! What a client sent, read one argument after the other.

#![deny(clippy::arithmetic_side_effects)]

use crate::server::ffi::error::{Error, quoted};
use redis_module::raw;
use std::marker::PhantomData;

/// One argument: a string of the server.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Arg<'a>(*mut raw::RedisModuleString, PhantomData<&'a [u8]>);

impl<'a> Arg<'a> {
    /// # Safety
    /// `string` is one of the server's and lives, unchanged, as long as `'a`.
    pub unsafe fn from_raw(string: *mut raw::RedisModuleString) -> Self {
        Arg(string, PhantomData)
    }

    pub fn raw(self) -> *mut raw::RedisModuleString {
        self.0
    }

    pub fn bytes(self) -> &'a [u8] {
        let mut length = 0;
        // SAFETY: the string lives as long as `'a`, and so do its bytes.
        unsafe {
            let pointer = api!(RedisModule_StringPtrLen(self.0, &mut length));
            if pointer.is_null() {
                return &[];
            }
            std::slice::from_raw_parts(pointer.cast(), length)
        }
    }
}

/// A cursor over the arguments of a command, its name left out.
#[derive(Clone)]
pub struct Args<'a> {
    args: &'a [Arg<'a>],
    next: usize,
    /// The bytes of the next one, which is compared with several words as a rule.
    head: Option<&'a [u8]>,
}

impl<'a> Args<'a> {
    /// The first is the name of a space, which is taken by [`Self::space`] and nothing else.
    pub fn new(args: &'a [Arg<'a>]) -> Self {
        Args { args, next: 1, head: None }
    }

    /// Of a command whose first argument is not the name of a space.
    pub fn without_space(args: &'a [Arg<'a>]) -> Self {
        Args { args, next: 1, head: args.get(1).map(|arg| arg.bytes()) }
    }

    fn advance(&mut self) {
        self.next = self.next.saturating_add(1);
        self.head = self.args.get(self.next).map(|arg| arg.bytes());
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.args.len().saturating_sub(self.next)
    }

    /// The name of the space, the first argument, which the arity says is there.
    pub fn space(&mut self) -> Result<Arg<'a>, Error> {
        let name = *self.args.get(self.next).ok_or_else(missing)?;
        self.advance();
        Ok(name)
    }

    /// The bytes of the first argument, for commands whose first argument is no space.
    pub fn required_first(&mut self) -> Result<&'a [u8], Error> {
        self.space().map(Arg::bytes)
    }

    /// The bytes of a further argument that the arity says is there.
    pub fn required(&mut self) -> Result<&'a [u8], Error> {
        self.next().ok_or_else(missing)
    }

    /// The next argument's bytes.
    pub fn next(&mut self) -> Option<&'a [u8]> {
        let head = self.head?;
        self.advance();
        Some(head)
    }

    /// Takes so many arguments; none where there are fewer.
    pub fn take(&mut self, count: usize) -> &'a [Arg<'a>] {
        let end = self.next.saturating_add(count);
        let taken = self.args.get(self.next..end).unwrap_or_default();
        self.next = self.next.saturating_add(taken.len());
        self.head = self.args.get(self.next).map(|arg| arg.bytes());
        taken
    }

    /// The argument so many places ahead, which stays there; 0 is the next.
    pub fn peek(&self, ahead: usize) -> Option<&'a [u8]> {
        if ahead == 0 {
            return self.head;
        }
        self.args.get(self.next.saturating_add(ahead)).map(|arg| arg.bytes())
    }

    /// Whether the next argument is this word, in any case.
    pub fn is_word(&self, word: &str) -> bool {
        // Most clients send words as they are written here, which is quicker to see.
        let is = |arg: &[u8]| arg == word.as_bytes() || arg.eq_ignore_ascii_case(word.as_bytes());
        self.head.is_some_and(is)
    }

    /// Takes the next argument if it is this word.
    pub fn take_word(&mut self, word: &str) -> bool {
        let is_it = self.is_word(word);
        if is_it {
            self.advance();
        }
        is_it
    }

    /// The value that belongs to an option that has just been taken.
    pub fn value_of(&mut self, option: &str) -> Result<&'a [u8], Error> {
        self.next().ok_or_else(|| Error::syntax(&format!("{option} needs a value")))
    }

    /// The error for an argument that is none of the options.
    pub fn unknown_option(&self) -> Error {
        let what = self.peek(0).map(quoted).unwrap_or_default();
        Error::syntax(&format!("unknown option {what}"))
    }
}

fn missing() -> Error {
    Error::syntax("an argument is missing")
}

/// The bytes as text; none where they are not UTF-8.
pub fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.is_ascii() {
        // SAFETY: ASCII is UTF-8. Most names are, and that is seen in a quarter of the instructions.
        return Some(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    std::str::from_utf8(bytes).ok()
}

/// Sets an option that may be given once.
pub fn set_once<T>(place: &mut Option<T>, value: T, option: &str) -> Result<(), Error> {
    if place.replace(value).is_some() {
        return Err(Error::syntax(&format!(
            "{option} is given twice or contradicts another option"
        )));
    }
    Ok(())
}

/// An integer as core commands take it: digits with at most a minus sign, no more of them than
/// needed.
pub fn integer(bytes: &[u8]) -> Option<i64> {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let canonical = match digits {
        [b'0'] => digits.len() == bytes.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// A whole number from 0 to 2^64 - 1, in digits, no more of them than needed: no sign, no leading zeroes.
pub fn unsigned(bytes: &[u8]) -> Option<u64> {
    let canonical = match bytes {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Whether the bytes read as a whole number, however large: what makes `USERS` or `SESSIONS` the
/// beginning of a list.
pub fn looks_like_a_count(bytes: &[u8]) -> bool {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsigned_numbers_have_one_form() {
        for number in [0, 1, 10, u64::MAX] {
            assert_eq!(unsigned(number.to_string().as_bytes()), Some(number));
        }
        for text in
            ["", "+5", "-1", "-0", "007", "00", " 1", "1 ", "1.0", "0x1", "18446744073709551616"]
        {
            assert_eq!(unsigned(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn integers_are_what_core_commands_take() {
        for (text, value) in [("0", 0), ("7", 7), ("-1", -1), ("9223372036854775807", i64::MAX)] {
            assert_eq!(integer(text.as_bytes()), Some(value));
        }
        for text in [
            "",
            "-",
            "+1",
            "01",
            "-0",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "9223372036854775808",
            "x",
            "\u{661}",
        ] {
            assert_eq!(integer(text.as_bytes()), None, "{text:?}");
        }
        assert!(looks_like_a_count(b"99999999999999999999") && looks_like_a_count(b"-1"));
        assert!(
            !looks_like_a_count(b"") && !looks_like_a_count(b"3x") && !looks_like_a_count(b"-")
        );
    }
}
