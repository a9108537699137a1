//! What Centrifugo runs in the server, written anew from what it does: the same commands on the same
//! kinds of keys in the same order. What these scripts leave out (options that are off in the case
//! that is measured, checks of arguments) makes them a little cheaper than the original, not dearer.

/// Presence of a client, classic. 4 commands, 8 with users; 9 where the client is new to them.
///
/// KEYS: leases (sorted set), data (hash), leases of users (sorted set), clients of users (hash).
/// ARGV: seconds the keys live, lease, client, data, user, "1" for users.
pub const CLASSIC_ADD: &str = r"
local users = ARGV[6] == '1'
local new = users and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 0
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[1])
if users then
  if new then redis.call('HINCRBY', KEYS[4], ARGV[5], 1) end
  redis.call('EXPIRE', KEYS[4], ARGV[1])
  redis.call('ZADD', KEYS[3], ARGV[2], ARGV[5])
  redis.call('EXPIRE', KEYS[3], ARGV[1])
end
return 1";

/// The end of a client, classic.
///
/// KEYS as above. ARGV: client, user, "1" for users.
pub const CLASSIC_REMOVE: &str = r"
local users = ARGV[3] == '1'
local known = users and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
if known and redis.call('HINCRBY', KEYS[4], ARGV[2], -1) <= 0 then
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('HDEL', KEYS[4], ARGV[2])
end
return 1";

/// Presence of a client as an entry of a map with a stream of changes: a renewal where the client is
/// known (11 commands), else a join (17, and one where the space's first lease becomes earlier).
///
/// KEYS: stream, its meta, entries (hash), leases (sorted set), meta of entries, when each space is to
/// be looked at (sorted set of all spaces).
/// ARGV: client, data, stream's length, ms it lives, ms the metas live, channel, epoch if there is
/// none, lease in ms, now, space.
pub const MAP_ADD: &str = r"
local stream, meta, entries, leases, entries_meta, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local client, stream_ttl, meta_ttl = ARGV[1], ARGV[4], ARGV[5]
local epoch = redis.call('HGET', meta, 'e')
if not epoch then
  epoch = ARGV[7]
  redis.call('HSET', meta, 'e', epoch)
end
if redis.call('HLEN', entries) > 0 and redis.call('HGET', entries_meta, 'epoch') ~= epoch then
  redis.call('DEL', entries, leases, entries_meta)
  redis.call('ZREM', due, ARGV[10])
end
local lease = tonumber(ARGV[9]) + tonumber(ARGV[8])
local function look_at_space()
  local at = redis.call('ZSCORE', due, ARGV[10])
  if not at or tonumber(at) > lease then redis.call('ZADD', due, lease, ARGV[10]) end
end
if redis.call('HEXISTS', entries, client) == 1 then
  redis.call('ZADD', leases, lease, client)
  look_at_space()
  redis.call('PEXPIRE', leases, meta_ttl)
  redis.call('PEXPIRE', entries, meta_ttl)
  redis.call('PEXPIRE', meta, meta_ttl)
  redis.call('PEXPIRE', stream, stream_ttl)
  return { tonumber(redis.call('HGET', meta, 's')), epoch, 'known' }
end
local offset = redis.call('HINCRBY', meta, 's', 1)
redis.call('PEXPIRE', meta, meta_ttl)
redis.call('HSET', entries, client, offset .. ':' .. epoch .. ':' .. ARGV[2])
redis.call('ZADD', leases, lease, client)
redis.call('PEXPIRE', leases, meta_ttl)
redis.call('PEXPIRE', entries, meta_ttl)
look_at_space()
redis.call('HSET', entries_meta, 'epoch', epoch)
redis.call('HSET', entries_meta, 'updated', ARGV[9])
redis.call('PEXPIRE', entries_meta, meta_ttl)
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], offset, 'e', epoch, 'd', ARGV[2])
redis.call('PEXPIRE', stream, stream_ttl)
redis.call('PUBLISH', ARGV[6], offset .. ':' .. epoch .. ':' .. ARGV[2])
return { offset, epoch, 'new' }";

/// The end of a client's entry in a map.
///
/// KEYS as above. ARGV: client, data, stream's length, ms it lives, ms the metas live, channel, space.
pub const MAP_REMOVE: &str = r"
local stream, meta, entries, leases, entries_meta, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local client = ARGV[1]
local epoch = redis.call('HGET', meta, 'e')
if redis.call('HLEN', entries) > 0 and redis.call('HGET', entries_meta, 'epoch') ~= epoch then
  return redis.error_reply('another epoch')
end
if redis.call('HEXISTS', entries, client) == 0 then return { 0, epoch, 'unknown' } end
local offset = redis.call('HINCRBY', meta, 's', 1)
redis.call('PEXPIRE', meta, ARGV[5])
redis.call('HDEL', entries, client)
redis.call('ZREM', leases, client)
if redis.call('ZCARD', leases) == 0 then
  redis.call('ZREM', due, ARGV[7])
else
  redis.call('ZADD', due, redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2], ARGV[7])
end
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], offset, 'e', epoch, 'd', ARGV[2])
redis.call('PEXPIRE', stream, ARGV[4])
redis.call('PUBLISH', ARGV[6], offset .. ':' .. epoch .. ':' .. ARGV[2])
return { offset, epoch, 'gone' }";
