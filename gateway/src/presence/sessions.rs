//! Sessions of clients. The gateway's owner owns them: see `crate::owner`.

use super::PresenceClient;
use super::replies::{event_id, field, items, read, string, unexpected};
use crate::core::event::{EventId, Meta};
use crate::core::room::Key;
use redis::{RedisError, RedisResult, Value, cmd};
use std::collections::HashMap;

/// Number of users that one request reads.
const USERS_AT_ONCE: usize = 100;

/// The condition under which a session begins or continues: NX, XX.
#[derive(Clone, Copy, PartialEq)]
pub enum Condition {
    Absent,
    Present,
}

/// The result of beginning or continuing a session.
#[derive(Debug, PartialEq)]
pub enum Online {
    /// The session is live. This is the space's last event after that.
    At(EventId),
    /// The condition was not met.
    Unmet,
}

/// Who keeps a session alive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keeper {
    /// This gateway.
    Me,
    /// Another owner.
    Other,
    /// The session has a lease of its own.
    Lease,
    /// There is no such session.
    Absent,
}

impl PresenceClient {
    /// Begins or continues a session, which this gateway then owns. A hub whose room has reached the returned id knows
    /// the session.
    pub async fn online(
        &self,
        space: &str,
        key: &Key,
        meta: &Meta,
        condition: Condition,
    ) -> RedisResult<Online> {
        match self.try_online(space, key, meta, condition).await {
            Err(error) if is_no_owner(&error) => {
                self.owner.renew().await?;
                self.try_online(space, key, meta, condition).await
            }
            result => result,
        }
    }

    async fn try_online(
        &self,
        space: &str,
        key: &Key,
        meta: &Meta,
        condition: Condition,
    ) -> RedisResult<Online> {
        let condition = if condition == Condition::Absent { "NX" } else { "XX" };
        let mut pipe = redis::pipe();
        // No transaction: a server without memory refuses it, even if it only renews. An error is then one of the
        // replies.
        pipe.ignore_errors();
        pipe.cmd("PRESENCE.ONLINE").arg(space).arg(&key.0).arg("SESSION").arg(&key.1);
        pipe.arg("META").arg(meta.json()).arg("OWNER").arg(self.owner.name()).arg(condition);
        pipe.cmd("PRESENCE.SPACE").arg(space).arg("COUNT").arg(1);
        let (online, page): (Value, Value) = pipe.query_async(&mut self.redis.clone()).await?;
        let online: Option<i64> = read(&online.extract_error()?)?;
        let id = event_id(&page.extract_error()?)?;
        Ok(online.map_or(Online::Unmet, |_| Online::At(id)))
    }

    /// Ends a session after a linger in ms, if this gateway owns it. A session that has moved to another gateway is left
    /// alone.
    pub async fn offline(&self, space: &str, key: &Key, linger: u64) -> RedisResult<()> {
        let mut command = cmd("PRESENCE.OFFLINE");
        command.arg(space).arg(&key.0).arg("SESSION").arg(&key.1);
        if linger > 0 {
            command.arg("LINGER").arg(linger);
        }
        command.arg("OWNER").arg(self.owner.name());
        command.query_async::<i64>(&mut self.redis.clone()).await.map(drop)
    }

    /// Who keeps each of these sessions alive.
    pub async fn keepers(&self, space: &str, keys: &[Key]) -> RedisResult<Vec<Keeper>> {
        let mut users: Vec<&str> = keys.iter().map(|key| key.0.as_str()).collect();
        users.sort_unstable();
        users.dedup();
        let mut keepers = HashMap::new();
        for some in users.chunks(USERS_AT_ONCE) {
            let mut pipe = redis::pipe();
            for user in some {
                pipe.cmd("PRESENCE.USER").arg(space).arg(user);
            }
            let replies: Vec<Value> = pipe.query_async(&mut self.redis.clone()).await?;
            for (user, reply) in some.iter().zip(&replies) {
                self.read_keepers(user, reply, &mut keepers)?;
            }
        }
        Ok(keys.iter().map(|key| keepers.get(key).copied().unwrap_or(Keeper::Absent)).collect())
    }

    fn read_keepers(
        &self,
        user: &str,
        reply: &Value,
        into: &mut HashMap<Key, Keeper>,
    ) -> RedisResult<()> {
        if *reply == Value::Nil {
            return Ok(());
        }
        for session in items(field(reply, "sessions")?) {
            let owner: Option<String> = read(field(session, "owner")?)?;
            let keeper = match owner {
                Some(owner) if owner == self.owner.name() => Keeper::Me,
                Some(_) => Keeper::Other,
                None => Keeper::Lease,
            };
            into.insert((user.to_string(), string(field(session, "session")?)?), keeper);
        }
        Ok(())
    }

    /// All sessions that this gateway owns, with their spaces.
    pub async fn owned(&self) -> RedisResult<Vec<(String, Key)>> {
        let (mut owned, mut cursor) = (Vec::new(), "0".to_string());
        loop {
            let mut command = cmd("PRESENCE.OWNER");
            command.arg("SESSIONS").arg(self.owner.name()).arg("CURSOR").arg(&cursor);
            command.arg("COUNT").arg(super::PAGE);
            let page: Value = command.query_async(&mut self.redis.clone()).await?;
            for session in items(field(&page, "sessions")?) {
                let text = |name| string(field(session, name)?);
                owned.push((text("space")?, (text("user")?, text("session")?)));
            }
            let next = string(field(&page, "cursor")?)?;
            match next.as_str() {
                "0" => return Ok(owned),
                _ if next == cursor => return Err(unexpected("cursor")),
                _ => cursor = next,
            }
        }
    }
}

/// The owner's lease has ended, for example because the server was not reachable.
fn is_no_owner(error: &RedisError) -> bool {
    error.code() == Some("NOOWNER")
}
