//! Quorum arithmetic against a model that is too simple to be wrong: it looks at every subset.

use std::collections::BTreeSet;

use kontiki_raft::{Index, Member, MemberRole, Membership, NodeId, Promotion};

/// Small, seeded, good enough to draw cases (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn subset(&mut self, ids: &[u64]) -> Vec<u64> {
        ids.iter().copied().filter(|_| self.below(2) == 0).collect()
    }
}

/// A membership of voters, learners and outgoing voters, drawn at random.
struct Case {
    voters: Vec<u64>,
    outgoing: Vec<u64>,
    membership: Membership,
}

impl Case {
    fn draw(rng: &mut Rng) -> Self {
        let ids: Vec<u64> = (1..=9).collect();
        let members = rng.subset(&ids);
        let voters = rng.subset(&members);
        let outgoing = if rng.below(2) == 0 { Vec::new() } else { rng.subset(&ids) };
        let role = |id: &u64| {
            if voters.contains(id) {
                MemberRole::Voter
            } else {
                MemberRole::Learner { promotion: Promotion::ByHand }
            }
        };
        let membership = Membership {
            members: members
                .iter()
                .map(|id| Member {
                    id: NodeId(*id),
                    role: role(id),
                    address: "".into(),
                    store: None,
                    context: Default::default(),
                })
                .collect(),
            outgoing: outgoing.iter().copied().map(NodeId).collect(),
            next_id: NodeId(10),
        };
        Self { voters, outgoing, membership }
    }

    /// Both halves, or the only one.
    fn halves(&self) -> Vec<&[u64]> {
        let mut halves = vec![self.voters.as_slice()];
        if !self.outgoing.is_empty() {
            halves.push(&self.outgoing);
        }
        halves
    }

    /// More than half of each half.
    fn is_quorum(&self, nodes: &BTreeSet<u64>) -> bool {
        self.halves().iter().all(|half| {
            let (inside, outside): (Vec<u64>, Vec<u64>) =
                half.iter().partition(|id| nodes.contains(id));
            outside.len() < inside.len()
        })
    }
}

/// All subsets of 1..=9.
fn subsets() -> impl Iterator<Item = BTreeSet<u64>> {
    (0..512_u64).map(|bits| (1..=9).filter(|id| bits & (1 << (id - 1)) != 0).collect())
}

#[test]
fn a_quorum_is_more_than_half_of_each_half() {
    let mut rng = Rng(1);
    for _ in 0..400 {
        let case = Case::draw(&mut rng);
        for nodes in subsets() {
            assert_eq!(
                case.membership.has_quorum(|id| nodes.contains(&id.get())),
                case.is_quorum(&nodes),
                "{nodes:?} of {:?} and {:?}",
                case.voters,
                case.outgoing,
            );
        }
    }
}

/// Pitfall B3. The largest value such that the voters who have reached it are a quorum.
#[test]
fn the_quorum_value_is_the_largest_that_a_quorum_has_reached() {
    let mut rng = Rng(2);
    for _ in 0..20_000 {
        let case = Case::draw(&mut rng);
        let values: Vec<u64> = (0..=9).map(|_| rng.below(12)).collect();
        let value = |id: NodeId| values[usize::try_from(id.get()).expect("small")];

        let reached = |bound: u64| {
            let nodes: BTreeSet<u64> = (1..=9).filter(|&id| bound <= value(NodeId(id))).collect();
            case.is_quorum(&nodes)
        };
        // No voters, no quorum: nothing is reached.
        let naive = (0..12).rev().find(|&bound| reached(bound)).unwrap_or(0);

        let found = case.membership.quorum_value(|id| Index(value(id)));
        assert_eq!(
            found,
            Index(naive),
            "of {:?} and {:?} with {values:?}",
            case.voters,
            case.outgoing,
        );
    }
}

/// Two quorums of one membership always share a voter (§5.2): the reason why there is one
/// leader a term.
#[test]
fn two_quorums_intersect() {
    let mut rng = Rng(3);
    for _ in 0..20 {
        let case = Case::draw(&mut rng);
        let quorums: Vec<BTreeSet<u64>> = subsets()
            .filter(|nodes| case.membership.has_quorum(|id| nodes.contains(&id.get())))
            .collect();
        for one in &quorums {
            for other in &quorums {
                assert!(!one.is_disjoint(other), "{one:?} and {other:?} are both quorums");
            }
        }
    }
}

/// A joint quorum holds a majority of the old voters and one of the new (thesis §4.3).
#[test]
fn neither_half_of_a_joint_membership_decides_alone() {
    let mut membership = Membership::of_voters([1, 2, 3].map(|id| (NodeId(id), "")));
    membership.outgoing = [4, 5, 6].map(NodeId).to_vec();
    let has = |ids: &[u64]| membership.has_quorum(|id| ids.contains(&id.get()));
    assert!(!has(&[1, 2, 3]));
    assert!(!has(&[4, 5, 6]));
    assert!(!has(&[1, 2, 3, 4]));
    assert!(has(&[1, 2, 4, 5]));
}
