//! Numbers for connections.

use std::sync::atomic::{AtomicU32, Ordering};

/// The upper half of a number names the gateway, at random; the lower half counts. Of two connections of one gateway the
/// later one has the greater number.
pub struct ConnNumbers {
    gateway: u32,
    count: AtomicU32,
}

impl ConnNumbers {
    pub fn new(gateway: u32) -> ConnNumbers {
        ConnNumbers { gateway, count: AtomicU32::new(0) }
    }

    pub fn next(&self) -> u64 {
        let count = self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        u64::from(self.gateway) << 32 | u64::from(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_connections_have_greater_numbers() {
        let numbers = ConnNumbers::new(0xfedc_ba98);
        assert_eq!(numbers.next(), 0xfedc_ba98_0000_0001);
        assert_eq!(numbers.next(), 0xfedc_ba98_0000_0002);
        let last = ConnNumbers { gateway: 1, count: AtomicU32::new(u32::MAX) };
        assert_eq!(last.next(), 0x0000_0001_0000_0000);
    }
}
