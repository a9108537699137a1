//! `PRESENCE.OWNER SESSIONS`: what an owner holds, at once or page by page.
//!
//! A listing follows the hashes of the names of the spaces, and in each space those of the users. Its place has
//! 32 bits, as that of `PRESENCE.SPACE`: the first half says where among the spaces it is, the second half where
//! among the users. Names that share such a place are never parted, so a page goes on to the end of its place.

use super::owner::OWNER;
use super::{cursor, parse};
use crate::server::expiry::owners;
use crate::server::ffi::args::set_once;
use crate::server::ffi::clock::Clock;
use crate::server::ffi::context::{OwnedString, ReadableKeys};
use crate::server::ffi::error::Outcome;
use crate::server::ffi::prefetch;
use crate::server::keyspace::key::SpaceReadGuard;
use crate::server::module::call::Call;
use crate::server::module::command::{Access, ArgKind, ArgSpec, Command, Spec};
use std::rc::Rc;

/// A page looks at so many users per session that it wants: few of them may be the owner's.
const LOOKS_A_SESSION: usize = 10;
/// A place has so many bits for each of its halves.
const HALF: u32 = 16;
const LAST: u32 = (1 << HALF) - 1;

pub struct Sessions;

impl Command for Sessions {
    const SPEC: Spec = Spec {
        name: "sessions",
        summary: "Returns the live sessions of an owner.",
        complexity: "O(N), N being the users of the spaces in which the owner has sessions; with COUNT about \
                     that many sessions, and at most ten users for each of them.",
        since: "0.2.0",
        arity: -3,
        access: Access::ReadsNoKey,
        flags: "",
        categories: "",
        tips: "request_policy:special response_policy:special",
        args: &[
            OWNER,
            ArgSpec::new("cursor", ArgKind::Integer).after("CURSOR").optional(),
            ArgSpec::new("count", ArgKind::Integer).after("COUNT").optional(),
        ],
    };

    fn run(call: &Call) -> Outcome {
        let mut args = call.args();
        let name = parse::owner(args.required_first()?)?;
        let (mut from, mut count) = (None, None);
        while args.left() > 0 {
            if args.take_word("CURSOR") {
                cursor::read(&mut args, &mut from)?;
            } else if args.take_word("COUNT") {
                set_once(&mut count, parse::count(&mut args)?, "COUNT")?;
            } else {
                return Err(args.unknown_option());
            }
        }
        let mut page = Page {
            call,
            owner: name,
            count: count.unwrap_or(usize::MAX),
            readable: call.ctx.readable_keys(),
            looked: 0,
            found: Vec::new(),
        };
        let next = page.gather(cursor::place_of(from));
        let ctx = call.ctx;
        ctx.reply_map(2);
        ctx.reply_bulk(b"cursor");
        ctx.reply_bulk(next.map_or(0, cursor::cursor_of).to_string().as_bytes());
        ctx.reply_bulk(b"sessions");
        ctx.reply_array(page.found.len());
        for found in page.found {
            ctx.reply_map(3);
            ctx.reply_bulk(b"space");
            ctx.reply_bulk(&found.space);
            ctx.reply_bulk(b"user");
            ctx.reply_bulk(&found.user);
            ctx.reply_bulk(b"session");
            ctx.reply_bulk(&found.session);
        }
        Ok(())
    }
}

/// A session of the owner.
struct Found {
    space: Rc<[u8]>,
    user: Box<[u8]>,
    session: Box<[u8]>,
}

/// The name of a space, with its place.
type Placed = (u32, Rc<[u8]>);

struct Page<'a> {
    call: &'a Call<'a>,
    owner: &'a str,
    count: usize,
    readable: ReadableKeys,
    /// Users that were looked at.
    looked: usize,
    found: Vec<Found>,
}

impl Page<'_> {
    fn is_full(&self) -> bool {
        self.found.len() >= self.count || self.looked >= self.count.saturating_mul(LOOKS_A_SESSION)
    }

    /// Gathers a page from a place on. Returns the place to go on at; none where this was the last page.
    fn gather(&mut self, place: u32) -> Option<u32> {
        let (mut group, mut users) = (Some(place >> HALF), place & LAST);
        while let Some(at) = group {
            let (spaces, next_group) = self.spaces_from(at);
            // All spaces of one place go on from the same place of users.
            let mut next_users: Option<u32> = None;
            for (of, space) in spaces {
                let from = if of == at { users } else { 0 };
                let Some(more) = self.gather_space(&space, from) else { continue };
                let next = of << HALF | more;
                next_users = Some(next_users.map_or(next, |earliest: u32| earliest.min(next)));
            }
            if next_users.is_some() {
                return next_users;
            }
            (group, users) = (next_group, 0);
            if let Some(next) = group.filter(|_| self.is_full()) {
                return Some(next << HALF);
            }
        }
        None
    }

    /// The spaces at the next place from `at` on at which there are any, each with that place; and the place
    /// behind it.
    fn spaces_from(&self, at: u32) -> (Vec<Placed>, Option<u32>) {
        let place_of = |hash: u64| (hash >> (u64::BITS - HALF)) as u32;
        let mut from = Some(u64::from(at) << (u64::BITS - HALF));
        let mut spaces: Vec<Placed> = Vec::new();
        owners::with(self.call.ctx.db(), |owners| {
            if owners.live(self.owner, self.call.now()).is_none() {
                return;
            }
            while let Some(begin) = from {
                let (some, next) = owners.spaces(self.owner, begin);
                for (hash, name) in some {
                    let place = place_of(hash);
                    if spaces.first().is_some_and(|(first, _)| *first != place) {
                        return;
                    }
                    spaces.push((place, name.into()));
                }
                from = next;
            }
        });
        let next = spaces.first().and_then(|(place, _)| (*place < LAST).then(|| place + 1));
        (spaces, next)
    }

    /// Gathers what the owner has in a space, from a place of users on. Returns the place to go on at.
    fn gather_space(&mut self, name: &Rc<[u8]>, from: u32) -> Option<u32> {
        let key = OwnedString::new(name);
        if !self.readable.has(key.as_arg()) {
            return None;
        }
        let (ctx, now) = (self.call.ctx, self.call.now());
        let clock = Clock::at(now);
        // Which spaces an owner has is a hint: another type may be there.
        let Ok(Some(space)) = SpaceReadGuard::open(ctx, key.as_arg(), &clock) else {
            return None;
        };
        let mut place = from << HALF;
        loop {
            let wanted = self.count.saturating_sub(self.found.len()).max(1);
            let (users, next) = space.page(place, wanted, now, prefetch::prefetch);
            self.looked = self.looked.saturating_add(users.len());
            for user in users {
                let sessions =
                    user.sessions().filter(|session| session.owner() == Some(self.owner));
                self.found.extend(sessions.map(|session| Found {
                    space: name.clone(),
                    user: user.name().into(),
                    session: session.session().into(),
                }));
            }
            let next = next?;
            if next >> HALF > from && self.is_full() {
                return Some(next >> HALF);
            }
            place = next;
        }
    }
}
