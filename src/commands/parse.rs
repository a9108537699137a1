//! What several commands read in the same way.

#![deny(clippy::arithmetic_side_effects)]

use crate::server::ffi::args::{Arg, Args, integer, looks_like_a_count, text};
use crate::server::ffi::error::{Error, quoted};
use crate::server::module::command::{ArgKind, ArgSpec, USER};
use crate::server::module::config::{self, ChannelMode};
use crate::server::propagate::channels;
use presence_core::json;
use presence_core::owners::MAX_OWNER_BYTES;
use presence_core::space::{MAX_NAME_BYTES, MAX_TIMESTAMP, Meta};

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Error> {
    text(bytes).ok_or_else(|| Error::new(format!("{what} is not UTF-8 text")))
}

/// Inlined, and what is seldom apart: there may be thousands of names in a call.
#[inline]
fn bounded<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Error> {
    #[cold]
    fn too_long(what: &str) -> Error {
        Error::new(format!("{what} is longer than {MAX_NAME_BYTES} bytes"))
    }
    if bytes.len() > MAX_NAME_BYTES {
        return Err(too_long(what));
    }
    utf8(bytes, what)
}

#[inline]
pub fn user(bytes: &[u8]) -> Result<&str, Error> {
    #[cold]
    fn empty() -> Error {
        Error::new(format!("user is empty; it has 1 to {MAX_NAME_BYTES} bytes"))
    }
    if bytes.is_empty() {
        return Err(empty());
    }
    bounded(bytes, "user")
}

#[inline]
pub fn session(bytes: &[u8]) -> Result<&str, Error> {
    bounded(bytes, "session")
}

/// The name of an owner.
pub fn owner(bytes: &[u8]) -> Result<&str, Error> {
    if bytes.is_empty() {
        return Err(Error::new(format!("owner is empty; it has 1 to {MAX_OWNER_BYTES} bytes")));
    }
    if bytes.len() > MAX_OWNER_BYTES {
        return Err(Error::new(format!("owner is longer than {MAX_OWNER_BYTES} bytes")));
    }
    utf8(bytes, "owner")
}

/// What follows `LINGER`: milliseconds.
pub fn linger(args: &mut Args<'_>) -> Result<u64, Error> {
    let value = integer(args.value_of("LINGER")?).ok_or(Error::NOT_AN_INTEGER)?;
    u64::try_from(value)
        .map_err(|_| Error::new("LINGER is negative; it takes milliseconds, 0 or more"))
}

/// The bytes of the name of a space that may come into being by this command: events carry it as
/// text, and in sharded mode there must be a channel for it.
pub fn new_space(name: Arg<'_>) -> Result<&[u8], Error> {
    let name = name.bytes();
    utf8(name, "space")?;
    if config::channel_mode() == ChannelMode::Sharded
        && config::with_channel_prefix(|prefix| {
            channels::channel(ChannelMode::Sharded, prefix, name)
        })
        .is_none()
    {
        return Err(Error::new(
            "space has no sharded channel: its name is empty, is just a hash tag, has a } outside a hash tag or an empty hash tag",
        ));
    }
    Ok(name)
}

/// A message: any text.
pub fn message(bytes: &[u8]) -> Result<&str, Error> {
    let limit = config::max_message_bytes();
    if bytes.len() > limit {
        return Err(Error::new(format!(
            "message is longer than presence.max-message-bytes ({limit})"
        )));
    }
    utf8(bytes, "message")
}

/// The id of an event, `<epoch>-<seq>`; the seq may be left out, as in streams, and is 0 then.
pub fn event_id(bytes: &[u8]) -> Result<(u64, u64), Error> {
    let number = |bytes: &[u8]| integer(bytes).and_then(|number| u64::try_from(number).ok());
    let id = match bytes.iter().position(|byte| *byte == b'-') {
        None => number(bytes).map(|epoch| (epoch, 0)),
        Some(at) => {
            let (epoch, seq) = (bytes.get(..at), bytes.get(at.saturating_add(1)..));
            epoch.and_then(number).zip(seq.and_then(number))
        }
    };
    id.ok_or_else(|| Error::new(format!("invalid event id {}", quoted(bytes))))
}

/// Metadata: a JSON value. `null` is none.
pub fn meta(bytes: &[u8]) -> Result<Meta<'_>, Error> {
    let limit = config::max_meta_bytes();
    if bytes.len() > limit {
        return Err(Error::new(format!("META is longer than presence.max-meta-bytes ({limit})")));
    }
    let text = utf8(bytes, "META")?;
    json::check(text).map_err(|error| Error::new(format!("META is not a JSON value: {error}")))?;
    Ok(Some(text).filter(|text| !json::is_null(text)))
}

/// How long from a moment, or until when.
pub struct ExpiryArgs {
    /// The command, for the error.
    command: &'static str,
    until: Option<u64>,
}

impl ExpiryArgs {
    pub fn new(command: &'static str) -> Self {
        ExpiryArgs { command, until: None }
    }

    fn invalid(&self) -> Error {
        Error::new(format!("invalid expire time in '{}' command", self.command))
    }

    /// Takes `EX`, `PX`, and where `absolute` also `EXAT` and `PXAT`, if one of them is next.
    pub fn take(&mut self, args: &mut Args<'_>, now: u64, absolute: bool) -> Result<bool, Error> {
        let (option, unit, base) = if args.take_word("EX") {
            ("EX", 1000, now)
        } else if args.take_word("PX") {
            ("PX", 1, now)
        } else if absolute && args.take_word("EXAT") {
            ("EXAT", 1000, 0)
        } else if absolute && args.take_word("PXAT") {
            ("PXAT", 1, 0)
        } else {
            return Ok(false);
        };
        let value = integer(args.value_of(option)?).ok_or(Error::NOT_AN_INTEGER)?;
        let until = u64::try_from(value)
            .ok()
            .filter(|value| *value > 0)
            .and_then(|value| value.checked_mul(unit)?.checked_add(base))
            .filter(|until| *until > now && *until <= MAX_TIMESTAMP)
            .ok_or_else(|| self.invalid())?;
        if self.until.replace(until).is_some() {
            return Err(Error::syntax("more than one of EX, PX, EXAT, PXAT is given"));
        }
        Ok(true)
    }

    /// The moment that was given.
    pub fn until(&self) -> Option<u64> {
        self.until
    }

    /// The lease that was given, or else `usual` ms; one that is too long is refused.
    pub fn lease(&self, now: u64, usual: impl FnOnce() -> u64) -> Result<u64, Error> {
        match self.until {
            None => Ok(now.saturating_add(usual())),
            Some(until) if until.saturating_sub(now) > config::max_lease_ttl_ms() => {
                Err(Error::new(format!(
                    "invalid expire time in '{}' command: longer than presence.max-lease-ttl-ms ({})",
                    self.command,
                    config::max_lease_ttl_ms()
                )))
            }
            Some(until) => Ok(until),
        }
    }
}

/// How many of something to return: 1 or more.
pub fn count(args: &mut Args<'_>) -> Result<usize, Error> {
    let value = integer(args.value_of("COUNT")?).ok_or(Error::NOT_AN_INTEGER)?;
    let value = usize::try_from(value).ok().filter(|value| *value > 0);
    value.ok_or_else(|| Error::syntax("COUNT takes a number of 1 or more"))
}

/// How long to wait (ms), 0 without end. Servers differ in what they do with a moment that they
/// cannot represent.
pub fn timeout(value: i64, now: u64) -> Result<i64, Error> {
    match u64::try_from(value) {
        Err(_) => Err(Error::new("timeout is negative")),
        Ok(timeout) if timeout > MAX_TIMESTAMP.saturating_sub(now) => {
            Err(Error::new("timeout is out of range"))
        }
        Ok(_) => Ok(value),
    }
}

/// `USERS n user …`, for `COMMAND DOCS`.
pub const USERS_LIST: ArgSpec = ArgSpec::new(
    "users",
    ArgKind::Block(&[ArgSpec::new("numusers", ArgKind::Integer).after("USERS"), USER.multiple()]),
);

/// `SESSIONS n user session …`, for `COMMAND DOCS`.
pub const SESSIONS_LIST: ArgSpec = ArgSpec::new(
    "sessions",
    ArgKind::Block(&[
        ArgSpec::new("numsessions", ArgKind::Integer).after("SESSIONS"),
        ArgSpec::new("pair", ArgKind::Block(&[USER, ArgSpec::new("session", ArgKind::String)]))
            .multiple(),
    ]),
);

/// Whom a command is about.
pub enum Targets<'a> {
    /// One user. `session` says which, and whether that was said.
    One(&'a str),
    /// `USERS n …`, each with an empty session.
    Users(Vec<(&'a str, &'a str)>),
    /// `SESSIONS n …`
    Sessions(Vec<(&'a str, &'a str)>),
}

/// Reads `user`, `USERS n user …` or `SESSIONS n user session …`. It is a list only where a number
/// follows the word.
pub fn whom<'a>(args: &mut Args<'a>) -> Result<Targets<'a>, Error> {
    let counted = |args: &Args<'a>| args.peek(1).is_some_and(looks_like_a_count);
    let is_list = |word: &&str| args.is_word(word) && counted(args);
    let Some(word) = ["USERS", "SESSIONS"].into_iter().find(is_list) else {
        return Ok(Targets::One(user(args.required()?)?));
    };
    args.take_word(word);
    let width = if word == "USERS" { 1 } else { 2 };
    let count = integer(args.value_of(word)?)
        .and_then(|count| usize::try_from(count).ok())
        .filter(|count| *count > 0)
        .ok_or_else(|| Error::new(format!("{word} needs a count of 1 or more")))?;
    if count.checked_mul(width).is_none_or(|wanted| wanted > args.left()) {
        let what = if width == 1 { "users" } else { "pairs of user and session" };
        return Err(Error::syntax(&format!("{word} {count} is followed by fewer {what}")));
    }
    let mut list = Vec::with_capacity(count);
    let names = args.take(count.saturating_mul(width));
    if width == 1 {
        for name in names {
            list.push((user(name.bytes())?, ""));
        }
        return Ok(Targets::Users(list));
    }
    for [name, of_session] in names.as_chunks().0 {
        list.push((user(name.bytes())?, session(of_session.bytes())?));
    }
    Ok(Targets::Sessions(list))
}
