//! A call of the server into the module, and what can be asked of the server during it.

use crate::server::ffi::args::Arg;
use crate::server::module::command::READS_KEY;
use crate::server::module::config::ChannelMode;
use crate::server::module::core_commands::{self, DEL, PUBLISH, SPUBLISH, UNLINK};
use redis_module::raw;
use std::ffi::{CStr, c_int};
use std::io::ErrorKind;
use std::ptr::NonNull;

/// The server's context of one call. It lives as long as that call, and is not kept.
#[derive(Clone, Copy)]
pub struct Context(*mut raw::RedisModuleCtx);

/// A string of the server that the module made and frees.
pub struct OwnedString(*mut raw::RedisModuleString);

impl OwnedString {
    pub fn new(bytes: &[u8]) -> Self {
        // SAFETY: pointer and length are those of a slice; without a context the string is ours.
        OwnedString(unsafe {
            api!(RedisModule_CreateString(std::ptr::null_mut(), bytes.as_ptr().cast(), bytes.len()))
        })
    }

    /// Hands the string over to who frees it.
    pub fn into_raw(self) -> *mut raw::RedisModuleString {
        let string = self.0;
        std::mem::forget(self);
        string
    }

    pub fn as_arg(&self) -> Arg<'_> {
        // SAFETY: the string lives as long as `self`.
        unsafe { Arg::from_raw(self.0) }
    }
}

impl Drop for OwnedString {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { api!(RedisModule_FreeString(std::ptr::null_mut(), self.0)) }
    }
}

/// The keys that the user of a call may read.
pub struct ReadableKeys(Option<NonNull<raw::RedisModuleUser>>);

impl ReadableKeys {
    pub fn has(&self, key: Arg<'_>) -> bool {
        let Some(user) = self.0 else { return true };
        let access = raw::REDISMODULE_CMD_KEY_ACCESS as c_int;
        // SAFETY: `readable_keys` asked for the pointer and got the user; the string lives through the call.
        let checked =
            unsafe { api!(RedisModule_ACLCheckKeyPermissions(user.as_ptr(), key.raw(), access)) };
        checked == raw::REDISMODULE_OK as c_int
    }
}

impl Drop for ReadableKeys {
    fn drop(&mut self) {
        if let Some(user) = self.0 {
            // SAFETY: `readable_keys` asked for the pointer and got the user, which is freed once.
            unsafe { api!(RedisModule_FreeModuleUser(user.as_ptr())) };
        }
    }
}

/// A call that adds at least so many bytes asks how many are left.
const ASKED_FROM: usize = 64 << 10;

impl Context {
    /// # Safety
    /// `ctx` is a context that the server passed to the call that is going on.
    pub unsafe fn from_raw(ctx: *mut raw::RedisModuleCtx) -> Self {
        Context(ctx)
    }

    pub fn raw(self) -> *mut raw::RedisModuleCtx {
        self.0
    }

    /// Unix time (ms).
    pub fn now(self) -> u64 {
        crate::server::ffi::clock::server_time()
    }

    fn flags(self) -> u32 {
        // SAFETY: the context is that of the call going on, or none, for what is known of the server.
        unsafe { api!(RedisModule_GetContextFlags(self.0)) as u32 }
    }

    /// Whether this server decides for itself, and is no replica.
    pub fn is_primary(self) -> bool {
        self.flags() & raw::REDISMODULE_CTX_FLAGS_MASTER != 0
    }

    /// Whether what is called was decided elsewhere or earlier: it comes from the primary, from a
    /// slot that moves here, or from the AOF.
    pub fn is_replaying(self) -> bool {
        let replaying = raw::REDISMODULE_CTX_FLAGS_REPLICATED | raw::REDISMODULE_CTX_FLAGS_LOADING;
        self.flags() & replaying != 0
    }

    /// Whether the server loads an RDB or an AOF.
    pub fn is_loading(self) -> bool {
        self.flags() & raw::REDISMODULE_CTX_FLAGS_LOADING != 0
    }

    /// Whether the server has others than itself to think of when it replicates, as far as it says:
    /// it is a replica or part of a cluster, has an AOF, loads, or has forked.
    pub fn may_have_listeners(self) -> bool {
        let listening = raw::REDISMODULE_CTX_FLAGS_CLUSTER
            | raw::REDISMODULE_CTX_FLAGS_AOF
            | raw::REDISMODULE_CTX_FLAGS_LOADING
            | raw::REDISMODULE_CTX_FLAGS_ACTIVE_CHILD;
        let flags = self.flags();
        flags & listening != 0 || flags & raw::REDISMODULE_CTX_FLAGS_MASTER == 0
    }

    /// Whether the client cannot wait: it is in MULTI or a script.
    pub fn may_not_block(self) -> bool {
        let denied = raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING
            | raw::REDISMODULE_CTX_FLAGS_MULTI
            | raw::REDISMODULE_CTX_FLAGS_LUA;
        self.flags() & denied != 0
    }

    /// Whether the server does not run the command but asks which of the arguments are keys.
    pub fn is_asked_for_keys(self) -> bool {
        // SAFETY: the context is that of the call going on.
        unsafe { api!(RedisModule_IsKeysPositionRequest(self.0)) != 0 }
    }

    /// Says which arguments are keys that the command reads.
    pub fn tell_read_keys(self, positions: std::ops::Range<usize>) {
        for position in positions.filter_map(|position| c_int::try_from(position).ok()) {
            // SAFETY: the server asks for the keys, in the context of this call.
            unsafe {
                api!(RedisModule_KeyAtPosWithFlags(self.0, position, READS_KEY as c_int));
            }
        }
    }

    /// Whether the command is part of a transaction or of a script.
    pub fn is_in_unit(self) -> bool {
        let parts = raw::REDISMODULE_CTX_FLAGS_MULTI | raw::REDISMODULE_CTX_FLAGS_LUA;
        self.flags() & parts != 0
    }

    /// Whether the server runs a script or a function at present.
    pub fn is_script_running() -> bool {
        Context(std::ptr::null_mut()).flags() & raw::REDISMODULE_CTX_FLAGS_LUA != 0
    }

    /// Whether the server takes something new into this space, as far as memory is concerned.
    pub fn has_memory(self, space: Arg<'_>) -> bool {
        self.flags() & raw::REDISMODULE_CTX_FLAGS_OOM == 0 || self.is_making_room(space)
    }

    /// Memory is beyond `maxmemory`, but a server that evicts a little before each command takes
    /// writes meanwhile, until nothing is left that it may evict. It says so only by whether it
    /// refuses a command that has the flag `deny-oom`. The call asks it to respect that flag (`M`), and
    /// also to refuse commands that write (`W`), which it looks at after that. So the command is
    /// refused in any case, by one or the other error, and neither runs nor shows in MONITOR or in
    /// the command statistics.
    fn is_making_room(self, space: Arg<'_>) -> bool {
        // SAFETY: the format names a string of the server that lives through the call, and two
        // texts that end with NUL; the reply is freed after its bytes were read.
        unsafe {
            let reply = api!(RedisModule_Call(
                self.0,
                c"PRESENCE.MESSAGE".as_ptr(),
                c"MWEscc".as_ptr(),
                space.raw(),
                c"".as_ptr(),
                c"".as_ptr()
            ));
            if reply.is_null() {
                return false;
            }
            let mut length = 0;
            let text = api!(RedisModule_CallReplyStringPtr(reply, &mut length)).cast::<u8>();
            let refused =
                text.is_null() || std::slice::from_raw_parts(text, length).starts_with(b"OOM");
            free_reply(reply);
            !refused
        }
    }

    /// Whether so many bytes more stay within `maxmemory`, as far as the server does not evict: one
    /// call can add much more than is left. Not asked for a small number of bytes.
    pub fn has_room_for(self, bytes: usize) -> bool {
        if bytes < ASKED_FROM || !offers!(RedisModule_GetUsedMemoryRatio) {
            return true;
        }
        // SAFETY: takes nothing; the pointer has been asked for.
        let used = f64::from(unsafe { api!(RedisModule_GetUsedMemoryRatio()) });
        // Without a limit it is 0.
        if used <= 0.0 {
            return true;
        }
        let Some(limit) = self.maxmemory_without_eviction() else { return true };
        used * limit + bytes as f64 <= limit
    }

    /// `maxmemory`, if there is one and the policy is `noeviction`.
    fn maxmemory_without_eviction(self) -> Option<f64> {
        if !offers!(RedisModule_GetServerInfo)
            || !offers!(RedisModule_ServerInfoGetFieldUnsigned)
            || !offers!(RedisModule_ServerInfoGetFieldC)
            || !offers!(RedisModule_FreeServerInfo)
        {
            return None;
        }
        // SAFETY: the context is that of the call going on; names end with NUL, and the text that
        // is compared ends with NUL and lives as long as the data, which are freed once.
        unsafe {
            let info = api!(RedisModule_GetServerInfo(self.0, c"memory".as_ptr()));
            if info.is_null() {
                return None;
            }
            let mut missing: c_int = 0;
            let limit: u64 = api!(RedisModule_ServerInfoGetFieldUnsigned(
                info,
                c"maxmemory".as_ptr(),
                &mut missing
            ));
            let policy = api!(RedisModule_ServerInfoGetFieldC(info, c"maxmemory_policy".as_ptr()));
            let evicts = policy.is_null() || CStr::from_ptr(policy) != c"noeviction";
            api!(RedisModule_FreeServerInfo(self.0, info));
            (missing == 0 && limit > 0 && !evicts).then_some(limit as f64)
        }
    }

    /// Whether nothing may be replicated at present: the server is paused, and aborts if one does.
    pub fn is_paused(self) -> bool {
        // SAFETY: takes nothing; the pointer has been asked for.
        offers!(RedisModule_AvoidReplicaTraffic)
            && unsafe { api!(RedisModule_AvoidReplicaTraffic()) } != 0
    }

    /// The selected database. In Valkey 9.1 the context of an event in a transaction has the client's
    /// database here, and opens keys in that of the event: where there is a key, ask the key.
    pub fn db(self) -> i32 {
        // SAFETY: the context is that of the call going on.
        unsafe { api!(RedisModule_GetSelectedDb(self.0)) }
    }

    pub fn select_db(self, db: i32) -> bool {
        // SAFETY: the context is that of the call going on; a number out of range is refused.
        unsafe { api!(RedisModule_SelectDb(self.0, db)) == raw::REDISMODULE_OK as c_int }
    }

    /// Whether the selected database has any key.
    pub fn has_keys(self) -> bool {
        // SAFETY: the context is that of the call going on.
        unsafe { api!(RedisModule_DbSize(self.0)) > 0 }
    }

    /// Writes to the server's log.
    pub fn log(self, level: &CStr, text: &str) {
        let text: Vec<u8> = text.bytes().filter(|byte| *byte != 0).chain([0]).collect();
        // SAFETY: the text ends with NUL and is an argument of a fixed format, never the format.
        unsafe { api!(RedisModule_Log(self.0, level.as_ptr(), c"%s".as_ptr(), text.as_ptr())) }
    }

    /// Tells replicas and the AOF to do `command key payload`.
    pub fn replicate(self, command: &CStr, key: Arg<'_>, payload: &[u8]) {
        // SAFETY: the format names a string of the server and a buffer with its length, which
        // live through the call.
        unsafe {
            api!(RedisModule_Replicate(
                self.0,
                command.as_ptr(),
                c"sb".as_ptr(),
                key.raw(),
                payload.as_ptr(),
                payload.len()
            ));
        }
    }

    /// Tells replicas and the AOF to do `command payload` in the selected database.
    pub fn replicate_keyless(self, command: &CStr, payload: Arg<'_>) {
        // SAFETY: the format names a string of the server, which lives through the call.
        unsafe {
            api!(RedisModule_Replicate(self.0, command.as_ptr(), c"s".as_ptr(), payload.raw()));
        }
    }

    /// What the user of this call may read; all, where the server does not say.
    pub fn readable_keys(self) -> ReadableKeys {
        let offered = offers!(RedisModule_GetCurrentUserName)
            && offers!(RedisModule_GetModuleUserFromUserName)
            && offers!(RedisModule_FreeModuleUser)
            && offers!(RedisModule_ACLCheckKeyPermissions);
        if !offered {
            return ReadableKeys(None);
        }
        // SAFETY: the context is that of a command; the pointers have been asked for. The name is freed once;
        // the user is ours until `ReadableKeys` is dropped.
        unsafe {
            let name = api!(RedisModule_GetCurrentUserName(self.0));
            if name.is_null() {
                return ReadableKeys(None);
            }
            let user = api!(RedisModule_GetModuleUserFromUserName(name));
            api!(RedisModule_FreeString(self.0, name));
            ReadableKeys(NonNull::new(user))
        }
    }

    /// The number of the connection that sent this command. None in a script, and where another module made
    /// the call: there is no connection then.
    pub fn connection(self) -> Option<u64> {
        // In a script the number is not that of the client, and Valkey 9.1 crashes if it is asked about it.
        if self.flags() & raw::REDISMODULE_CTX_FLAGS_LUA != 0 || self.is_replaying() {
            return None;
        }
        // SAFETY: the context is that of a command. Without a place for what is known, the server says
        // whether there is such a connection.
        unsafe {
            let id = api!(RedisModule_GetClientId(self.0));
            let known = api!(RedisModule_GetClientInfoById(std::ptr::null_mut(), id));
            (known == raw::REDISMODULE_OK as c_int).then_some(id)
        }
    }

    /// Tells replicas, the AOF, WATCH and the subscribers of keyspace events that a key was deleted.
    pub fn replicate_deletion(self, key: Arg<'_>) {
        let own = core_commands::OWN_UNLINK;
        let command = UNLINK.name().or(DEL.name()).unwrap_or(own);
        // SAFETY: the context is that of the call going on, the string lives through it.
        unsafe {
            api!(RedisModule_Replicate(self.0, command.as_ptr(), c"s".as_ptr(), key.raw()));
            let generic = raw::REDISMODULE_NOTIFY_GENERIC;
            api!(RedisModule_NotifyKeyspaceEvent(self.0, generic, c"del".as_ptr(), key.raw()));
        }
        self.signal_modified(key);
    }

    /// Tells replicas and the AOF to do the command that is being carried out, as it is.
    pub fn replicate_verbatim(self) {
        // SAFETY: the context is that of a command.
        unsafe { api!(RedisModule_ReplicateVerbatim(self.0)) };
    }

    /// Calls a command of one key, with its effects going to replicas and the AOF.
    pub fn call_on_key(self, command: &CStr, key: Arg<'_>) -> Called {
        // SAFETY: the format names a string of the server that lives through the call; the reply
        // is freed.
        unsafe {
            let reply = api!(RedisModule_Call(self.0, command.as_ptr(), c"!s".as_ptr(), key.raw()));
            // The server says why it refuses a call by `errno`.
            let error = std::io::Error::last_os_error().kind();
            let was_refused = reply.is_null();
            match free_reply(reply) {
                true => Called::Done,
                false if was_refused && CLUSTER_IS_DOWN.contains(&error) => Called::ClusterDown,
                false => Called::Refused,
            }
        }
    }

    /// Publishes a message to the subscribers of this node and of the others. False where the
    /// server refuses: in sharded mode, while the slot is not ours yet.
    pub fn publish(self, mode: ChannelMode, channel: &OwnedString, message: &[u8]) -> bool {
        let command = match mode {
            ChannelMode::Global => &PUBLISH,
            ChannelMode::Sharded => &SPUBLISH,
        };
        let Some(command) = command.name() else {
            return self.publish_without_command(mode, channel, message);
        };
        // SAFETY: the format names a string of the server, which it shares, and a buffer with its
        // length, which live through the call; the reply is freed.
        unsafe {
            let reply = api!(RedisModule_Call(
                self.0,
                command.as_ptr(),
                c"!sb".as_ptr(),
                channel.0,
                message.as_ptr(),
                message.len()
            ));
            free_reply(reply)
        }
    }

    /// The same where the server's command is renamed. Like that command, it reaches the nodes of a
    /// cluster by the bus, and replicas outside of a cluster by replication; the AOF does not get it.
    fn publish_without_command(
        self,
        mode: ChannelMode,
        channel: &OwnedString,
        message: &[u8],
    ) -> bool {
        if !self.publish_here(mode, channel.as_arg(), message) {
            return false;
        }
        if self.flags() & raw::REDISMODULE_CTX_FLAGS_CLUSTER == 0 {
            let word = match mode {
                ChannelMode::Global => c"GLOBAL",
                ChannelMode::Sharded => c"SHARDED",
            };
            // SAFETY: the format names a string of the server, a buffer with its length and a text
            // that ends with NUL, which live through the call.
            unsafe {
                api!(RedisModule_Replicate(
                    self.0,
                    core_commands::OWN_PUBLISH.as_ptr(),
                    c"Asbc".as_ptr(),
                    channel.0,
                    message.as_ptr(),
                    message.len(),
                    word.as_ptr()
                ));
            }
        }
        true
    }

    /// Whether the server offers [`Self::publish_here`].
    pub fn can_publish_here(mode: ChannelMode) -> bool {
        match mode {
            ChannelMode::Global => offers!(RedisModule_PublishMessage),
            ChannelMode::Sharded => offers!(RedisModule_PublishMessageShard),
        }
    }

    /// Publishes to the subscribers of this node, and in a cluster by its bus, but not to replicas.
    /// False where the server does not offer that.
    pub fn publish_here(self, mode: ChannelMode, channel: Arg<'_>, message: &[u8]) -> bool {
        if !Self::can_publish_here(mode) {
            return false;
        }
        let message = OwnedString::new(message);
        // SAFETY: the context is that of the call going on, the strings live through it; the
        // pointers have been asked for.
        unsafe {
            match mode {
                ChannelMode::Global => {
                    api!(RedisModule_PublishMessage(self.0, channel.raw(), message.0))
                }
                ChannelMode::Sharded => {
                    api!(RedisModule_PublishMessageShard(self.0, channel.raw(), message.0))
                }
            }
        };
        true
    }

    /// Calls a command of the server without arguments, which it refuses if it needs some. Returns
    /// the error.
    pub fn call_without_arguments(self, command: &CStr) -> Option<std::io::Error> {
        // SAFETY: the name ends with NUL, the format is empty; the reply is freed.
        unsafe {
            let reply = api!(RedisModule_Call(self.0, command.as_ptr(), c"".as_ptr()));
            if reply.is_null() {
                return Some(std::io::Error::last_os_error());
            }
            free_reply(reply);
        }
        None
    }

    /// Says that a key has changed: breaks WATCH, invalidates client-side caches.
    pub fn signal_modified(self, key: Arg<'_>) {
        // SAFETY: the context is that of the call going on, the string lives through it.
        unsafe { api!(RedisModule_SignalModifiedKey(self.0, key.raw())) };
    }
}

/// What became of a call of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    Done,
    /// Not for this key, at present.
    Refused,
    /// Not for any key, as the cluster is down.
    ClusterDown,
}

/// What `RM_Call` sets `errno` to if the cluster is down: for all commands, and for those that write.
const CLUSTER_IS_DOWN: [ErrorKind; 2] = [ErrorKind::NetworkDown, ErrorKind::ReadOnlyFilesystem];

/// # Safety
/// `reply` comes from `RM_Call` and is not used afterwards.
unsafe fn free_reply(reply: *mut raw::RedisModuleCallReply) -> bool {
    if reply.is_null() {
        return false;
    }
    // SAFETY: the caller guarantees that the reply comes from `RM_Call`. It is not null.
    let kind = unsafe { api!(RedisModule_CallReplyType(reply)) };
    // SAFETY: as above. The caller does not use the reply afterwards, so it is freed once.
    unsafe { api!(RedisModule_FreeCallReply(reply)) };
    kind != raw::REDISMODULE_REPLY_ERROR as c_int
}

/// Replies. Maps and nulls take the form of the client's protocol.
impl Context {
    pub fn reply_integer(self, value: i64) {
        // SAFETY: the context is that of a command, or of a callback that replies to a blocked client.
        unsafe { api!(RedisModule_ReplyWithLongLong(self.0, value)) };
    }

    /// A number of things, or a moment.
    pub fn reply_count(self, value: impl TryInto<i64>) {
        self.reply_integer(value.try_into().unwrap_or(i64::MAX));
    }

    pub fn reply_null(self) {
        // SAFETY: as in `reply_integer`.
        unsafe { api!(RedisModule_ReplyWithNull(self.0)) };
    }

    /// Null where others get an array: RESP2 tells the two apart.
    pub fn reply_null_array(self) {
        // SAFETY: as in `reply_integer`.
        unsafe { api!(RedisModule_ReplyWithNullArray(self.0)) };
    }

    pub fn reply_bulk(self, bytes: &[u8]) {
        // SAFETY: as in `reply_integer`; pointer and length are those of a slice, which is copied.
        unsafe {
            api!(RedisModule_ReplyWithStringBuffer(self.0, bytes.as_ptr().cast(), bytes.len()))
        };
    }

    /// The id of an event.
    pub fn reply_id(self, (epoch, seq): (u64, u64)) {
        self.reply_bulk(format!("{epoch}-{seq}").as_bytes());
    }

    /// 1 or 0 for clients of RESP2.
    pub fn reply_bool(self, value: bool) {
        // SAFETY: as in `reply_integer`.
        unsafe { api!(RedisModule_ReplyWithBool(self.0, c_int::from(value))) };
    }

    pub fn reply_ok(self) {
        // SAFETY: as in `reply_integer`; the text ends with NUL.
        unsafe { api!(RedisModule_ReplyWithSimpleString(self.0, c"OK".as_ptr())) };
    }

    pub fn reply_status(self, text: &str) {
        let text: Vec<u8> = text.bytes().filter(|byte| *byte != 0).chain([0]).collect();
        // SAFETY: as in `reply_integer`; the text ends with NUL, and is copied.
        unsafe { api!(RedisModule_ReplyWithSimpleString(self.0, text.as_ptr().cast())) };
    }

    pub fn reply_map(self, entries: usize) {
        // SAFETY: as in `reply_integer`.
        unsafe { api!(RedisModule_ReplyWithMap(self.0, entries as std::ffi::c_long)) };
    }

    pub fn reply_array(self, items: usize) {
        // SAFETY: as in `reply_integer`.
        unsafe { api!(RedisModule_ReplyWithArray(self.0, items as std::ffi::c_long)) };
    }

    /// An array whose length is what `items` says after it has replied with them.
    pub fn reply_array_of(self, items: impl FnOnce() -> usize) {
        let unknown = std::ffi::c_long::from(raw::REDISMODULE_POSTPONED_LEN);
        // SAFETY: as in `reply_integer`.
        unsafe { api!(RedisModule_ReplyWithArray(self.0, unknown)) };
        let length = items() as std::ffi::c_long;
        // SAFETY: as in `reply_integer`; the array above has no length yet.
        unsafe { api!(RedisModule_ReplySetArrayLength(self.0, length)) };
    }

    pub fn reply_error(self, error: &crate::server::ffi::error::Error) {
        let text: Vec<u8> = error.text().bytes().filter(|byte| *byte != 0).chain([0]).collect();
        // SAFETY: as in `reply_integer`; the text ends with NUL, and is copied.
        unsafe { api!(RedisModule_ReplyWithError(self.0, text.as_ptr().cast())) };
    }

    pub fn reply_wrong_arity(self) {
        // SAFETY: as in `reply_integer`.
        unsafe { api!(RedisModule_WrongArity(self.0)) };
    }
}
