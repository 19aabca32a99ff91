//! Directories: what a real store has written, damaged, with the checksums mended or not. A record
//! of another length, a block of another file, a segment that is missing, cut, repeated, or not one
//! at all.

use ringpost_protocol::id::{MailboxId, Seq};
use ringpost_storage::{CheckpointId, DeviceRecord, FileId, GapReason, SegmentId};

use crate::disk::Disk;
use crate::image::{self, BLOCK};
use crate::reopen::{self, address, message, receipt};
use crate::script::Script;
use crate::seeds::Seed;
use crate::store::Driven;

/// Writes, damages, opens.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let mut disk = Disk::default();
    let mut driven = Driven::open(&mut disk, 5).expect("an empty directory");
    for _ in 0..script.byte() {
        if script.is_empty() {
            break;
        }
        write(&mut driven, &mut disk, &mut script);
    }
    let damages = script.byte() % 16;
    for _ in 0..damages {
        damage(&mut disk, &mut script);
    }
    if damages == 0 {
        reopen::check_checkpoint(&disk);
    }
    reopen::check(&disk, &mut script);
}

/// A step of the store that fills the directory.
fn write(driven: &mut Driven, disk: &mut Disk, script: &mut Script<'_>) {
    let mailbox = MailboxId(u64::from(script.byte() % 8));
    match script.byte() % 16 {
        0..=2 => message(driven, script),
        3 => {
            let up_to = (0..script.byte())
                .fold(Seq(0), |after, _| driven.store.next(mailbox, after).unwrap_or(after));
            driven.store.ack(mailbox, up_to);
        }
        4 => drop(driven.store.append_gap(mailbox, GapReason::Expired, Some("group"))),
        5 => receipt(driven, mailbox, script),
        6 => {
            let device = DeviceRecord { address: address(script), mailbox, created_unix_ms: 9 };
            driven.store.put_device(&device);
        }
        7 => {
            let first = driven.store.next(mailbox, Seq(0));
            first.map(|seq| driven.store.expire(mailbox, seq, None));
        }
        8 => drop((0..script.byte()).find(|step| !driven.step(disk, usize::from(*step)))),
        10 => driven.store.request_checkpoint(),
        11 => {
            let unix_ms = script.number();
            driven.store.begin_clock(driven.now_ms, unix_ms, script.flag());
        }
        12 => driven.now_ms += script.number().min(1 << 40),
        // The process dies, and what was under way with it; or it stops in order.
        9 => *driven = Driven::open(disk, 6).expect("the store wrote it"),
        _ => driven.settle(disk),
    }
}

fn damage(disk: &mut Disk, script: &mut Script<'_>) {
    let files: Vec<_> = disk.files.keys().copied().collect();
    let Some(pick) = usize::from(script.byte()).checked_rem(files.len()) else { return };
    let (file, other) = (files[pick], files[usize::from(script.byte()) % files.len()]);
    match script.byte() % 16 {
        0..=5 => change(disk, file, script),
        6 | 7 => {
            let records = script.flag();
            repair(disk, file, records);
        }
        8 => drop(disk.files.remove(&file)),
        9 => {
            let content = disk.files.get_mut(&file).expect("listed");
            let length = usize::from(script.u16()) * 8;
            content.resize(length.min(256 << 10), script.byte());
        }
        10 => {
            let content = disk.files[&file].clone();
            disk.files.insert(id(script), content);
        }
        11 => {
            let content = disk.files.remove(&file).expect("listed");
            disk.files.insert(id(script), content);
        }
        12 => drop(disk.files.insert(id(script), script.bytes().to_vec())),
        13 => {
            // One of them is an older state of the other, or they were mixed up.
            let (one, two) = (disk.files[&file].clone(), disk.files[&other].clone());
            disk.files.insert(file, two);
            disk.files.insert(other, one);
        }
        _ => misplace(disk, file, other, script),
    }
}

/// Some bytes of the file, mostly where a batch begins.
fn change(disk: &mut Disk, file: FileId, script: &mut Script<'_>) {
    let content = disk.files.get_mut(&file).expect("listed");
    let block = usize::from(script.byte()) * BLOCK;
    let at = block + usize::from(script.u16()) % BLOCK;
    match script.byte() % 4 {
        0 => {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= script.byte().max(1);
            }
        }
        1 => {
            if let Some(bytes) = content.get_mut(at..at + 8) {
                bytes.copy_from_slice(&script.number().to_le_bytes());
            }
        }
        2 => {
            let bytes = script.bytes();
            if let Some(place) = content.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        _ => {
            let end = content.len().min(block + BLOCK);
            if let Some(block) = content.get_mut(block..end) {
                block.fill(script.byte());
            }
        }
    }
    if script.flag() {
        repair(disk, file, true);
    }
}

fn repair(disk: &mut Disk, file: FileId, records: bool) {
    let content = disk.files.get_mut(&file).expect("listed");
    match file {
        FileId::Segment(_) => image::repair(content, records),
        FileId::Checkpoint(_) => image::repair_checkpoint(content),
    }
}

/// Blocks of one file at another place of another.
fn misplace(disk: &mut Disk, file: FileId, other: FileId, script: &mut Script<'_>) {
    let from = usize::from(script.byte()) * BLOCK;
    let length = usize::from(script.byte() % 8) * BLOCK;
    let to = usize::from(script.byte()) * BLOCK;
    let Some(blocks) = disk.files[&file].get(from..from + length).map(<[u8]>::to_vec) else {
        return;
    };
    let content = disk.files.get_mut(&other).expect("listed");
    if let Some(place) = content.get_mut(to..to + length) {
        place.copy_from_slice(&blocks);
    }
}

fn id(script: &mut Script<'_>) -> FileId {
    let number = match script.byte() {
        small @ ..0xf0 => u32::from(small % 8),
        _ => script.u32(),
    };
    if script.byte() % 4 == 3 {
        FileId::Checkpoint(CheckpointId(number))
    } else {
        FileId::Segment(SegmentId(number))
    }
}

/// Stores of one and several segments and opens, whole and damaged.
pub fn seeds() -> Vec<Seed> {
    let message: &[u8] = &[0, 0, 1, 6, 0x88, 0x13, 1];
    let large: &[u8] = &[0, 0, 1, 0, 0x20, 0x4e - 1, 2];
    let settle: &[u8] = &[0, 15];
    let ack: &[u8] = &[1, 3, 9];
    let reopen: &[u8] = &[0, 9];
    let script = |steps: &[&[u8]], rest: &[u8]| {
        [&[u8::try_from(steps.len()).expect("a few")], &steps.concat()[..], rest].concat()
    };
    let kinds = [message, &[1, 4], &[2, 5, 1, 9], &[3, 6, 2], settle];
    let many: Vec<_> = [large, settle].into_iter().cycle().take(40).collect();
    let opens = [message, settle, reopen, message, settle, reopen, message, settle];
    let reclaimed: Vec<_> = many.iter().copied().chain([ack, settle]).chain(many.clone()).collect();
    let checkpoint: Vec<_> = kinds.iter().copied().chain([&[0, 10], settle, message]).collect();
    let clock: [&[u8]; 6] = [&[0, 11, 200, 0], message, settle, &[0, 12, 240, 0], settle, settle];
    vec![
        ("clock", script(&clock, &[])),
        ("kinds", script(&kinds, &[])),
        ("acked", script(&[message, message, settle, ack, settle], &[])),
        ("expired", script(&[message, settle, &[1, 7], settle], &[])),
        ("segments", script(&many, &[])),
        ("reclaimed", script(&reclaimed, &[])),
        ("opens", script(&opens, &[])),
        ("checkpoint", script(&checkpoint, &[])),
        ("checkpoint-flip", script(&checkpoint, &[1, 2, 0, 0, 0, 50, 0, 0, 4, 1])),
        ("checkpoint-old", script(&[&checkpoint[..], &opens].concat(), &[])),
        ("torn", script(&[message, settle, message, &[0, 8, 3]], &[])),
        ("flip", script(&opens, &[1, 0, 0, 0, 1, 60, 0, 0, 4, 0])),
        ("mended", script(&opens, &[1, 0, 0, 0, 1, 60, 0, 0, 4, 1])),
        ("lost-segment", script(&opens, &[1, 1, 0, 8])),
        ("cut", script(&opens, &[1, 0, 0, 9, 0, 6, 0])),
        ("swapped", script(&opens, &[1, 0, 1, 13])),
        ("misplaced", script(&opens, &[1, 0, 1, 14, 1, 1, 2])),
        ("goes-on", script(&opens, &[0, 1, 0, 1, 9, 0, 1, 0, 0, 6, 1, 2, 0, 0, 6])),
    ]
}
