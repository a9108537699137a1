//! One command of one client, as the command files see it.

use super::args::{Arg, Args};
use super::context::Context;
use super::error::Error;
use super::key::{SpaceKey, SpaceRef};

/// The arguments, the time, and the way to the keyspace and back to the client. One `now` a
/// command: everything that it does happens at that moment.
pub struct Call<'a> {
    pub ctx: Context,
    pub now: u64,
    argv: &'a [Arg<'a>],
}

impl<'a> Call<'a> {
    pub fn new(ctx: Context, argv: &'a [Arg<'a>]) -> Self {
        Call { ctx, now: ctx.now(), argv }
    }

    /// The arguments behind the command's name.
    pub fn args(&self) -> Args<'a> {
        Args::new(self.argv)
    }

    /// The space of that name, for reading; none where there is no such key.
    pub fn read(&self, name: Arg<'a>) -> Result<Option<SpaceRef>, Error> {
        SpaceRef::open(self.ctx, name, self.now)
    }

    /// The space of that name, to be changed; none where there is no such key.
    pub fn change(&self, name: Arg<'a>) -> Result<Option<SpaceKey<'a>>, Error> {
        SpaceKey::open(self.ctx, name, self.now)
    }

    /// The space of that name, to be changed; a new one where there is no such key, which becomes
    /// a key if something happens in it.
    pub fn change_or_create(&self, name: Arg<'a>) -> Result<SpaceKey<'a>, Error> {
        SpaceKey::open_or_create(self.ctx, name, self.now)
    }
}
