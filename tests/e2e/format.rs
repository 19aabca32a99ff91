//! A reader that knows `storage/FORMAT.md` only, on stores that hold everything a store can hold:
//! copies, replaced receipts and gaps, torn tails, several opens, vanished segments.

use std::path::Path;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_engine::data_dir::{Access, DataDir, ShardDisk};
use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId,
};
use ringpost_storage::{
    BlockingDisk, DeviceRecord, DiskOp, GapReason, NewMessage, ReceiptRecord, Store, StoreConfig,
    blocking,
};

use crate::store_tool::{inspect, inspected_queues, read_queues, store};

#[test]
fn the_reader_agrees_on_stores_with_everything_in_them() {
    for seed in 0..3 {
        println!("seed {seed}");
        let directory = tempfile::tempdir().unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let data = DataDir::open(directory.path(), SHARDS).unwrap();
        for shard in 0..SHARDS {
            for _ in 0..random.random_range(1..5) {
                live(&data, shard, &mut random);
            }
        }
        drop(data);
        let seen = compare(directory.path());
        checkpoints_agree_with_the_log(directory.path());
        assert!(seen > 50, "{seen} entries are too few to compare");
    }
}

/// Entries that both see.
fn compare(data_dir: &Path) -> usize {
    let (read, inspected) = (read_queues(data_dir), inspected_queues(data_dir));
    for (mailbox, entries) in &inspected {
        assert_eq!(read.get(mailbox), Some(entries), "{mailbox}");
    }
    assert_eq!(read.len(), inspected.len());
    inspected.values().map(Vec::len).sum()
}

/// `verify` starts from the checkpoint and from the log alone, and compares.
fn checkpoints_agree_with_the_log(data_dir: &Path) {
    let lines = inspect(&[], data_dir);
    let checkpoints = lines.iter().filter(|line| line["type"] == "checkpoint").count();
    assert!(checkpoints > 0, "none was made");
    let verified = store(&["verify"], data_dir);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
}

/// One open of a store, up to a crash in the middle of a write.
fn live(data: &DataDir, shard: u16, random: &mut StdRng) {
    let mut disk = ShardDisk::new(&data.shard_dir(shard), Access::ReadWrite);
    let config = StoreConfig {
        segment_bytes: 128 << 10,
        fill_chunk_bytes: 32 << 10,
        batch_bytes_max: 32 << 10,
        reclaim_bytes_per_second: u32::MAX,
        checkpoint_log_bytes: 300 << 10,
        checkpoint_bytes_per_second: u32::MAX,
        ..StoreConfig::new(shard, data.store_id())
    };
    let (mut store, _) = blocking::open(&mut disk, config, random.random(), |_| {}).unwrap();
    for now_ms in 0..ROUNDS {
        command(&mut store, random);
        let crashes = now_ms + 1 == ROUNDS;
        while let Some((id, op)) = store.poll_disk(now_ms) {
            if let DiskOp::Write { file, offset, data } = &op
                && crashes
            {
                let torn = data.slice(..random.random_range(0..=data.len()));
                let op = DiskOp::Write { file: *file, offset: *offset, data: torn };
                drop(disk.execute(op).unwrap());
                return;
            }
            let result = disk.execute(op);
            store.handle_disk(now_ms, id, result);
        }
        while store.poll_event().is_some() {}
    }
}

fn command(store: &mut Store, random: &mut StdRng) {
    let mailbox = MailboxId(random.random_range(0..MAILBOXES));
    match random.random_range(0..10) {
        0 => {
            let record = ReceiptRecord {
                peer: address(random.random_range(0..3)),
                group: random.random_bool(0.3).then(|| UserId::new("group").unwrap()),
                install_id: InstallId(7),
                up_to_send_seq: SendSeq(random.random()),
            };
            store.put_receipt(mailbox, &record);
        }
        1 => {
            let reasons = [GapReason::Full, GapReason::Expired];
            let group = random.random_bool(0.5).then_some("group");
            store.append_gap(mailbox, reasons[random.random_range(0..2)], group);
        }
        2 => {
            let first = store.next(mailbox, Seq(0));
            if let Some(seq) = first {
                store.expire(mailbox, seq, None);
            }
        }
        3 => {
            let tail = store.tail(mailbox);
            let some = Seq(tail.0.saturating_sub(random.random_range(0..40)));
            store.ack(mailbox, some);
        }
        4 => {
            let device = DeviceRecord {
                address: address(mailbox.0),
                mailbox,
                created_unix_ms: random.random_range(0..9),
            };
            store.put_device(&device);
        }
        _ => append(store, random),
    }
}

fn append(store: &mut Store, random: &mut StdRng) {
    let mut mailboxes: Vec<_> = (0..MAILBOXES).map(MailboxId).collect();
    mailboxes.retain(|_| random.random_bool(0.3));
    mailboxes.push(MailboxId(MAILBOXES + random.random_range(0..3)));
    let envelope = Bytes::from(vec![random.random(); random.random_range(0..1000)]);
    let message = NewMessage {
        from: &address(random.random_range(0..9)),
        install_id: InstallId(random.random()),
        send_seq: SendSeq(random.random()),
        message_number: MessageNumber(random.random()),
        sent_at_ms: random.random(),
        expires_at_ms: u64::MAX,
        urgent: random.random(),
        group: random.random_bool(0.3).then_some("group"),
        mailboxes: &mailboxes,
        envelope: &envelope,
    };
    store.append_message(&message).unwrap();
}

fn address(number: u64) -> DeviceAddress {
    let user = UserId::new(&format!("user-{number}")).unwrap();
    DeviceAddress { user, device: DeviceId::new("phone").unwrap() }
}

const SHARDS: u16 = 2;
const ROUNDS: u64 = 400;
const MAILBOXES: u64 = 6;
