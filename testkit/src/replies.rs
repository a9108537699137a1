//! Replies as texts, lists and maps.

use crate::Value;

/// Bulk, simple and verbatim strings, and integers, as text.
#[track_caller]
pub fn text(v: &Value) -> String {
    match v {
        Value::BulkString(b) => String::from_utf8(b.clone()).expect("UTF-8"),
        Value::SimpleString(s) | Value::VerbatimString { text: s, .. } => s.clone(),
        Value::Okay => "OK".into(),
        Value::Int(n) => n.to_string(),
        other => panic!("no text: {other:?}"),
    }
}

/// An array or set of texts, or a map, flat.
#[track_caller]
pub fn texts(v: &Value) -> Vec<String> {
    match v {
        Value::Array(items) | Value::Set(items) => items.iter().map(text).collect(),
        Value::Map(pairs) => pairs.iter().flat_map(|(k, v)| [text(k), text(v)]).collect(),
        other => panic!("no list: {other:?}"),
    }
}

#[track_caller]
pub fn items(v: &Value) -> &[Value] {
    match v {
        Value::Array(items) | Value::Set(items) => items,
        other => panic!("no array: {other:?}"),
    }
}

/// The pairs of a map, in order: a map in RESP3, a flat array in RESP2.
#[track_caller]
pub fn pairs(v: &Value) -> Vec<(String, &Value)> {
    match v {
        Value::Map(pairs) => pairs.iter().map(|(k, v)| (text(k), v)).collect(),
        Value::Array(flat) if flat.len() % 2 == 0 => {
            flat.chunks(2).map(|p| (text(&p[0]), &p[1])).collect()
        }
        other => panic!("no map: {other:?}"),
    }
}

/// The values of a map whose keys must be exactly these, in this order.
#[track_caller]
pub fn fields<'a, const N: usize>(v: &'a Value, names: [&str; N]) -> [&'a Value; N] {
    let pairs = pairs(v);
    let keys: Vec<_> = pairs.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(keys, names, "keys of {v:?}");
    std::array::from_fn(|i| pairs[i].1)
}

#[track_caller]
pub(crate) fn int_of(v: &Value) -> i64 {
    match v {
        Value::Int(n) => *n,
        other => panic!("no integer: {other:?}"),
    }
}

/// A bulk string and nothing else.
#[track_caller]
pub(crate) fn bulk(v: &Value) -> String {
    match v {
        Value::BulkString(b) => String::from_utf8(b.clone()).expect("UTF-8"),
        other => panic!("no bulk string: {other:?}"),
    }
}
