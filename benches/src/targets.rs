//! What is to be reached. One table; whether it was is printed, and decides nothing.

/// A figure of ours against one of somebody else's, or by itself.
pub struct Target {
    pub what: &'static str,
    /// What it is measured against, as people say it.
    pub against: &'static str,
    pub ours: &'static str,
    /// Empty: the figure itself is what counts.
    pub theirs: &'static str,
    pub at_most: f64,
}

const fn ratio(
    what: &'static str,
    ours: &'static str,
    at_most: f64,
    against: &'static str,
    theirs: &'static str,
) -> Target {
    Target { what, against, ours, theirs, at_most }
}

const RENEWAL: &str = "renewal of one session";
const LIST: &str = "renewal, 100 sessions a call";
const JOIN: &str = "join, published, in history";

/// `{}` stands for each of the shapes in turn.
pub const TARGETS: &[Target] = &[
    ratio(RENEWAL, "renewal.presence.{}", 1.8, "the floor", "renewal.floor.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.35, "ZADD, anywhere", "renewal.zadd-any.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.35, "ZADD, latest", "renewal.zadd.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.75, "SET EX, the metadata", "renewal.setex.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.75, "SET EX, one byte", "renewal.setex-bare.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.10, "Centrifugo classic", "renewal.classic.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.04, "Centrifugo map", "renewal.map.{}"),
    ratio(LIST, "list.presence.{}", 0.10, "ZADD of 100 members", "list.zadd.{}"),
    ratio(JOIN, "join.presence.{}", 0.15, "Centrifugo map", "join.map.{}"),
    ratio(JOIN, "join.presence.{}", 0.5, "Centrifugo classic + PUBLISH", "join.classic.{}"),
];
