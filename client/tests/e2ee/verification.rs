//! Two people compare numbers while somebody may be between their devices.

use ringpost_client::e2ee::sas::{Answering, Asking, Comparing, People, Person};
use ringpost_client::e2ee::{Fault, IdentityKey};
use ringpost_client::protocol::id::UserId;

fn person(user: &str, seed: u8) -> Person {
    let identity = IdentityKey::from_seed([seed; 32]).public();
    Person { user: UserId::new(user).unwrap(), identity }
}

fn people(own: (&str, u8), peer: (&str, u8)) -> People {
    People { own: person(own.0, own.1), peer: person(peer.0, peer.1) }
}

fn verify(alice: People, bob: People) -> (Comparing, Comparing) {
    let asking = Asking::start(alice, [7; 16]);
    let (answering, commitment) = Answering::accept(bob, [7; 16]);
    let (committed, key) = asking.reveal(commitment);
    let (bob, key) = answering.reveal(key).unwrap();
    (committed.compare(key).unwrap(), bob)
}

#[test]
fn both_see_the_same_numbers_and_confirm() {
    let (a, b) = verify(people(("alice", 1), ("bob", 2)), people(("bob", 2), ("alice", 1)));
    assert_eq!(a.numbers(), b.numbers());
    assert!(a.numbers().iter().all(|number| (1000..=9191).contains(number)));
    assert_eq!(a.check(&b.confirm()), Ok(()));
    assert_eq!(b.check(&a.confirm()), Ok(()));
    assert_eq!(a.check(&a.confirm()), Err(Fault::VerificationFailed), "reflected");
    assert_eq!(a.check(&[]), Err(Fault::VerificationFailed));
}

#[test]
fn swapped_identity_key_fails_the_verification_on_both_sides() {
    // The server gave Alice another identity for Bob.
    let (a, b) = verify(people(("alice", 1), ("bob", 66)), people(("bob", 2), ("alice", 1)));
    assert_eq!(a.check(&b.confirm()), Err(Fault::VerificationFailed));
    assert_eq!(b.check(&a.confirm()), Err(Fault::VerificationFailed));
}

#[test]
fn key_other_than_the_committed_one_is_refused() {
    let (alice, bob) = (people(("alice", 1), ("bob", 2)), people(("bob", 2), ("alice", 1)));
    let asking = Asking::start(alice, [7; 16]);
    let (_, commitment) = Answering::accept(bob.clone(), [7; 16]);
    let (other, _) = Answering::accept(bob, [7; 16]);
    let (committed, key) = asking.reveal(commitment);
    let (_, other_key) = other.reveal(key).unwrap();
    assert_eq!(committed.compare(other_key).err(), Some(Fault::CommitmentBroken));
}

#[test]
fn somebody_in_between_makes_the_numbers_differ() {
    let mallory = |own, peer| people((own, 66), (peer, 66));
    let (a, _) = verify(people(("alice", 1), ("bob", 2)), mallory("bob", "alice"));
    let (_, b) = verify(mallory("alice", "bob"), people(("bob", 2), ("alice", 1)));
    assert_ne!(a.numbers(), b.numbers());
}

#[test]
fn key_of_small_order_is_refused() {
    let bob = people(("bob", 2), ("alice", 1));
    let (answering, _) = Answering::accept(bob, [7; 16]);
    assert!(matches!(answering.reveal([0; 32]).err(), Some(Fault::WeakKey(_))));
}
