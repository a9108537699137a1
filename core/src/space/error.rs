//! Why a change of a space is refused.

use std::fmt;

/// Why a session was not let in. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlineError {
    Closed,
    NoMemory,
    SessionsPerUser,
    Users,
}

impl fmt::Display for OnlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnlineError::Closed => "the space is closed",
            OnlineError::NoMemory => "the memory limit is reached",
            OnlineError::SessionsPerUser => "the user has the maximum number of sessions",
            OnlineError::Users => "the space has the maximum number of users",
        })
    }
}

impl std::error::Error for OnlineError {}

/// An effect that does not fit the state it is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyError(pub &'static str);

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ApplyError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: impl std::error::Error + 'static) -> String {
        let error: Box<dyn std::error::Error> = Box::new(error);
        error.to_string()
    }

    #[test]
    fn errors_have_texts() {
        assert_eq!(text(OnlineError::Closed), "the space is closed");
        assert_eq!(text(OnlineError::NoMemory), "the memory limit is reached");
        assert_eq!(
            text(OnlineError::SessionsPerUser),
            "the user has the maximum number of sessions"
        );
        assert_eq!(text(OnlineError::Users), "the space has the maximum number of users");
        assert_eq!(text(ApplyError("unknown session")), "unknown session");
    }
}
