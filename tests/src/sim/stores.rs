//! What must hold of the stores themselves, however little of it clients would see.

use std::collections::BTreeMap;

use ringpost_protocol::id::{MailboxId, Seq};
use ringpost_storage::Store;

use super::oracle::Oracle;

/// Up to where the entries of each mailbox are gone for ever: the store had removed them, and that
/// was durable.
#[derive(Debug, Default)]
pub struct Floors(BTreeMap<MailboxId, Seq>);

impl Oracle {
    /// Looks at an open store: nothing comes back that was gone, and nothing that was durable is
    /// missing, unless the disk has damaged it.
    pub fn watch_store(&mut self, store: &Store) {
        let lost = store.stats().lost_batches;
        let is_excused = self.has_excuses();
        self.require(lost == 0 || is_excused, || {
            format!("{lost} batches that were durable were not found at an opening")
        });
        // Everything below the next number, when nothing is on its way to the disk.
        let newest = store.is_idle().then(|| Seq::new(store.open_count(), store.durable_up_to().0));
        for device in store.devices() {
            let client = self.devices.iter().position(|address| *address == device.address);
            if client.is_none_or(|client| self.excused.contains_key(&client)) {
                continue;
            }
            let first = store.next(device.mailbox, Seq::default());
            let floor = self.floors.0.entry(device.mailbox).or_default();
            if let Some(first) = first.filter(|first| first <= floor) {
                let text =
                    format!("{first:?} of client {client:?} is back, though up to {floor:?}");
                return self.violated(format!("{text} all was gone"));
            }
            let gone = match first {
                Some(first) => newest.map(|_| Seq(first.0 - 1)),
                None => newest,
            };
            *floor = (*floor).max(gone.unwrap_or_default());
        }
    }
}
