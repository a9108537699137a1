//! What is to be reached. One table; whether it was is printed, and decides nothing.

/// A figure of ours against one of somebody else's, or by itself.
pub struct Target {
    pub what: &'static str,
    /// What it is measured against, or its unit.
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

const fn figure(
    what: &'static str,
    ours: &'static str,
    at_most: f64,
    unit: &'static str,
) -> Target {
    Target { what, against: unit, ours, theirs: "", at_most }
}

const RENEWAL: &str = "renewal of one session";
const LIST: &str = "renewal, 100 sessions a call";
const JOIN: &str = "join, published, in history";
const COUNT: &str = "COUNT";
const SPACE: &str = "SPACE of 100k WITHSESSIONS";
const LAPSE: &str = "leave, 20,000 leases ending a second";
const CROWD: &str = "a quarter million leases at once";

/// `{}` stands for each of the shapes in turn.
pub const TARGETS: &[Target] = &[
    ratio(RENEWAL, "renewal.presence.{}", 1.8, "the baseline", "renewal.baseline.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.35, "ZADD, anywhere", "renewal.zadd-any.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.35, "ZADD, latest", "renewal.zadd.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.75, "SET EX, the metadata", "renewal.setex.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.75, "SET EX, one byte", "renewal.setex-bare.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.10, "Centrifugo classic", "renewal.classic.{}"),
    ratio(RENEWAL, "renewal.presence.{}", 0.04, "Centrifugo map", "renewal.map.{}"),
    ratio(
        "renewal with AOF and replica, 20k in one space",
        "configuration.presence.20k in one space.AOF and replica",
        1.3,
        "the same, bare",
        "configuration.presence.20k in one space.bare",
    ),
    figure(
        "replication stream and AOF of a renewal, 20k in one space",
        "propagated.presence.20k in one space.AOF and replica",
        15.0,
        "bytes",
    ),
    ratio(LIST, "list.presence.{}", 0.10, "ZADD of 100, anywhere", "list.zadd-any.{}"),
    ratio(LIST, "list.presence.{}", 0.10, "ZADD of 100, latest", "list.zadd.{}"),
    ratio(JOIN, "join.presence.{}", 0.15, "Centrifugo map", "join.map.{}"),
    ratio(JOIN, "join.presence.{}", 0.5, "Centrifugo classic + PUBLISH", "join.classic.{}"),
    ratio("STATUS of 500 users", "status.presence", 1.0, "ZMSCORE of 500", "status.zmscore"),
    ratio(
        COUNT,
        "count.presence.1k in 1 space",
        1.3,
        "the baseline, 1k sessions",
        "count.baseline",
    ),
    ratio(
        COUNT,
        "count.presence.1M in 1 space",
        1.3,
        "the baseline, 1M sessions",
        "count.baseline",
    ),
    ratio(SPACE, "space.presence", 0.25, "HGETALL of the same", "space.hgetall"),
    figure("a page of 1,000, the longest of a walk", "space.page longest", 1000.0, "us"),
    ratio(
        "renewal in a space of 1M",
        "renewal.presence.1M in 1 space",
        1.6,
        "one in a space of 1k",
        "renewal.presence.1k in 1 space",
    ),
    figure("memory of a session", "memory.presence.one space of 100k", 250.0, "bytes"),
    ratio(
        "memory of a session",
        "memory.presence.one space of 100k",
        0.5,
        "Centrifugo classic with users",
        "memory.classic-users.one space of 100k",
    ),
    ratio(
        "memory of a space of two",
        "memory.presence.1M spaces of 2",
        0.6,
        "Centrifugo classic",
        "memory.classic.1M spaces of 2",
    ),
    ratio("RDB save, 1M sessions", "save.presence", 1.0, "sorted set + hash", "save.plain"),
    ratio("RDB load, 1M sessions", "load.presence", 1.0, "sorted set + hash", "load.plain"),
    figure(LAPSE, "lapse.presence p99", 10.0, "ms late, p99"),
    figure(LAPSE, "lapse.presence max", 50.0, "ms late, max"),
    figure(CROWD, "crowd.presence all", 2000.0, "ms till all had left"),
    figure(CROWD, "crowd.presence ping p99.9", 2.0, "ms PING, p99.9"),
    figure(CROWD, "crowd.presence ping max", 5.0, "ms PING, max"),
    figure(CROWD, "crowd.presence rate lost", 0.1, "of other heartbeats lost"),
    figure("a million renewals a minute", "heartbeats growth", 1.0, "% more memory"),
];
