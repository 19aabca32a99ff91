use bytes::Bytes;
use ringpost_protocol::id::DeviceId;

use super::*;

fn send_seqs(requests: VecDeque<StoreRequest>) -> Vec<u64> {
    requests.into_iter().map(|request| request.origin.send_seq.0).collect()
}

#[test]
fn sends_wait_in_order_by_user_and_are_bounded() {
    let mut waits = ListWaits::default();
    let (bob, carol) = (UserId::new("bob").unwrap(), UserId::new("carol").unwrap());
    for (send_seq, to) in [(1, "bob"), (2, "carol"), (3, "bob")] {
        waits.push(StoreRequest::sample(send_seq, to));
    }
    assert!(waits.has(&bob) && waits.has(&carol));
    assert_eq!(send_seqs(waits.take(&bob)), [1, 3]);
    assert!(!waits.has(&bob) && waits.has(&carol));
    for send_seq in 1..LIST_WAITING_REQUESTS_MAX as u64 {
        assert!(!waits.is_full());
        waits.push(StoreRequest::sample(send_seq, "bob"));
    }
    assert!(waits.is_full());
    assert_eq!(waits.take(&carol).len(), 1);
    assert!(!waits.is_full());
    waits.push(StoreRequest::sample(9, "bob"));
    waits.take(&bob);
    assert_eq!(waits.count, 0);
}

#[test]
fn only_a_sender_who_knows_an_older_list_gets_the_present_one() {
    let bob = UserId::new("bob").unwrap();
    let devices = vec![DeviceId::new("phone").unwrap()];
    let list = DeviceListPut { version: 5, devices, signed_list: Bytes::from_static(b"signed") };
    for theirs in [5, 6, u64::MAX] {
        assert!(matches!(Freshness::of(&bob, &list, theirs), Freshness::Fresh), "{theirs}");
    }
    let Freshness::Stale(told) = Freshness::of(&bob, &list, 4) else { panic!("it is stale") };
    assert_eq!((told.user, told.version, told.devices), (bob, 5, list.devices));
}

#[test]
fn all_that_waits_is_given_up_each_user_s_sends_in_order() {
    let mut waits = ListWaits::default();
    for (send_seq, to) in [(1, "carol"), (2, "bob"), (3, "carol"), (4, "bob")] {
        waits.push(StoreRequest::sample(send_seq, to));
    }
    assert_eq!(send_seqs(waits.take_all().into()), [2, 4, 1, 3]);
    assert_eq!(waits.count, 0);
    assert!(!waits.has(&UserId::new("bob").unwrap()) && waits.take_all().is_empty());
}
