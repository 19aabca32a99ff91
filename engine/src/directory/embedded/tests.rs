use crate::directory::rules::tests::{ask, fetch, publish, taken, user};
use crate::directory::{Directory, DirectoryFault, Embedded, Roster};

use super::*;

#[test]
fn what_was_answered_is_there_after_reopening() {
    let place = tempfile::tempdir().unwrap();
    let mut directory = Embedded::open(place.path()).unwrap();
    ask(&mut directory, publish(("bob", "phone"), 1, 0..5));
    assert_eq!(taken(&ask(&mut directory, fetch("bob")))[0].1, Some(0));
    let roster = Roster { members: vec![user("a")], admins: Vec::new() };
    let put = Request::PutRoster { group: user("g"), expected_version: 0, roster: roster.clone() };
    ask(&mut directory, put);
    drop(directory);

    let mut directory = Embedded::open(place.path()).unwrap();
    assert_eq!(directory.stock(), 4);
    assert_eq!(taken(&ask(&mut directory, fetch("bob"))), [("phone", Some(1), 3)]);
    let stored = ask(&mut directory, Request::GetRoster { group: user("g") });
    assert_eq!(stored, Answer::Roster { version: 1, roster });
}

/// As a process that is killed leaves it: copied while it is open.
#[test]
fn crash_keeps_what_was_answered_and_hands_nothing_out_twice() {
    let place = tempfile::tempdir().unwrap();
    let mut directory = Embedded::open(place.path()).unwrap();
    ask(&mut directory, publish(("bob", "phone"), 1, 0..5));
    ask(&mut directory, fetch("bob"));
    let crashed = tempfile::tempdir().unwrap();
    std::fs::copy(place.path().join(FILE_NAME), crashed.path().join(FILE_NAME)).unwrap();
    let mut after = Embedded::open(crashed.path()).unwrap();
    assert_eq!(taken(&ask(&mut after, fetch("bob"))), [("phone", Some(1), 3)]);
}

#[test]
fn open_faults_say_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let directory = Embedded::open(place.path()).unwrap();
    let fault = Embedded::open(place.path()).err().unwrap();
    assert!(fault.fix().contains("another process"), "{fault}: {}", fault.fix());
    drop(directory);
    let path = place.path().join(FILE_NAME);
    std::fs::write(&path, vec![7; 10_000]).unwrap();
    let fault = Embedded::open(place.path()).err().unwrap();
    assert!(matches!(fault, DirectoryFault::Open { .. }), "{fault}");
    assert!(fault.to_string().contains(&path.display().to_string()), "{fault}");
    let fault = Embedded::open(&place.path().join("missing")).err().unwrap();
    assert!(matches!(fault, DirectoryFault::Create { .. }), "{fault}");
}

#[test]
fn closed_one_answers_nothing_until_it_has_recovered() {
    let place = tempfile::tempdir().unwrap();
    let mut directory = Embedded::open(place.path()).unwrap();
    ask(&mut directory, publish(("bob", "phone"), 1, 0..5));
    directory.database = None;
    assert!(directory.apply(0, &[fetch("bob")]).is_err());
    directory.recover().unwrap();
    assert_eq!(taken(&ask(&mut directory, fetch("bob")))[0].1, Some(0));
}

#[test]
fn damaged_record_fails_its_own_requests_only() {
    let place = tempfile::tempdir().unwrap();
    let mut directory = Embedded::open(place.path()).unwrap();
    ask(&mut directory, publish(("bob", "phone"), 1, 0..5));
    ask(&mut directory, publish(("eve", "phone"), 1, 0..5));
    let database = directory.database.as_ref().unwrap();
    let transaction = database.begin_write().unwrap();
    Changing::begin(&transaction).unwrap().put(TableId::Devices, b"\x03bobphone", b"?").unwrap();
    transaction.commit().unwrap();
    let answers = directory.apply(0, &[fetch("bob"), fetch("eve")]).unwrap();
    assert_eq!(answers[0], Answer::Failed);
    assert_eq!(taken(&answers[1])[0].1, Some(0));
}
