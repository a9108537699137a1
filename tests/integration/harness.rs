//! A real server for each test, connections to it, and a subscriber that misses nothing. The code is in `testkit/`.
//!
//! ```ignore
//! let server = Server::start();                                  // or Server::with(&[("presence.lease-ttl-ms", "500")])
//! let mut c = server.connect();                                  // RESP2; server.connect3() speaks RESP3
//! let mut sub = server.subscribe(&["presence:s"]);               // subscribed when this returns
//!
//! assert_eq!(c.int("PRESENCE.ONLINE s alice PX 500"), 1);        // a &str is split at white space …
//! assert_eq!(c.int(["PRESENCE.ONLINE", "s", "a b"]), 1);         // … arrays, slices and Vecs are taken as they are
//! c.ok(args!["PRESENCE.ONLINE", "s", &bytes[..], "PX", 500]);    // … and args! mixes text, bytes and numbers
//! assert!(c.err("PRESENCE.ONLINE s").starts_with("ERR wrong number"));
//!
//! let join = sub.event(SOON);                                    // the next one, within SOON, or the test fails
//! assert_eq!(join.keys(), ["id", "space", "type", "user", "joined_at", "users", "at"]);
//! assert!(sub.events_so_far(&mut c).is_empty());                 // a fence, no waiting: all that was published before
//! wait_until("bob to leave", SOON, || c.int("PRESENCE.COUNT s") == 0);
//! ```
//!
//! Rules: no sleep where a condition can be waited for; upper bounds on time are generous (two cores, many servers),
//! lower bounds are exact. Each test has its own server, port and directory, so tests run side by side. A server ends
//! with its `Server`; one that died by itself fails the test. What the servers of a failed test have to show is written
//! to a file in `target/test-failures`, whose path the test prints. Do not keep a `Server` in a
//! static: statics are never dropped.
//!
//! `PRESENCE_SERVER` names the server's binary (default `redis-server`), `PRESENCE_MODULE` the module (default
//! `target/release/presence.so` of this project).

pub use presence_testkit::*;
