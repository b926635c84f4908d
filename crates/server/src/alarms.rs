//! What is wrong with members, as etcd's clients are told: NOSPACE and CORRUPT.
//!
//! An alarm says what is, and ends with it: nobody has to disarm it. Each server knows its own,
//! and tells the others with its announcement (see `machine`). Nothing is refused because of
//! another member's alarm: a full disk costs the leadership, a damaged store is fetched anew, and
//! the others go on.

use crate::proto::etcdserverpb::{AlarmMember, AlarmType};

/// The alarms of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Alarms {
    /// A disk under it is full.
    pub(crate) no_space: bool,
    /// Its store was damaged, and is not whole again yet.
    pub(crate) corrupt: bool,
}

impl Alarms {
    /// Those that are numbered so. Of numbers of a later version nothing is known.
    pub(crate) fn from_numbers(numbers: &[i32]) -> Self {
        let has = |kind: AlarmType| numbers.contains(&i32::from(kind));
        Self { no_space: has(AlarmType::Nospace), corrupt: has(AlarmType::Corrupt) }
    }

    pub(crate) fn numbers(self) -> Vec<i32> {
        self.kinds().map(i32::from).collect()
    }

    pub(crate) fn kinds(self) -> impl Iterator<Item = AlarmType> {
        let Self { no_space, corrupt } = self;
        [(no_space, AlarmType::Nospace), (corrupt, AlarmType::Corrupt)]
            .into_iter()
            .filter_map(|(is_raised, kind)| is_raised.then_some(kind))
    }

    /// These without that one.
    pub(crate) fn without(self, kind: i32) -> Self {
        let mut numbers = self.numbers();
        numbers.retain(|number| *number != kind);
        Self::from_numbers(&numbers)
    }
}

/// An alarm as `Maintenance.Status` and `alarm list` write it.
pub(crate) fn text(alarm: &AlarmMember) -> String {
    format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_later_version_are_ignored() {
        let both = Alarms { no_space: true, corrupt: true };
        assert_eq!(both.numbers(), [1, 2]);
        assert_eq!(Alarms::from_numbers(&[2, 7, 0, 1]), both);
        assert_eq!(both.without(1), Alarms { no_space: false, corrupt: true });
    }

    #[test]
    fn an_alarm_is_written_as_etcd_writes_it() {
        let member_id = 8_630_161_756_594_109_333;
        let alarm = AlarmMember { member_id, alarm: AlarmType::Corrupt.into() };
        assert_eq!(text(&alarm), "memberID:8630161756594109333 alarm:CORRUPT ");
    }
}
