//! The channels of a space: their names, and how the server is asked to publish on them.

use crate::server::ffi::args::Arg;
use crate::server::ffi::context::{Context, OwnedString};
use crate::server::module::config::{self, ChannelMode};

/// Publishes what happens in a space.
pub struct Publisher<'a> {
    ctx: Context,
    space: Arg<'a>,
    /// The channel of its events, made when the first one is published.
    channel: Option<Channel>,
}

/// How the server is asked to publish.
enum Channel {
    /// To the subscribers of this node only: there is nobody else, see `propagation_targets`.
    Here(OwnedString),
    Everywhere(ChannelMode, OwnedString),
    /// In sharded mode some names have no channel.
    None,
}

impl<'a> Publisher<'a> {
    pub fn new(ctx: Context, space: Arg<'a>) -> Self {
        Publisher { ctx, space, channel: None }
    }

    /// Publishes an event to the followers of the space. Returns whether the server did. `unheard`: nobody receives what
    /// this server replicates.
    pub fn publish(&mut self, unheard: bool, event: &[u8]) -> bool {
        let space = self.space.bytes();
        let channel = self.channel.get_or_insert_with(|| {
            let of_space =
                |mode| config::with_channel_prefix(|prefix| channel(mode, prefix, space));
            Channel::of(unheard, of_space)
        });
        channel.publish(self.ctx, event)
    }

    /// Publishes what has changed since the last digest.
    pub fn publish_digest(&self, unheard: bool, digest: &[u8]) -> bool {
        let space = self.space.bytes();
        let of_digests = |mode| config::with_digest_prefix(|prefix| channel(mode, prefix, space));
        Channel::of(unheard, of_digests).publish(self.ctx, digest)
    }

    /// Publishes how many users and sessions there are.
    pub fn publish_count(&self, unheard: bool, count: &[u8]) -> bool {
        let space = self.space.bytes();
        let of_counts = |mode| config::with_count_prefix(|prefix| channel(mode, prefix, space));
        Channel::of(unheard, of_counts).publish(self.ctx, count)
    }

    /// Publishes an event to those who watch its user.
    pub fn publish_for_user(&self, unheard: bool, user: &[u8], event: &[u8]) -> bool {
        let space = self.space.bytes();
        let of_user =
            |mode| config::with_user_prefix(|prefix| user_channel(mode, prefix, space, user));
        Channel::of(unheard, of_user).publish(self.ctx, event)
    }
}

impl Channel {
    fn of(unheard: bool, name: impl FnOnce(ChannelMode) -> Option<Vec<u8>>) -> Channel {
        let mode = config::channel_mode();
        let Some(name) = name(mode).map(|name| OwnedString::new(&name)) else {
            return Channel::None;
        };
        match mode {
            ChannelMode::Global if unheard && Context::can_publish_here(mode) => {
                Channel::Here(name)
            }
            _ => Channel::Everywhere(mode, name),
        }
    }

    fn publish(&self, ctx: Context, message: &[u8]) -> bool {
        match self {
            Channel::Here(channel) => {
                ctx.publish_here(ChannelMode::Global, channel.as_arg(), message)
            }
            Channel::Everywhere(mode, channel) => ctx.publish(*mode, channel, message),
            Channel::None => false,
        }
    }
}

/// The channel of a space; none where the mode has none for that name. No two spaces share one.
pub fn channel(mode: ChannelMode, prefix: &[u8], space: &[u8]) -> Option<Vec<u8>> {
    let global = [prefix, space].concat();
    match mode {
        ChannelMode::Global => Some(global),
        ChannelMode::Sharded => {
            // The slot of a name is that of its hash tag, or of the whole where it has none. The
            // channel's tag must be what the key hashes.
            let hashed = hash_tag(space).unwrap_or(space);
            if space.len() == hashed.len() + 2 && space.starts_with(b"{") {
                // `{x}`, whose channel would be that of `x`.
                return None;
            }
            [global, [prefix, b"{", space, b"}"].concat()]
                .into_iter()
                .find(|channel| hash_tag(channel) == Some(hashed))
        }
    }
}

/// The channel of a user in a space: the prefix, the space as in a sharded channel, `:` and the user. In the global mode
/// there is one for every name.
pub fn user_channel(
    mode: ChannelMode,
    prefix: &[u8],
    space: &[u8],
    user: &[u8],
) -> Option<Vec<u8>> {
    let of_space = match mode {
        ChannelMode::Sharded => channel(mode, prefix, space)?,
        ChannelMode::Global => {
            let sharded = channel(ChannelMode::Sharded, b"", space);
            let form = sharded.unwrap_or_else(|| [b"{", space, b"}"].concat());
            [prefix, &form].concat()
        }
    };
    Some([&of_space[..], b":", user].concat())
}

/// What stands between the first `{` and the first `}` behind it, if anything does.
fn hash_tag(name: &[u8]) -> Option<&[u8]> {
    let (_, behind) = name.split_at_checked(name.iter().position(|byte| *byte == b'{')? + 1)?;
    let (tag, _) = behind.split_at_checked(behind.iter().position(|byte| *byte == b'}')?)?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sharded_channel_shares_the_slot_of_its_space() {
        let sharded = |space: &str| {
            channel(ChannelMode::Sharded, b"presence:", space.as_bytes())
                .map(|channel| String::from_utf8(channel).unwrap())
        };
        assert_eq!(sharded("lobby").as_deref(), Some("presence:{lobby}"));
        assert_eq!(sharded("{team}:lobby").as_deref(), Some("presence:{team}:lobby"));
        assert_eq!(sharded("a{b}c{d}").as_deref(), Some("presence:a{b}c{d}"));
        assert_eq!(sharded("a{b").as_deref(), Some("presence:{a{b}"));
        for none in ["", "a}b", "{}x", "}", "{}", "{x}", "{{x}"] {
            assert_eq!(sharded(none), None, "{none}");
        }
        assert_eq!(sharded("{x}y").as_deref(), Some("presence:{x}y"));
        assert_eq!(sharded("{x}}").as_deref(), Some("presence:{x}}"));
        assert_eq!(sharded("y{x}").as_deref(), Some("presence:y{x}"));
        assert_eq!(channel(ChannelMode::Sharded, b"p{x}", b"lobby"), None);
        assert_eq!(channel(ChannelMode::Global, b"p:", b"a}b").unwrap(), b"p:a}b");
    }

    #[test]
    fn the_channel_of_a_user_is_in_the_slot_of_the_space() {
        let of = |mode, space: &str| {
            user_channel(mode, b"presence-user:", space.as_bytes(), b"a{b}:c")
                .map(|channel| String::from_utf8(channel).unwrap())
        };
        for (space, form) in [
            ("lobby", "{lobby}"),
            ("{team}:lobby", "{team}:lobby"),
            ("a{b", "{a{b}"),
            ("a{b}c{d}", "a{b}c{d}"),
        ] {
            for mode in [ChannelMode::Global, ChannelMode::Sharded] {
                assert_eq!(of(mode, space).unwrap(), format!("presence-user:{form}:a{{b}}:c"));
            }
        }
        for (space, form) in [("a}b", "{a}b}"), ("{x}", "{{x}}"), ("", "{}"), ("{}x", "{{}x}")] {
            assert_eq!(of(ChannelMode::Sharded, space), None);
            assert_eq!(
                of(ChannelMode::Global, space).unwrap(),
                format!("presence-user:{form}:a{{b}}:c")
            );
        }
        let of = |mode| user_channel(mode, b"p{x}", b"{team}:lobby", b"a");
        assert_eq!(of(ChannelMode::Sharded), None);
        assert_eq!(of(ChannelMode::Global).unwrap(), b"p{x}{team}:lobby:a");
    }

    /// What the server hashes of a key or channel to find its slot, as the cluster specification says.
    fn hashed(name: &str) -> &str {
        let Some(open) = name.find('{') else { return name };
        match name[open + 1..].find('}') {
            None | Some(0) => name,
            Some(length) => &name[open + 1..][..length],
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(5_000))]

        /// Two spaces never share a channel, in either mode and with any prefix; in sharded mode the
        /// channel is in the slot of the key.
        #[test]
        fn each_space_has_a_channel_of_its_own(
            prefix in "[{}:p]{0,4}",
            one in "[{}xy]{0,5}",
            other in "[{}xy]{0,5}",
        ) {
            for mode in [ChannelMode::Global, ChannelMode::Sharded] {
                let of = |space: &str| channel(mode, prefix.as_bytes(), space.as_bytes());
                // Also the names that are most like it.
                for other in [other.clone(), format!("{{{one}}}"), format!("{{{one}"), format!("{one}}}")] {
                    if let (Some(ours), Some(theirs)) = (of(&one), of(&other)) {
                        assert_eq!(ours == theirs, one == other, "{mode:?} {prefix} {one} {other}");
                    }
                }
                let Some(channel) = of(&one) else { continue };
                let channel = String::from_utf8(channel).unwrap();
                assert!(channel.starts_with(&prefix) && channel.contains(&one));
                if mode == ChannelMode::Sharded {
                    assert_eq!(hashed(&channel), hashed(&one), "{prefix} {one}");
                }
            }
        }
    }
}
