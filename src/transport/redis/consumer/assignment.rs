//! Divides partitions among the members of a group.

use std::collections::HashMap;

use crc::{CRC_32_ISO_HDLC, Crc};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Returns the partitions of `me`. If all members pass the same list, each partition has exactly
/// one owner.
///
/// Uses rendezvous hashing (Thaler, Ravishankar 1998): the score of a member for a partition is a
/// hash of the member's name and the partition's number. A partition goes to the member with the
/// highest score among those that have less than an equal share so far. As a result, only a few
/// partitions move when a member joins or leaves.
pub(super) fn assigned_partitions<'a>(
    members: impl IntoIterator<Item = &'a str>,
    me: &str,
    partitions: usize,
) -> Vec<usize> {
    let members: Vec<&str> = members.into_iter().collect();
    let share = partitions.div_ceil(members.len().max(1));
    let mut loads = HashMap::<&str, usize>::new();
    let mut mine = Vec::new();
    for partition in 0..partitions {
        let with_room = members
            .iter()
            .filter(|member| loads.get(**member).copied().unwrap_or(0) < share);
        let chosen = with_room.max_by_key(|member| (score(member, partition), **member));
        if let Some(chosen) = chosen {
            *loads.entry(chosen).or_default() += 1;
            if *chosen == me {
                mine.push(partition);
            }
        }
    }
    mine
}

fn score(member: &str, partition: usize) -> u32 {
    let mut digest = CRC.digest();
    digest.update(member.as_bytes());
    // All members must hash the same bytes, whatever the size of their `usize`.
    digest.update(&(partition as u64).to_be_bytes());
    // A CRC is linear. Without this step, the scores of two members would have the same order for
    // many partitions.
    digest.finalize().wrapping_mul(0x9e37_79b1).rotate_left(15)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["a-1", "b-2", "c-3", "d-4", "e-5"];

    fn owners(members: &[&'static str], partitions: usize) -> Vec<Option<&'static str>> {
        let mut owners = vec![None; partitions];
        for member in members {
            for partition in assigned_partitions(members.iter().copied(), member, partitions) {
                assert_eq!(owners[partition].replace(*member), None, "one owner");
            }
        }
        owners
    }

    #[test]
    fn each_partition_has_one_owner_and_no_member_more_than_its_share() {
        for members in 1..=5 {
            let owners = owners(&NAMES[..members], 16);
            assert!(owners.iter().all(Option::is_some));
            for member in &NAMES[..members] {
                let owned = owners
                    .iter()
                    .filter(|owner| **owner == Some(*member))
                    .count();
                assert!(
                    owned <= 16_usize.div_ceil(members),
                    "{owned} of {members} members"
                );
                assert!(owned > 0, "{members} members");
            }
        }
    }

    #[test]
    fn a_member_that_leaves_moves_few_partitions_of_the_others() {
        let (before, after) = (owners(&NAMES, 64), owners(&NAMES[..4], 64));
        let moved = before.iter().zip(&after);
        let moved = moved.filter(|(before, after)| **before != Some("e-5") && before != after);
        let moved = moved.count();
        assert!(moved <= 24, "{moved} of 64");
    }

    #[test]
    fn a_member_that_is_not_listed_owns_nothing() {
        assert!(assigned_partitions(["a"], "b", 16).is_empty());
        assert!(assigned_partitions([], "b", 16).is_empty());
    }
}
