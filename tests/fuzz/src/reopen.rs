//! What must hold for any directory that a store is opened on: it ends, the answer depends on the
//! bytes alone, opening changes nothing that opening again would see, and a store that was opened
//! keeps what it shows.

use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId,
};
use ringpost_storage::inspect::{self, EntryUse, SegmentScan, SegmentStep};
use ringpost_storage::{
    DeviceRecord, FileId, GapReason, NewMessage, OpenFault, ReceiptRecord, RecoveryReport,
};

use crate::disk::Disk;
use crate::image::BLOCK;
use crate::script::Script;
use crate::store::{Driven, SHARD, STORE_ID};

/// The index: every entry of every mailbox, and the devices.
#[derive(Debug, PartialEq)]
struct Index {
    entries: Vec<(MailboxId, Vec<EntryUse>)>,
    devices: Vec<DeviceRecord>,
}

/// Opens, compares, goes on as `script` says, opens again.
pub(crate) fn check(directory: &Disk, script: &mut Script<'_>) {
    inspect_all(directory);
    let (mut disk, mut other) = (directory.clone(), directory.clone());
    let opened = Driven::open(&mut disk, 1);
    let same = Driven::open(&mut other, 2);
    let (driven, same) = match (opened, same) {
        (Ok(driven), Ok(same)) => (driven, same),
        (Err(fault), Err(same)) => return refused(&fault, &same),
        (one, other) => panic!("{:?} and {:?}", one.err(), other.err()),
    };
    assert_eq!(driven.report, same.report);
    assert!(disk.files == other.files, "what opening does depends on the hash seed");
    let index = Index::of(&driven);
    assert_eq!(index, Index::of(&same));

    let mut again = Driven::open(&mut other, 3).expect("it was opened before");
    assert!(disk.files == other.files, "opening changes a directory that was opened before");
    assert_eq!(settled(driven.report), settled(again.report.clone()));
    assert_eq!(index, Index::of(&again));

    again.settle(&mut disk);
    while !script.is_empty() && !again.failed {
        step(&mut again, &mut disk, script);
    }
    again.snapshot(&mut disk);
    again.settle(&mut disk);
    assert!(!again.failed, "the disk has not failed");
    let last = match Driven::open(&mut disk, 4) {
        Err(OpenFault::OpensUsedUp) if again.report.open_count == OPENS_MAX => return,
        last => last.expect("the store wrote it"),
    };
    assert_eq!(Index::of(&again), Index::of(&last));
    assert!(last.report.open_count > again.report.open_count, "seqs are given twice");
}

/// What no damage has touched: a checkpoint changes nothing but the time that opening takes.
pub(crate) fn check_checkpoint(directory: &Disk) {
    let mut with = directory.clone();
    let mut without = directory.clone();
    without.files.retain(|file, _| matches!(file, FileId::Segment(_)));
    let with = Driven::open(&mut with, 1).expect("the store wrote it");
    let without = Driven::open(&mut without, 1).expect("the store wrote it");
    assert_eq!(Index::of(&with), Index::of(&without));
    assert_eq!(with.store.expiry_clock_ms(0), without.store.expiry_clock_ms(0));
    assert_eq!(inspect::segments(&with.store), inspect::segments(&without.store));
}

impl Index {
    fn of(driven: &Driven) -> Self {
        let of = |mailbox| (mailbox, inspect::entries(&driven.store, mailbox));
        let mut devices: Vec<_> = driven.store.devices().collect();
        devices.sort_by(|a, b| a.address.cmp(&b.address));
        let mailboxes = inspect::mailboxes(&driven.store);
        Self { entries: mailboxes.into_iter().map(of).collect(), devices }
    }
}

/// What a second opening finds too: unused files are gone by then.
fn settled(report: RecoveryReport) -> RecoveryReport {
    let (bytes_read, checkpoint_bytes_read) = (0, 0);
    RecoveryReport { bytes_read, checkpoint_bytes_read, unused_segments: 0, ..report }
}

fn refused(fault: &OpenFault, same: &OpenFault) {
    assert_eq!(fault, same);
    assert!(!fault.to_string().is_empty());
}

/// A step of whoever uses the store.
fn step(driven: &mut Driven, disk: &mut Disk, script: &mut Script<'_>) {
    let mailbox = MailboxId(u64::from(script.byte() % 8));
    match script.byte() % 10 {
        0 | 1 => message(driven, script),
        2 => {
            let after = Seq(script.number());
            let up_to = driven.store.next(mailbox, after).unwrap_or(after);
            driven.store.ack(mailbox, up_to);
        }
        3 => drop(driven.store.append_gap(mailbox, GapReason::Full, None)),
        4 => receipt(driven, mailbox, script),
        5 => {
            let device = DeviceRecord { address: address(script), mailbox, created_unix_ms: 9 };
            driven.store.put_device(&device);
        }
        6 => driven.settle(disk),
        7 => driven.store.request_checkpoint(),
        8 => {
            let unix_ms = script.number();
            driven.store.begin_clock(driven.now_ms, unix_ms, script.flag());
        }
        _ => drop(driven.step(disk, usize::from(script.byte()))),
    }
}

pub(crate) fn message(driven: &mut Driven, script: &mut Script<'_>) {
    let (first, bits, shape) = (u64::from(script.byte() % 8), script.byte(), script.u16());
    let mailboxes: Vec<_> =
        (0..8).filter(|bit| bits >> bit & 1 != 0 || *bit == first).map(MailboxId).collect();
    // Inputs are short, segments are not.
    let envelope = vec![shape.to_le_bytes()[0]; usize::from(shape) % 20_000];
    let taken = driven.store.append_message(&NewMessage {
        from: &address(script),
        install_id: InstallId(5),
        send_seq: SendSeq(6),
        message_number: MessageNumber(7),
        sent_at_ms: 8,
        expires_at_ms: u64::MAX,
        urgent: shape & 1 != 0,
        group: (shape & 2 != 0).then_some("group"),
        mailboxes: &mailboxes,
        envelope: &envelope,
    });
    assert!(taken.is_ok() || driven.failed || driven.store.stats().queued_bytes > 0);
}

pub(crate) fn receipt(driven: &mut Driven, mailbox: MailboxId, script: &mut Script<'_>) {
    let peer = address(script);
    let up_to_send_seq = SendSeq(script.number());
    let receipt = ReceiptRecord { peer, group: None, install_id: InstallId(1), up_to_send_seq };
    driven.store.put_receipt(mailbox, &receipt);
}

pub(crate) fn address(script: &mut Script<'_>) -> DeviceAddress {
    let user = UserId::new(&format!("user{}", script.byte() % 4)).expect("a short name");
    DeviceAddress { user, device: DeviceId::new("phone").expect("a short name") }
}

/// The tools' way through each segment: in order, without an overlap, to its end.
fn inspect_all(directory: &Disk) {
    for (file, content) in &directory.files {
        let FileId::Segment(segment) = *file else { continue };
        let _ = inspect::read_header(&content[..content.len().min(BLOCK)]);
        let bytes = u32::try_from(content.len()).expect("files are short");
        let mut scan = SegmentScan::new(STORE_ID, SHARD, segment, bytes);
        let mut end = 0;
        for step in 0.. {
            assert!(step < 4 * (2 + content.len() / BLOCK), "no end of steps");
            match scan.step() {
                SegmentStep::Read { offset, length_bytes } => {
                    let start = offset as usize;
                    let part = &content[start..content.len().min(start + length_bytes as usize)];
                    scan.feed(offset, length_bytes, bytes::Bytes::copy_from_slice(part));
                }
                SegmentStep::Batch(batch) => {
                    assert!(batch.offset >= end, "batches overlap");
                    end = batch.offset + batch.padded_bytes;
                    let mut last = batch.offset;
                    for record in batch.records() {
                        let Ok(record) = record else { break };
                        assert!(record.offset > last && record.offset + record.length_bytes <= end);
                        assert!(!format!("{record:?}").is_empty());
                        last = record.offset;
                    }
                }
                SegmentStep::Damaged { offset } => {
                    assert!(offset >= end, "damage inside a batch");
                    end = offset + 1;
                }
                SegmentStep::End => break,
            }
        }
    }
}

const OPENS_MAX: u32 = (1 << 24) - 1;
