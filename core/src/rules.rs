//! The settings that can differ from space to space, and the rules that say so: `presence.rules`.
//!
//! A text of rules is parsed once. A rule has a pattern and values for some settings. The first rule whose pattern
//! matches the name of a space holds for that space; the global settings hold for what this rule does not name.
//!
//! - bounds: a text has at most [`MAX_TEXT_BYTES`] bytes and [`MAX_RULES`] rules, and each value is in the range of the
//!   global setting;
//! - cost: [`Rules::find`] compares the name with one pattern after the other, each in linear time. Callers keep the
//!   number of the rule until the rules or the name change.

use crate::glob::Glob;
use crate::space::{Limits, Retention, SeenLimits, shown_name};
use std::fmt;

/// The longest text of rules.
pub const MAX_TEXT_BYTES: usize = 32 << 10;
/// The greatest number of rules.
pub const MAX_RULES: usize = 256;

const DAY_MS: u64 = 86_400_000;
const YEAR_MS: u64 = 365 * DAY_MS;

/// Which events of a user are also published on a channel of this user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserChannels {
    #[default]
    No = 0,
    /// Join and leave.
    Transitions = 1,
    /// Every event but message and close.
    All = 2,
}

impl UserChannels {
    /// The names of the values, in the order of their numbers.
    pub const WORDS: [&'static str; 3] = ["no", "transitions", "all"];

    pub fn from_number(number: u64) -> Self {
        match number {
            1 => UserChannels::Transitions,
            2 => UserChannels::All,
            _ => UserChannels::No,
        }
    }
}

/// A setting that rules can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    LeaseTtlMs,
    HistoryLength,
    HistoryTtlMs,
    MaxSessionsPerUser,
    MaxUsersPerSpace,
    DigestIntervalMs,
    DigestMaxChanges,
    UserChannels,
    SeenTtlMs,
    MaxSeen,
}

/// How many settings rules can name.
const SETTINGS: usize = Setting::ALL.len();

impl Setting {
    pub const ALL: [Setting; 10] = [
        Setting::LeaseTtlMs,
        Setting::HistoryLength,
        Setting::HistoryTtlMs,
        Setting::MaxSessionsPerUser,
        Setting::MaxUsersPerSpace,
        Setting::DigestIntervalMs,
        Setting::DigestMaxChanges,
        Setting::UserChannels,
        Setting::SeenTtlMs,
        Setting::MaxSeen,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Setting::LeaseTtlMs => "lease-ttl-ms",
            Setting::HistoryLength => "history-length",
            Setting::HistoryTtlMs => "history-ttl-ms",
            Setting::MaxSessionsPerUser => "max-sessions-per-user",
            Setting::MaxUsersPerSpace => "max-users-per-space",
            Setting::DigestIntervalMs => "digest-interval-ms",
            Setting::DigestMaxChanges => "digest-max-changes",
            Setting::UserChannels => "user-channels",
            Setting::SeenTtlMs => "seen-ttl-ms",
            Setting::MaxSeen => "max-seen",
        }
    }

    /// The default, the least value and the greatest one.
    pub const fn range(self) -> (u64, u64, u64) {
        match self {
            Setting::LeaseTtlMs => (30_000, 1, YEAR_MS),
            Setting::HistoryLength => (128, 0, 1_000_000),
            Setting::HistoryTtlMs => (60_000, 0, YEAR_MS),
            Setting::MaxSessionsPerUser => (1024, 1, 65536),
            Setting::MaxUsersPerSpace => (0, 0, u32::MAX as u64),
            Setting::DigestIntervalMs => (0, 0, DAY_MS),
            Setting::DigestMaxChanges => (500, 0, 100_000),
            Setting::UserChannels => (0, 0, 2),
            Setting::SeenTtlMs => (0, 0, YEAR_MS),
            Setting::MaxSeen => (100_000, 0, 10_000_000),
        }
    }

    fn parse(self, value: &str) -> Result<u64, String> {
        if self == Setting::UserChannels {
            let mut words = UserChannels::WORDS.iter();
            let number = words.position(|word| word.eq_ignore_ascii_case(value));
            return number.map(|number| number as u64).ok_or_else(|| {
                format!("{} is {}, not {}", self.name(), UserChannels::WORDS.join(", "), cut(value))
            });
        }
        let (_, least, most) = self.range();
        let is_plain = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value.parse().ok().filter(|number| (least..=most).contains(number));
        number.filter(|_| is_plain).ok_or_else(|| {
            format!("{} is a number from {least} to {most}, not {}", self.name(), cut(value))
        })
    }
}

/// The settings that hold for one space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceSettings([u64; SETTINGS]);

impl SpaceSettings {
    pub fn new(value_of: impl Fn(Setting) -> u64) -> Self {
        SpaceSettings(Setting::ALL.map(value_of))
    }

    fn get(&self, setting: Setting) -> u64 {
        self.0.get(setting as usize).copied().unwrap_or(0)
    }

    /// The lease if a command gives none.
    pub fn lease_ttl_ms(&self) -> u64 {
        self.get(Setting::LeaseTtlMs)
    }

    pub fn retention(&self) -> Retention {
        Retention {
            length: self.get(Setting::HistoryLength),
            ttl: self.get(Setting::HistoryTtlMs),
            seen: SeenLimits { ttl: self.seen_ttl_ms(), users: self.max_seen() },
        }
    }

    /// With this slack, which is not a setting of a space.
    pub fn limits(&self, slack: u64) -> Limits {
        Limits {
            sessions_per_user: self.get(Setting::MaxSessionsPerUser),
            users: self.get(Setting::MaxUsersPerSpace),
            retention: self.retention(),
            slack,
        }
    }

    /// 0: no digests and no counts.
    pub fn digest_interval_ms(&self) -> u64 {
        self.get(Setting::DigestIntervalMs)
    }

    pub fn digest_max_changes(&self) -> usize {
        usize::try_from(self.get(Setting::DigestMaxChanges)).unwrap_or(usize::MAX)
    }

    pub fn user_channels(&self) -> UserChannels {
        UserChannels::from_number(self.get(Setting::UserChannels))
    }

    /// How long a user who left is remembered; 0: not at all.
    pub fn seen_ttl_ms(&self) -> u64 {
        self.get(Setting::SeenTtlMs)
    }

    /// How many users who left are remembered.
    pub fn max_seen(&self) -> u64 {
        self.get(Setting::MaxSeen)
    }
}

/// What is wrong with a text of rules, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// The number of the rule, from 1. 0: the text as a whole.
    pub rule: usize,
    /// The position in the text, in bytes from 0.
    pub at: usize,
    pub what: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.rule {
            0 => write!(f, "rules: {}", self.what),
            rule => write!(f, "rule {rule} at byte {}: {}", self.at, self.what),
        }
    }
}

impl std::error::Error for RuleError {}

#[derive(Debug)]
struct Rule {
    pattern: Glob,
    values: [Option<u64>; SETTINGS],
}

impl Rule {
    fn set(&mut self, setting: Setting, value: u64) -> bool {
        let slot = self.values.get_mut(setting as usize);
        slot.is_some_and(|slot| slot.replace(value).is_none())
    }
}

/// Rules, in their order.
#[derive(Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Parses `pattern name=value [name=value …]`, rules separated by `;`. There may be white space around everything
    /// but the `=`, and a rule may be empty.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        if text.len() > MAX_TEXT_BYTES {
            let what = format!("the text is longer than {MAX_TEXT_BYTES} bytes");
            return Err(RuleError { rule: 0, at: 0, what });
        }
        let (mut rules, mut at) = (Vec::new(), 0);
        for part in text.split(';') {
            if let Some(rule) = parse_rule(part).map_err(|(offset, what)| RuleError {
                rule: rules.len() + 1,
                at: at + offset,
                what,
            })? {
                if rules.len() == MAX_RULES {
                    let what = format!("there are more than {MAX_RULES} rules");
                    return Err(RuleError { rule: 0, at, what });
                }
                rules.push(rule);
            }
            at += part.len() + 1;
        }
        Ok(Rules(rules))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The number, from 0, of the first rule that matches a space. Of a longer name than commands take, the part that
    /// events carry is compared.
    pub fn find(&self, space: &[u8]) -> Option<usize> {
        let name = shown_name(space);
        self.0.iter().position(|rule| rule.pattern.matches(name))
    }

    /// The settings of a space for which the rule of this number holds.
    pub fn apply(&self, rule: usize, global: SpaceSettings) -> SpaceSettings {
        let Some(rule) = self.0.get(rule) else { return global };
        SpaceSettings::new(|setting| {
            let value = rule.values.get(setting as usize).copied().flatten();
            value.unwrap_or_else(|| global.get(setting))
        })
    }

    /// The value that a rule has for a setting. None where the global one holds.
    pub fn value(&self, rule: usize, setting: Setting) -> Option<u64> {
        self.0.get(rule)?.values.get(setting as usize).copied().flatten()
    }
}

/// None if there is nothing but white space. An error has its position in `text`.
fn parse_rule(text: &str) -> Result<Option<Rule>, (usize, String)> {
    let mut words = words(text);
    let Some((at, pattern)) = words.next() else { return Ok(None) };
    let glob = Glob::new(pattern.as_bytes());
    let pattern = glob.ok_or_else(|| (at, "the pattern is too long".to_string()))?;
    let mut rule = Rule { pattern, values: [None; SETTINGS] };
    let mut is_bare = true;
    for (at, word) in words {
        let error = |what: String| Err((at, what));
        let Some((name, value)) = word.split_once('=') else {
            return error(format!("{} is not name=value", cut(word)));
        };
        let is_named = |setting: &Setting| setting.name().eq_ignore_ascii_case(name);
        let Some(setting) = Setting::ALL.into_iter().find(is_named) else {
            return error(format!("rules have no setting {}", cut(name)));
        };
        let value = setting.parse(value).map_err(|what| (at, what))?;
        if !rule.set(setting, value) {
            return error(format!("{} is there twice", setting.name()));
        }
        is_bare = false;
    }
    if is_bare {
        return Err((at, "a setting is missing after the pattern".to_string()));
    }
    Ok(Some(rule))
}

/// The words of a text, with their positions.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split(|c: char| c.is_ascii_whitespace())
        .map(move |word| {
            let begins = at;
            at += word.len() + 1;
            (begins, word)
        })
        .filter(|(_, word)| !word.is_empty())
}

/// Part of a text, for an error: at most its first 32 characters, without control characters.
fn cut(text: &str) -> String {
    let shown: String = text.chars().take(32).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!("'{}{more}'", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn global() -> SpaceSettings {
        SpaceSettings::new(|setting| setting.range().0)
    }

    fn error(text: &str) -> String {
        Rules::parse(text).unwrap_err().to_string()
    }

    fn of(rules: &Rules, name: &str) -> SpaceSettings {
        rules.find(name.as_bytes()).map_or(global(), |rule| rules.apply(rule, global()))
    }

    #[test]
    fn the_first_match_alone_counts() {
        let text = " chat:* history-length=0\thistory-ttl-ms=5;;doc:* lease-ttl-ms=7 user-channels=ALL ;\
                    doc:1 max-seen=9;* max-users-per-space=3 digest-interval-ms=1000 ; ";
        let rules = Rules::parse(text).unwrap();
        assert_eq!(rules.len(), 4);
        let chat = of(&rules, "chat:a");
        assert_eq!((chat.retention().length, chat.retention().ttl), (0, 5));
        assert_eq!((chat.lease_ttl_ms(), chat.limits(0).users), (30_000, 0), "the rest is global");
        let doc = of(&rules, "doc:1");
        assert_eq!((doc.lease_ttl_ms(), doc.user_channels()), (7, UserChannels::All));
        assert_eq!((doc.max_seen(), doc.limits(0).users), (100_000, 0), "later rules do not count");
        let other = of(&rules, "lobby");
        assert_eq!((other.limits(0).users, other.digest_interval_ms()), (3, 1000));
        assert_eq!(rules.value(1, Setting::LeaseTtlMs), Some(7));
        assert_eq!(rules.value(1, Setting::MaxSeen), None);
        assert_eq!(rules.value(9, Setting::MaxSeen), None);
        assert_eq!(rules.apply(9, global()), global());
        let none = Rules::parse("").unwrap();
        assert!(none.is_empty() && none.find(b"x").is_none());
    }

    #[test]
    fn zero_and_no_beat_the_global_setting() {
        let global = SpaceSettings::new(|setting| setting.range().2);
        let rules =
            Rules::parse("* history-length=0 digest-interval-ms=0 user-channels=no seen-ttl-ms=0")
                .unwrap();
        let settings = rules.apply(0, global);
        assert_eq!((settings.retention().length, settings.digest_interval_ms()), (0, 0));
        assert_eq!((settings.user_channels(), settings.seen_ttl_ms()), (UserChannels::No, 0));
        assert_eq!(settings.lease_ttl_ms(), YEAR_MS);
    }

    #[test]
    fn bad_rules_are_refused_with_their_place() {
        for (text, expected) in [
            ("a", "rule 1 at byte 0: a setting is missing after the pattern"),
            ("a max-seen=1; b", "rule 2 at byte 14: a setting is missing after the pattern"),
            ("a max-seen", "rule 1 at byte 2: 'max-seen' is not name=value"),
            ("a feed-bytes=1", "rule 1 at byte 2: rules have no setting 'feed-bytes'"),
            ("a max-seen =1", "rule 1 at byte 2: 'max-seen' is not name=value"),
            ("a max-seen= 1", "rule 1 at byte 2: max-seen is a number from 0 to 10000000, not ''"),
            ("a max-seen=1 max-seen=1", "rule 1 at byte 13: max-seen is there twice"),
            (
                "a lease-ttl-ms=0",
                "rule 1 at byte 2: lease-ttl-ms is a number from 1 to 31536000000, not '0'",
            ),
            (
                "a max-seen=-1",
                "rule 1 at byte 2: max-seen is a number from 0 to 10000000, not '-1'",
            ),
            (
                "a max-seen=+1",
                "rule 1 at byte 2: max-seen is a number from 0 to 10000000, not '+1'",
            ),
            (
                "a max-seen=1=2",
                "rule 1 at byte 2: max-seen is a number from 0 to 10000000, not '1=2'",
            ),
            (
                "a user-channels=some",
                "rule 1 at byte 2: user-channels is no, transitions, all, not 'some'",
            ),
            ("a \u{1}\u{1F600}", "rule 1 at byte 2: '\\u{1}\u{1F600}' is not name=value"),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
        assert!(error(&"a max-seen=1;".repeat(MAX_RULES + 1)).contains("more than 256 rules"));
        assert_eq!(Rules::parse(&"a max-seen=1;".repeat(MAX_RULES)).unwrap().len(), MAX_RULES);
        assert!(error(&" ".repeat(MAX_TEXT_BYTES + 1)).contains("longer than"));
        assert!(
            error(&format!("{} max-seen=1", "x".repeat(9000))).contains("the pattern is too long")
        );
        assert!(error(&format!("a {}", "y".repeat(99))).ends_with("…' is not name=value"));
    }

    #[test]
    fn of_a_long_name_its_first_bytes_count() {
        let rules = Rules::parse("*z max-seen=1; x* max-seen=2").unwrap();
        let long = "x".repeat(5000) + "z";
        assert_eq!(rules.find(long.as_bytes()), Some(1));
        assert_eq!(rules.find(b"xz"), Some(0));
    }

    /// A rule as text: a pattern, and settings with values.
    fn rule() -> impl Strategy<Value = (String, Vec<(usize, u64)>)> {
        let values = prop::collection::btree_map(0..SETTINGS, 0..3u64, 1..4);
        ("[ab*?]{1,4}", values.prop_map(|values| values.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn noise_is_survived(text in "[ab*;= \\[\\]0-9\\PC-]{0,60}", name in "[ab]{0,4}") {
            if let Ok(rules) = Rules::parse(&text) {
                let _ = rules.find(name.as_bytes());
            }
        }

        /// As a naive reading of the same text says.
        #[test]
        fn settings_are_those_of_a_naive_model(
            rules in prop::collection::vec(rule(), 0..5),
            name in "[ab]{0,4}",
            spaces in "[ \t]{1,3}",
        ) {
            let mut text = String::new();
            for (pattern, values) in &rules {
                text += pattern;
                for (at, value) in values {
                    let setting = Setting::ALL[*at];
                    let value = (*value).max(setting.range().1);
                    let value = match setting {
                        Setting::UserChannels => UserChannels::WORDS[value as usize].to_string(),
                        _ => value.to_string(),
                    };
                    text += &format!("{spaces}{}={value}", setting.name());
                }
                text += ";";
            }
            let parsed = Rules::parse(&text).unwrap();
            prop_assert_eq!(parsed.len(), rules.len());
            let matching = rules.iter().find(|(pattern, _)| naive(pattern.as_bytes(), name.as_bytes()));
            let expected = SpaceSettings::new(|setting| {
                let (default, least, _) = setting.range();
                let of_rule = matching.and_then(|(_, values)| {
                    values.iter().find(|(at, _)| Setting::ALL[*at] == setting)
                });
                of_rule.map_or(default, |(_, value)| (*value).max(least))
            });
            prop_assert_eq!(of(&parsed, &name), expected);
        }
    }

    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|skip| naive(rest, &name[skip..])),
            [b'?', rest @ ..] => !name.is_empty() && naive(rest, &name[1..]),
            [byte, rest @ ..] => name.first() == Some(byte) && naive(rest, &name[1..]),
        }
    }
}
