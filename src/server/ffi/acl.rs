//! What the caller of a command may read, by the server's ACL.

use crate::server::ffi::args::Arg;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::ffi::error::Error;
use redis_module::raw;
use std::ffi::c_int;
use std::ptr::NonNull;

/// Who calls a command.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// The server's own client, to which no rules apply.
    Root,
    /// A user of the ACL, by its name: it can be deleted at any time.
    Named(Vec<u8>),
}

impl Caller {
    /// The caller of the command that is going on.
    pub fn of(ctx: Context) -> Result<Self, Error> {
        // The client of an AOF or of a replication link has no user. Nobody sees the reply.
        if ctx.is_replaying() {
            return Ok(Caller::Root);
        }
        if !offers!(RedisModule_GetClientUserNameById)
            || !offers!(RedisModule_GetCurrentUserName)
            || !offers!(RedisModule_GetModuleUserFromUserName)
            || !offers!(RedisModule_ACLCheckKeyPermissions)
            || !offers!(RedisModule_FreeModuleUser)
        {
            return Err(Error::new("the server does not tell modules what a user may read"));
        }
        // SAFETY: the context is that of a command. The pointers have been asked for. The server finds a
        // connected client by its id, or says that there is none. It cannot find the client of a script, but
        // that has the user of the script's caller. The name is a string for this code to free, and is
        // freed after its last use.
        unsafe {
            let id = api!(RedisModule_GetClientId(ctx.raw()));
            let mut name = api!(RedisModule_GetClientUserNameById(ctx.raw(), id));
            if name.is_null() && Context::is_script_running() {
                name = api!(RedisModule_GetCurrentUserName(ctx.raw()));
            }
            if name.is_null() {
                // Another module calls. Its client may have no user, and the server does not check that.
                return Err(Error::new("the server does not tell which user calls"));
            }
            let caller = Caller::Named(Arg::from_raw(name).bytes().to_vec());
            api!(RedisModule_FreeString(ctx.raw(), name));
            Ok(caller)
        }
    }
}

/// Asks the ACL for a caller. It is not kept: a user of the ACL can be deleted at any time.
pub struct Reader(User);

enum User {
    Root,
    /// Deleted meanwhile.
    Nobody,
    Named(NonNull<raw::RedisModuleUser>),
}

impl Reader {
    /// The caller of the command that is going on.
    pub fn of_caller(ctx: Context) -> Result<Self, Error> {
        Caller::of(ctx).map(|caller| Self::of(&caller))
    }

    pub fn of(caller: &Caller) -> Self {
        let Caller::Named(name) = caller else { return Reader(User::Root) };
        let name = OwnedString::new(name);
        // SAFETY: `Caller::of` has asked for the pointer. The name lives through the call.
        let user = unsafe { api!(RedisModule_GetModuleUserFromUserName(name.as_arg().raw())) };
        Reader(NonNull::new(user).map_or(User::Nobody, User::Named))
    }

    /// Whether the caller may read the value of this key.
    pub fn may_read(&self, key: Arg<'_>) -> bool {
        match self.0 {
            User::Root => true,
            User::Nobody => false,
            // SAFETY: the user is that of the command that is going on, and the key is a string of the server.
            // The pointer has been asked for.
            User::Named(user) => unsafe {
                let access = raw::REDISMODULE_CMD_KEY_ACCESS as c_int;
                let answer =
                    api!(RedisModule_ACLCheckKeyPermissions(user.as_ptr(), key.raw(), access));
                answer == raw::REDISMODULE_OK as c_int
            },
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let User::Named(user) = self.0 {
            // SAFETY: the server made it for this code to free. This frees the handle and not the user.
            unsafe { api!(RedisModule_FreeModuleUser(user.as_ptr())) };
        }
    }
}
