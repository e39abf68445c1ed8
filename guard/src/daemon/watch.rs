//! Differences over time: told when they begin (`flows.jsonl`, the timeline, whoever runs the daemon), kept as a problem
//! while they last, and told as a gap when they are over.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    difference::{Counted, Difference, Gap, Kind},
    report::InterfaceLine,
};
use crate::policy::model::ContainerHost;

/// A difference that is not seen for so long is over, in microseconds: what went round the wire may pause.
const QUIET: i64 = 3_000_000;
/// How many packets more than were judged, in each of [`SAMPLES`] seconds and in all of them, are no accident of counting.
const EACH: i64 = 20;
const ALL: i64 = 150;
const SAMPLES: usize = 3;

/// What the daemon is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Begun(Difference),
    Over(Difference, Gap),
}

#[derive(Debug, Default)]
pub struct Watch {
    lasting: BTreeMap<(Kind, String, String), Lasting>,
    /// When all was last seen to be well, and what was counted then.
    well: i64,
    counted: Option<Counted>,
    /// By how much the interfaces sent more than was judged, at the last looks.
    ahead: Vec<i64>,
    packet_sockets: Option<BTreeSet<u32>>,
    interfaces: Option<BTreeMap<u32, InterfaceLine>>,
    /// What was told of each kind in this hour.
    told: BTreeMap<Kind, Budget>,
    foreign: Option<BTreeSet<String>>,
}

/// Whoever makes one alert after another must not push what else was told out of the timeline.
#[derive(Debug, Default)]
struct Budget {
    since: i64,
    told: usize,
    kept_back: u64,
}

const HOUR: i64 = 3_600_000_000;
/// Alerts of a kind, and ends of such, that are told one by one in an hour.
const MOST_TOLD: usize = 60;

#[derive(Debug)]
struct Lasting {
    difference: Difference,
    from: i64,
    seen: i64,
    counted: Option<Counted>,
}

impl Watch {
    /// One whole look. `now`: Unix time in microseconds.
    pub fn look(&mut self, found: Vec<Difference>, counted: Option<Counted>, now: i64) -> Vec<Told> {
        let mut told = Vec::new();
        let well = found.iter().all(|difference| !difference.kind.opens());
        for difference in found {
            let key = difference.key();
            if let Some(lasting) = self.lasting.get_mut(&key) {
                lasting.seen = now;
                if !difference.repaired {
                    continue;
                }
            } else {
                told.push(Told::Begun(difference.clone()));
                if difference.kind.lasts() {
                    let from = if self.well == 0 { now } else { self.well };
                    let before = self.counted.clone();
                    self.lasting.insert(
                        key.clone(),
                        Lasting { difference: difference.clone(), from, seen: now, counted: before },
                    );
                }
            }
            if difference.repaired
                && let Some(lasting) = self.lasting.remove(&key)
            {
                told.push(lasting.over(now, counted.as_ref()));
            }
        }
        let over: Vec<_> = self
            .lasting
            .iter()
            .filter(|(key, lasting)| now - lasting.seen >= if key.0 == Kind::WentRound { QUIET } else { 1 })
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            if let Some(lasting) = self.lasting.remove(&key) {
                let end = if key.0 == Kind::WentRound { lasting.seen } else { now };
                told.push(lasting.over(end, counted.as_ref()));
            }
        }
        if well && self.lasting.is_empty() {
            self.well = now;
        }
        if let Some(counted) = counted {
            self.counted = Some(counted);
        }
        told
    }

    /// All is as it was, as far as a cheap look can tell.
    pub fn still(&mut self, now: i64) {
        if self.lasting.is_empty() {
            self.well = now;
        }
    }

    /// Something is amiss, and was told.
    #[must_use]
    pub fn lasts(&self) -> bool {
        !self.lasting.is_empty()
    }

    /// Enforcement does not hold as long as these last.
    pub fn problems(&self) -> impl Iterator<Item = String> + '_ {
        self.lasting.values().map(|lasting| &lasting.difference).filter(|difference| difference.kind.opens()).map(
            |difference| match &difference.by {
                Some(by) => format!("{}: {}", difference.what, by),
                None => difference.what.clone(),
            },
        )
    }

    /// Whether interfaces sent more than the wire layer let out, again and again: counts of queues and drivers lag behind
    /// each other, but not for long and not always in one direction.
    pub fn went_round(&mut self, counted: &Counted) -> Option<Difference> {
        let before = self.counted.as_ref().filter(|before| before.interfaces == counted.interfaces)?;
        let ahead =
            |counted: &Counted| i128::from(counted.sent) + i128::from(counted.queued) - i128::from(counted.judged_out);
        let step = i64::try_from(ahead(counted) - ahead(before)).unwrap_or(0);
        self.ahead.push(step);
        if self.ahead.len() > SAMPLES {
            self.ahead.remove(0);
        }
        let sum: i64 = self.ahead.iter().sum();
        let steady = self.ahead.len() == SAMPLES && self.ahead.iter().all(|step| *step >= EACH) && sum >= ALL;
        steady.then(|| {
            let names = counted.names.join(", ");
            let what = format!(
                "{names} sent about {} packets a second that the wire layer did not see: past the qdisc (packet socket), by \
                 AF_XDP, or by another program",
                sum / SAMPLES as i64
            );
            Difference::new(Kind::WentRound, names, what)
        })
    }

    /// Whether another alert of a kind is told by itself. The first that is not comes with a difference that says so.
    pub fn may_tell(&mut self, kind: Kind, now: i64) -> (bool, Option<Difference>) {
        let budget = self.told.entry(kind).or_default();
        if budget.told < MOST_TOLD {
            if budget.told == 0 {
                budget.since = now;
            }
            budget.told += 1;
            return (true, None);
        }
        budget.kept_back += 1;
        let many = (budget.kept_back == 1).then(|| {
            let what = format!(
                "more than {MOST_TOLD} alerts of kind {} came: the rest of this hour's are counted",
                kind.as_str()
            );
            Difference::new(Kind::Many, kind.as_str(), what)
        });
        (false, many)
    }

    /// What was kept back in hours that are over.
    pub fn kept_back(&mut self, now: i64) -> Vec<Difference> {
        let mut all = Vec::new();
        self.told.retain(|kind, budget| {
            let over = now - budget.since >= HOUR;
            if over && budget.kept_back > 0 {
                let what =
                    format!("{} more alerts of kind {} came in the hour before", budget.kept_back, kind.as_str());
                all.push(Difference::new(Kind::Many, format!("{} {}", kind.as_str(), budget.since), what));
            }
            !over
        });
        all
    }

    /// What became of the interfaces since the last look. The first only learns.
    pub fn interfaces_changed(&mut self, lines: Vec<InterfaceLine>) -> Vec<Difference> {
        let now: BTreeMap<u32, InterfaceLine> = lines.into_iter().map(|line| (line.index, line)).collect();
        let Some(before) = self.interfaces.replace(now.clone()) else { return Vec::new() };
        let judged = |line: &InterfaceLine| match (line.guarded, line.container_host) {
            (true, _) => "guarded",
            (false, Some(ContainerHost::Guard)) => "judged between containers and this host",
            (false, _) => "NOT judged",
        };
        let mut all = Vec::new();
        for (index, line) in &now {
            let what = match before.get(index) {
                None => format!("interface {} appeared: {}, {}", line.name, judged(line), line.why),
                Some(then) if then.name != line.name => {
                    format!("interface {} is now called {}: {}", then.name, line.name, judged(line))
                }
                Some(then) if then.guarded != line.guarded => {
                    format!("interface {} is {} now: {}", line.name, judged(line), line.why)
                }
                Some(_) => continue,
            };
            all.push(Difference::new(Kind::InterfaceChanged, line.name.clone(), what));
        }
        for (_, line) in before.iter().filter(|(index, _)| !now.contains_key(index)) {
            let what = format!(
                "interface {} ({}) is gone, or was moved to another network namespace",
                line.name,
                judged(line)
            );
            all.push(Difference::new(Kind::InterfaceChanged, line.name.clone(), what));
        }
        all
    }

    /// Packet and AF_XDP sockets that were not there before. The first look only learns.
    pub fn new_packet_sockets(&mut self, now: BTreeSet<u32>) -> BTreeSet<u32> {
        let new = self.packet_sockets.as_ref().map(|before| &now - before).unwrap_or_default();
        self.packet_sockets = Some(now);
        new
    }

    /// Programs of others that were not there before, the first look included: nobody has told of them yet.
    pub fn new_foreign(&mut self, now: BTreeSet<String>) -> BTreeSet<String> {
        let new = self.foreign.as_ref().map_or_else(|| now.clone(), |before| &now - before);
        self.foreign = Some(now);
        new
    }
}

impl Lasting {
    fn over(self, now: i64, counted: Option<&Counted>) -> Told {
        let packets =
            self.counted.as_ref().zip(counted).and_then(|(before, after)| unjudged(&self.difference, before, after));
        let gap = Gap {
            on: self.difference.target.clone(),
            from: self.from,
            to: now,
            why: self.difference.what.clone(),
            packets,
            by: self.difference.by.clone(),
        };
        Told::Over(self.difference, gap)
    }
}

/// Of the wire's hooks and of what went round it; `None` where nothing is known of that.
fn unjudged(difference: &Difference, before: &Counted, after: &Counted) -> Option<u64> {
    if before.interfaces != after.interfaces {
        return None;
    }
    let more = |then: u64, now: u64, judged_then: u64, judged_now: u64| {
        now.saturating_sub(then).saturating_sub(judged_now.saturating_sub(judged_then))
    };
    let inbound = more(before.received, after.received, before.judged_in, after.judged_in);
    let outbound = more(before.sent, after.sent, before.judged_out, after.judged_out);
    match difference.kind {
        Kind::WentRound => Some(outbound),
        Kind::HookDetached | Kind::ForeignInFront if difference.hook.contains("ingress") => Some(inbound),
        Kind::HookDetached | Kind::ForeignInFront if difference.hook.contains("egress") => Some(outbound),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detached(repaired: bool) -> Difference {
        let mut difference = Difference::new(Kind::HookDetached, "eth1", "the tcx ingress program was detached");
        difference.hook = "tcx ingress".to_owned();
        difference.repaired = repaired;
        difference
    }

    fn counted(sent: u64, judged_out: u64) -> Counted {
        Counted { interfaces: vec![2], names: vec!["eth1".to_owned()], sent, judged_out, ..Counted::default() }
    }

    #[test]
    fn a_repair_is_told_with_its_gap() {
        let mut watch = Watch::default();
        assert!(watch.look(Vec::new(), Some(counted(0, 0)), 1_000).is_empty());
        watch.still(5_000);
        let after = Counted { received: 20, judged_in: 6, ..counted(0, 0) };
        let told = watch.look(vec![detached(true)], Some(after), 9_000);
        let [Told::Begun(begun), Told::Over(_, gap)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(begun.kind, Kind::HookDetached);
        assert_eq!((gap.from, gap.to, gap.packets, gap.on.as_str()), (5_000, 9_000, Some(14), "eth1"));
        assert_eq!(watch.problems().count(), 0);
    }

    #[test]
    fn what_lasts_is_told_once_and_is_a_problem_until_it_is_over() {
        let mut watch = Watch::default();
        watch.look(Vec::new(), None, 1_000);
        assert_eq!(watch.look(vec![detached(false)], None, 2_000).len(), 1);
        assert!(watch.look(vec![detached(false)], None, 3_000).is_empty());
        assert_eq!(watch.problems().count(), 1);
        watch.still(3_500);
        let told = watch.look(Vec::new(), None, 4_000);
        let [Told::Over(_, gap)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((gap.from, gap.to), (1_000, 4_000));
        assert_eq!(watch.problems().count(), 0);
    }

    /// Looks once a second at what was counted; when it is taken for going round.
    fn seconds(steps: &[(u64, u64)]) -> Option<usize> {
        let mut watch = Watch::default();
        let (mut sent, mut judged) = (1000, 1000);
        watch.look(Vec::new(), Some(counted(sent, judged)), 1);
        steps.iter().enumerate().find_map(|(second, (more_sent, more_judged))| {
            (sent, judged) = (sent + more_sent, judged + more_judged);
            let now = counted(sent, judged);
            let found = watch.went_round(&now);
            watch.look(Vec::new(), Some(now), 2 + second as i64);
            found.map(|_| second + 1)
        })
    }

    #[test]
    fn a_hundred_packets_a_second_are_seen_within_four_seconds() {
        assert_eq!(seconds(&[(100, 0); 10]), Some(3));
        assert_eq!(seconds(&[(50, 0), (100, 0), (100, 0), (100, 0)]), Some(3));
        assert_eq!(seconds(&[(10_100, 10_000); 10]), Some(3), "beside traffic that is judged");
    }

    #[test]
    fn counts_that_lag_are_no_alert() {
        assert_eq!(seconds(&[(5000, 6000), (7000, 6000), (5500, 6000), (6500, 6000)].repeat(5)), None);
        assert_eq!(seconds(&[(1000, 0), (0, 0), (0, 0), (0, 1000)].repeat(5)), None, "a queue that drains");
        assert_eq!(seconds(&[(10, 0); 100]), None);
        // Segments that the device counts as one.
        assert_eq!(seconds(&[(100, 4000); 10]), None);
    }

    #[test]
    fn what_went_round_may_pause_and_is_one_difference() {
        let mut watch = Watch::default();
        watch.look(Vec::new(), None, 1);
        let round = || vec![Difference::new(Kind::WentRound, "eth0", "…")];
        assert_eq!(watch.look(round(), None, 1_000_000).len(), 1);
        assert!(watch.look(Vec::new(), None, 2_000_000).is_empty());
        assert!(watch.look(round(), None, 3_000_000).is_empty());
        let told = watch.look(Vec::new(), None, 7_000_000);
        let [Told::Over(_, gap)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(gap.to, 3_000_000, "until it was last seen");
    }

    #[test]
    fn what_comes_too_often_is_counted_and_said() {
        let mut watch = Watch::default();
        let told = (0..200).filter(|second| watch.may_tell(Kind::PacketSocket, *second).0).count();
        assert_eq!(told, MOST_TOLD);
        assert!(watch.may_tell(Kind::HookDetached, 300).0, "other kinds are told");
        assert!(watch.kept_back(HOUR - 1).is_empty());
        let [kept] = &watch.kept_back(HOUR)[..] else { panic!() };
        assert!(kept.what.starts_with("140 more alerts of kind packet_socket"), "{}", kept.what);
        let (again, _) = watch.may_tell(Kind::PacketSocket, HOUR + 1);
        assert!(again && watch.kept_back(HOUR + 2).is_empty());
    }

    #[test]
    fn interfaces_that_come_go_and_change_are_told() {
        let line = |index, name: &str, guarded| InterfaceLine {
            index,
            name: name.to_owned(),
            guarded,
            why: "why".to_owned(),
            container_host: None,
        };
        let mut watch = Watch::default();
        assert!(watch.interfaces_changed(vec![line(1, "lo", false), line(2, "eth0", true)]).is_empty());
        let told: Vec<String> = watch
            .interfaces_changed(vec![line(2, "eth0", false), line(3, "veth1", true)])
            .into_iter()
            .map(|difference| difference.what)
            .collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("eth0 is NOT judged now") && told[1].contains("veth1 appeared: guarded"), "{told:?}");
        assert!(told[2].contains("lo (NOT judged) is gone"), "{told:?}");
    }

    #[test]
    fn only_what_is_new_is_told() {
        let mut watch = Watch::default();
        assert!(watch.new_packet_sockets([1, 2].into()).is_empty());
        assert_eq!(watch.new_packet_sockets([2, 3].into()), [3].into());
        let foreign = |name: &str| BTreeSet::from([name.to_owned()]);
        assert_eq!(watch.new_foreign(foreign("a")), foreign("a"));
        assert!(watch.new_foreign(foreign("a")).is_empty());
    }
}
