//! The settings of one space: those of the first rule that matches its name, else the global ones.
//!
//! Each space remembers the number of its rule ([`RuleCache`]), so that patterns are compared once per space and change
//! of the rules. A key that gets another name forgets it.

use super::config;
use presence_core::rules::{Rules, Setting, SpaceSettings};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

static RULES: Mutex<Option<Rules>> = Mutex::new(None);
static HAS_RULES: AtomicBool = AtomicBool::new(false);
/// How often the rules were set; never 0.
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// Takes in new rules, or says what is wrong with them.
pub fn set_rules(text: &str) -> Result<(), String> {
    let rules = Rules::parse(text).map_err(|error| error.to_string())?;
    if let Ok(mut kept) = RULES.lock() {
        HAS_RULES.store(!rules.is_empty(), Relaxed);
        *kept = Some(rules);
    }
    let next = GENERATION.load(Relaxed).wrapping_add(1) & RuleCache::GENERATIONS;
    GENERATION.store(next.max(1), Relaxed);
    Ok(())
}

fn with_rules<T>(use_them: impl FnOnce(&Rules) -> T) -> Option<T> {
    RULES.lock().ok()?.as_ref().map(use_them)
}

/// The number of the rule of a space. None where the global settings hold.
pub type Rule = Option<usize>;

/// The rule of a space, with the generation of the rules in which it was looked for.
#[derive(Debug, Default)]
pub struct RuleCache(AtomicU32);

impl RuleCache {
    /// Room for the greatest number of rules, and for none.
    const NUMBER_BITS: u32 = 10;
    const NUMBERS: u32 = (1 << Self::NUMBER_BITS) - 1;
    const GENERATIONS: u32 = u32::MAX >> Self::NUMBER_BITS;

    /// The name of the space has changed.
    pub fn forget(&self) {
        self.0.store(0, Relaxed);
    }

    pub fn rule(&self, space: &[u8]) -> Rule {
        if !HAS_RULES.load(Relaxed) {
            return None;
        }
        let (cached, generation) = (self.0.load(Relaxed), GENERATION.load(Relaxed));
        if cached >> Self::NUMBER_BITS == generation {
            return (cached & Self::NUMBERS).checked_sub(1).map(|rule| rule as usize);
        }
        let rule = rule_of(space);
        let number = rule.and_then(|rule| u32::try_from(rule + 1).ok()).unwrap_or(0);
        self.0.store(generation << Self::NUMBER_BITS | number & Self::NUMBERS, Relaxed);
        rule
    }
}

const _: () = assert!(presence_core::rules::MAX_RULES < RuleCache::NUMBERS as usize);

/// The rule of a space that has no value yet.
pub fn rule_of(space: &[u8]) -> Rule {
    if !HAS_RULES.load(Relaxed) {
        return None;
    }
    with_rules(|rules| rules.find(space)).flatten()
}

/// The settings under a rule.
pub fn settings(rule: Rule) -> SpaceSettings {
    let global = SpaceSettings::new(config::number);
    match rule {
        None => global,
        Some(rule) => with_rules(|rules| rules.apply(rule, global)).unwrap_or(global),
    }
}

/// The lease under a rule if the command gives none: never one that the command could not give.
pub fn lease_ttl_ms(rule: Rule) -> u64 {
    let of_rule = |rule| with_rules(|rules| rules.value(rule, Setting::LeaseTtlMs)).flatten();
    let lease = rule.and_then(of_rule).unwrap_or_else(|| config::number(Setting::LeaseTtlMs));
    lease.min(config::max_lease_ttl_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, as the rules are those of the process.
    #[test]
    fn a_space_keeps_its_rule_until_the_rules_or_its_name_change() {
        let cache = RuleCache::default();
        assert_eq!((cache.rule(b"a"), rule_of(b"a")), (None, None));
        set_rules("b* lease-ttl-ms=5; * history-length=0").unwrap();
        assert_eq!((cache.rule(b"a"), cache.rule(b"b")), (Some(1), Some(1)), "remembered");
        cache.forget();
        assert_eq!(cache.rule(b"b"), Some(0));
        assert_eq!(
            (lease_ttl_ms(Some(0)), lease_ttl_ms(Some(1)), lease_ttl_ms(None)),
            (5, 30_000, 30_000)
        );
        assert_eq!(settings(Some(1)).retention().length, 0);
        assert!(set_rules("x").unwrap_err().starts_with("rule 1 at byte 0"));
        assert_eq!(cache.rule(b"b"), Some(0), "as before");
        set_rules("c* max-seen=1; b max-seen=2").unwrap();
        assert_eq!(cache.rule(b"b"), Some(1));
        set_rules("c* max-seen=1").unwrap();
        assert_eq!((cache.rule(b"b"), settings(cache.rule(b"b")).max_seen()), (None, 100_000));
        set_rules("").unwrap();
        assert_eq!(cache.rule(b"c"), None);
        // The generations begin again, and none is 0.
        GENERATION.store(RuleCache::GENERATIONS, Relaxed);
        set_rules("b max-seen=2").unwrap();
        assert_eq!(GENERATION.load(Relaxed), 1);
        cache.forget();
        assert_eq!(cache.rule(b"b"), Some(0));
        set_rules("").unwrap();
    }
}
