//! The administrator: takes members out of the group and lets them in again while others send.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Call, GroupState};

use crate::plan::group::GroupPlan;
use crate::plan::mix;

/// Makes the group and its changes, one after the other.
pub(super) struct Admin {
    plan: GroupPlan,
    group: UserId,
    /// All who are or will be members, by their numbers; the first is the administrator.
    users: Vec<UserId>,
    /// Who is out now.
    outside: Vec<u32>,
    /// Changes that were answered.
    made: u32,
    /// What was asked and not answered, and who will be out then.
    asked: Option<(Call, Vec<u32>)>,
    version: u64,
    /// Accepted messages at the last look, and when there were more than before.
    last_accepted: u64,
    moved_ns: u64,
}

impl Admin {
    pub(super) fn new(plan: &GroupPlan, group: UserId, users: Vec<UserId>) -> Self {
        Self {
            plan: plan.clone(),
            group,
            users,
            outside: Vec::new(),
            made: 0,
            asked: None,
            version: 0,
            last_accepted: 0,
            moved_ns: 0,
        }
    }

    /// The call that makes the group.
    pub(super) fn create(&mut self) -> Call {
        let (group, members) = (self.group.clone(), self.users[1..].to_vec());
        let call = Call::GroupCreate { group, members };
        self.asked = Some((call.clone(), Vec::new()));
        call
    }

    /// The next change, when it is due: they are spread evenly over the messages. In the end all are
    /// members again.
    pub(super) fn poll_change(&mut self, accepted: u64, now_ns: u64) -> Option<Call> {
        if accepted > self.last_accepted || self.moved_ns == 0 {
            (self.last_accepted, self.moved_ns) = (accepted, now_ns);
        }
        if self.asked.is_some() || self.is_done() {
            return None;
        }
        let due = self.plan.messages * u64::from(self.made + 1) / u64::from(self.plan.changes + 1);
        // When those who are out have all that is left to send, nothing moves before they are back.
        let is_stuck = now_ns.saturating_sub(self.moved_ns) > STUCK_NS;
        let is_due = self.made >= self.plan.changes || accepted >= due || is_stuck;
        is_due.then(|| {
            self.moved_ns = now_ns;
            self.next_change()
        })
    }

    /// The same call again, when the server had no time for it.
    pub(super) fn again(&self) -> Option<Call> {
        self.asked.as_ref().map(|(call, _)| call.clone())
    }

    /// The answer to what was asked: who is a member of which version.
    pub(super) fn handle_state(&mut self, state: &GroupState) -> Result<(u64, Vec<u32>)> {
        let (call, outside) = self.asked.take().context("an answer that nobody has asked for")?;
        let members: BTreeSet<u32> = state
            .members
            .iter()
            .map(|member| self.users.iter().position(|user| user == member))
            .map(|place| place.and_then(|place| u32::try_from(place).ok()))
            .collect::<Option<_>>()
            .context("the group has a member whom nobody added")?;
        let wanted = (0..self.plan.members).filter(|member| !outside.contains(member));
        ensure!(wanted.eq(members.iter().copied()), "the group has not the members that it should");
        ensure!(state.version == self.version + 1, "a change is not the next version");
        if !matches!(call, Call::GroupCreate { .. }) {
            self.made += 1;
        }
        (self.version, self.outside) = (state.version, outside);
        Ok((state.version, members.into_iter().collect()))
    }

    pub(super) fn is_created(&self) -> bool {
        self.version > 0
    }

    /// All changes are made, and nobody is out.
    pub(super) fn is_done(&self) -> bool {
        self.made >= self.plan.changes && self.outside.is_empty() && self.asked.is_none()
    }

    pub(super) fn made(&self) -> u32 {
        self.made
    }

    fn next_change(&mut self) -> Call {
        let random = mix(self.plan.seed ^ mix(CHANGES ^ u64::from(self.made)));
        let pick = |count: usize| {
            usize::try_from(random / 2 % count as u64).expect("below the number of members")
        };
        let inside: Vec<u32> =
            (1..self.plan.members).filter(|member| !self.outside.contains(member)).collect();
        let is_last = self.made >= self.plan.changes;
        let may_remove = !is_last && inside.len() > self.outside.len();
        let mut outside = self.outside.clone();
        let group = self.group.clone();
        let call = if may_remove && (outside.is_empty() || random.is_multiple_of(2)) {
            let member = inside[pick(inside.len())];
            outside.push(member);
            let members = vec![self.users[member as usize].clone()];
            Call::GroupRemove { group, members, version: 0 }
        } else {
            let back = if is_last {
                std::mem::take(&mut outside)
            } else {
                vec![outside.swap_remove(pick(outside.len()))]
            };
            let members = back.iter().map(|&member| self.users[member as usize].clone()).collect();
            Call::GroupAdd { group, members, as_admins: false, version: 0 }
        };
        self.asked = Some((call.clone(), outside));
        call
    }
}

/// Keeps the random numbers of changes apart from those of messages.
const CHANGES: u64 = 1 << 62;
/// Without an accepted message for so long, the next change comes early.
const STUCK_NS: u64 = 200_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(members: u32, changes: u32) -> GroupPlan {
        GroupPlan {
            members,
            devices_per_member: 1,
            messages: 100,
            payload_bytes: 24,
            changes,
            seed: 3,
        }
    }

    /// Answers as a server does.
    fn serve(admin: &mut Admin, call: &Call, members: &mut BTreeSet<UserId>, version: u64) {
        match call {
            Call::GroupAdd { members: more, .. } => members.extend(more.iter().cloned()),
            Call::GroupRemove { members: less, .. } => {
                less.iter().for_each(|member| assert!(members.remove(member)));
            }
            _ => unreachable!("no change"),
        }
        let state = GroupState {
            group: UserId::new("group").unwrap(),
            version,
            members: members.iter().cloned().collect(),
            admins: Vec::new(),
        };
        assert_eq!(admin.handle_state(&state).unwrap().1.len(), members.len());
    }

    #[test]
    fn changes_are_spread_and_in_the_end_all_are_back() {
        for members in [2, 3, 10, 100] {
            let users: Vec<UserId> =
                (0..members).map(|n| UserId::new(&format!("user {n}")).unwrap()).collect();
            let mut inside: BTreeSet<UserId> = users.iter().cloned().collect();
            let mut admin =
                Admin::new(&plan(members, 9), UserId::new("group").unwrap(), users.clone());
            admin.create();
            let all = GroupState {
                group: UserId::new("group").unwrap(),
                version: 1,
                members: users.clone(),
                admins: Vec::new(),
            };
            assert!(admin.handle_state(&all).is_ok() && admin.is_created());
            let (mut version, mut removed) = (1, 0);
            for accepted in 0..=100 {
                while let Some(call) = admin.poll_change(accepted, accepted) {
                    assert!(accepted >= u64::from(admin.made() + 1) * 10 || admin.made() == 9);
                    assert_eq!(admin.poll_change(accepted, accepted), None, "one at a time");
                    version += 1;
                    removed += u32::from(matches!(call, Call::GroupRemove { .. }));
                    serve(&mut admin, &call, &mut inside, version);
                    assert!(inside.contains(&users[0]));
                }
            }
            assert!(admin.is_done() && (9..=10).contains(&admin.made()));
            assert!(removed >= 4 && inside.len() == members as usize, "{members}: {removed}");
        }
    }

    #[test]
    fn when_nothing_moves_the_next_change_comes_early() {
        let users = vec![UserId::new("a").unwrap(), UserId::new("b").unwrap()];
        let mut admin = Admin::new(&plan(2, 1), UserId::new("group").unwrap(), users);
        assert_eq!(admin.poll_change(1, 5), None);
        assert_eq!(admin.poll_change(1, 5 + STUCK_NS), None);
        assert!(admin.poll_change(1, 6 + STUCK_NS).is_some());
    }
}
