//! Presence without a server: the part of the module that knows no server, reads no clock and has no
//! `unsafe` code.
//!
//! Whoever changes a [`space::Space`] says what time it is. The space reports what it did through a
//! [`space::Sink`]: effects, which make the same change on another node, and events, which are for
//! subscribers.
//!
//! ```
//! use presence_core::space::{ChangeCtx, Limits, NullSink, Retention, Space};
//!
//! let mut space = Space::new(1_700_000_000_000);
//! let limits = Limits {
//!     sessions_per_user: 1024,
//!     users: 0,
//!     retention: Retention::of_events(128, 60_000),
//!     slack: 30_000,
//! };
//! let now = 1_700_000_000_000;
//! let at = ChangeCtx { space: b"lobby", now, limits };
//! let sessions = [("alice", "phone"), ("alice", "tablet"), ("bob", "")];
//! let came = space.online_many(at, &sessions, now + 30_000, |_| true, |_| {}, &mut NullSink);
//! assert_eq!(came, Ok(2));
//! space.advance(now + 1);
//! assert_eq!(space.counts(now + 1), (2, 3));
//! space.advance(now + 30_000);
//! assert_eq!(space.counts(now + 30_000), (0, 0));
//! ```

#![forbid(unsafe_code)]

pub mod codec;
pub mod collections;
pub mod digest;
pub mod expiry_queue;
pub mod feed;
pub mod glob;
pub mod json;
pub mod owners;
pub mod rules;
pub mod space;
