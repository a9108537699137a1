//! Was everything right that was observed in a round? A pure function of the observations.
//!
//! Each era, the time in which one server decides, has a log: for each life of a space the events that were there when
//! the era began, those that were heard at the server that decided, and those that whoever came after it inherited. A
//! life has a line of history, with an epoch of its own, for each server that decided something in it; the seq goes on
//! from one to the next. Folded, a log says when each session was there. Each user is written by one client, one command after the
//! other, so the answers say between which moments each session's lease ends; the two must agree.
//!
//! What may be lost is what docs/operations.md says. Where a server comes back from its append-only file, is reloaded or hands over
//! by FAILOVER: nothing. Where a replica is promoted: a tail of what happened, but nothing before a write that a WAIT
//! has covered. What is lost of a lease then shows in the first reading of the new era, which must be a lease that was
//! given, or the end of the grace; from there on everything is exact again. Who takes over may know an earlier lease than
//! the last one: a renewal is told if the lease gets later than the bound, and the bound is later than the lease that was
//! told by at most the grace. And no id is given to two events, whatever is
//! lost: so whoever follows by ids is never misled, which the followers of a round try out.

use crate::history::*;
use std::collections::{BTreeMap, BTreeSet};

/// A leave is late by more than this: not a matter of load, but of a lapse that was not noticed.
const LATE: i64 = 3000;
/// What happened at a node may have been heard that much later.
const HEARING: i64 = 1000;

#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    pub rule: &'static str,
    pub text: String,
    pub space: String,
    pub user: String,
    pub at: i64,
}

pub fn check(round: &Round) -> Vec<Wrong> {
    let mut checker = Checker::new(round);
    checker.logs();
    checker.ids();
    checker.heard();
    for era in 0..round.eras.len() {
        checker.lives(era);
        checker.lines(era);
        checker.ends(era);
        checker.answers(era);
        checker.takeover(era);
    }
    checker.glimpses();
    checker.nodes();
    checker.wrong
}

/// The events of each life of each space, or of each line of history: by space and the first, or the only, epoch.
type Log<'a> = BTreeMap<(&'a str, i64), BTreeMap<u64, &'a Event>>;

/// A session from its join or add to its remove, leave or close.
#[derive(Clone, Copy)]
struct Span<'a> {
    /// The first epoch of the space's life.
    life: i64,
    begin: &'a Event,
    end: Option<&'a Event>,
}

/// What may hold of a session at some moment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum May {
    /// Not there, as far as what was asked for goes.
    BeOver,
    /// Its lease ends in between; it leaves with `timeout` or, lingering, with `offline`.
    Last { least: i64, most: i64, lingers: Option<bool> },
}

struct Checker<'a> {
    round: &'a Round,
    /// Of each era, by line of history.
    logs: Vec<Log<'a>>,
    /// The same by life.
    lives: Vec<Log<'a>>,
    spans: Vec<BTreeMap<(&'a str, &'a Who), Vec<Span<'a>>>>,
    /// Up to when all that was decided in an era was heard.
    complete: Vec<i64>,
    /// Ops by era, space and session, those that end a space among them, in the order in which they were done.
    ops: BTreeMap<(usize, &'a str, &'a Who), Vec<usize>>,
    /// The ops that end a space.
    ends: BTreeMap<&'a str, Vec<usize>>,
    wrong: Vec<Wrong>,
}

/// A space after its events: who is there with what metadata, since which event.
#[derive(Default)]
struct Roster<'a> {
    sessions: BTreeMap<&'a Who, &'a Event>,
    meta: BTreeMap<&'a Who, &'a Option<String>>,
}

impl<'a> Roster<'a> {
    fn sessions_of(&self, user: &str) -> usize {
        self.sessions.keys().filter(|who| who.0 == user).count()
    }

    fn users(&self) -> i64 {
        self.sessions.keys().map(|who| &who.0).collect::<BTreeSet<_>>().len() as i64
    }

    /// Applies an event, if it fits. Returns the spans that it ends.
    fn fold(&mut self, life: i64, event: &'a Event) -> Result<Vec<Span<'a>>, String> {
        let (known, had) = (self.sessions.get(&event.who), self.sessions_of(&event.who.0));
        let fits = match event.kind.as_str() {
            "join" => had == 0,
            "add" => had > 0 && known.is_none(),
            "update" => known.is_some(),
            "remove" => had > 1 && known.is_some(),
            "leave" => had == 1 && known.is_some(),
            "message" | "close" => true,
            kind => return Err(format!("unknown type {kind}")),
        };
        if !fits {
            return Err(format!(
                "of {had} sessions, this one {}there",
                if known.is_some() { "" } else { "not " }
            ));
        }
        let mut ended = Vec::new();
        if let Some(begin) = known.filter(|begin| begin.joined_at != event.joined_at)
            && matches!(event.kind.as_str(), "update" | "remove" | "leave")
        {
            return Err(format!("another joined_at than {}", begin.raw));
        }
        match event.kind.as_str() {
            "join" | "add" => {
                self.sessions.insert(&event.who, event);
                self.meta.insert(&event.who, &event.meta);
            }
            "update" => drop(self.meta.insert(&event.who, &event.meta)),
            "remove" | "leave" => {
                if self.meta.remove(&event.who) != Some(&event.meta) {
                    return Err("other metadata than it had".into());
                }
                let begin = self.sessions.remove(&event.who);
                ended.extend(begin.map(|begin| Span { life, begin, end: Some(event) }));
            }
            "close" => {
                let sessions = std::mem::take(&mut self.sessions);
                let end = Some(event);
                ended.extend(sessions.into_values().map(|begin| Span { life, begin, end }));
            }
            _ => {}
        }
        if event.users != self.users() {
            return Err(format!("{} users are there", self.users()));
        }
        Ok(ended)
    }
}

impl<'a> Checker<'a> {
    fn new(round: &'a Round) -> Self {
        let mut ops: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        let mut ends: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        let mut whos: BTreeMap<&str, BTreeSet<&Who>> = BTreeMap::new();
        for op in &round.ops {
            whos.entry(&op.space).or_default().extend(&op.who);
        }
        for (index, op) in round.ops.iter().enumerate() {
            let space = op.space.as_str();
            if matches!(op.what, What::Wipe | What::Close) {
                ends.entry(space).or_default().push(index);
                for who in whos.get(space).into_iter().flatten() {
                    ops.entry((op.era, space, *who)).or_default().push(index);
                }
            }
            for who in &op.who {
                ops.entry((op.era, space, who)).or_default().push(index);
            }
        }
        let (logs, lives, spans, complete) = Default::default();
        Checker { round, logs, lives, spans, complete, ops, ends, wrong: Vec::new() }
    }

    fn wrong(&mut self, rule: &'static str, event: &Event, text: String) {
        let (space, user) = (event.space.clone(), event.who.0.clone());
        self.wrong.push(Wrong {
            rule,
            text: format!("{text}: {}", event.raw),
            space,
            user,
            at: event.at,
        });
    }

    fn wrong_op(&mut self, rule: &'static str, op: &Op, text: String) {
        let user = op.who.first().map_or(String::new(), |who| who.0.clone());
        let (space, at) = (op.space.clone(), op.sent);
        self.wrong.push(Wrong { rule, text: format!("{text}: {op:?}"), space, user, at });
    }

    // ---- logs --------------------------------------------------------------------------------

    /// What the server that decides in an era was heard to publish, after what was there before.
    fn decided(&self, number: usize) -> Vec<&'a Event> {
        let (round, era) = (self.round, &self.round.eras[number]);
        let next = round.eras.get(number + 1);
        let to = era.to.or(next.filter(|next| next.stream == era.stream).map(|next| next.from));
        let is = |heard: &Heard, mark| matches!(heard, Heard::Mark(m) if *m == mark);
        let heard = round.streams[era.stream].heard.iter();
        let heard = heard.skip_while(|heard| !is(heard, era.from));
        let heard = heard.take_while(|heard| to.is_none_or(|to| !is(heard, to)));
        // After a FAILOVER the same process passes on what the next one decides.
        let handed_over = next.filter(|next| {
            to.is_none() && next.decider != era.decider && next.loss == Loss::Nothing
        });
        let ours = |event: &&Event| {
            let begin = era.start.get(&event.space).map_or((0, 0), |read| read.id);
            event.id() > begin
                && handed_over.is_none_or(|next| {
                    let end = next.start.get(&event.space).map_or((0, 0), |read| read.id);
                    event.at < next.began.0
                        || event.id() <= end
                        || end == (0, 0) && event.epoch < next.began.0
                })
        };
        let events = heard.filter_map(|heard| match heard {
            Heard::Event { event, .. } => Some(&**event),
            _ => None,
        });
        events.filter(ours).collect()
    }

    fn logs(&mut self) {
        for (number, era) in self.round.eras.iter().enumerate() {
            let next = self.round.eras.get(number + 1);
            let handed_on = next.map(|next| match &next.inherited {
                Some(inherited) if next.loss == Loss::Tail => inherited,
                _ => &next.start,
            });
            let decided = self.decided(number);
            let lossy = next.is_some_and(|next| next.loss == Loss::Tail);
            let last = decided.iter().map(|event| event.at).max().unwrap_or(i64::MIN);
            self.complete.push(if lossy { last } else { i64::MAX });
            let begin = era.start.values().flat_map(|read| &read.events);
            let end =
                handed_on.into_iter().flat_map(BTreeMap::values).flat_map(|read| &read.events);
            let mut log: Log = BTreeMap::new();
            for event in begin.chain(decided).chain(end) {
                let life = log.entry((event.space.as_str(), event.epoch)).or_default();
                let there = *life.entry(event.seq).or_insert(event);
                if there.raw != event.raw {
                    self.wrong("one id, two events", event, format!("{} and", there.raw));
                }
            }
            let lives = self.join_lines(&log);
            let spans = self.fold_all(&lives);
            self.logs.push(log);
            self.lives.push(lives);
            self.spans.push(spans);
        }
    }

    /// A line that does not begin with 1 goes on where the line before it ends.
    fn join_lines(&mut self, log: &Log<'a>) -> Log<'a> {
        let mut lives: Log = BTreeMap::new();
        for ((space, epoch), line) in log {
            let begins = line.contains_key(&1);
            let before = lives.range((*space, i64::MIN)..(*space, *epoch)).next_back();
            let key = before.filter(|_| !begins).map_or((*space, *epoch), |(key, _)| *key);
            let life = lives.entry(key).or_default();
            for (seq, event) in line {
                if let Some(there) = life.insert(*seq, event) {
                    self.wrong("one seq in two lines", event, format!("{} and", there.raw));
                }
            }
        }
        lives
    }

    /// No id is ever given out twice, also where the first event that had it is lost.
    fn ids(&mut self) {
        let mut texts: BTreeMap<(&str, (i64, u64)), &Event> = BTreeMap::new();
        let mut twice = Vec::new();
        let logged = self.logs.iter().flat_map(BTreeMap::values).flat_map(BTreeMap::values);
        let heard = self.round.streams.iter().flat_map(|stream| &stream.heard);
        let heard = heard.filter_map(|heard| match heard {
            Heard::Event { event, .. } => Some(&**event),
            _ => None,
        });
        for event in logged.copied().chain(heard) {
            let there = *texts.entry((&event.space, event.id())).or_insert(event);
            if there.raw != event.raw {
                twice.push((event, format!("{} and", there.raw)));
            }
        }
        twice.into_iter().for_each(|(event, why)| self.wrong("an id given twice", event, why));
    }

    /// Who begins to decide begins a line of history with the first event in a space, and no other one after that.
    fn lines(&mut self, era: usize) {
        let start = &self.round.eras[era].start;
        let began = self.round.eras[era].began.0;
        let mut last: BTreeMap<&str, (i64, bool)> = BTreeMap::new();
        let mut wrong = Vec::new();
        // What the next one decides before its first reading, at the same process, is not this one's.
        let next = self.round.eras.get(era + 1).filter(|next| next.loss == Loss::Nothing);
        let until = next.map_or(i64::MAX, |next| next.began.0);
        for event in self.decided(era).into_iter().filter(|event| event.at < until) {
            let (epoch, is_due, may_begin) =
                match (last.get(event.space.as_str()), start.get(&event.space)) {
                    (Some((epoch, may_begin)), _) => (*epoch, false, *may_begin),
                    (None, Some(read)) if read.id != (0, 0) => {
                        // It may have decided something before it was read for the first time.
                        let is_old = read.events.last().is_none_or(|event| event.at < began);
                        (read.id.0, era > 0 && is_old, era > 0)
                    }
                    _ => (event.epoch, false, false),
                };
            let begins = event.epoch != epoch && event.seq > 1;
            if is_due && event.epoch == epoch {
                wrong.push(("no new line of history", event));
            }
            if begins && !may_begin {
                wrong.push(("a line of history without a reason", event));
            }
            let may_begin = may_begin && !is_due && !begins && event.seq > 1;
            last.insert(&event.space, (event.epoch, may_begin));
        }
        let how = &self.round.eras[era].how;
        wrong
            .into_iter()
            .for_each(|(rule, event)| self.wrong(rule, event, format!("era {era}, {how}")));
    }

    fn fold_all(&mut self, log: &Log<'a>) -> BTreeMap<(&'a str, &'a Who), Vec<Span<'a>>> {
        let mut spans: BTreeMap<_, Vec<Span>> = BTreeMap::new();
        for ((space, epoch), life) in log {
            let mut roster = Roster::default();
            for ((seq, event), expected) in life.iter().zip(1..) {
                if *seq != expected {
                    self.wrong("a hole in the ids", event, format!("{expected} is missing"));
                    break;
                }
                match roster.fold(*epoch, event) {
                    Ok(ended) => {
                        for span in ended {
                            spans.entry((*space, &span.begin.who)).or_default().push(span);
                        }
                    }
                    Err(why) => {
                        self.wrong("a transition that does not fit", event, why);
                        break;
                    }
                }
            }
            for (who, begin) in roster.sessions {
                let span = Span { life: *epoch, begin, end: None };
                spans.entry((*space, who)).or_default().push(span);
            }
        }
        spans
    }

    // ---- what was heard ----------------------------------------------------------------------

    /// Each node hears each event once and in order, but for what is published while it synchronises in full.
    fn heard(&mut self) {
        let mut texts: BTreeMap<(&str, (i64, u64)), BTreeSet<&str>> = BTreeMap::new();
        for event in self.logs.iter().flat_map(BTreeMap::values).flat_map(BTreeMap::values) {
            texts.entry((&event.space, event.id())).or_default().insert(&event.raw);
        }
        let lossless = self.round.eras.iter().all(|era| era.loss == Loss::Nothing);
        for stream in &self.round.streams {
            let mut last: BTreeMap<&str, (&Event, i64)> = BTreeMap::new();
            for heard in &stream.heard {
                let (arrived, event) = match heard {
                    Heard::Event { arrived, event } => (*arrived, &**event),
                    Heard::Mark(_) => continue,
                    Heard::Noise(text) => {
                        let text = format!("node {} published {text}", stream.node);
                        let (space, user) = Default::default();
                        self.wrong.push(Wrong { rule: "no event", text, space, user, at: 0 });
                        continue;
                    }
                };
                if let Some((before, then)) = last.insert(&event.space, (event, arrived)) {
                    let follows = event.epoch >= before.epoch && event.seq == before.seq + 1
                        || event.epoch > before.epoch && event.seq == 1;
                    let excused = self.round.full_syncs.iter().any(|(node, at)| {
                        *node == stream.node && (then - HEARING..=arrived + HEARING).contains(at)
                    });
                    if !follows && !excused {
                        let text = format!("at node {} came after {}", stream.node, before.raw);
                        self.wrong("heard out of order, twice or not at all", event, text);
                    }
                }
                if arrived < event.at {
                    self.wrong("heard before it happened", event, format!("at {arrived}"));
                }
                match texts.get(&(event.space.as_str(), event.id())) {
                    Some(texts) if !texts.contains(event.raw.as_str()) => {
                        self.wrong(
                            "nobody decided this",
                            event,
                            format!("at node {}, not {texts:?}", stream.node),
                        );
                    }
                    None if lossless => {
                        self.wrong(
                            "nobody decided this",
                            event,
                            format!("at node {}", stream.node),
                        );
                    }
                    _ => {}
                }
            }
        }
    }

    /// A space begins anew only where somebody ended it.
    fn lives(&mut self, era: usize) {
        let lives: Vec<_> = self.lives[era].iter().collect();
        let mut vanished = Vec::new();
        for ((_, epoch), line) in &self.logs[era] {
            if let Some(first) = line.values().next().filter(|first| *epoch > first.at + HEARING) {
                vanished.push((*first, "an epoch of the future".to_string()));
            }
        }
        for pair in lives.windows(2) {
            let [((space, _), before), ((other, _), after)] = pair else { continue };
            let (Some(last), Some(first)) = (before.values().last(), after.values().next()) else {
                continue;
            };
            if space == other && !self.was_ended(space, last.at, first.at) {
                vanished.push((*first, format!("after {}, and nobody ended the space", last.raw)));
            }
        }
        vanished
            .into_iter()
            .for_each(|(event, why)| self.wrong("a life without a reason", event, why));
    }

    /// Whether somebody may have ended the space in between.
    fn was_ended(&self, space: &str, from: i64, to: i64) -> bool {
        self.ends.get(space).into_iter().flatten().any(|op| {
            let op = &self.round.ops[*op];
            op.sent <= to && op.received.is_none_or(|received| received >= from)
        })
    }

    // ---- leases ------------------------------------------------------------------------------

    /// What may hold of a session after the ops of an era: those that were answered before `sure` were done, those that
    /// were sent up to `until` may have been. With `before`, ops from that one on were not, and all others were.
    fn may(
        &self,
        era: usize,
        space: &str,
        who: &Who,
        sure: i64,
        until: i64,
        before: Option<usize>,
    ) -> Vec<May> {
        let mut may = vec![self.at_start(era, space, who)];
        for index in self.ops.get(&(era, space, who)).into_iter().flatten() {
            let op = &self.round.ops[*index];
            if op.sent > until || before.is_some_and(|before| *index >= before) {
                continue;
            }
            let Some(then) = self.outcome(op, &may) else { continue };
            if op.received.is_some_and(|received| received < sure || before.is_some()) {
                may = then;
            } else {
                may.extend(then);
            }
        }
        may
    }

    fn at_start(&self, era: usize, space: &str, who: &Who) -> May {
        let Some(read) = self.round.eras[era].start.get(space) else { return May::BeOver };
        if let Some(session) = read.members.get(who) {
            let until = session.expires_at;
            return May::Last { least: until, most: until, lingers: None };
        }
        let spans = self.spans[era].get(&(space, who));
        let life = read.events.first().map_or(read.id.0, |event| event.epoch);
        let is_there = |span: &&Span| {
            span.life == life
                && span.begin.seq <= read.id.1
                && span.end.is_none_or(|end| end.seq > read.id.1)
        };
        match spans.into_iter().flatten().find(is_there) {
            // Hidden: it had lapsed.
            Some(_) => May::Last { least: 0, most: read.received, lingers: None },
            None => May::BeOver,
        }
    }

    /// What an op makes of a session, if it was done; none where it was refused.
    fn outcome(&self, op: &Op, before: &[May]) -> Option<Vec<May>> {
        if matches!(op.reply, Reply::Null | Reply::Refused(_)) {
            return None;
        }
        // What had no answer was done, if at all, before the process had ended.
        let next = self.round.eras.get(op.era + 1).map_or(0, |next| next.began.1);
        let last = op.received.unwrap_or(self.round.eras[op.era].ended.max(next));
        match op.what {
            What::Online { lease, .. } => {
                let (least, most) = match lease {
                    Lease::For(ttl) => (op.sent + ttl, last + ttl),
                    Lease::Until(until) => (until, until),
                };
                Some(vec![May::Last { least, most, lingers: Some(false) }])
            }
            What::Offline { linger: 0 } | What::Wipe | What::Close => Some(vec![May::BeOver]),
            What::Offline { linger } => {
                let cut = |may: &May| match *may {
                    May::BeOver => May::BeOver,
                    May::Last { least, most, .. } => May::Last {
                        least: least.min(op.sent + linger),
                        most: most.min(last + linger),
                        lingers: Some(true),
                    },
                };
                Some(before.iter().map(cut).collect())
            }
            What::Message { .. } | What::Look | What::Wait { .. } => None,
        }
    }

    /// For how long the server that decides was held up between two moments.
    fn held_up(&self, from: i64, to: i64) -> i64 {
        self.round
            .held_up
            .iter()
            .map(|(began, ended)| (ended.min(&to) - began.max(&from)).max(0))
            .sum()
    }

    /// A session that is still there at a moment should have left long before.
    fn is_late(&self, may: &[May], at: i64) -> Option<i64> {
        let most = may.iter().map(|may| match may {
            May::Last { most, .. } => *most,
            May::BeOver => i64::MIN,
        });
        let most = most.max().filter(|most| *most > i64::MIN)?;
        (most < at && at - most > LATE + self.held_up(most, at)).then_some(most)
    }

    /// Sessions end when their leases do, not before and not much later, and for the reason that is told.
    fn ends(&mut self, era: usize) {
        let (round, spans) = (self.round, self.spans[era].clone());
        let next = round.eras.get(era + 1);
        let start = &round.eras[era].start;
        for ((space, who), spans) in &spans {
            for span in spans {
                let begin = start.get(*space).map_or((0, 0), |read| read.id);
                if span.begin.id() > begin {
                    self.begun(era, space, who, span.begin);
                }
                match span.end {
                    Some(end) if end.id() > begin && end.kind != "close" => {
                        self.ended(era, next, space, who, end);
                    }
                    None => self.left_open(era, space, who, span.begin),
                    _ => {}
                }
            }
        }
    }

    /// Somebody asked for the session, with this metadata, at that time.
    fn begun(&mut self, era: usize, space: &str, who: &Who, begin: &Event) {
        let ops = self.ops.get(&(era, space, who)).into_iter().flatten();
        let asked = ops.map(|op| &self.round.ops[*op]).any(|op| {
            let done = !matches!(op.reply, Reply::Null | Reply::Refused(_));
            let then =
                op.sent <= begin.at && op.received.is_none_or(|received| begin.at <= received);
            done && then && matches!(&op.what, What::Online { meta, .. } if *meta == begin.meta)
        });
        if !asked {
            self.wrong("a session that nobody asked for", begin, format!("in era {era}"));
        }
    }

    fn ended(&mut self, era: usize, next: Option<&Era>, space: &str, who: &Who, end: &Event) {
        // What the next one decides before its first reading is in this log too: it had to give the grace.
        let after = next.filter(|next| next.loss == Loss::Nothing && end.at > next.began.1);
        let floor = after.map_or(i64::MIN, |next| next.began.0 + self.round.grace);
        let slack = after.map_or(0, |_| self.round.grace);
        let (sure, until) = match after {
            Some(_) => (i64::MAX, i64::MAX),
            None => (end.at, end.at),
        };
        let may = self.may(era, space, who, sure, until, None);
        let fits = may.iter().any(|may| match *may {
            May::BeOver => end.reason == "offline",
            May::Last { least, lingers, .. } => {
                (least - slack).max(floor) <= end.at
                    && match end.reason.as_str() {
                        "timeout" => lingers != Some(true),
                        "offline" => lingers != Some(false),
                        _ => false,
                    }
            }
        });
        if !fits {
            self.wrong(
                "left too early, or for another reason",
                end,
                format!("in era {era}, {may:?}"),
            );
        }
        if let Some(most) = self.is_late(&may, end.at) {
            self.wrong("left too late", end, format!("in era {era}, its lease ended at {most}"));
        }
    }

    fn left_open(&mut self, era: usize, space: &str, who: &Who, begin: &Event) {
        if self.was_ended(space, begin.at, i64::MAX) {
            return;
        }
        let until = self.round.eras[era].ended.min(self.complete[era]);
        // What only those heard who came after tells nothing of later.
        if begin.at >= until {
            return;
        }
        let may = self.may(era, space, who, until, until, None);
        if let Some(most) = self.is_late(&may, until) {
            self.wrong("never left", begin, format!("in era {era}, its lease ended at {most}"));
        }
    }

    // ---- answers -----------------------------------------------------------------------------

    fn answers(&mut self, era: usize) {
        for (index, op) in self.round.ops.iter().enumerate().filter(|(_, op)| op.era == era) {
            let Some(received) = op.received else { continue };
            if let Reply::Refused(error) = &op.reply {
                if !self.is_due(op, error, received) {
                    self.wrong_op("an error without a reason", op, error.clone());
                }
                continue;
            }
            // Who was demoted answers reads as a replica of the next one.
            let decides = received < self.round.eras[era].ended;
            if let (Reply::Sessions(shown), true) = (&op.reply, decides) {
                self.look(index, op, shown, received);
            }
            if received >= self.complete[era] {
                continue;
            }
            match &op.what {
                What::Online { lease, .. } if op.reply != Reply::Null => {
                    if matches!(lease, Lease::Until(until) if *until <= op.sent) {
                        self.wrong_op("a lease of the past", op, String::new());
                    }
                    self.online(index, op, received);
                }
                What::Offline { linger: 0 } => self.offline(op, received),
                What::Message { text } => self.message(op, text),
                _ => {}
            }
        }
    }

    fn is_due(&self, op: &Op, error: &str, received: i64) -> bool {
        const OF_ROLES: [&str; 6] = [
            "READONLY",
            "UNBLOCKED",
            "EXECABORT",
            "MASTERDOWN",
            "LOADING",
            "ERR WAIT cannot be used with replica",
        ];
        if OF_ROLES.iter().any(|word| error.starts_with(word)) {
            return true;
        }
        if error.starts_with("CLOSED") {
            return self.was_ended(&op.space, i64::MIN, received);
        }
        error.starts_with("ERR invalid expire time")
            && matches!(op.what, What::Online { lease: Lease::Until(until), .. } if until <= received)
    }

    /// The sessions are there when the answer comes.
    fn online(&mut self, index: usize, op: &Op, received: i64) {
        for who in &op.who {
            let spans = self.spans[op.era].get(&(op.space.as_str(), who));
            let is_there = spans.into_iter().flatten().any(|span| {
                span.begin.at <= received
                    && match span.end {
                        Some(end) => end.at >= op.sent,
                        None => !self.was_ended_for_sure(&op.space, span.begin.at, op.sent),
                    }
            });
            if !is_there {
                self.wrong_op(
                    "an answered ONLINE had no effect",
                    op,
                    format!("no session {who:?}"),
                );
            }
        }
        let joins = |from: i64, to: i64| {
            let is_join =
                |span: &&Span| span.begin.kind == "join" && (from..=to).contains(&span.begin.at);
            op.who
                .iter()
                .flat_map(|who| self.spans[op.era].get(&(op.space.as_str(), who)))
                .flatten()
                .any(|s| is_join(&s))
        };
        // Of two in one MULTI it cannot be told which one a join is of.
        let near = [index.wrapping_sub(1), index + 1];
        let is_paired = near.iter().filter_map(|near| self.round.ops.get(*near)).any(|near| {
            near.client == op.client && (near.sent, near.received) == (op.sent, op.received)
        });
        let told = matches!(op.reply, Reply::Count(n) if n > 0);
        if told && !joins(op.sent, received)
            || !told && !is_paired && joins(op.sent + 1, received - 1)
        {
            self.wrong_op("the reply to ONLINE and the events differ", op, String::new());
        }
    }

    fn was_ended_for_sure(&self, space: &str, from: i64, to: i64) -> bool {
        self.ends.get(space).into_iter().flatten().any(|op| {
            let op = &self.round.ops[*op];
            op.sent > from && op.received.is_some_and(|received| received < to)
        })
    }

    fn offline(&mut self, op: &Op, received: i64) {
        for who in &op.who {
            let spans = self.spans[op.era].get(&(op.space.as_str(), who));
            let still_there = spans.into_iter().flatten().any(|span| {
                span.begin.at < op.sent
                    && match span.end {
                        Some(end) => end.at > received,
                        None => !self.was_ended(&op.space, span.begin.at, received),
                    }
            });
            if still_there {
                self.wrong_op("an answered OFFLINE had no effect", op, format!("{who:?} is there"));
            }
        }
    }

    fn message(&mut self, op: &Op, text: &str) {
        let Reply::Id(epoch, seq) = op.reply else { return };
        let event =
            self.logs[op.era].get(&(op.space.as_str(), epoch)).and_then(|life| life.get(&seq));
        if event.is_none_or(|event| event.kind != "message" || event.message != text) {
            self.wrong_op("an answered MESSAGE had no effect", op, format!("{event:?}"));
        }
    }

    /// Whoever writes a user knows what it should read.
    fn look(&mut self, index: usize, op: &Op, shown: &BTreeMap<Who, SessionRead>, received: i64) {
        for who in &op.who {
            let may = self.may(op.era, &op.space, who, i64::MIN, i64::MAX, Some(index));
            if let Err(why) = agrees(&may, shown.get(who), op.sent, received) {
                self.wrong_op("a read that is wrong", op, format!("{who:?} {why}, {may:?}"));
            }
        }
    }

    // ---- who comes after ---------------------------------------------------------------------

    /// What the next era begins with.
    fn takeover(&mut self, era: usize) {
        let Some(next) = self.round.eras.get(era + 1) else { return };
        let sure = match next.loss {
            Loss::Nothing => i64::MAX,
            Loss::Tail => self.covered(era),
        };
        self.inherited_events(era, next, sure);
        let mut graces = BTreeSet::new();
        for read in next.start.values() {
            let members = read.members.keys();
            let there: BTreeSet<&Who> = members.chain(there(read)).collect();
            for who in there {
                self.inherited_lease(era, next, read, who, sure, &mut graces);
            }
        }
        if graces.len() > 1 {
            let text = format!("era {}: one grace, but leases until {graces:?}", era + 1);
            let (rule, space, user) = ("the grace after a takeover", String::new(), String::new());
            self.wrong.push(Wrong { rule, text, space, user, at: next.began.1 });
        }
    }

    /// Everything up to here was on a replica: the last write that a WAIT has covered.
    fn covered(&self, era: usize) -> i64 {
        let waits = self.round.ops.iter().filter(|op| op.era == era);
        waits
            .filter_map(|op| match (&op.what, &op.reply) {
                (What::Wait { covers }, Reply::Count(n)) if *n > 0 => Some(*covers),
                _ => None,
            })
            .max()
            .unwrap_or(i64::MIN)
    }

    fn inherited_events(&mut self, era: usize, next: &Era, sure: i64) {
        let mut lost = Vec::new();
        for ((space, epoch), life) in &self.logs[era] {
            let read = next.start.get(*space);
            let there = read.map_or((0, 0), |read| read.id);
            let kept: BTreeSet<_> =
                read.into_iter().flat_map(|read| &read.events).map(Event::id).collect();
            for event in life.values().filter(|event| event.at < sure) {
                let may_end = there.0 == 0 || there.0 > *epoch;
                let survived = kept.contains(&event.id())
                    || may_end && self.was_ended(space, event.at, i64::MAX);
                if !survived {
                    lost.push((*event, format!("era {}, {}, is at {there:?}", era + 1, next.how)));
                }
            }
        }
        lost.into_iter().for_each(|(event, why)| self.wrong("an event is lost", event, why));
    }

    fn inherited_lease(
        &mut self,
        era: usize,
        next: &Era,
        read: &SpaceRead,
        who: &Who,
        sure: i64,
        graces: &mut BTreeSet<i64>,
    ) {
        let grace = self.round.grace;
        let floor = if grace > 0 { next.began.0 + grace } else { i64::MIN };
        let is_grace = |until: i64| grace > 0 && (floor..=next.began.1 + grace).contains(&until);
        let may = self.may(era, &read.space, who, sure, i64::MAX, None);
        let shown = read.members.get(who).map(|session| session.expires_at);
        let inherited =
            next.inherited.as_ref().and_then(|all| all.get(&read.space)?.members.get(who));
        // The lease that was told may be earlier by the slack, which is the grace; the bound is later by that.
        let fits = |may: &May| match (*may, shown) {
            (May::BeOver, _) => false,
            (May::Last { least, .. }, None) => (least - grace).max(floor) <= read.received,
            (May::Last { least, most, .. }, Some(until)) => {
                until >= floor && least - grace <= until && until <= most
                    || is_grace(until) && least - grace <= until
            }
        };
        let fits_bound = match (inherited.map(|session| session.expires_at), shown) {
            (Some(bound), Some(now)) => {
                (bound - grace..=bound).contains(&now) || now > bound && is_grace(now)
            }
            (Some(bound), None) => (bound - grace).max(floor) <= read.received,
            (None, _) => true,
        };
        if !may.iter().any(fits) || !fits_bound {
            let (rule, space, user) =
                ("a lease after a takeover", read.space.clone(), who.0.clone());
            let text = format!(
                "{who:?} in {space}: era {}, {}, began at {:?}; read at {}: lease {shown:?}, on the replica {inherited:?}; {may:?}",
                era + 1,
                next.how,
                next.began,
                read.received
            );
            self.wrong.push(Wrong { rule, text, space, user, at: read.received });
        }
        let given = |until: i64| {
            let ops = self.ops.get(&(era, read.space.as_str(), who)).into_iter().flatten();
            let by_ops = ops.filter_map(|op| self.outcome(&self.round.ops[*op], &may));
            let all = by_ops.flatten().chain([self.at_start(era, &read.space, who)]);
            let mut all = all.chain(may.iter().copied());
            all.any(|may| matches!(may, May::Last { least, most, .. } if (least..=most).contains(&until)))
        };
        let is_given = shown.is_some_and(given);
        graces.extend(shown.filter(|_| !is_given));
    }

    // ---- readings ----------------------------------------------------------------------------

    /// A snapshot is what the events up to it make, without those whose leases are over.
    fn glimpses(&mut self) {
        let eras = self.round.eras.iter().flat_map(|era| {
            era.start.values().chain(era.inherited.iter().flat_map(BTreeMap::values))
        });
        for read in eras.chain(self.round.finals.iter().flat_map(BTreeMap::values)) {
            self.snapshot(read, None);
        }
        for glimpse in &self.round.glimpses {
            // At the turn of an era it is not known which of the two answered.
            let ends = |era: &usize| self.round.eras[*era].ended;
            let era = glimpse.era.filter(|era| glimpse.read.received < ends(era));
            self.snapshot(&glimpse.read, era);
        }
    }

    fn snapshot(&mut self, read: &'a SpaceRead, era: Option<usize>) {
        let wrong = |text: String| Wrong {
            rule: "a snapshot that is wrong",
            text: format!("{text}, space {} at {:?}, read at {}", read.space, read.id, read.sent),
            space: read.space.clone(),
            user: String::new(),
            at: read.sent,
        };
        let mut roster = Roster::default();
        let mut epoch = 0;
        for (event, seq) in read.events.iter().zip(1..) {
            if event.seq != seq || event.epoch < epoch {
                return self.wrong.push(wrong(format!("{seq} is missing before {}", event.raw)));
            }
            epoch = event.epoch;
            if let Err(why) = roster.fold(0, event) {
                return self.wrong.push(wrong(format!("{why}: {}", event.raw)));
            }
        }
        if read.events.len() as u64 != read.id.1 || epoch != read.id.0 {
            return self.wrong.push(wrong("events are missing".into()));
        }
        let users: BTreeSet<_> = read.members.keys().map(|who| &who.0).collect();
        if (read.users, read.sessions) != (users.len() as i64, read.members.len() as i64) {
            self.wrong.push(wrong(format!("{} users, {} sessions", read.users, read.sessions)));
        }
        for (who, session) in &read.members {
            if roster.meta.get(who).is_none_or(|meta| **meta != session.meta)
                || !roster.sessions.contains_key(who)
            {
                self.wrong.push(Wrong {
                    user: who.0.clone(),
                    ..wrong(format!("{who:?} {session:?} is shown"))
                });
            }
        }
        let Some(era) = era else { return };
        for who in roster.sessions.into_keys() {
            let may = self.may(era, &read.space, who, read.sent, read.received, None);
            // Who ends a session is in the events or not; here it matters whether the lease is over.
            let may: Vec<_> = may.into_iter().filter(|may| *may != May::BeOver).collect();
            if let Err(why) = agrees(&may, read.members.get(who), read.sent, read.received) {
                self.wrong.push(Wrong {
                    user: who.0.clone(),
                    ..wrong(format!("{who:?} {why}, {may:?}"))
                });
            }
        }
    }

    fn nodes(&mut self) {
        for trouble in &self.round.troubles {
            let (rule, text) = ("trouble with a server", trouble.clone());
            let (space, user) = Default::default();
            self.wrong.push(Wrong { rule, text, space, user, at: 0 });
        }
        for misled in &self.round.misled {
            let (rule, text) = ("a follower that is misled", misled.clone());
            let (space, user) = Default::default();
            self.wrong.push(Wrong { rule, text, space, user, at: 0 });
        }
        let of = |read: &SpaceRead| {
            (read.id, read.events.iter().map(|e| e.raw.clone()).collect::<Vec<_>>())
        };
        let finals = self.round.finals.iter();
        let finals =
            finals.map(|reading| format!("{:?}", reading.values().map(of).collect::<Vec<_>>()));
        let finals: BTreeSet<_> = finals.collect();
        let digests = self.round.digests.iter();
        let differ = digests.filter(|of| of.iter().any(|(_, digests)| *digests != of[0].1));
        let mut texts: Vec<String> = differ.map(|of| format!("digests differ: {of:?}")).collect();
        if finals.len() > 1 {
            texts.push(format!("events differ in the end: {finals:?}"));
        }
        let ghosts = self
            .round
            .finals
            .iter()
            .flat_map(BTreeMap::values)
            .filter(|read| !read.members.is_empty());
        texts.extend(ghosts.map(|read| format!("still there in the end: {:?}", read.members)));
        for text in texts {
            let (rule, space, user) = ("nodes in the end", String::new(), String::new());
            self.wrong.push(Wrong { rule, text, space, user, at: 0 });
        }
    }
}

/// Who is there after the events of a reading. What does not fit is told where the log is made.
fn there(read: &SpaceRead) -> impl Iterator<Item = &Who> {
    let mut roster = Roster::default();
    let _ = read.events.iter().try_for_each(|event| roster.fold(0, event).map(drop));
    roster.sessions.into_keys()
}

/// Whether a session that is shown, or is not, fits what may hold of it.
fn agrees(
    may: &[May],
    shown: Option<&SessionRead>,
    sent: i64,
    received: i64,
) -> Result<(), &'static str> {
    let fits = |may: &May| match (*may, shown) {
        (May::BeOver, shown) => shown.is_none(),
        (May::Last { least, .. }, None) => least <= received,
        (May::Last { least, most, .. }, Some(session)) => {
            (least..=most).contains(&session.expires_at) && session.expires_at > sent
        }
    };
    match (may.iter().any(fits), shown) {
        (true, _) => Ok(()),
        (false, Some(_)) => Err("is shown"),
        (false, None) => Err("is not shown"),
    }
}
