//! Records of the directory as bytes: a format number, then fixed fields and counted bytes, little
//! endian. Keys of tables begin with the length of the user's id, so that no user is the beginning of
//! another one.

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::{DeviceListPut, PublicKey};

use super::request::Roster;

/// What is stored of a device, but for its one-time keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceKeys {
    pub(super) identity_key: Bytes,
    pub(super) signed_prekey: Option<PublicKey>,
    /// Places of the one-time keys in stock: `first <= place < next`.
    pub(super) first: u64,
    pub(super) next: u64,
    /// A one-time key with a lower number was published before.
    pub(super) key_id_min: u64,
}

impl DeviceKeys {
    /// One-time keys in stock.
    pub(super) fn stock(&self) -> u32 {
        u32::try_from(self.next - self.first).expect("bounded by ONE_TIME_KEYS_MAX")
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(&self.identity_key);
        out.number(u64::from(self.signed_prekey.is_some()));
        if let Some(key) = &self.signed_prekey {
            out.key(key);
        }
        for number in [self.first, self.next, self.key_id_min] {
            out.number(number);
        }
        out.0
    }

    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        let mut read = Reader::new(record)?;
        let identity_key = read.bytes()?;
        let has_prekey = read.number()? != 0;
        let signed_prekey = if has_prekey { Some(read.key()?) } else { None };
        let [first, next, key_id_min] = [read.number()?, read.number()?, read.number()?];
        let keys = Self { identity_key, signed_prekey, first, next, key_id_min };
        (read.is_at_end() && first <= next).then_some(keys)
    }
}

pub(super) fn encode_key(key: &PublicKey) -> Vec<u8> {
    let mut out = Writer::new();
    out.key(key);
    out.0
}

pub(super) fn decode_key(record: &[u8]) -> Option<PublicKey> {
    let mut read = Reader::new(record)?;
    let key = read.key()?;
    read.is_at_end().then_some(key)
}

pub(super) fn encode_list(list: &DeviceListPut) -> Vec<u8> {
    let mut out = Writer::new();
    out.number(list.version);
    out.names(list.devices.iter().map(DeviceId::as_str));
    out.bytes(&list.signed_list);
    out.0
}

pub(super) fn decode_list(record: &[u8]) -> Option<DeviceListPut> {
    let mut read = Reader::new(record)?;
    let version = read.number()?;
    let devices = read.names(|name| DeviceId::new(name).ok())?;
    let signed_list = read.bytes()?;
    read.is_at_end().then_some(DeviceListPut { version, devices, signed_list })
}

pub(super) fn encode_roster(version: u64, roster: &Roster) -> Vec<u8> {
    let mut out = Writer::new();
    out.number(version);
    out.names(roster.members.iter().map(UserId::as_str));
    out.names(roster.admins.iter().map(UserId::as_str));
    out.0
}

pub(super) fn decode_roster(record: &[u8]) -> Option<(u64, Roster)> {
    let mut read = Reader::new(record)?;
    let version = read.number()?;
    let members = read.names(|name| UserId::new(name).ok())?;
    let admins = read.names(|name| UserId::new(name).ok())?;
    read.is_at_end().then_some((version, Roster { members, admins }))
}

/// Begins the keys of all devices of a user, and of no other one.
pub(super) fn user_prefix(user: &UserId) -> Vec<u8> {
    let id = user.as_str().as_bytes();
    let length = u8::try_from(id.len()).expect("USER_ID_BYTES_MAX fits a byte");
    [&[length], id].concat()
}

pub(super) fn device_key(address: &DeviceAddress) -> Vec<u8> {
    let mut key = user_prefix(&address.user);
    key.extend_from_slice(address.device.as_str().as_bytes());
    key
}

/// The device of a [`device_key`] that begins with `prefix`.
pub(super) fn device_of(key: &[u8], prefix: &[u8]) -> Option<DeviceId> {
    let name = key.strip_prefix(prefix)?;
    DeviceId::new(str::from_utf8(name).ok()?).ok()
}

/// The place of a one-time key.
pub(super) fn place_key(address: &DeviceAddress, place: u64) -> Vec<u8> {
    let mut key = user_prefix(&address.user);
    let device = address.device.as_str().as_bytes();
    key.push(u8::try_from(device.len()).expect("DEVICE_ID_BYTES_MAX fits a byte"));
    key.extend_from_slice(device);
    key.extend_from_slice(&place.to_be_bytes());
    key
}

struct Writer(Vec<u8>);

impl Writer {
    fn new() -> Self {
        Self(vec![FORMAT])
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("a frame bounds it");
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn key(&mut self, key: &PublicKey) {
        self.number(u64::from(key.key_id));
        self.bytes(&key.key);
        self.bytes(&key.signature);
    }

    fn names<'a>(&mut self, names: impl ExactSizeIterator<Item = &'a str>) {
        self.number(names.len() as u64);
        for name in names {
            self.bytes(name.as_bytes());
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// `None`: a format that is not known.
    fn new(record: &'a [u8]) -> Option<Self> {
        record.strip_prefix(&[FORMAT]).map(Self)
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn slice(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (bytes, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn bytes(&mut self) -> Option<Bytes> {
        self.slice().map(Bytes::copy_from_slice)
    }

    fn key(&mut self) -> Option<PublicKey> {
        let key_id = u32::try_from(self.number()?).ok()?;
        Some(PublicKey { key_id, key: self.bytes()?, signature: self.bytes()? })
    }

    fn names<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number()?;
        (0..count).map(|_| parse(str::from_utf8(self.slice()?).ok()?)).collect()
    }

    fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

/// Of all records.
const FORMAT: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(user: &str, device: &str) -> DeviceAddress {
        DeviceAddress { user: UserId::new(user).unwrap(), device: DeviceId::new(device).unwrap() }
    }

    fn key(key_id: u32) -> PublicKey {
        PublicKey { key_id, key: vec![1; 32].into(), signature: vec![2; 64].into() }
    }

    #[test]
    fn records_are_read_as_written_and_damage_is_seen() {
        let keys = DeviceKeys {
            identity_key: vec![9; 32].into(),
            signed_prekey: Some(key(4)),
            first: 3,
            next: 8,
            key_id_min: 77,
        };
        let record = keys.encode();
        assert_eq!(DeviceKeys::decode(&record), Some(keys));
        assert_eq!(decode_key(&encode_key(&key(5))), Some(key(5)));
        let list = DeviceListPut {
            version: 3,
            devices: ["a", "b"].map(|name| DeviceId::new(name).unwrap()).to_vec(),
            signed_list: vec![1; 100].into(),
        };
        assert_eq!(decode_list(&encode_list(&list)), Some(list));
        let roster = Roster {
            members: ["u", "v"].map(|name| UserId::new(name).unwrap()).to_vec(),
            admins: vec![UserId::new("u").unwrap()],
        };
        assert_eq!(decode_roster(&encode_roster(7, &roster)), Some((7, roster)));
        for length in 0..record.len() {
            assert_eq!(DeviceKeys::decode(&record[..length]), None);
        }
        assert_eq!(DeviceKeys::decode(&[&record[..], &[0]].concat()), None);
        assert_eq!(DeviceKeys::decode(&[&[2], &record[1..]].concat()), None);
    }

    #[test]
    fn nobodys_keys_are_among_those_of_another_user() {
        let prefix = user_prefix(&address("ann", "x").user);
        assert_eq!(
            device_of(&device_key(&address("ann", "phone")), &prefix).unwrap().as_str(),
            "phone"
        );
        assert_eq!(device_of(&device_key(&address("anna", "phone")), &prefix), None);
        assert_eq!(device_of(&device_key(&address("an", "nphone")), &prefix), None);
        let places = [place_key(&address("a", "b"), 1), place_key(&address("a", "b"), 256)];
        assert!(places[0] < places[1] && places[1] < place_key(&address("a", "bc"), 0));
    }
}
