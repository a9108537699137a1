//! One command of one client, as the command files see it.

use crate::server::ffi::args::{Arg, Args};
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::Context;
use crate::server::ffi::error::Error;
use crate::server::keyspace::key::{SpaceReadGuard, SpaceWriteGuard};
use presence_core::space::MAX_SPACE_BYTES;

/// The arguments, the time, and the way to the keyspace and back to the client.
pub struct Call<'a> {
    pub ctx: Context,
    clock: Clock,
    argv: &'a [Arg<'a>],
}

impl<'a> Call<'a> {
    pub fn new(ctx: Context, argv: &'a [Arg<'a>]) -> Self {
        Call { ctx, clock: Clock::of_command(ctx), argv }
    }

    /// Unix time (ms): one moment per command, per transaction and per script.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The arguments behind the command's name.
    pub fn args(&self) -> Args<'a> {
        Args::new(self.argv)
    }

    /// The same where the first is not the name of a space.
    pub fn args_without_space(&self) -> Args<'a> {
        Args::without_space(self.argv)
    }

    /// The space of that name, for reading; none where there is no such key.
    pub fn read(&self, name: Arg<'a>) -> Result<Option<SpaceReadGuard>, Error> {
        let space = SpaceReadGuard::open(self.ctx, name, &self.clock)?;
        if space.is_none() {
            check_length(name)?;
        }
        Ok(space)
    }

    /// The space of that name, if there is one, for a listing that visits many: as the server's own listings, it
    /// makes no key less idle and counts neither hits nor misses.
    pub fn peek(&self, name: Arg<'_>) -> Option<SpaceReadGuard> {
        SpaceReadGuard::open_untouched(self.ctx, name, &self.clock).ok().flatten()
    }

    /// The space of that name, to be changed; none where there is no such key.
    pub fn change(&self, name: Arg<'a>) -> Result<Option<SpaceWriteGuard<'_>>, Error> {
        let space = SpaceWriteGuard::open(self.ctx, name, &self.clock)?;
        if space.is_none() {
            check_length(name)?;
        }
        Ok(space)
    }

    /// The space of that name, to be changed; a new one where there is no such key, which becomes
    /// a key if something happens in it.
    pub fn change_or_create(&self, name: Arg<'a>) -> Result<SpaceWriteGuard<'_>, Error> {
        // What was decided elsewhere is done under any name.
        if check_length(name).is_err() && !self.ctx.is_replaying() {
            self.read(name)?;
        }
        SpaceWriteGuard::open_or_create(self.ctx, name, &self.clock)
    }
}

/// The longest name that a command takes. A key with a longer name, which comes by RENAME, RESTORE,
/// COPY or MOVE, is served as any other, so this is asked only where there is no such key.
fn check_length(name: Arg<'_>) -> Result<(), Error> {
    if name.bytes().len() > MAX_SPACE_BYTES {
        return Err(Error::new(format!("space is longer than {MAX_SPACE_BYTES} bytes")));
    }
    Ok(())
}
