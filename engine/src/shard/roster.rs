//! Who is in a group, and who may change that.
//!
//! Whoever creates a group is its administrator. Administrators add and remove members, and make
//! members administrators; nobody stops being one but by leaving the group or being removed. Anybody
//! may leave. A group without an administrator goes on, and only shrinks. One without members stays as
//! a name that cannot be taken again, as its version must never fall.

use std::sync::Arc;

use ringpost_protocol::id::UserId;
use ringpost_protocol::limits::GROUP_MEMBERS_MAX;

/// One version of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// From 1; rises by 1 with each change.
    pub version: u64,
    /// Sorted by the user, each once; at most [`GROUP_MEMBERS_MAX`].
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub user: UserId,
    pub is_admin: bool,
}

/// What somebody wants to be different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Of the others; the one who creates the group is its first member.
    Create {
        members: Vec<UserId>,
    },
    /// `version`: the one it starts from; 0: whatever it is.
    Add {
        members: Vec<UserId>,
        as_admins: bool,
        version: u64,
    },
    /// `version` as above.
    Remove {
        members: Vec<UserId>,
        version: u64,
    },
    Leave,
}

/// Why a group is not changed, or not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RosterRefusal {
    /// No such group.
    NotFound,
    /// Not a member, or no administrator.
    NotAllowed,
    /// It exists already, or has another version by now.
    Conflict,
    /// It would have more members than a group may.
    Full,
}

impl Roster {
    /// What `by` makes of a group; `None`: it is so already.
    pub fn changed(
        current: Option<&Self>,
        by: &UserId,
        change: &Change,
    ) -> Result<Option<Self>, RosterRefusal> {
        let roster = match (current, change) {
            (None, Change::Create { members }) => return Self::create(by, members).map(Some),
            (None, _) => return Err(RosterRefusal::NotFound),
            (Some(roster), _) => roster,
        };
        let next = match change {
            Change::Create { members } => {
                // The answer to the first try may have been lost.
                let same = Self::create(by, members)? == *roster;
                return if same { Ok(None) } else { Err(RosterRefusal::Conflict) };
            }
            Change::Leave => roster.without(std::slice::from_ref(by)),
            Change::Add { members, as_admins, version } => {
                roster.check(by, *version)?;
                roster.with(members, *as_admins)?
            }
            Change::Remove { members, version } => {
                roster.check(by, *version)?;
                roster.without(members)
            }
        };
        Ok((next.members != roster.members).then_some(next))
    }

    /// Whether `by` may change it.
    fn check(&self, by: &UserId, version: u64) -> Result<(), RosterRefusal> {
        if !self.member(by).is_some_and(|member| member.is_admin) {
            return Err(RosterRefusal::NotAllowed);
        }
        if version != 0 && version != self.version {
            return Err(RosterRefusal::Conflict);
        }
        Ok(())
    }

    fn create(by: &UserId, others: &[UserId]) -> Result<Self, RosterRefusal> {
        let own = Member { user: by.clone(), is_admin: true };
        Self { version: 0, members: vec![own] }.with(others, false)
    }

    fn with(&self, users: &[UserId], as_admins: bool) -> Result<Self, RosterRefusal> {
        let mut members = self.members.clone();
        for user in users {
            match members.binary_search_by(|member| member.user.cmp(user)) {
                Ok(index) => members[index].is_admin |= as_admins,
                Err(index) => {
                    members.insert(index, Member { user: user.clone(), is_admin: as_admins });
                }
            }
            if members.len() > GROUP_MEMBERS_MAX {
                return Err(RosterRefusal::Full);
            }
        }
        Ok(Self { version: self.version + 1, members })
    }

    fn without(&self, users: &[UserId]) -> Self {
        let stays = |member: &&Member| !users.contains(&member.user);
        Self {
            version: self.version + 1,
            members: self.members.iter().filter(stays).cloned().collect(),
        }
    }

    pub fn member(&self, user: &UserId) -> Option<&Member> {
        let index = self.members.binary_search_by(|member| member.user.cmp(user)).ok()?;
        Some(&self.members[index])
    }

    /// The members by their home shards, in the order of the shards.
    pub(super) fn parts(&self, home_of: impl Fn(&UserId) -> u16) -> Vec<(u16, Arc<[UserId]>)> {
        by_home(self.members.iter().map(|member| &member.user), home_of)
    }
}

/// Users by their home shards, in the order of the shards.
pub(super) fn by_home<'a>(
    users: impl Iterator<Item = &'a UserId>,
    home_of: impl Fn(&UserId) -> u16,
) -> Vec<(u16, Arc<[UserId]>)> {
    let mut users: Vec<(u16, &UserId)> = users.map(|user| (home_of(user), user)).collect();
    users.sort_unstable();
    users
        .chunk_by(|a, b| a.0 == b.0)
        .map(|part| (part[0].0, part.iter().map(|(_, user)| (*user).clone()).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn users(names: &[&str]) -> Vec<UserId> {
        names.iter().map(|name| user(name)).collect()
    }

    fn add(names: &[&str]) -> Change {
        Change::Add { members: users(names), as_admins: false, version: 0 }
    }

    fn remove(names: &[&str]) -> Change {
        Change::Remove { members: users(names), version: 0 }
    }

    /// Alice made it, with Bob and Carol.
    fn group() -> Roster {
        let change = Change::Create { members: users(&["carol", "bob"]) };
        Roster::changed(None, &user("alice"), &change).unwrap().unwrap()
    }

    fn names(roster: &Roster) -> Vec<(&str, bool)> {
        roster.members.iter().map(|member| (member.user.as_str(), member.is_admin)).collect()
    }

    #[test]
    fn whoever_creates_a_group_is_its_administrator() {
        let group = group();
        assert_eq!(group.version, 1);
        assert_eq!(names(&group), [("alice", true), ("bob", false), ("carol", false)]);
        let again = Change::Create { members: users(&["bob", "carol", "bob"]) };
        assert_eq!(Roster::changed(Some(&group), &user("alice"), &again), Ok(None));
        for (by, members) in [("bob", &["alice", "carol"]), ("alice", &["bob", "dave"])] {
            let other = Change::Create { members: users(members) };
            let refused = Roster::changed(Some(&group), &user(by), &other);
            assert_eq!(refused, Err(RosterRefusal::Conflict));
        }
    }

    #[test]
    fn administrators_change_it_and_others_only_leave() {
        let group = group();
        let next = Roster::changed(Some(&group), &user("alice"), &add(&["dave", "bob"]));
        let next = next.unwrap().unwrap();
        assert_eq!((next.version, next.members.len()), (2, 4));
        assert_eq!(Roster::changed(Some(&next), &user("alice"), &add(&["dave"])), Ok(None));
        let next = Roster::changed(Some(&next), &user("alice"), &remove(&["bob", "nobody"]));
        let next = next.unwrap().unwrap();
        assert_eq!(names(&next), [("alice", true), ("carol", false), ("dave", false)]);
        assert_eq!(next.version, 3);
        for change in [add(&["eve"]), remove(&["alice"]), remove(&["carol"])] {
            for by in ["carol", "bob", "eve"] {
                let refused = Roster::changed(Some(&next), &user(by), &change);
                assert_eq!(refused, Err(RosterRefusal::NotAllowed), "{by}");
            }
        }
        let next = Roster::changed(Some(&next), &user("carol"), &Change::Leave).unwrap().unwrap();
        assert_eq!(names(&next), [("alice", true), ("dave", false)]);
        assert_eq!(Roster::changed(Some(&next), &user("carol"), &Change::Leave), Ok(None));
        assert_eq!(
            Roster::changed(None, &user("carol"), &Change::Leave),
            Err(RosterRefusal::NotFound)
        );
    }

    #[test]
    fn members_become_administrators_and_can_follow_the_first() {
        let change = Change::Add { members: users(&["bob"]), as_admins: true, version: 1 };
        let next = Roster::changed(Some(&group()), &user("alice"), &change).unwrap().unwrap();
        assert_eq!(names(&next), [("alice", true), ("bob", true), ("carol", false)]);
        let next = Roster::changed(Some(&next), &user("bob"), &remove(&["alice"])).unwrap();
        assert_eq!(names(&next.unwrap()), [("bob", true), ("carol", false)]);
    }

    #[test]
    fn a_change_that_starts_from_another_version_is_a_conflict() {
        let group = group();
        for (version, fits) in [(0, true), (1, true), (2, false)] {
            let members = users(&["dave"]);
            let add = Change::Add { members, as_admins: false, version };
            let remove = Change::Remove { members: users(&["bob"]), version };
            for change in [add, remove] {
                let changed = Roster::changed(Some(&group), &user("alice"), &change);
                assert_eq!(changed.is_ok(), fits, "{change:?}");
                assert!(fits || changed == Err(RosterRefusal::Conflict));
            }
        }
    }

    #[test]
    fn a_group_has_a_hundred_members_and_no_more() {
        let others: Vec<String> = (1..GROUP_MEMBERS_MAX).map(|n| format!("m{n:03}")).collect();
        let mut others: Vec<UserId> = others.iter().map(|name| user(name)).collect();
        let change = Change::Create { members: others.clone() };
        let full = Roster::changed(None, &user("alice"), &change).unwrap().unwrap();
        assert_eq!(full.members.len(), GROUP_MEMBERS_MAX);
        let refused = Roster::changed(Some(&full), &user("alice"), &add(&["bob"]));
        assert_eq!(refused, Err(RosterRefusal::Full));
        others.push(user("one too many"));
        let change = Change::Create { members: others };
        assert_eq!(Roster::changed(None, &user("alice"), &change), Err(RosterRefusal::Full));
    }

    #[test]
    fn everybody_is_in_the_part_of_his_home_shard() {
        let home_of = |user: &UserId| u16::from(user.as_str() == "bob");
        let parts = group().parts(home_of);
        let parts: Vec<_> =
            parts.iter().map(|(shard, members)| (*shard, members.to_vec())).collect();
        assert_eq!(parts, [(0, users(&["alice", "carol"])), (1, users(&["bob"]))]);
    }
}
