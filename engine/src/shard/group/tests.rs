use ringpost_protocol::id::{DeviceAddress, DeviceId, InstallId, MessageNumber, SendSeq};

use super::*;
use crate::shard::message::{DeviceIndex, Origin};
use crate::shard::roster::Member;

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn known(version: u64, members: &[&str]) -> Known {
    let member = |name: &&str| Member { user: user(name), is_admin: false };
    let roster = Roster { version, members: members.iter().map(member).collect() };
    let parts = roster.parts(|_| 0);
    Known { roster, parts }
}

fn send(from: &str, group: &str, roster_version: u64) -> GroupSend {
    let origin =
        Origin { shard: 0, device: DeviceIndex(0), install_id: InstallId(1), send_seq: SendSeq(1) };
    GroupSend {
        origin,
        from: DeviceAddress { user: user(from), device: DeviceId::new("d").unwrap() },
        group: user(group),
        roster_version,
        message_number: MessageNumber(1),
        envelope: bytes::Bytes::new(),
        ttl_ms: 1,
        urgent: false,
    }
}

#[test]
fn only_members_send_and_only_for_the_roster_that_is() {
    let known = known(3, &["alice", "bob"]);
    for (from, version, expected) in [
        ("alice", 0, None),
        ("bob", 3, None),
        ("bob", 2, Some(RejectCode::StaleRoster)),
        ("bob", 4, Some(RejectCode::StaleRoster)),
        ("carol", 0, Some(RejectCode::NotAMember)),
        ("carol", 2, Some(RejectCode::NotAMember)),
    ] {
        let refusal = refusal(&send(from, "g", version), Some(&known));
        assert_eq!(refusal, expected.map(|code| rejected(code, None)), "{from} {version}");
    }
    let nobody = Some(rejected(RejectCode::UnknownRecipient, None));
    assert_eq!(refusal(&send("alice", "g", 0), None), nobody);
    assert_eq!(refusal(&send("alice", "g", 0), Some(&self::known(9, &[]))), nobody);
}

/// A group that somebody has asked for, and that has nothing to do any more.
fn visit(groups: &mut Groups, name: &str) {
    groups.push(GroupRequest::Send(Box::new(send("alice", name, 0))));
    groups.set(&user(name), State::Known(Some(Arc::new(known(1, &["alice", "bob"])))));
    groups.slot(&user(name)).unwrap().queue.clear();
}

#[test]
fn groups_that_were_not_used_lately_are_forgotten_first() {
    let mut groups = Groups::default();
    for name in ["a", "b", "c", "d"] {
        visit(&mut groups, name);
    }
    assert_eq!((groups.len(), groups.weight), (4, 12));
    groups.trim(12);
    assert_eq!(groups.len(), 4, "as many as may be");
    groups.trim(9);
    assert!(groups.slot(&user("a")).is_none(), "all were used, this one longest ago");
    visit(&mut groups, "b");
    groups.trim(6);
    assert!(groups.slot(&user("c")).is_none() && groups.slot(&user("b")).is_some());
    groups.trim(0);
    assert_eq!((groups.len(), groups.weight, groups.clock.len()), (0, 0, 0));
}

#[test]
fn groups_with_something_to_do_are_not_forgotten() {
    let mut groups = Groups::default();
    groups.push(GroupRequest::Send(Box::new(send("alice", "waits", 0))));
    visit(&mut groups, "is read");
    groups.set(&user("is read"), State::Reading);
    visit(&mut groups, "rests");
    groups.trim(0);
    assert_eq!((groups.len(), groups.weight, groups.clock.len()), (2, 2, 2));
}
