//! What a client is told when something is wrong.

use presence_core::space::OnlineError;
use std::borrow::Cow;
use std::fmt::Write;

/// An error reply, with its code in front.
#[derive(Debug, PartialEq, Eq)]
pub struct Error(Cow<'static, str>);

/// A command's outcome: it has replied, or it replies with an error.
pub type Outcome = Result<(), Error>;

impl Error {
    pub const WRONG_TYPE: Error =
        Error(Cow::Borrowed("WRONGTYPE Operation against a key holding the wrong kind of value"));
    pub const NOT_AN_INTEGER: Error =
        Error(Cow::Borrowed("ERR value is not an integer or out of range"));
    pub const CLOSED: Error = Error(Cow::Borrowed("CLOSED space is closed"));
    pub const NO_OWNER: Error = Error(Cow::Borrowed(
        "NOOWNER owner is not live on this node: PRESENCE.OWNER RENEW comes first",
    ));
    pub const NO_MEMORY: Error =
        Error(Cow::Borrowed("OOM command not allowed when used memory > 'maxmemory'."));

    /// An error with the code `ERR`. The text may hold what a client sent: what is not printable
    /// is shown as an escape, so that nothing can break out of the reply.
    pub fn new(text: impl AsRef<str>) -> Self {
        let mut shown = String::from("ERR ");
        for character in text.as_ref().chars() {
            match character {
                '\n' => shown.push_str("\\n"),
                '\r' => shown.push_str("\\r"),
                _ if character.is_control() => {
                    let _ = write!(shown, "\\x{:02x}", u32::from(character));
                }
                _ => shown.push(character),
            }
        }
        Error(Cow::Owned(shown))
    }

    /// Something stands where it may not.
    pub fn syntax(why: &str) -> Self {
        Error::new(format!("syntax error: {why}"))
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

/// What a client sent, for an error text: at most the first 32 characters of it.
pub fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(32).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("'{shown}'")
}

impl From<(OnlineError, &presence_core::space::Limits)> for Error {
    fn from((error, limits): (OnlineError, &presence_core::space::Limits)) -> Self {
        match error {
            OnlineError::Closed => Error::CLOSED,
            OnlineError::NoMemory => Error::NO_MEMORY,
            OnlineError::SessionsPerUser => Error::new(format!(
                "limit reached: presence.max-sessions-per-user is {}",
                limits.sessions_per_user
            )),
            OnlineError::Users => Error::new(format!(
                "limit reached: presence.max-users-per-space is {}",
                limits.users
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_an_error() {
        let error = Error::syntax(&format!("unknown option {}", quoted(b"a\r\n\0\xff%s")));
        assert_eq!(error.text(), "ERR syntax error: unknown option 'a\\r\\n\\x00\u{fffd}%s'");
        assert_eq!(quoted(&[b'x'; 40]), format!("'{}…'", "x".repeat(32)));
    }
}
