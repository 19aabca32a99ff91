//! A store and its disk, driven to the point that the gateway waits for.

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, SendSeq, Seq};
use ringpost_storage::{
    BlockingDisk, DiskError, DiskOpId, DiskOutcome, NewMessage, ReadStart, RecordNumber,
    RecoveryReport, Store, StoreConfig, StoreEvent, StoreFull, blocking,
};

use crate::disk::BackgroundDisk;
use crate::fixture;

/// An open store on the disk `D`.
pub struct OpenStore<D> {
    store: Store,
    disk: D,
    from: DeviceAddress,
    envelope: Bytes,
    mailboxes: u64,
    appended: u64,
    /// Of these, taken by [`OpenStore::take_all`].
    taken: u64,
    durable_up_to: RecordNumber,
    /// What [`OpenStore::finish_commit`] waits for.
    committing_up_to: RecordNumber,
    /// Operations on another disk that are not answered.
    under_way: usize,
}

/// Opens what `disk` holds.
///
/// # Panics
/// When it cannot be opened; there is no bench without it.
pub fn open(disk: &mut impl BlockingDisk) -> (Store, RecoveryReport) {
    let opened = blocking::open(disk, StoreConfig::new(0, STORE_ID), HASH_SEED, |_| ());
    opened.expect("the benches keep their directory to themselves")
}

impl<D: BlockingDisk> OpenStore<D> {
    pub fn new(mut disk: D, envelope_bytes: usize) -> Self {
        let (store, _) = open(&mut disk);
        Self::with(store, disk, envelope_bytes, MAILBOXES)
    }

    /// Spreads messages over so many mailboxes.
    pub fn with(store: Store, disk: D, envelope_bytes: usize, mailboxes: u64) -> Self {
        let mut open = Self {
            store,
            disk,
            from: fixture::device(1),
            envelope: fixture::envelope(envelope_bytes).into(),
            mailboxes,
            appended: 0,
            taken: 0,
            durable_up_to: RecordNumber(0),
            committing_up_to: RecordNumber(0),
            under_way: 0,
        };
        open.prepare();
        open
    }

    /// Appends one message, to one mailbox after the other.
    pub fn append(&mut self) {
        self.appended += 1;
        let mailbox = fixture::mailbox(self.appended % self.mailboxes);
        let message = NewMessage {
            from: &self.from,
            install_id: fixture::INSTALL,
            send_seq: SendSeq(self.appended),
            message_number: ringpost_protocol::id::MessageNumber(SendSeq(self.appended).0),
            sent_at_ms: fixture::UNIX_MS,
            expires_at_ms: fixture::UNIX_MS + 1,
            urgent: false,
            group: None,
            mailboxes: &[mailbox],
            envelope: &self.envelope,
        };
        if self.store.append_message(&message) == Err(StoreFull::Queue) {
            // The next segment is not prepared yet: appends wait for the zeros ahead of the log.
            while step(&mut self.store, &mut self.disk, &mut self.durable_up_to) {}
            self.store.append_message(&message).expect("everything is committed and prepared");
        }
    }

    /// Runs disk operations until everything appended is durable. The batch in flight comes first;
    /// writing zeros ahead of the log is left to [`OpenStore::prepare`] where possible.
    pub fn commit(&mut self) {
        let target = self.store.last_assigned();
        while self.durable_up_to < target {
            assert!(self.step(), "a batch that waits has an operation to run");
        }
    }

    /// Lets `disk` begin with what was appended; what is appended from now on is for the next batch.
    pub fn begin_commit(&mut self, disk: &BackgroundDisk) {
        self.committing_up_to = self.store.last_assigned();
        self.start(disk);
    }

    /// Waits until what was appended before [`OpenStore::begin_commit`] is durable.
    pub fn finish_commit(&mut self, disk: &BackgroundDisk) {
        while self.durable_up_to < self.committing_up_to {
            assert!(self.under_way > 0, "a batch that waits has an operation under way");
            let finished = disk.wait();
            self.handle(disk, finished);
        }
    }

    /// What a turn of the gateway does between two receives: takes what the disk has done, and lets it
    /// go on. A batch is a write, and then a sync.
    pub fn turn(&mut self, disk: &BackgroundDisk) {
        while let Some(finished) = disk.poll() {
            self.handle(disk, finished);
        }
    }

    fn handle(
        &mut self,
        disk: &BackgroundDisk,
        (id, result): (DiskOpId, Result<DiskOutcome, DiskError>),
    ) {
        self.under_way -= 1;
        answer(&mut self.store, id, result, &mut self.durable_up_to);
        if self.durable_up_to < self.committing_up_to {
            self.start(disk);
        }
    }

    fn start(&mut self, disk: &BackgroundDisk) {
        while let Some((id, op)) = self.store.poll_disk(NOW_MS) {
            self.under_way += 1;
            disk.start(id, op);
        }
    }

    /// Runs what is left: zeros ahead of the log. The gateway does it while it waits for work.
    pub fn prepare(&mut self) {
        while self.step() {}
    }

    /// Reads what waits in every mailbox and was appended since the last call, and acknowledges it.
    pub fn take_all(&mut self, mut on_read: impl FnMut(ReadStart)) {
        for number in self.taken + 1..=self.appended {
            let mailbox = fixture::mailbox(number % self.mailboxes);
            let seq = self.store.next(mailbox, Seq(0)).expect("it is durable");
            on_read(self.store.read(mailbox, seq));
            self.store.ack(mailbox, seq);
        }
        self.taken = self.appended;
    }

    /// Bytes of the batches written so far, with what fills them up.
    pub fn batch_bytes_written(&self) -> u64 {
        self.store.stats().batch_bytes_written
    }

    /// Length of the log.
    pub fn file_bytes(&self) -> u64 {
        self.store.stats().file_bytes
    }

    fn step(&mut self) -> bool {
        step(&mut self.store, &mut self.disk, &mut self.durable_up_to)
    }
}

/// One operation; `false` when there is none to run.
fn step(store: &mut Store, disk: &mut impl BlockingDisk, durable_up_to: &mut RecordNumber) -> bool {
    let Some((id, op)) = store.poll_disk(NOW_MS) else { return false };
    let result = disk.execute(op);
    answer(store, id, result, durable_up_to);
    true
}

fn answer(
    store: &mut Store,
    id: DiskOpId,
    result: Result<DiskOutcome, DiskError>,
    durable_up_to: &mut RecordNumber,
) {
    store.handle_disk(NOW_MS, id, result);
    while let Some(event) = store.poll_event() {
        match event {
            StoreEvent::Durable { up_to } => *durable_up_to = up_to,
            StoreEvent::Failed(fault) => panic!("{fault}"),
            other => panic!("nothing is read or reclaimed here: {other:?}"),
        }
    }
}

/// Mailboxes that a bench spreads its messages over.
pub const MAILBOXES: u64 = 10_000;

const STORE_ID: u64 = 0x5eed;
const HASH_SEED: u64 = 7;
/// The clock stands still: no batch is written only because time passed.
const NOW_MS: u64 = 1;
