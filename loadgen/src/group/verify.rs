//! Whether everybody got what was meant for them, nobody got more, and all in one order.

use super::Seen;
use crate::plan::group::GroupPlan;

/// What all devices together have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Findings {
    pub accepted: u64,
    /// Messages at devices that they were meant for, each counted once there.
    pub delivered: u64,
    pub lost: u64,
    /// Messages at devices whose user was no member when they were accepted, or that sent them, or
    /// that the server has refused.
    pub leaked: u64,
    pub reordered: u64,
}

/// `seen`: of all devices, by their numbers. Each version of the roster is known to the first one.
pub fn verify(plan: &GroupPlan, seen: &[Seen]) -> Findings {
    // 0: not accepted.
    let mut versions = vec![0; index(plan.messages)];
    for &(number, version) in seen.iter().flat_map(|seen| &seen.accepted) {
        versions[index(number)] = version;
    }
    let rosters = &seen[0].rosters;
    let is_member = |version: u64, member: u32| {
        rosters.get(&version).is_some_and(|members| members.contains(&member))
    };
    let (mut delivered, mut leaked, mut reordered) = (0, 0, 0);
    for (device, seen) in (0u32..).zip(seen) {
        let member = device / plan.devices_per_member;
        for &(number, version) in &seen.order {
            let is_for_it = version == versions[index(number)]
                && is_member(version, member)
                && plan.sender(number) != device;
            *if is_for_it { &mut delivered } else { &mut leaked } += 1;
        }
        // A change of the roster is one of the things that are in order.
        reordered += seen.order.windows(2).filter(|pair| pair[0].1 > pair[1].1).count() as u64;
    }
    let accepted = versions.iter().filter(|&&version| version != 0).count() as u64;
    let expected: u64 = versions
        .iter()
        .filter_map(|version| rosters.get(version))
        .map(|members| members.len() as u64 * u64::from(plan.devices_per_member) - 1)
        .sum();
    let orders = seen.iter().map(|seen| seen.order.iter().map(|&(number, _)| number));
    reordered += knotted(orders, plan.messages);
    Findings { accepted, delivered, lost: expected.saturating_sub(delivered), leaked, reordered }
}

/// Messages that cannot stand in one line with the others in which each device has them in its own
/// order: those between two that came before each other.
fn knotted<I>(orders: impl Iterator<Item = I>, messages: u64) -> u64
where
    I: Iterator<Item = u64> + Clone,
{
    let mut followers = vec![Vec::new(); index(messages)];
    let mut leaders = followers.clone();
    for order in orders {
        for (before, after) in order.clone().zip(order.skip(1)) {
            followers[index(before)].push(index(after));
            leaders[index(after)].push(index(before));
        }
    }
    // Whatever has nothing left in front of it can stand there, and the same from behind.
    let mut is_placed = vec![false; index(messages)];
    place(&followers, &leaders, &mut is_placed);
    place(&leaders, &followers, &mut is_placed);
    is_placed.iter().filter(|&&is_placed| !is_placed).count() as u64
}

fn place(to: &[Vec<usize>], from: &[Vec<usize>], is_placed: &mut [bool]) {
    let is_left =
        |placed: &[bool], places: &[usize]| places.iter().filter(|&&place| !placed[place]).count();
    let mut waits_for: Vec<usize> = from.iter().map(|from| is_left(is_placed, from)).collect();
    let is_free = |&place: &usize| waits_for[place] == 0 && !is_placed[place];
    let mut free: Vec<usize> = (0..to.len()).filter(is_free).collect();
    while let Some(place) = free.pop() {
        is_placed[place] = true;
        for &next in &to[place] {
            if is_placed[next] {
                continue;
            }
            waits_for[next] -= 1;
            if waits_for[next] == 0 {
                free.push(next);
            }
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("they are in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knots(orders: &[&[u64]], messages: u64) -> u64 {
        knotted(orders.iter().map(|order| order.iter().copied()), messages)
    }

    #[test]
    fn one_order_is_found_to_be_one_and_two_are_not() {
        // 0 and 3 were sent by the first, 1 by the second.
        assert_eq!(knots(&[&[1, 2], &[0, 2, 3], &[0, 1, 2, 3]], 4), 0);
        assert_eq!(knots(&[&[1, 2], &[0, 2, 3], &[0, 2, 1, 3]], 4), 2);
        assert_eq!(knots(&[&[1, 2], &[0, 2, 3], &[3, 1, 2, 0]], 4), 4);
    }

    /// No two devices have more than one message in common.
    #[test]
    fn a_circle_over_three_devices_is_found() {
        assert_eq!(knots(&[&[0, 1], &[1, 2], &[2, 0]], 3), 3);
        assert_eq!(knots(&[&[0, 1], &[1, 2], &[0, 2]], 3), 0);
        assert_eq!(knots(&[&[3, 0, 1], &[1, 2], &[2, 0, 4]], 5), 3);
    }

    /// Three members with a device each; the third is removed behind message 1, and comes back in
    /// front of message 3.
    fn run_of_three() -> (GroupPlan, Vec<Seen>) {
        let plan = GroupPlan {
            members: 3,
            devices_per_member: 1,
            messages: 4,
            payload_bytes: 24,
            changes: 2,
            seed: 1,
        };
        let mut seen = vec![Seen::new(4); 3];
        seen[0].rosters =
            [(1, vec![0, 1, 2]), (2, vec![0, 1]), (3, vec![0, 1, 2])].into_iter().collect();
        for (number, version) in [(0, 1), (1, 1), (2, 2), (3, 3)] {
            let sender = plan.sender(number);
            seen[sender as usize].accepted.push((number, version));
            for device in (0..3).filter(|&device| device != sender) {
                if version != 2 || device != 2 {
                    seen[device as usize].order.push((number, version));
                }
            }
        }
        (plan, seen)
    }

    #[test]
    fn members_get_all_and_others_nothing() {
        let (plan, seen) = run_of_three();
        assert!(plan.sender(2) != 2, "who is no member sends nothing");
        let clean = Findings { accepted: 4, delivered: 7, lost: 0, leaked: 0, reordered: 0 };
        assert_eq!(verify(&plan, &seen), clean);
        // The one who was removed gets a message that came later.
        let mut leaky = seen.clone();
        let place = leaky[2].order.iter().take_while(|(_, version)| *version == 1).count();
        leaky[2].order.insert(place, (2, 2));
        assert_eq!(verify(&plan, &leaky), Findings { leaked: 1, ..clean });
        // And the one who is back lacks one.
        let reader = (0..3).find(|&device| device != plan.sender(3) as usize).unwrap();
        let mut lossy = seen.clone();
        lossy[reader].order.retain(|(number, _)| *number != 3);
        assert_eq!(verify(&plan, &lossy), Findings { delivered: 6, lost: 1, ..clean });
        // Delivered, and told to be refused.
        let mut refused = seen;
        refused[plan.sender(3) as usize].accepted.retain(|(number, _)| *number != 3);
        let wanted = Findings { accepted: 3, delivered: 5, leaked: 2, ..clean };
        assert_eq!(verify(&plan, &refused), wanted);
    }
}
