//! The checkers of histories, checked: against trying all orders, and against lies.

use kontiki_sim::{
    Dice, Draws, Stream,
    linear::{
        Call, Model, Verdict, search,
        store::{self, Answer, Exchange, Request, Store},
    },
};

const KEYS: [&str; 3] = ["a", "b", "c"];
const STEPS_MAX: u64 = 1_000_000;

/// Whether there is an order, by trying them all.
fn brute_force<M: Model>(model: &M, history: &[Call<M::Action>]) -> bool {
    fn go<M: Model>(model: &M, left: &[&Call<M::Action>], state: &M::State) -> bool {
        // What has no answer may be left out.
        if left.iter().all(|call| call.end.is_none()) {
            return true;
        }
        let first_end = left.iter().filter_map(|call| call.end).min().unwrap_or(u64::MAX);
        (0..left.len()).filter(|&at| left[at].start <= first_end).any(|at| {
            let mut rest = left.to_vec();
            let call = rest.remove(at);
            model.step(state, &call.action).is_some_and(|after| go(model, &rest, &after))
        })
    }
    go(model, &history.iter().collect::<Vec<_>>(), &model.initial())
}

fn request(draws: &mut Draws, number: u64, mod_revision: impl Fn(&str) -> u64) -> Request {
    let key = (*draws.pick(&KEYS)).to_owned();
    let value = format!("v{number}");
    match draws.below(10) {
        0..4 => Request::Put { key, value },
        4 => Request::Delete { key },
        5 | 6 => {
            let known = mod_revision(&key);
            let unchanged_since = if draws.percent(70) { known } else { draws.below(6) };
            let other = (*draws.pick(&KEYS)).to_owned();
            let mut puts = vec![(key.clone(), value.clone())];
            puts.extend((other != key).then_some((other, value)));
            Request::PutIf { guard: key, unchanged_since, puts }
        }
        7 | 8 => Request::get(&key),
        _ => Request::Range { from: "a".to_owned(), to: Some("c".to_owned()) },
    }
}

/// A history that an honest store could have made: each operation takes effect at an instant
/// between its call and its answer; one without an answer does so late, or never.
fn honest(
    draws: &mut Draws,
    count: u64,
    overlap: u64,
    unknown_percent: u64,
) -> Vec<Call<Exchange>> {
    let mut store = Store::empty();
    let mut late: Vec<Request> = Vec::new();
    let mut history = Vec::new();
    for number in 0..count {
        let mod_revision = |key: &str| {
            let found = store.clone().apply(&Request::get(key)).found;
            found.first().map_or(0, |found| found.mod_revision)
        };
        let request = request(draws, number, mod_revision);
        let at = number * 10 + 100;
        let start = at - draws.below(overlap + 1);
        if draws.percent(unknown_percent) {
            match draws.below(3) {
                0 => drop(store.apply(&request)),
                1 => late.push(request.clone()),
                _ => {}
            }
            history.push(Call { action: Exchange { request, answer: None }, start, end: None });
        } else {
            let answer = Some(store.apply(&request));
            let end = Some(at + draws.below(overlap + 1));
            history.push(Call { action: Exchange { request, answer }, start, end });
        }
        if draws.percent(30) && !late.is_empty() {
            store.apply(&late.remove(0));
        }
    }
    history
}

/// Tells one lie, or moves one operation in time.
fn falsify(draws: &mut Draws, history: &mut [Call<Exchange>]) {
    let places: Vec<usize> = (0..history.len()).collect();
    let call = &mut history[*draws.pick(&places)];
    let Some(Answer { revision, is_changed, found }) = &mut call.action.answer else {
        call.start += draws.below(60);
        return;
    };
    match draws.below(6) {
        0 => *revision += 1,
        1 => *revision = revision.saturating_sub(1),
        2 => *is_changed = !*is_changed,
        3 if !found.is_empty() => found[0].mod_revision += 1,
        4 if !found.is_empty() => "v0".clone_into(&mut found[0].value),
        _ => {
            let by = draws.below(80);
            call.start += by;
            call.end = call.end.map(|end| end + by);
        }
    }
}

/// Three judges with one mind: the revisions, the search, and all orders there are.
#[test]
fn the_checkers_agree_with_brute_force() {
    let mut draws = Draws::new(Dice::new(21), Stream::Client, 0);
    let mut verdicts = [0_u32; 2];
    for round in 0..10_000 {
        let count = draws.within(1..=6);
        let mut history = honest(&mut draws, count, 40, 25);
        for _ in 0..draws.below(3) {
            falsify(&mut draws, &mut history);
        }
        let truth = brute_force(&Store::empty(), &history);
        let found = search(&Store::empty(), &history, STEPS_MAX);
        assert_eq!(found == Verdict::Linearizable, truth, "round {round}: {history:#?}");
        assert_ne!(found, Verdict::Undecided);
        let by_revision = store::check(&Store::empty(), &history);
        assert_eq!(by_revision.is_ok(), truth, "round {round}: {by_revision:?} {history:#?}");
        verdicts[usize::from(truth)] += 1;
    }
    assert!(verdicts.iter().all(|&count| 2_000 < count), "one-sided: {verdicts:?}");
}

/// Long histories with many clients and lost answers: the truth is accepted, each lie is not,
/// unless the search says that it is true after all.
#[test]
fn a_lie_in_a_long_history_is_found() {
    let mut draws = Draws::new(Dice::new(22), Stream::Client, 0);
    let mut lies = 0;
    for round in 0..200 {
        let honest = honest(&mut draws, 300, 60, 4);
        store::check(&Store::empty(), &honest).unwrap_or_else(|lie| panic!("round {round}: {lie}"));
        let mut history = honest.clone();
        falsify(&mut draws, &mut history);
        match store::check(&Store::empty(), &history) {
            Ok(()) => {
                // A change of a moment or of a lost request may be no lie at all.
                let verdict = search(&Store::empty(), &history, 20_000);
                let is_refused = matches!(verdict, Verdict::NotLinearizable(_));
                assert!(!is_refused, "round {round}: {verdict:?}");
            }
            Err(unexplained) => {
                assert!(unexplained.is_decided, "round {round}: {unexplained}");
                lies += 1;
            }
        }
    }
    assert!(100 < lies, "only {lies} lies were found");
}

/// Whatever an answer claims, a history that leaves it out of order is refused with its reason.
#[test]
fn the_report_names_what_cannot_follow() {
    let put = |value: &str, revision, start, end| Call {
        action: Exchange {
            request: Request::Put { key: "k".to_owned(), value: value.to_owned() },
            answer: Some(Answer { revision, is_changed: true, found: Vec::new() }),
        },
        start,
        end: Some(end),
    };
    let history = [put("1", 3, 0, 1), put("2", 2, 5, 6)];
    let unexplained = store::check(&Store::empty(), &history).unwrap_err();
    assert_eq!(unexplained.revision, 2);
    assert_eq!(unexplained.stuck.as_ref(), Some(&history[0]));
    assert_eq!(unexplained.because.as_ref(), Some(&history[1]));
    assert!(unexplained.to_string().contains("answered before"), "{unexplained}");

    let history = [put("1", 2, 0, 1), put("2", 2, 5, 6)];
    let unexplained = store::check(&Store::empty(), &history).unwrap_err();
    assert!(unexplained.to_string().contains("given to two changes"), "{unexplained}");

    let history = [put("1", 2, 0, 1), put("2", 4, 5, 6)];
    let unexplained = store::check(&Store::empty(), &history).unwrap_err();
    assert!(unexplained.to_string().contains("nobody can have made"), "{unexplained}");
}

/// Counters: `Some(n)` is an increment that answered `n`, on one or on two of them.
struct Counters {
    is_together: bool,
}

impl Model for Counters {
    type State = [u64; 4];
    type Action = (Vec<usize>, Option<u64>);
    type Part = usize;

    fn initial(&self) -> [u64; 4] {
        [0; 4]
    }

    fn step(&self, state: &[u64; 4], (which, told): &Self::Action) -> Option<[u64; 4]> {
        let mut after = *state;
        which.iter().for_each(|&one| after[one] += 1);
        let sum: u64 = which.iter().map(|&one| after[one]).sum();
        told.is_none_or(|told| told == sum).then_some(after)
    }

    fn is_read(&self, _: &Self::Action) -> bool {
        false
    }

    fn parts(&self, (which, _): &Self::Action) -> Vec<usize> {
        if self.is_together { vec![0] } else { which.clone() }
    }
}

/// What shares no key, not even through others, is judged apart, with the same verdict.
#[test]
fn parts_are_judged_as_the_whole() {
    let mut draws = Draws::new(Dice::new(23), Stream::Client, 0);
    let mut verdicts = [0_u32; 2];
    for _ in 0..10_000 {
        let history: Vec<_> = (0..draws.within(1..=6))
            .map(|_| {
                let mut which = vec![*draws.pick(&[0, 1, 2, 3])];
                if draws.percent(20) {
                    which = vec![0, 1];
                }
                let start = draws.below(12);
                let is_known = draws.percent(80);
                let end = is_known.then_some(start + draws.below(6));
                let told = is_known.then(|| draws.within(1..=2));
                Call { action: (which, told), start, end }
            })
            .collect();
        let [apart, together] =
            [false, true].map(|is_together| search(&Counters { is_together }, &history, STEPS_MAX));
        let is_linearizable = apart == Verdict::Linearizable;
        assert_eq!(is_linearizable, together == Verdict::Linearizable, "{history:?}");
        let truth = brute_force(&Counters { is_together: true }, &history);
        assert_eq!(is_linearizable, truth, "{history:?}");
        verdicts[usize::from(truth)] += 1;
    }
    assert!(verdicts.iter().all(|&count| 1_000 < count), "one-sided: {verdicts:?}");
}

/// A search that is given up says so, and never yes.
#[test]
fn a_search_that_is_cut_short_decides_nothing() {
    let call = |told| Call { action: (vec![0], told), start: 0, end: Some(9) };
    let mut history: Vec<_> = (0..40).map(|_| call(None)).collect();
    history.push(call(Some(99)));
    assert_eq!(search(&Counters { is_together: true }, &history, 10), Verdict::Undecided);
}
