//! The module's commands, as the gateway uses them.

use crate::core::event::{Event, EventId, Meta};
use crate::core::follow::Since;
use crate::core::room::{Key, Member, Room};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{cmd, FromRedisValue, RedisError, RedisResult, Value};
use std::time::Duration;

const PAGE: usize = 1000;
/// A space that changes faster than it can be read page by page is then read at once.
const PAGED_READS: usize = 3;

#[derive(Clone)]
pub struct Store {
    redis: ConnectionManager,
    ttl: u64,
}

/// When a session may begin or go on.
#[derive(Clone, Copy, PartialEq)]
pub enum If {
    Absent,
    Present,
}

impl Store {
    pub async fn connect(url: &str, ttl: u64) -> RedisResult<Store> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(Duration::from_secs(10)))
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_max_delay(Duration::from_millis(500))
            .set_number_of_retries(3);
        let client = redis::Client::open(url)?;
        Ok(Store { redis: ConnectionManager::new_with_config(client, config).await?, ttl })
    }

    /// Begins a session, or goes on with it. The id is that of the space's last event right after it: whoever has
    /// followed the space so far knows the session. None where the condition was not met.
    pub async fn online(
        &self,
        space: &str,
        key: &Key,
        meta: &Meta,
        condition: If,
    ) -> RedisResult<Option<EventId>> {
        let condition = if condition == If::Absent { "NX" } else { "XX" };
        let mut pipe = redis::pipe();
        // An error inside MULTI, CLOSED for one, is then a value among the replies, with its code.
        pipe.atomic().ignore_errors();
        pipe.cmd("PRESENCE.ONLINE").arg(space).arg(&key.0).arg("SESSION").arg(&key.1);
        pipe.arg("META").arg(meta.json()).arg("PX").arg(self.ttl).arg(condition);
        pipe.cmd("PRESENCE.SPACE").arg(space).arg("COUNT").arg(1);
        let (online, page): (Value, Value) = pipe.query_async(&mut self.redis.clone()).await?;
        let online: Option<i64> = FromRedisValue::from_redis_value(online.extract_error()?)?;
        let id = id_of(&page)?;
        Ok(online.map(|_| id))
    }

    /// Renews the lease to `ms` from now. False where there is no such session any more.
    pub async fn renew(&self, space: &str, key: &Key, ms: u64) -> RedisResult<bool> {
        let mut command = cmd("PRESENCE.ONLINE");
        command.arg(space).arg(&key.0).arg("SESSION").arg(&key.1).arg("PX").arg(ms).arg("XX");
        let reply: Option<i64> = command.query_async(&mut self.redis.clone()).await?;
        Ok(reply.is_some())
    }

    /// Replaces the metadata of a live session, and renews it.
    pub async fn update(&self, space: &str, key: &Key, meta: &Meta) -> RedisResult<bool> {
        let mut command = cmd("PRESENCE.ONLINE");
        command.arg(space).arg(&key.0).arg("SESSION").arg(&key.1);
        command.arg("META").arg(meta.json()).arg("PX").arg(self.ttl).arg("XX");
        let reply: Option<i64> = command.query_async(&mut self.redis.clone()).await?;
        Ok(reply.is_some())
    }

    pub async fn offline(&self, space: &str, key: &Key, linger: u64) -> RedisResult<()> {
        let mut command = cmd("PRESENCE.OFFLINE");
        command.arg(space).arg(&key.0).arg("SESSION").arg(&key.1).arg("LINGER").arg(linger);
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
    if let Value::Array(items) = value {
        items
    } else {
        &[]
    }
}

fn string(value: &Value) -> RedisResult<String> {
    Ok(String::from_redis_value(value.clone())?)
}

fn strange(what: &str) -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "not what the module replies", what.to_string()).into()
}
