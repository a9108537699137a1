//! What is done in a round: a pure function of the seed and the number of the round. When exactly it happens, and what
//! happens at the same time, is up to the machine.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// The longest plan of a round.
pub const LONGEST: Duration = Duration::from_secs(12);
pub const SPACES: [&str; 4] = ["t0", "t1", "t2", "t3"];
pub const SESSIONS: [&str; 3] = ["", "a", "b"];
pub const CLIENTS: usize = 6;
const USERS: usize = 4;
/// `presence.lease-ttl-ms`
pub const DEFAULT_LEASE: i64 = 700;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Topology {
    /// One server with an append-only file that is synced at each write.
    Single,
    /// A primary and two replicas of it.
    Star,
    /// A primary, its replica, the replica's replica.
    Chain,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub round: u64,
    pub topology: Topology,
    pub grace: i64,
    /// All servers have an append-only file, synced at each write.
    pub aof: bool,
    pub diskless: &'static str,
    /// How far the clock of each client is wrong.
    pub skews: Vec<i64>,
    /// How each space goes to another place in the end, where all in it are to lapse.
    pub last_trips: Vec<Trip>,
    /// And whether another server decides then, or the same after a crash.
    pub last_crash: bool,
}

/// A fault, after so many ms of nothing but clients. Nodes are numbers modulo however many there are to choose from.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub after: u64,
    pub fault: Fault,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// kill -9 of the primary; the replica that is furthest becomes primary.
    KillAndPromote {
        chain: bool,
    },
    /// The primary is cut off (or stopped) but lives on for a while; a replica becomes primary.
    Usurp {
        stop: bool,
        alone: u64,
        both: u64,
        chain: bool,
    },
    /// One replica is cut off, then the primary killed.
    CutAndKill {
        replica: usize,
        hold: u64,
        chain: bool,
    },
    Failover {
        replica: usize,
    },
    /// kill -9 and back from the append-only file.
    KillAndRestart,
    /// SHUTDOWN and back from the append-only file.
    CleanRestart,
    /// DEBUG RELOAD of the primary: saved as RDB, and loaded.
    Reload,
    /// DEBUG LOADAOF
    LoadAof,
    RewriteAof,
    KillReplica {
        replica: usize,
    },
    ReloadReplica {
        replica: usize,
    },
    Stop {
        node: usize,
        hold: u64,
    },
    Pause {
        all: bool,
        hold: u64,
    },
    Cut {
        replica: usize,
        silent: bool,
        hold: u64,
    },
    /// A key goes away and comes back in one transaction, as it was.
    Trip {
        space: usize,
        by: Trip,
    },
    Wipe {
        space: usize,
    },
    Close {
        space: usize,
        hold: u64,
    },
    Compare,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trip {
    Rename,
    Copy,
    Restore,
    Move,
    Swap,
}

/// What a client does next.
#[derive(Clone, Debug, PartialEq)]
pub struct Act {
    pub pause: u64,
    pub space: usize,
    pub user: String,
    pub verb: Verb,
    /// In MULTI, and with what else.
    pub and: Option<Box<Act>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    Online {
        session: usize,
        time: Time,
        meta: Option<u32>,
        condition: Option<&'static str>,
    },
    /// `USERS n`: some users of this client.
    OnlineMany {
        users: Vec<String>,
        time: Time,
    },
    /// `SESSIONS n`: all sessions of the user.
    OnlineAll {
        time: Time,
    },
    Offline {
        session: Option<usize>,
        linger: i64,
    },
    Message {
        text: u32,
    },
    Look,
    Wait,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Time {
    Default,
    Px(i64),
    Ex(i64),
    /// By the client's clock.
    PxAt(i64),
    ExAt(i64),
}

fn rng(seed: u64, round: u64, what: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (what << 48))
}

impl Plan {
    pub fn new(seed: u64, round: u64) -> Plan {
        let mut rng = rng(seed, round, 1);
        let topology = match rng.random_range(0..8) {
            _ if round == 1 => Topology::Single,
            0..2 if round > 1 => Topology::Single,
            0..5 => Topology::Star,
            _ => Topology::Chain,
        };
        Plan {
            seed,
            round,
            topology,
            grace: *[0, 300, 300, 1200, 3000].choose(&mut rng).unwrap(),
            aof: topology == Topology::Single || rng.random_bool(0.4),
            diskless: ["no", "yes"].choose(&mut rng).unwrap(),
            skews: (0..CLIENTS)
                .map(|_| *[0, 0, 0, 1500, -400, -3000].choose(&mut rng).unwrap())
                .collect(),
            last_trips: (0..SPACES.len()).map(|_| trip(&mut rng)).collect(),
            last_crash: rng.random_bool(0.5),
        }
    }

    /// The faults, without end.
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let mut rng = rng(self.seed, self.round, 2);
        let (topology, aof) = (self.topology, self.aof);
        std::iter::repeat_with(move || Step {
            after: rng.random_range(20..500),
            fault: match topology {
                Topology::Single => alone(&mut rng),
                _ => replicated(&mut rng, aof),
            },
        })
    }

    /// What a client does, without end.
    pub fn acts(&self, client: usize) -> impl Iterator<Item = Act> + use<> {
        let mut rng = rng(self.seed, self.round, 16 + client as u64);
        std::iter::repeat_with(move || {
            let first = act(&mut rng, client);
            let paired = rng.random_bool(0.1)
                && !matches!(first.verb, Verb::Look | Verb::Wait | Verb::OnlineMany { .. });
            let and = paired.then(|| {
                let verb = online(&mut rng);
                Box::new(Act { pause: 0, verb, and: None, ..first.clone() })
            });
            Act { and, ..first }
        })
    }

    /// What the reader reads: a space and a node, after so many ms.
    pub fn glimpses(&self) -> impl Iterator<Item = (u64, usize, usize)> + use<> {
        let mut rng = rng(self.seed, self.round, 3);
        std::iter::repeat_with(move || {
            (rng.random_range(20..150), rng.random_range(0..SPACES.len()), rng.random_range(0..6))
        })
    }
}

fn alone(rng: &mut StdRng) -> Fault {
    match rng.random_range(0..100) {
        0..25 => Fault::KillAndRestart,
        25..33 => Fault::CleanRestart,
        33..41 => Fault::Reload,
        41..46 => Fault::LoadAof,
        46..54 => Fault::RewriteAof,
        54..62 => Fault::Stop { node: 0, hold: rng.random_range(50..600) },
        _ => anywhere(rng),
    }
}

fn replicated(rng: &mut StdRng, aof: bool) -> Fault {
    let (replica, chain) = (rng.random_range(0..2), rng.random_bool(0.5));
    match rng.random_range(0..100) {
        0..11 => Fault::KillAndPromote { chain },
        11..19 => {
            let (alone, both) = (rng.random_range(0..300), rng.random_range(0..300));
            Fault::Usurp { stop: rng.random_bool(0.3), alone, both, chain }
        }
        19..24 => Fault::CutAndKill { replica, hold: rng.random_range(0..300), chain },
        24..33 => Fault::Failover { replica },
        33..38 if aof => Fault::KillAndRestart,
        38..40 if aof => Fault::CleanRestart,
        33..40 => Fault::KillReplica { replica },
        40..44 => Fault::Reload,
        44..47 => Fault::ReloadReplica { replica },
        47..53 => Fault::Stop { node: rng.random_range(0..3), hold: rng.random_range(50..600) },
        53..65 => {
            Fault::Cut { replica, silent: rng.random_bool(0.5), hold: rng.random_range(10..800) }
        }
        65..72 => Fault::Compare,
        _ => anywhere(rng),
    }
}

fn anywhere(rng: &mut StdRng) -> Fault {
    let space = rng.random_range(0..SPACES.len());
    match rng.random_range(0..10) {
        0..2 => Fault::Pause { all: rng.random_bool(0.3), hold: rng.random_range(20..500) },
        2..7 => Fault::Trip { space, by: trip(rng) },
        7..9 => Fault::Wipe { space },
        _ => Fault::Close { space, hold: rng.random_range(20..200) },
    }
}

fn trip(rng: &mut StdRng) -> Trip {
    *[Trip::Rename, Trip::Copy, Trip::Restore, Trip::Move, Trip::Swap].choose(rng).unwrap()
}

fn act(rng: &mut StdRng, client: usize) -> Act {
    let user = |rng: &mut StdRng| format!("c{client}u{}", rng.random_range(0..USERS));
    let verb = match rng.random_range(0..100) {
        0..56 => online(rng),
        56..62 => {
            let mut users: Vec<_> = (0..2).map(|_| user(rng)).collect();
            users.dedup();
            Verb::OnlineMany { users, time: time(rng) }
        }
        62..66 => Verb::OnlineAll { time: time(rng) },
        66..76 => Verb::Offline { session: session(rng), linger: 0 },
        76..82 => Verb::Offline { session: session(rng), linger: rng.random_range(1..300) },
        82..86 => Verb::Message { text: rng.random() },
        86..95 => Verb::Look,
        _ => Verb::Wait,
    };
    let space = rng.random_range(0..SPACES.len());
    Act { pause: rng.random_range(0..12), space, user: user(rng), verb, and: None }
}

fn session(rng: &mut StdRng) -> Option<usize> {
    rng.random_bool(0.6).then(|| rng.random_range(0..SESSIONS.len()))
}

fn online(rng: &mut StdRng) -> Verb {
    Verb::Online {
        session: rng.random_range(0..SESSIONS.len()),
        time: time(rng),
        meta: rng.random_bool(0.3).then(|| rng.random()),
        condition: match rng.random_range(0..10) {
            0 => Some("NX"),
            1 => Some("XX"),
            _ => None,
        },
    }
}

fn time(rng: &mut StdRng) -> Time {
    match rng.random_range(0..20) {
        0..2 => Time::Default,
        2..8 => Time::Px(rng.random_range(1..200)),
        8..13 => Time::Px(rng.random_range(200..1500)),
        13..15 => Time::Ex(rng.random_range(1..3)),
        15..18 => Time::PxAt(rng.random_range(50..1500)),
        _ => Time::ExAt(rng.random_range(1..3)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_function_of_its_seed() {
        let steps = |seed, round| Plan::new(seed, round).steps().take(50).collect::<Vec<_>>();
        let acts = |seed, client| Plan::new(seed, 1).acts(client).take(500).collect::<Vec<_>>();
        assert_eq!(steps(5, 1), steps(5, 1));
        assert_eq!(acts(5, 2), acts(5, 2));
        assert_ne!(steps(5, 1), steps(6, 1));
        assert_ne!(steps(5, 1), steps(5, 2));
        assert_ne!(acts(5, 2), acts(5, 3));
        assert!((0..20).all(|seed| Plan::new(seed, 0).topology != Topology::Single));
    }
}
