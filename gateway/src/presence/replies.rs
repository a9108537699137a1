//! Reads the module's replies.

use crate::core::event::{EventId, Meta};
use crate::core::room::Member;
use redis::{FromRedisValue, RedisError, RedisResult, Value};

/// Adds the sessions of a member of `PRESENCE.SPACE … WITHSESSIONS`.
pub fn read_member(member: &Value, into: &mut Vec<Member>) -> RedisResult<()> {
    let user = string(field(member, "user")?)?;
    for session in items(field(member, "sessions")?) {
        let meta: Option<String> = read(field(session, "meta")?)?;
        let name = string(field(session, "session")?)?;
        let joined_at: u64 = read(field(session, "joined_at")?)?;
        let meta = meta.map(|json| Meta::parse(&json)).unwrap_or_default();
        into.push(Member::new(&user, &name, joined_at, meta));
    }
    Ok(())
}

/// The field `id` of a map.
pub fn event_id(map: &Value) -> RedisResult<EventId> {
    EventId::parse(&string(field(map, "id")?)?).ok_or_else(|| unexpected("id"))
}

/// A field of a map. In RESP2 a map is a flat list.
pub fn field<'a>(map: &'a Value, name: &str) -> RedisResult<&'a Value> {
    let named = |value: &Value| {
        matches!(value, Value::BulkString(s) if s == name.as_bytes())
            || matches!(value, Value::SimpleString(s) if s == name)
    };
    let found = match map {
        Value::Map(pairs) => pairs.iter().find(|(key, _)| named(key)).map(|(_, value)| value),
        Value::Array(flat) => {
            let mut pairs = flat.as_chunks().0.iter();
            pairs.find(|[key, _]| named(key)).map(|[_, value]| value)
        }
        _ => None,
    };
    found.ok_or_else(|| unexpected("map"))
}

pub fn items(value: &Value) -> &[Value] {
    if let Value::Array(items) = value { items } else { &[] }
}

pub fn string(value: &Value) -> RedisResult<String> {
    read(value)
}

pub fn read<T: FromRedisValue>(value: &Value) -> RedisResult<T> {
    Ok(T::from_redis_value_ref(value)?)
}

pub fn unexpected(what: &str) -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "unexpected reply", what.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn fields_of_maps() {
        let flat = Value::Array(vec![bulk("a"), Value::Int(1), bulk("id"), bulk("5-2"), bulk("x")]);
        let pairs = vec![(bulk("a"), Value::Int(1)), (bulk("id"), bulk("5-2"))];
        for map in [flat, Value::Map(pairs)] {
            assert_eq!(field(&map, "a").unwrap(), &Value::Int(1));
            assert_eq!(event_id(&map).unwrap(), EventId { epoch: 5, seq: 2 });
            assert!(field(&map, "x").is_err());
            assert!(field(&map, "5-2").is_err());
        }
        assert!(field(&Value::Nil, "a").is_err());
    }
}
