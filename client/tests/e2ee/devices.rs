//! Signed device lists: what the server can try with them, and what the devices say to it.

use std::collections::BTreeMap;

use ringpost_client::e2ee::{Contact, DeviceList, Fault, IdentityKey};
use ringpost_client::protocol::id::{DeviceId, UserId};

fn list(version: u64, devices: &[(&str, u8)]) -> DeviceList {
    let entry = |(name, seed): &(&str, u8)| {
        (DeviceId::new(name).unwrap(), IdentityKey::from_seed([*seed; 32]).public())
    };
    let devices: BTreeMap<_, _> = devices.iter().map(entry).collect();
    DeviceList { user: UserId::new("bob").unwrap(), version, devices }
}

fn bob() -> IdentityKey {
    IdentityKey::from_seed([99; 32])
}

fn known() -> Contact {
    let bytes = list(5, &[("phone", 1), ("tablet", 2)]).sign(&bob()).unwrap();
    Contact::meet(&UserId::new("bob").unwrap(), &bytes).unwrap()
}

#[test]
fn lists_name_what_was_added_and_removed() {
    let mut contact = known();
    let tablet = DeviceId::new("tablet").unwrap();
    let old = contact.party(&tablet).unwrap();
    let next = list(6, &[("laptop", 3), ("tablet", 4)]).sign(&bob()).unwrap();
    let changes = contact.update(&next).unwrap();
    assert_eq!(changes.added, ["laptop", "tablet"].map(|name| DeviceId::new(name).unwrap()));
    assert_eq!(changes.removed, ["phone", "tablet"].map(|name| DeviceId::new(name).unwrap()));
    assert_ne!(contact.party(&tablet).unwrap().identity, old.identity);
    let phone = DeviceId::new("phone").unwrap();
    assert_eq!(contact.party(&phone), Err(Fault::UnknownDevice));
    let restored = Contact::meet(&UserId::new("bob").unwrap(), contact.encoded());
    assert_eq!(restored, Ok(contact));
}

#[test]
fn forged_device_list_is_detected() {
    let good = list(6, &[("phone", 1), ("spy", 66)]).sign(&bob()).unwrap();
    let before = known();
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        let mut contact = known();
        let fault = contact.update(&bad).unwrap_err();
        assert!(matches!(fault, Fault::ForgedDeviceList | Fault::Malformed(_)), "{byte} {fault:?}");
        assert_eq!(contact, before);
    }
    let mut contact = known();
    let mut named = list(6, &[("spy", 66)]);
    named.user = UserId::new("carol").unwrap();
    let named = named.sign(&bob()).unwrap();
    assert_eq!(contact.update(&named), Err(Fault::ForgedDeviceList));
    assert!(Contact::meet(&UserId::new("bob").unwrap(), &named).is_err());
}

#[test]
fn rolled_back_device_list_is_detected() {
    let mut contact = known();
    let old = list(4, &[("phone", 1), ("stolen", 7)]).sign(&bob()).unwrap();
    let refused = contact.update(&old);
    assert_eq!(refused, Err(Fault::DeviceListRolledBack { known: 5, got: 4 }));
    let same = list(5, &[("phone", 1), ("stolen", 7)]).sign(&bob()).unwrap();
    assert_eq!(contact.update(&same), Err(Fault::DeviceListConflict { version: 5 }));
    let again = contact.encoded().to_vec();
    assert_eq!(contact.update(&again), Ok(Default::default()));
}

#[test]
fn swapped_identity_of_the_user_is_detected() {
    let mut contact = known();
    let mallory = IdentityKey::from_seed([66; 32]);
    let swapped = list(6, &[("phone", 66)]).sign(&mallory).unwrap();
    assert_eq!(contact.update(&swapped), Err(Fault::IdentityChanged));
}

#[test]
fn list_has_one_encoding() {
    let good = list(6, &[("a", 1), ("b", 2)]).sign(&bob()).unwrap();
    // Entries swapped, and signed by Bob himself.
    let (start, signature) = good.split_at(good.len() - 64);
    let (head, entries) = start.split_at(start.len() - 2 * 34);
    let swapped = [head, &entries[34..], &entries[..34], signature].concat();
    assert!(matches!(known().update(&swapped), Err(Fault::Malformed(_))));
    assert!(known().update(&[&good[..], &[0]].concat()).is_err());
    assert!(list(6, &[]).sign(&bob()).is_err());
}
