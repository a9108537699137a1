//! One command of one client, as the command files see it.

use super::args::{Arg, Args};
use super::clock::Clock;
use super::context::Context;
use super::error::Error;
use super::key::{SpaceKey, SpaceRef};

/// The arguments, the time, and the way to the keyspace and back to the client.
pub struct Call<'a> {
    pub ctx: Context,
    clock: Clock,
    argv: &'a [Arg<'a>],
}

impl<'a> Call<'a> {
    pub fn new(ctx: Context, argv: &'a [Arg<'a>]) -> Self {
        Call { ctx, clock: Clock::default(), argv }
    }

    /// Unix time (ms): one moment a command, at which everything happens that it does.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The arguments behind the command's name.
    pub fn args(&self) -> Args<'a> {
        Args::new(self.argv)
    }

    /// The space of that name, for reading; none where there is no such key.
    pub fn read(&self, name: Arg<'a>) -> Result<Option<SpaceRef>, Error> {
        SpaceRef::open(self.ctx, name, &self.clock)
    }

    /// The space of that name, to be changed; none where there is no such key.
    pub fn change(&self, name: Arg<'a>) -> Result<Option<SpaceKey<'_>>, Error> {
        SpaceKey::open(self.ctx, name, &self.clock)
    }

    /// The space of that name, to be changed; a new one where there is no such key, which becomes
    /// a key if something happens in it.
    pub fn change_or_create(&self, name: Arg<'a>) -> Result<SpaceKey<'_>, Error> {
        SpaceKey::open_or_create(self.ctx, name, &self.clock)
    }
}
