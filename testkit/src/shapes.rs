//! The replies of PRESENCE.USER and PRESENCE.SPACE, checked for their shape.

use crate::replies::{bulk, int_of};
use crate::{Value, fields, items};
use std::collections::BTreeMap;

/// One session as PRESENCE.USER and PRESENCE.SPACE … WITHSESSIONS show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    pub session: String,
    pub joined_at: i64,
    pub expires_at: i64,
    pub meta: Option<String>,
    pub owner: Option<String>,
}

impl Session {
    #[track_caller]
    pub fn parse(v: &Value) -> Session {
        let [session, joined_at, expires_at, meta, owner] =
            fields(v, ["session", "joined_at", "expires_at", "meta", "owner"]);
        Session {
            session: bulk(session),
            joined_at: int_of(joined_at),
            expires_at: int_of(expires_at),
            meta: (*meta != Value::Nil).then(|| bulk(meta)),
            owner: (*owner != Value::Nil).then(|| bulk(owner)),
        }
    }
}

/// What PRESENCE.USER says.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub status: String,
    pub joined_at: Value,
    pub sessions: Vec<Session>,
}

impl User {
    #[track_caller]
    pub fn parse(v: &Value) -> Option<User> {
        if *v == Value::Nil {
            return None;
        }
        let [status, joined_at, sessions] = fields(v, ["status", "joined_at", "sessions"]);
        let sessions = items(sessions).iter().map(Session::parse).collect();
        Some(User { status: bulk(status), joined_at: joined_at.clone(), sessions })
    }

    /// The session of this name; fails the test where there is none.
    #[track_caller]
    pub fn session(&self, name: &str) -> &Session {
        self.sessions
            .iter()
            .find(|s| s.session == name)
            .unwrap_or_else(|| panic!("no session {name:?} in {self:?}"))
    }
}

/// What PRESENCE.SPACE says. Without WITHSESSIONS each member has an empty list.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    pub id: String,
    pub users: i64,
    pub sessions: i64,
    pub cursor: String,
    pub members: Vec<(String, Vec<Session>)>,
}

impl Space {
    #[track_caller]
    pub fn parse(v: &Value) -> Space {
        let [id, users, sessions, cursor, members] =
            fields(v, ["id", "users", "sessions", "cursor", "members"]);
        let member = |m: &Value| match m {
            Value::BulkString(_) => (bulk(m), Vec::new()),
            m => {
                let [user, sessions] = fields(m, ["user", "sessions"]);
                (bulk(user), items(sessions).iter().map(Session::parse).collect())
            }
        };
        Space {
            id: bulk(id),
            users: int_of(users),
            sessions: int_of(sessions),
            cursor: bulk(cursor),
            members: items(members).iter().map(member).collect(),
        }
    }

    /// Who is there, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.members.iter().map(|(name, _)| name.as_str()).collect();
        names.sort();
        names
    }

    /// user -> sorted names of sessions: what a fold of the events must give.
    pub fn roster(&self) -> Roster {
        let sorted = |sessions: &[Session]| sessions.iter().map(|s| s.session.clone()).collect();
        self.members.iter().map(|(user, sessions)| (user.clone(), sorted(sessions))).collect()
    }
}

/// Who is online with which sessions.
pub type Roster = BTreeMap<String, std::collections::BTreeSet<String>>;

/// The same with members and sessions in the order of their names: for comparing what two servers say.
pub fn sorted(mut space: Space) -> Space {
    space.members.sort_by(|a, b| a.0.cmp(&b.0));
    space
        .members
        .iter_mut()
        .for_each(|(_, sessions)| sessions.sort_by(|a, b| a.session.cmp(&b.session)));
    space
}
