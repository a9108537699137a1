//! The module's commands, as the gateway uses them.

use crate::core::event::{Event, EventId, Meta};
use crate::core::follow::Since;
use crate::core::holder::{holder_key, mark};
use crate::core::room::{Key, Member, Room};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{FromRedisValue, RedisError, RedisResult, Value, cmd};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PAGE: usize = 1000;
/// A space that changes faster than it can be read page by page is then read at once.
const PAGED_READS: usize = 3;
/// Sessions that are looked at in one request.
const LOOK_AT: usize = 100;
/// Leases that differ by less are the same.
const SAME_LEASE: u64 = 50;

/// Whether this user may run scripts, and do with the holder key KEYS[1] what the scripts below do.
const PROBE: &str = "
for _, name in ipairs({'get', 'set', 'pttl', 'pexpire', 'del', 'mget'}) do
    local args = ({set = {'x', 'PX', '1'}, pexpire = {'1'}})[name] or {}
    if redis.acl_check_cmd and not redis.acl_check_cmd(name, KEYS[1], unpack(args)) then
        return redis.error_reply('NOPERM no permission to run ' .. name .. ' on ' .. KEYS[1])
    end
end
return 1";

/// Takes a session over, or begins one under an id that somebody may have had before. KEYS: space, holder key. ARGV: the
/// gateway's half of the mark, its count, the life of the mark, user, session, metadata, lease, NX or XX.
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
-- Without memory there is no mark. That of another connection must not stay.
if redis.pcall('SET', KEYS[2], ARGV[1] .. ARGV[2], 'PX', ARGV[3]).err then
    redis.pcall('DEL', KEYS[2])
end
return redis.call('PRESENCE.SPACE', KEYS[1], 'COUNT', 1)[2]";

/// A command about a session, unless another connection has taken it over. KEYS: space, holder key. ARGV: the mark, the
/// life of the mark, the command and its arguments behind the space.
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

#[derive(Clone)]
pub struct Store {
    redis: ConnectionManager,
    ttl: u64,
    /// Scripts are allowed. If not, there are no holder keys, and what a gateway says too late counts.
    pub fenced: bool,
}

/// When a session may begin or go on.
#[derive(Clone, Copy, PartialEq)]
pub enum If {
    Absent,
    Present,
}

/// What became of a session that was to begin or to go on.
#[derive(Debug, PartialEq)]
pub enum Begun {
    /// It is in the space since this event.
    At(EventId),
    /// The condition was not met.
    Unmet,
    /// A newer connection of this gateway has it.
    Newer,
}

/// How a session of a connection is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SessionState {
    Live,
    /// There is no such session any more.
    Gone,
    /// Another connection has taken it over.
    Moved,
}

/// A session of a connection of this gateway.
pub struct Own {
    pub conn: u64,
    pub key: Key,
    /// When the client asked for its lease.
    pub renewed: Arc<Mutex<Instant>>,
}

impl Store {
    /// `prefix` is in front of the names of all spaces.
    pub async fn connect(url: &str, ttl: u64, prefix: &str) -> RedisResult<Store> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(Duration::from_secs(10)))
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_max_delay(Duration::from_millis(500))
            .set_number_of_retries(3);
        let client = redis::Client::open(url)?;
        let redis = ConnectionManager::new_with_config(client, config).await?;
        let mut store = Store { redis, ttl, fenced: true };
        let mut probe = cmd("EVAL");
        probe.arg(PROBE).arg(1).arg(holder_key(prefix, &Key::default()));
        let probe: RedisResult<Value> = probe.query_async(&mut store.redis.clone()).await;
        if let Err(error) = probe {
            if error.code().is_none() {
                return Err(error);
            }
            eprintln!(
                "gateway: scripts are not allowed ({error}): a client that moves to another gateway can lose its session"
            );
            store.fenced = false;
        }
        Ok(store)
    }

    /// A script about a session; its arguments follow.
    fn script(&self, text: &str, space: &str, key: &Key) -> redis::Cmd {
        let mut command = cmd("EVAL");
        command.arg(text).arg(2).arg(space).arg(holder_key(space, key));
        command
    }

    /// How long a mark outlives the last renewal, in ms: longer than the session.
    fn mark_life(&self) -> u64 {
        2 * self.ttl + 60_000
    }

    /// Begins a session, or goes on with it. The id is that of the space's last event right after it: whoever has
    /// followed the space so far knows the session. `new_id`: nobody can have had it before, so it needs no mark.
    pub async fn online(
        &self,
        space: &str,
        key: &Key,
        meta: &Meta,
        condition: If,
        conn: u64,
        new_id: bool,
    ) -> RedisResult<Begun> {
        let condition = if condition == If::Absent { "NX" } else { "XX" };
        if self.fenced && !new_id {
            let mut script = self.script(TAKE_OVER, space, key);
            let (gateway, count) = mark(conn);
            script.arg(gateway).arg(count).arg(self.mark_life());
            script.arg(&key.0).arg(&key.1).arg(meta.json()).arg(self.ttl).arg(condition);
            return match script.query_async(&mut self.redis.clone()).await? {
                Value::Nil => Ok(Begun::Unmet),
                Value::BulkString(text) if text == b"newer" => Ok(Begun::Newer),
                id => EventId::parse(&string(&id)?).map(Begun::At).ok_or_else(|| strange("id")),
            };
        }
        let mut pipe = redis::pipe();
        // No transaction: a full server takes none, not even to renew. An error is then a value among the replies.
        pipe.ignore_errors();
        pipe.cmd("PRESENCE.ONLINE").arg(space).arg(&key.0).arg("SESSION").arg(&key.1);
        pipe.arg("META").arg(meta.json()).arg("PX").arg(self.ttl).arg(condition);
        pipe.cmd("PRESENCE.SPACE").arg(space).arg("COUNT").arg(1);
        let (online, page): (Value, Value) = pipe.query_async(&mut self.redis.clone()).await?;
        let online: Option<i64> = FromRedisValue::from_redis_value(online.extract_error()?)?;
        let id = id_of(&page.extract_error()?)?;
        Ok(online.map_or(Begun::Unmet, |_| Begun::At(id)))
    }

    /// A command about the session of a connection, which does nothing if another connection has taken it over. The
    /// server checks and acts in one step. `arguments` come behind the space.
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
            script.arg(format!("{gateway}{count}")).arg(self.mark_life()).arg(command);
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

    /// Looks at sessions of this gateway, and gives those whose lease was cut the lease that their clients asked for.
    pub async fn recheck(&self, space: &str, own: &[Own]) -> RedisResult<Vec<(u64, SessionState)>> {
        let mut found = Vec::new();
        for some in own.chunks(LOOK_AT) {
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
                        // Looked at last, so that no renewal that was sent before is undone.
                        let renewed = *own.renewed.lock().unwrap_or_else(|e| e.into_inner());
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

    /// What is left of the lease of each session, in ms; None for one that is not there.
    async fn leases(&self, space: &str, own: &[Own]) -> RedisResult<Vec<Option<u64>>> {
        let mut users: Vec<&str> = own.iter().map(|own| own.key.0.as_str()).collect();
        users.sort_unstable();
        users.dedup();
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for user in &users {
            pipe.cmd("PRESENCE.USER").arg(space).arg(user);
        }
        let replies: Vec<Value> = pipe.query_async(&mut self.redis.clone()).await?;
        let Some((time, replies)) = replies.split_first() else { return Err(strange("pipeline")) };
        let (seconds, micros): (u64, u64) = FromRedisValue::from_redis_value(time.clone())?;
        let now = seconds * 1000 + micros / 1000;
        let mut leases = HashMap::new();
        for (user, reply) in users.into_iter().zip(replies) {
            if *reply == Value::Nil {
                continue;
            }
            for session in items(field(reply, "sessions")?) {
                let name = string(field(session, "session")?)?;
                let ends: u64 =
                    FromRedisValue::from_redis_value(field(session, "expires_at")?.clone())?;
                leases.insert((user.to_string(), name), ends.saturating_sub(now));
            }
        }
        Ok(own.iter().map(|own| leases.get(&own.key).copied()).collect())
    }

    /// The mark in the holder key of each session.
    async fn marks(&self, space: &str, own: &[Own]) -> RedisResult<Vec<Option<String>>> {
        if !self.fenced {
            return Ok(vec![None; own.len()]);
        }
        let mut command = cmd("MGET");
        for own in own {
            command.arg(holder_key(space, &own.key));
        }
        command.query_async(&mut self.redis.clone()).await
    }

    pub async fn message(&self, space: &str, key: &Key, text: &str) -> RedisResult<bool> {
        let mut command = cmd("PRESENCE.MESSAGE");
        command.arg(space).arg(&key.0).arg(text).arg("SESSION").arg(&key.1);
        let id: Option<String> = command.query_async(&mut self.redis.clone()).await?;
        Ok(id.is_some())
    }

    /// How many subscribers got it.
    pub async fn publish(&self, channel: &str, text: &str) -> RedisResult<u64> {
        cmd("PUBLISH").arg(channel).arg(text).query_async(&mut self.redis.clone()).await
    }

    /// Who is in the space. What happens while it is read page by page is applied on top.
    pub async fn snapshot(&self, space: &str) -> RedisResult<Room> {
        for _ in 0..PAGED_READS {
            let (first, members, pages) = self.pages(space, Some(PAGE)).await?;
            let mut room = Room::new(first, members);
            // 0-0 is a space that does not exist. It is then before whatever comes.
            if pages == 1 || first == EventId::default() {
                return Ok(room);
            }
            let since = self.events_after(space, first).await?;
            if since.continues(first) {
                since.events.iter().for_each(|event| drop(room.apply(event)));
                return Ok(room);
            }
        }
        let (first, members, _) = self.pages(space, None).await?;
        Ok(Room::new(first, members))
    }

    /// The id and the sessions of a space, and how many pages they were.
    async fn pages(
        &self,
        space: &str,
        size: Option<usize>,
    ) -> RedisResult<(EventId, Vec<Member>, usize)> {
        let (mut first, mut members, mut cursor) = (None, Vec::new(), "0".to_string());
        for pages in 1.. {
            let mut command = cmd("PRESENCE.SPACE");
            command.arg(space).arg("WITHSESSIONS").arg("CURSOR").arg(&cursor);
            if let Some(size) = size {
                command.arg("COUNT").arg(size);
            }
            let page: Value = command.query_async(&mut self.redis.clone()).await?;
            if first.is_none() {
                first = Some(id_of(&page)?);
            }
            for member in items(field(&page, "members")?) {
                read_member(member, &mut members)?;
            }
            cursor = string(field(&page, "cursor")?)?;
            if cursor == "0" {
                return Ok((first.unwrap_or_default(), members, pages));
            }
        }
        Err(strange("cursor"))
    }

    pub async fn last_id(&self, space: &str) -> RedisResult<EventId> {
        let mut command = cmd("PRESENCE.SPACE");
        command.arg(space).arg("COUNT").arg(1);
        id_of(&command.query_async(&mut self.redis.clone()).await?)
    }

    pub async fn events_after(&self, space: &str, id: EventId) -> RedisResult<Since> {
        let mut command = cmd("PRESENCE.EVENTS");
        command.arg(space).arg("AFTER").arg(id.to_string());
        let reply: Value = command.query_async(&mut self.redis.clone()).await?;
        let gap = bool::from_redis_value(field(&reply, "gap")?.clone())?;
        let mut events = Vec::new();
        for text in items(field(&reply, "events")?) {
            events.push(Event::parse(string(text)?.as_bytes()).ok_or_else(|| strange("event"))?);
        }
        Ok(Since { id: id_of(&reply)?, gap, events })
    }

    /// Many sessions at once, without metadata: simulated users.
    pub async fn crowd(&self, space: &str, users: &[String], ms: u64) -> RedisResult<()> {
        let mut command = cmd("PRESENCE.ONLINE");
        command.arg(space).arg("SESSIONS").arg(users.len());
        for user in users {
            command.arg(user).arg("simulated");
        }
        command.arg("PX").arg(ms).query_async(&mut self.redis.clone()).await
    }

    pub async fn setting(&self, name: &str) -> RedisResult<Option<String>> {
        let pair: Vec<String> =
            cmd("CONFIG").arg("GET").arg(name).query_async(&mut self.redis.clone()).await?;
        Ok(pair.into_iter().nth(1))
    }

    /// Names this run of the server and of its data: another one after a restart, and after a promotion.
    pub async fn server_run(&self) -> RedisResult<Arc<str>> {
        let mut command = cmd("INFO");
        command.arg("server").arg("replication");
        let info: String = command.query_async(&mut self.redis.clone()).await?;
        let names = ["run_id:", "master_replid:"];
        let run: Vec<&str> =
            names.iter().filter_map(|n| info.lines().find_map(|l| l.strip_prefix(n))).collect();
        if run.len() < names.len() {
            return Err(strange("INFO"));
        }
        Ok(run.concat().into())
    }

    pub async fn info(&self) -> RedisResult<String> {
        cmd("INFO").arg("presence").query_async(&mut self.redis.clone()).await
    }
}

fn read_member(member: &Value, into: &mut Vec<Member>) -> RedisResult<()> {
    let user = string(field(member, "user")?)?;
    for session in items(field(member, "sessions")?) {
        let meta: Option<String> =
            FromRedisValue::from_redis_value(field(session, "meta")?.clone())?;
        let name = string(field(session, "session")?)?;
        let joined_at: u64 =
            FromRedisValue::from_redis_value(field(session, "joined_at")?.clone())?;
        let meta = meta.map(|json| Meta::parse(&json)).unwrap_or_default();
        into.push(Member::new(&user, &name, joined_at, meta));
    }
    Ok(())
}

fn id_of(page: &Value) -> RedisResult<EventId> {
    EventId::parse(&string(field(page, "id")?)?).ok_or_else(|| strange("id"))
}

/// A field of a map, which RESP2 has as a flat list.
fn field<'a>(map: &'a Value, name: &str) -> RedisResult<&'a Value> {
    let named = |value: &Value| {
        matches!(value, Value::BulkString(s) if s == name.as_bytes())
            || matches!(value, Value::SimpleString(s) if s == name)
    };
    let found = match map {
        Value::Map(pairs) => pairs.iter().find(|(key, _)| named(key)).map(|(_, value)| value),
        Value::Array(flat) => {
            flat.chunks_exact(2).find(|pair| named(&pair[0])).map(|pair| &pair[1])
        }
        _ => None,
    };
    found.ok_or_else(|| strange("map"))
}

fn items(value: &Value) -> &[Value] {
    if let Value::Array(items) = value { items } else { &[] }
}

fn string(value: &Value) -> RedisResult<String> {
    Ok(String::from_redis_value(value.clone())?)
}

fn strange(what: &str) -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "not what the module replies", what.to_string()).into()
}
