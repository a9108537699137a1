//! Sessions of clients: begin, renew, change and end.
//!
//! A session that another connection has taken over is left alone: see `core::holder`.

use super::PresenceClient;
use super::replies::{event_id, field, items, read, string, unexpected};
use crate::core::event::{EventId, Meta};
use crate::core::holder::{holder_key, mark};
use crate::core::room::Key;
use redis::{RedisResult, Value, cmd};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Number of sessions that one request reads.
const RECHECK_AT_ONCE: usize = 100;
/// Leases that differ by less, in ms, count as equal.
const SAME_LEASE: u64 = 50;

/// Checks that the ACL user can run scripts, and the commands on the holder key KEYS[1] that the scripts below use.
const PROBE: &str = "
for _, name in ipairs({'get', 'set', 'pttl', 'pexpire', 'del', 'mget'}) do
    local args = ({set = {'x', 'PX', '1'}, pexpire = {'1'}})[name] or {}
    if redis.acl_check_cmd and not redis.acl_check_cmd(name, KEYS[1], unpack(args)) then
        return redis.error_reply('NOPERM no permission to run ' .. name .. ' on ' .. KEYS[1])
    end
end
return 1";

/// Takes over a session, or begins one under an id that may have been in use before. KEYS: space, holder key. ARGV: the
/// gateway's half of the mark, its count, the TTL of the mark, user, session, metadata, lease, NX or XX.
const TAKE_OVER: &str = "
local held = redis.pcall('GET', KEYS[2])
if ARGV[8] == 'XX' and type(held) == 'string' and held:sub(1, #ARGV[1]) == ARGV[1]
    and tonumber(held:sub(#ARGV[1] + 1)) > tonumber(ARGV[2]) then
    return 'newer'
end
local online = redis.call('PRESENCE.ONLINE', KEYS[1], ARGV[4], 'SESSION', ARGV[5], 'META', ARGV[6], 'PX', ARGV[7], ARGV[8])
if not online then
    return false
end
-- Without memory there is no mark. The mark of another connection must not stay.
if redis.pcall('SET', KEYS[2], ARGV[1] .. ARGV[2], 'PX', ARGV[3]).err then
    redis.pcall('DEL', KEYS[2])
end
return redis.call('PRESENCE.SPACE', KEYS[1], 'COUNT', 1)[2]";

/// Runs a command about a session, unless another connection has taken it over. KEYS: space, holder key. ARGV: the mark,
/// the TTL of the mark, the command and its arguments behind the space.
const FENCED: &str = "
local held = redis.pcall('GET', KEYS[2])
if type(held) == 'string' then
    if held ~= ARGV[1] then
        return 'moved'
    end
    if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[2]) / 2 then
        redis.pcall('PEXPIRE', KEYS[2], ARGV[2])
    end
end
return redis.call(ARGV[3], KEYS[1], unpack(ARGV, 4))";

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
    /// A newer connection of this gateway has it.
    Newer,
}

/// The state of a connection's session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SessionState {
    Live,
    /// The session does not exist.
    Gone,
    /// Another connection has taken it over.
    Moved,
}

/// A session of a connection of this gateway.
pub struct OwnSession {
    pub conn: u64,
    pub key: Key,
    /// When the client asked for its lease.
    pub renewed: Arc<Mutex<Instant>>,
}

impl PresenceClient {
    pub(super) async fn scripts_allowed(&self, prefix: &str) -> RedisResult<bool> {
        let mut probe = cmd("EVAL");
        probe.arg(PROBE).arg(1).arg(holder_key(prefix, &Key::default()));
        let probe: RedisResult<Value> = probe.query_async(&mut self.redis.clone()).await;
        match probe {
            Err(error) if error.code().is_none() => Err(error),
            Err(error) => {
                eprintln!(
                    "gateway: scripts are not allowed ({error}): a client that moves to another gateway can lose its session"
                );
                Ok(false)
            }
            Ok(_) => Ok(true),
        }
    }

    /// A script about a session; its arguments follow.
    fn script(&self, text: &str, space: &str, key: &Key) -> redis::Cmd {
        let mut command = cmd("EVAL");
        command.arg(text).arg(2).arg(space).arg(holder_key(space, key));
        command
    }

    /// The TTL of a mark in ms: longer than the lease of the session.
    fn mark_ttl(&self) -> u64 {
        2 * self.ttl + 60_000
    }

    /// Begins or continues a session. A hub whose room has reached the returned id knows the session. `new_id`: the id
    /// was never in use before, so it needs no mark.
    pub async fn online(
        &self,
        space: &str,
        key: &Key,
        meta: &Meta,
        condition: Condition,
        conn: u64,
        new_id: bool,
    ) -> RedisResult<Online> {
        let condition = if condition == Condition::Absent { "NX" } else { "XX" };
        if self.fenced && !new_id {
            let mut script = self.script(TAKE_OVER, space, key);
            let (gateway, count) = mark(conn);
            script.arg(gateway).arg(count).arg(self.mark_ttl());
            script.arg(&key.0).arg(&key.1).arg(meta.json()).arg(self.ttl).arg(condition);
            return match script.query_async(&mut self.redis.clone()).await? {
                Value::Nil => Ok(Online::Unmet),
                Value::BulkString(text) if text == b"newer" => Ok(Online::Newer),
                id => EventId::parse(&string(&id)?).map(Online::At).ok_or_else(|| unexpected("id")),
            };
        }
        let mut pipe = redis::pipe();
        // No transaction: a server without memory refuses it, even if it only renews. An error is then one of the
        // replies.
        pipe.ignore_errors();
        pipe.cmd("PRESENCE.ONLINE").arg(space).arg(&key.0).arg("SESSION").arg(&key.1);
        pipe.arg("META").arg(meta.json()).arg("PX").arg(self.ttl).arg(condition);
        pipe.cmd("PRESENCE.SPACE").arg(space).arg("COUNT").arg(1);
        let (online, page): (Value, Value) = pipe.query_async(&mut self.redis.clone()).await?;
        let online: Option<i64> = read(&online.extract_error()?)?;
        let id = event_id(&page.extract_error()?)?;
        Ok(online.map_or(Online::Unmet, |_| Online::At(id)))
    }

    /// Runs a command about the session of a connection. It does nothing if another connection has taken the session
    /// over: the server checks that in the same step. `arguments` come behind the space.
    async fn fenced(
        &self,
        space: &str,
        key: &Key,
        conn: u64,
        command: &str,
        arguments: &[&str],
    ) -> RedisResult<SessionState> {
        let mut request = if self.fenced {
            let (gateway, count) = mark(conn);
            let mut script = self.script(FENCED, space, key);
            script.arg(format!("{gateway}{count}")).arg(self.mark_ttl()).arg(command);
            script
        } else {
            let mut plain = cmd(command);
            plain.arg(space);
            plain
        };
        request.arg(&key.0).arg("SESSION").arg(&key.1).arg(arguments);
        Ok(match request.query_async(&mut self.redis.clone()).await? {
            Value::Nil => SessionState::Gone,
            Value::BulkString(_) => SessionState::Moved,
            _ => SessionState::Live,
        })
    }

    /// Renews the lease to `ms` from now.
    pub async fn renew(
        &self,
        space: &str,
        key: &Key,
        conn: u64,
        ms: u64,
    ) -> RedisResult<SessionState> {
        self.fenced(space, key, conn, "PRESENCE.ONLINE", &["PX", &ms.to_string(), "XX"]).await
    }

    /// Replaces the metadata of a live session, and renews it.
    pub async fn update(
        &self,
        space: &str,
        key: &Key,
        conn: u64,
        meta: &Meta,
    ) -> RedisResult<SessionState> {
        let (meta, ttl) = (meta.json(), self.ttl.to_string());
        let arguments = ["META", &meta, "PX", &ttl, "XX"];
        self.fenced(space, key, conn, "PRESENCE.ONLINE", &arguments).await
    }

    pub async fn offline(
        &self,
        space: &str,
        key: &Key,
        conn: u64,
        linger: u64,
    ) -> RedisResult<SessionState> {
        let linger = linger.to_string();
        self.fenced(space, key, conn, "PRESENCE.OFFLINE", &["LINGER", &linger]).await
    }

    /// Reads the state of sessions of this gateway. If another client has cut a lease, it gets the length that the
    /// gateway's client was given.
    pub async fn recheck(
        &self,
        space: &str,
        own: &[OwnSession],
    ) -> RedisResult<Vec<(u64, SessionState)>> {
        let mut found = Vec::new();
        for some in own.chunks(RECHECK_AT_ONCE) {
            let leases = self.leases(space, some).await?;
            let marks = self.marks(space, some).await?;
            for (own, (lease, holder)) in some.iter().zip(leases.into_iter().zip(marks)) {
                let (gateway, count) = mark(own.conn);
                let state = match (lease, holder) {
                    (_, Some(holder)) if holder != format!("{gateway}{count}") => {
                        SessionState::Moved
                    }
                    (None, _) => SessionState::Gone,
                    (Some(lease), _) => {
                        // Read last, so that no renewal that was sent before is undone.
                        let renewed = *own.renewed.lock().unwrap_or_else(PoisonError::into_inner);
                        let asked = self.ttl.saturating_sub(renewed.elapsed().as_millis() as u64);
                        if lease.saturating_add(SAME_LEASE) < asked {
                            self.renew(space, &own.key, own.conn, asked).await?
                        } else {
                            SessionState::Live
                        }
                    }
                };
                found.push((own.conn, state));
            }
        }
        Ok(found)
    }

    /// The rest of the lease of each session in ms; None if the session does not exist.
    async fn leases(&self, space: &str, own: &[OwnSession]) -> RedisResult<Vec<Option<u64>>> {
        let mut users: Vec<&str> = own.iter().map(|own| own.key.0.as_str()).collect();
        users.sort_unstable();
        users.dedup();
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for user in &users {
            pipe.cmd("PRESENCE.USER").arg(space).arg(user);
        }
        let replies: Vec<Value> = pipe.query_async(&mut self.redis.clone()).await?;
        let Some((time, replies)) = replies.split_first() else {
            return Err(unexpected("pipeline"));
        };
        let (seconds, micros): (u64, u64) = read(time)?;
        let now = seconds * 1000 + micros / 1000;
        let mut leases = HashMap::new();
        for (user, reply) in users.into_iter().zip(replies) {
            if *reply == Value::Nil {
                continue;
            }
            for session in items(field(reply, "sessions")?) {
                let name = string(field(session, "session")?)?;
                let ends: u64 = read(field(session, "expires_at")?)?;
                leases.insert((user.to_string(), name), ends.saturating_sub(now));
            }
        }
        Ok(own.iter().map(|own| leases.get(&own.key).copied()).collect())
    }

    /// The mark in the holder key of each session.
    async fn marks(&self, space: &str, own: &[OwnSession]) -> RedisResult<Vec<Option<String>>> {
        if !self.fenced {
            return Ok(vec![None; own.len()]);
        }
        let mut command = cmd("MGET");
        for own in own {
            command.arg(holder_key(space, &own.key));
        }
        command.query_async(&mut self.redis.clone()).await
    }
}
