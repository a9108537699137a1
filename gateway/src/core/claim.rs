//! Who may have which id.
//!
//! Ids are shown to everybody in the room, so knowing one proves nothing. Proof is the token that the first message
//! gives to the id's owner alone; the session's metadata holds its hash, which any gateway can compare. Longhouse's
//! clients know nothing of tokens: they may come back to an id of their own identity that no socket holds any more
//! (their connection broke, their gateway died), as Longhouse promises them. Whoever has the token gets the id back
//! from them at any time, and never the other way round.

use super::room::Member;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new id, made by the gateway.
    New,
    /// The id that was asked for: nobody has it.
    Free,
    /// The session that is there, which goes on.
    Resume,
    /// As Resume, if no other gateway holds a socket of it.
    ResumeIfUnheld,
}

pub struct Asked<'a> {
    pub identity: &'a str,
    /// The hash of the token that came with the id.
    pub token: Option<&'a str>,
}

/// `found`: the member with that id. `held`: a socket of this gateway has it. `by_identity`: whether an id may be had
/// without a token at all.
pub fn decide(asked: &Asked, found: Option<&Member>, held: bool, by_identity: bool) -> Verdict {
    let Some(member) = found else { return Verdict::Free };
    // A session that another program made is not ours to give away.
    let Some(owner) = &member.meta.owner else { return Verdict::New };
    if member.user != asked.identity {
        return Verdict::New;
    }
    match asked.token {
        Some(token) if token == owner => Verdict::Resume,
        Some(_) => Verdict::New,
        None if held || !by_identity => Verdict::New,
        None => Verdict::ResumeIfUnheld,
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Meta;
    use super::*;

    #[test]
    fn nobody_takes_anothers_id() {
        let owner = |owner: &str| Meta { owner: Some(owner.into()), ..Meta::default() };
        let member = Member::new("alice", "x", 1, owner("hash"));
        let foreign = Member::new("alice", "x", 1, Meta::default());
        let ask = |identity, token, found, held, by_identity| {
            decide(&Asked { identity, token }, found, held, by_identity)
        };
        let it = Some(&member);
        for by_identity in [true, false] {
            assert_eq!(ask("alice", None, None, false, by_identity), Verdict::Free);
            assert_eq!(ask("alice", Some("hash"), it, true, by_identity), Verdict::Resume);
            assert_eq!(ask("alice", Some("hash"), it, false, by_identity), Verdict::Resume);
            for held in [true, false] {
                assert_eq!(ask("alice", Some("other"), it, held, by_identity), Verdict::New);
                assert_eq!(ask("alice", Some(""), it, held, by_identity), Verdict::New);
                assert_eq!(ask("bob", None, it, held, by_identity), Verdict::New);
                assert_eq!(ask("bob", Some("hash"), it, held, by_identity), Verdict::New);
                assert_eq!(ask("alice", None, Some(&foreign), held, by_identity), Verdict::New);
            }
        }
        assert_eq!(ask("alice", None, it, true, true), Verdict::New);
        assert_eq!(ask("alice", None, it, false, true), Verdict::ResumeIfUnheld);
        assert_eq!(ask("alice", None, it, false, false), Verdict::New);
    }
}
