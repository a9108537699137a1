//! The rate limit of a client's messages.

use std::time::{Duration, Instant};

/// At most `rate` messages per second, and twice as many at once after a quiet time.
pub(super) struct RateLimit {
    rate: f64,
    left: f64,
    at: Instant,
}

impl RateLimit {
    pub fn new(rate: u32) -> RateLimit {
        RateLimit { rate: rate.into(), left: 2.0 * f64::from(rate), at: Instant::now() }
    }

    /// Waits until the next message may be handled.
    pub async fn wait(&mut self) {
        let pause = self.take(Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes one message at `now`. Returns how long it has to wait.
    fn take(&mut self, now: Instant) -> Duration {
        let earned = (now - self.at).as_secs_f64() * self.rate;
        self.left = (self.left + earned).min(2.0 * self.rate) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.left / self.rate).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut limit = RateLimit::new(10);
        let now = limit.at;
        for _ in 0..20 {
            assert_eq!(limit.take(now), Duration::ZERO);
        }
        assert_eq!(limit.take(now).as_millis(), 100);
        assert_eq!(limit.take(now).as_millis(), 200);
        // Two are earned back, and an hour is worth no more than a burst.
        assert_eq!(limit.take(now + Duration::from_millis(200)).as_millis(), 100);
        let later = now + Duration::from_secs(3600);
        for _ in 0..20 {
            assert_eq!(limit.take(later), Duration::ZERO);
        }
        assert_eq!(limit.take(later).as_millis(), 100);
    }
}
