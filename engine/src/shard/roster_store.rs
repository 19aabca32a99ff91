//! Rosters on their way to the directory and back. There, members and administrators are two lists.

use std::sync::Arc;

use ringpost_protocol::id::UserId;
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;

use super::Shard;
use super::directory::Inquirer;
use super::group::{Known, State};
use super::group_call::{BUSY, GroupCall, reply_of};
use super::roster::{Member, Roster};
use crate::directory::{self, Answer, Request};

impl<R: Ring> Shard<R> {
    /// Asks what the roster of a group is.
    pub(super) fn read_roster(&mut self, group: &UserId) {
        let inquirer = Inquirer::Reading { group: group.clone() };
        if self.inquire(inquirer, Request::GetRoster { group: group.clone() }).is_err() {
            return self.roster_unread(group);
        }
        let home = self.home.as_mut().expect("groups live at home shards");
        home.groups.set(group, State::Reading);
    }

    pub(super) fn roster_answered(&mut self, group: &UserId, answer: Answer) {
        match answer {
            Answer::Roster { version: 0, .. } => self.roster_read(group, None),
            Answer::Roster { version, roster } => {
                self.roster_read(group, Some(Roster::of_directory(version, roster)));
            }
            Answer::Failed => self.roster_unread(group),
            other => unreachable!("no answer of a request for a roster: {other:?}"),
        }
    }

    /// Has a new version made durable; what comes behind the request waits for it.
    pub(super) fn write_roster(
        &mut self,
        call: Box<GroupCall>,
        before: Option<Arc<Known>>,
        next: Arc<Known>,
    ) {
        let group = call.group.clone();
        let request = Request::PutRoster {
            group: group.clone(),
            expected_version: next.roster.version - 1,
            roster: next.roster.to_directory(),
        };
        if self.inquire(Inquirer::Writing { group: group.clone() }, request).is_err() {
            return self.answer_call(&call, Err(BUSY));
        }
        let home = self.home.as_mut().expect("groups live at home shards");
        if is_active(Mutant::RosterBeforeDurable) {
            home.groups.set(&group, State::Known(Some(Arc::clone(&next))));
            let reply = reply_of(&call, &next.roster);
            return self.answer_call(&call, Ok(reply));
        }
        home.groups.set(&group, State::Writing { call, before, next });
    }
}

impl Roster {
    fn of_directory(version: u64, stored: directory::Roster) -> Self {
        let directory::Roster { members, admins } = stored;
        let mut members: Vec<Member> = members
            .into_iter()
            .map(|user| Member { is_admin: admins.contains(&user), user })
            .collect();
        members.sort_unstable_by(|a, b| a.user.cmp(&b.user));
        Self { version, members }
    }

    fn to_directory(&self) -> directory::Roster {
        let admins = self.members.iter().filter(|member| member.is_admin);
        directory::Roster {
            members: self.members.iter().map(|member| member.user.clone()).collect(),
            admins: admins.map(|member| member.user.clone()).collect(),
        }
    }
}
