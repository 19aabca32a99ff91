//! What each request means, over tables of bytes.

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::limits::DEVICES_PER_USER_MAX;
use ringpost_protocol::message::{DeviceListPut, KeyBundle, KeysPublish};
use ringpost_protocol::mutant::{Mutant, is_active};

use super::handouts::Handouts;
use super::record::{
    DeviceKeys, decode_key, decode_list, decode_roster, device_key, device_of, encode_key,
    encode_list, encode_roster, place_key, user_prefix,
};
use super::request::{Answer, Request, Roster, TakenBundle};
use crate::limits::{ONE_TIME_KEYS_MAX, PerHour, REMOVED_DEVICES_MAX};

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TableId {
    /// User and device: [`DeviceKeys`].
    Devices,
    /// User, device and place: a one-time key.
    OneTimeKeys,
    /// User and device, of devices that were taken off the list: [`DeviceKeys`] without keys in stock.
    Removed,
    /// User: a [`DeviceListPut`].
    Lists,
    /// Group: a version and a [`Roster`].
    Rosters,
    /// A name: a number.
    Totals,
}

/// Tables that can be read.
pub(super) trait ReadTables {
    type Fault;
    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Fault>;
    /// All that begins with `prefix`, in order; few.
    fn with_prefix(&self, table: TableId, prefix: &[u8]) -> Result<Found, Self::Fault>;
}

/// Keys and values.
pub(super) type Found = Vec<(Vec<u8>, Vec<u8>)>;

/// Tables that can be changed; all changes of a batch become durable together.
pub(super) trait WriteTables: ReadTables {
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), Self::Fault>;
    fn remove(&mut self, table: TableId, key: &[u8]) -> Result<(), Self::Fault>;
}

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum RuleFault<F> {
    /// The tables failed, and with them the whole batch.
    Tables(F),
    /// A record that nobody has written like that; what else is there is as good as before.
    Damaged(TableId),
}

impl<F> From<F> for RuleFault<F> {
    fn from(fault: F) -> Self {
        Self::Tables(fault)
    }
}

type Ruled<T, F> = Result<T, RuleFault<F>>;

/// Carries out any request.
pub(super) fn change<T: WriteTables>(
    tables: &mut T,
    handouts: &mut Handouts,
    now_ms: u64,
    request: &Request,
) -> Ruled<Answer, T::Fault> {
    match request {
        Request::Publish { owner, keys } => publish(tables, owner, keys),
        Request::Fetch { user, devices, except, keys_per_hour } => {
            let mut fetch = Fetch { tables, handouts, now_ms, keys_per_hour: *keys_per_hour };
            fetch.all(user, devices, except.as_ref()).map(Answer::Bundles)
        }
        Request::PutList { user, list } => put_list(tables, user, list),
        Request::PutRoster { group, expected_version, roster } => {
            let (stored, _) = roster_of(tables, group)?;
            if stored != *expected_version {
                return Ok(Answer::Conflict { version: stored });
            }
            let version = stored + 1;
            let record = encode_roster(version, roster);
            tables.put(TableId::Rosters, group.as_str().as_bytes(), &record)?;
            Ok(Answer::Stored { version })
        }
        Request::Count { .. } | Request::GetList { .. } | Request::GetRoster { .. } => {
            read(tables, request)
        }
    }
}

/// Carries out a request for which [`Request::is_read`] holds.
pub(super) fn read<T: ReadTables>(tables: &T, request: &Request) -> Ruled<Answer, T::Fault> {
    match request {
        Request::Count { owner } => {
            let keys = keys_of(tables, &device_key(owner))?;
            Ok(Answer::Stock(keys.map(|keys| keys.stock())))
        }
        Request::GetList { user } => list_of(tables, user).map(Answer::List),
        Request::GetRoster { group } => {
            let (version, roster) = roster_of(tables, group)?;
            Ok(Answer::Roster { version, roster })
        }
        _ => unreachable!("the caller has asked is_read"),
    }
}

fn publish<T: WriteTables>(
    tables: &mut T,
    owner: &DeviceAddress,
    new: &KeysPublish,
) -> Ruled<Answer, T::Fault> {
    let key = device_key(owner);
    let stored = keys_of(tables, &key)?;
    let is_first = stored.is_none();
    if is_first {
        if new.identity_key.is_none() {
            return Ok(Answer::NoIdentity);
        }
        let devices = tables.with_prefix(TableId::Devices, &user_prefix(&owner.user))?;
        if devices.len() >= DEVICES_PER_USER_MAX {
            return Ok(Answer::StockFull);
        }
    }
    let mut keys = match stored {
        Some(stored) => stored,
        None => removed_keys(tables, &key, new)?,
    };
    let identity_key = new.identity_key.as_ref().filter(|&key| *key != keys.identity_key);
    let is_new_identity = identity_key.is_some();
    let kept = if is_new_identity { 0 } else { keys.stock() };
    let forgets = is_new_identity || is_active(Mutant::RepublishedKeysTaken);
    let key_id_min = if forgets { 0 } else { keys.key_id_min };
    // What has been published before is a repetition after a lost answer.
    let fresh = new.one_time_keys.iter().filter(|key| u64::from(key.key_id) >= key_id_min);
    let fresh: Vec<_> = fresh.collect();
    if kept as usize + fresh.len() > ONE_TIME_KEYS_MAX {
        return Ok(Answer::StockFull);
    }
    let before = keys.stock();
    if let Some(identity_key) = identity_key {
        drop_one_time_keys(tables, owner, &mut keys)?;
        keys.identity_key = identity_key.clone();
        (keys.signed_prekey, keys.key_id_min) = (None, 0);
    }
    if let Some(signed_prekey) = &new.signed_prekey {
        keys.signed_prekey = Some(signed_prekey.clone());
    }
    for one_time_key in fresh {
        let place = place_key(owner, keys.next);
        tables.put(TableId::OneTimeKeys, &place, &encode_key(one_time_key))?;
        keys.next += 1;
        keys.key_id_min = u64::from(one_time_key.key_id) + 1;
    }
    tables.put(TableId::Devices, &key, &keys.encode())?;
    if is_first {
        tables.remove(TableId::Removed, &key)?;
    }
    add_to_total(tables, i64::from(keys.stock()) - i64::from(before))?;
    Ok(Answer::Published { stock: keys.stock() })
}

/// What is known of a device that publishes for the first time, or for the first time since it was
/// taken off the list: none of its one-time keys may be handed out again.
fn removed_keys<T: ReadTables>(
    tables: &T,
    key: &[u8],
    new: &KeysPublish,
) -> Ruled<DeviceKeys, T::Fault> {
    let Some(record) = tables.get(TableId::Removed, key)? else {
        return Ok(DeviceKeys::default());
    };
    let removed = DeviceKeys::decode(&record).ok_or(RuleFault::Damaged(TableId::Removed))?;
    let is_same = new.identity_key.as_ref() == Some(&removed.identity_key);
    Ok(if is_same { removed } else { DeviceKeys::default() })
}

fn drop_one_time_keys<T: WriteTables>(
    tables: &mut T,
    owner: &DeviceAddress,
    keys: &mut DeviceKeys,
) -> Ruled<(), T::Fault> {
    for place in keys.first..keys.next {
        tables.remove(TableId::OneTimeKeys, &place_key(owner, place))?;
    }
    keys.first = keys.next;
    Ok(())
}

/// One KeysFetch being carried out.
struct Fetch<'a, T> {
    tables: &'a mut T,
    handouts: &'a mut Handouts,
    now_ms: u64,
    keys_per_hour: PerHour,
}

impl<T: WriteTables> Fetch<'_, T> {
    fn all(
        &mut self,
        user: &UserId,
        devices: &[DeviceId],
        except: Option<&DeviceId>,
    ) -> Ruled<Vec<TakenBundle>, T::Fault> {
        let prefix = user_prefix(user);
        let list = list_of(self.tables, user)?;
        let found = self.tables.with_prefix(TableId::Devices, &prefix)?;
        let mut bundles = Vec::with_capacity(found.len());
        for (key, record) in found {
            let device = device_of(&key, &prefix).ok_or(RuleFault::Damaged(TableId::Devices))?;
            let is_wanted = match devices {
                [] => except != Some(&device),
                named => named.contains(&device),
            };
            // Nobody begins a session with a device that its user has removed.
            let is_listed = list.version == 0 || list.devices.contains(&device);
            if is_wanted && is_listed {
                let keys = decode_keys(&record)?;
                let address = DeviceAddress { user: user.clone(), device };
                bundles.extend(self.one(&key, address, keys)?);
            }
        }
        Ok(bundles)
    }

    fn one(
        &mut self,
        key: &[u8],
        address: DeviceAddress,
        mut keys: DeviceKeys,
    ) -> Ruled<Option<TakenBundle>, T::Fault> {
        let Some(signed_prekey) = keys.signed_prekey.clone() else { return Ok(None) };
        let (mut one_time_key, mut is_limited) = (None, false);
        if keys.stock() > 0 {
            is_limited = !self.handouts.take(key, self.keys_per_hour, self.now_ms);
            if !is_limited {
                let place = place_key(&address, keys.first);
                let record = self.tables.get(TableId::OneTimeKeys, &place)?;
                one_time_key = record.as_deref().and_then(decode_key);
                if one_time_key.is_none() {
                    return Err(RuleFault::Damaged(TableId::OneTimeKeys));
                }
                self.tables.remove(TableId::OneTimeKeys, &place)?;
                keys.first += 1;
                self.tables.put(TableId::Devices, key, &keys.encode())?;
                add_to_total(self.tables, -1)?;
            }
        }
        let stock = keys.stock();
        let identity_key = keys.identity_key;
        let bundle =
            KeyBundle { device: address.device, identity_key, signed_prekey, one_time_key };
        Ok(Some(TakenBundle { bundle, stock, is_limited }))
    }
}

fn put_list<T: WriteTables>(
    tables: &mut T,
    user: &UserId,
    list: &DeviceListPut,
) -> Ruled<Answer, T::Fault> {
    let stored = list_of(tables, user)?;
    if list.version != stored.version.saturating_add(1) {
        return Ok(Answer::Conflict { version: stored.version });
    }
    for device in stored.devices {
        if list.devices.contains(&device) {
            continue;
        }
        let address = DeviceAddress { user: user.clone(), device };
        let key = device_key(&address);
        if let Some(mut keys) = keys_of(tables, &key)? {
            let stock = keys.stock();
            drop_one_time_keys(tables, &address, &mut keys)?;
            tables.remove(TableId::Devices, &key)?;
            remember(tables, user, &key, keys)?;
            add_to_total(tables, -i64::from(stock))?;
        }
    }
    tables.put(TableId::Lists, user.as_str().as_bytes(), &encode_list(list))?;
    Ok(Answer::Stored { version: list.version })
}

/// A device was taken off the list; it has no one-time keys in stock any more.
fn remember<T: WriteTables>(
    tables: &mut T,
    user: &UserId,
    key: &[u8],
    keys: DeviceKeys,
) -> Ruled<(), T::Fault> {
    let others = tables.with_prefix(TableId::Removed, &user_prefix(user))?;
    if let Some((any, _)) = others.first().filter(|_| others.len() >= REMOVED_DEVICES_MAX) {
        tables.remove(TableId::Removed, any)?;
    }
    let removed = DeviceKeys { signed_prekey: None, ..keys };
    tables.put(TableId::Removed, key, &removed.encode())?;
    Ok(())
}

fn keys_of<T: ReadTables>(tables: &T, key: &[u8]) -> Ruled<Option<DeviceKeys>, T::Fault> {
    tables.get(TableId::Devices, key)?.map(|record| decode_keys(&record)).transpose()
}

fn decode_keys<F>(record: &[u8]) -> Ruled<DeviceKeys, F> {
    DeviceKeys::decode(record).ok_or(RuleFault::Damaged(TableId::Devices))
}

fn list_of<T: ReadTables>(tables: &T, user: &UserId) -> Ruled<DeviceListPut, T::Fault> {
    match tables.get(TableId::Lists, user.as_str().as_bytes())? {
        Some(record) => decode_list(&record).ok_or(RuleFault::Damaged(TableId::Lists)),
        None => Ok(DeviceListPut::default()),
    }
}

fn roster_of<T: ReadTables>(tables: &T, group: &UserId) -> Ruled<(u64, Roster), T::Fault> {
    match tables.get(TableId::Rosters, group.as_str().as_bytes())? {
        Some(record) => decode_roster(&record).ok_or(RuleFault::Damaged(TableId::Rosters)),
        None => Ok((0, Roster::default())),
    }
}

/// One-time keys of all devices.
pub(super) fn total_stock<T: ReadTables>(tables: &T) -> Result<u64, T::Fault> {
    let record = tables.get(TableId::Totals, STOCK)?;
    let number = record.and_then(|record| record.try_into().ok()).map(u64::from_le_bytes);
    Ok(number.unwrap_or(0))
}

fn add_to_total<T: WriteTables>(tables: &mut T, change: i64) -> Result<(), T::Fault> {
    if change == 0 {
        return Ok(());
    }
    let total = total_stock(tables)?.saturating_add_signed(change);
    tables.put(TableId::Totals, STOCK, &total.to_le_bytes())
}

const STOCK: &[u8] = b"one_time_keys";

#[cfg(test)]
pub(super) mod tests;
