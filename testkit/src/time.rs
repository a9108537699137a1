//! Time in tests: the clock, deadlines, and machines that stand still.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Enough time for anything that must happen immediately, on a busy machine.
pub const SOON: Duration = Duration::from_secs(5);
/// No reply takes longer than this; a hung server fails the test instead of hanging it.
pub(crate) const REPLY_DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(30);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The clock that server and tests share, in unix milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Sleeps until the clock shows `at` (unix ms) or later. For moments that a test names itself ("at 500 and 900 ms").
pub fn sleep_until(at: i64) {
    while now_ms() < at {
        thread::sleep(ms((at - now_ms()).clamp(1, 1000) as u64));
    }
}

/// Runs a test that has to do things at certain moments. If it fails and the machine itself stood still meanwhile (it
/// is shared, and does so for up to a second), it is run again. What no slow machine can cause is never forgiven: a
/// panic that says "too early", a connection that was lost, a server that died.
#[track_caller]
pub fn steady(test: impl Fn()) {
    longest_stall_since(Instant::now()); // the watch begins
    for attempt in 1.. {
        let began = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test));
        let Err(panic) = result else { return };
        let text = panic.downcast_ref::<String>().map_or("", String::as_str);
        let fatal = ["too early", "lost", "died"].iter().any(|word| text.contains(word));
        let stall = longest_stall_since(began);
        if fatal || attempt == 6 || stall < ms(40) {
            std::panic::resume_unwind(panic);
        }
        println!("attempt {attempt} failed, but the machine stood still for {stall:?}: again");
    }
}

/// The longest time since `began` that a thread which wanted to run did not.
fn longest_stall_since(began: Instant) -> Duration {
    static STALLS: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());
    static WATCH: std::sync::Once = std::sync::Once::new();
    WATCH.call_once(|| {
        thread::spawn(|| {
            loop {
                let asleep = Instant::now();
                thread::sleep(ms(5));
                let stall = asleep.elapsed().saturating_sub(ms(5));
                if stall > ms(20) {
                    STALLS.lock().unwrap().push((Instant::now(), stall));
                }
            }
        });
    });
    let stalls = STALLS.lock().unwrap();
    stalls.iter().filter(|(end, _)| *end > began).map(|(_, stall)| *stall).max().unwrap_or_default()
}

/// A moment (unix ms) not before `from` and not after `to`.
#[track_caller]
pub fn within(what: &str, got: i64, from: i64, to: i64) {
    assert!(got >= from, "{} ms too early: {what}, {got} and not {from}", from - got);
    assert!(got <= to, "{} ms late: {what}, {got} and not {to}", got - to);
}

/// Polls `cond` until it holds; fails the test after `deadline`.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut cond: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !cond() {
        assert!(Instant::now() < end, "timed out after {deadline:?}: {what}");
        thread::sleep(ms(2));
    }
}

/// A generator that gives the same numbers in each run; PRESENCE_SEED gives others. A failed test shows the seed.
pub fn rng(seed: u64) -> rand::rngs::StdRng {
    let seed = std::env::var("PRESENCE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
    println!("PRESENCE_SEED={seed}");
    rand::SeedableRng::seed_from_u64(seed)
}
