//! Who may have which id.
//!
//! Ids are shown to all clients in the room, so knowing an id proves nothing. The proof is the token, which only the
//! first message to the owner of the id contains. The metadata of the session has the hash of the token, which every
//! gateway can compare. Longhouse's clients do not know tokens. As Longhouse promises, they get back an id of their own
//! identity that no socket holds any more: their connection broke, or their gateway died. A client with the token can
//! take the id from a client without it at any time, but not the other way round.

use super::room::Member;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new id, made by the gateway.
    New,
    /// The id that was asked for, which no session has.
    Free,
    /// The session that is there. It continues.
    Resume,
    /// As `Resume`, if no other gateway holds a socket of the session.
    ResumeIfUnheld,
}

pub struct Asked<'a> {
    pub identity: &'a str,
    /// The hash of the token that came with the id.
    pub token: Option<&'a str>,
}

/// `found`: the member with that id. `held`: a socket of this gateway has it. `by_identity`: a client may get an id back
/// without a token.
pub fn decide(asked: &Asked, found: Option<&Member>, held: bool, by_identity: bool) -> Verdict {
    let Some(member) = found else { return Verdict::Free };
    // Sessions of other programs have no token.
    let Some(hash) = &member.meta.token_hash else { return Verdict::New };
    if member.user != asked.identity {
        return Verdict::New;
    }
    match asked.token {
        Some(token) if token == hash => Verdict::Resume,
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
    fn nobody_takes_the_id_of_another_client() {
        let owner = |owner: &str| Meta { token_hash: Some(owner.into()), ..Meta::default() };
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
