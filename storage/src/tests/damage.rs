//! Damage at rest, a torn tail, foreign files, and a disk that refuses.

use ringpost_protocol::id::{MailboxId, Seq};

use super::disk::{Disk, Rng};
use super::world::{World, open, small_config};
use crate::batch::BatchHead;
use crate::entry::SEGMENT_SPAN_MAX;
use crate::segment::Header;
use crate::{
    DiskErrorKind, DiskOp, Fault, OpenFault, Opening, ReadStart, SegmentId, StoreConfig,
    StoreEvent, StoreFull,
};

/// One message of 5,000 bytes per batch: batch n + 1 stands at (2 n + 2) blocks.
fn ten_batches(rng: &mut Rng) -> (World, Vec<Seq>) {
    let mut world = World::new(small_config());
    world.settle(rng);
    let mut append = || {
        let seq = world.message(1, &[1], 5000).unwrap();
        while world.step(rng) {}
        seq
    };
    let seqs = (0..10).map(|_| append()).collect();
    (world, seqs)
}

#[test]
fn attested_damage_is_quarantined_and_the_rest_is_served() {
    let mut rng = Rng(1);
    for victim in 0..9 {
        let (mut world, seqs) = ten_batches(&mut rng);
        let block = 2 + 2 * victim;
        world.disk.segment(1).flip(4096 * block + 300 * victim);
        world.reopen(None);
        assert_eq!(world.report.damaged.len(), 1, "{:?}", world.report);
        let damaged = world.report.damaged[0];
        assert_eq!((damaged.offset, damaged.end), (4096 * block as u64, 4096 * (block as u64 + 2)));
        let mut left = seqs.clone();
        left.remove(victim);
        assert_eq!(world.queued(1), left);
        for seq in left {
            assert!(world.read(1, seq, &mut rng).is_some());
        }
    }
}

#[test]
fn a_block_that_cannot_be_read_costs_its_batch_and_at_the_end_the_opening() {
    let mut rng = Rng(1);
    for victim in 0..10 {
        let (mut world, seqs) = ten_batches(&mut rng);
        let block = 2 + 2 * victim;
        world.disk.bad_blocks.insert((SegmentId(1).into(), block));
        let opened = open(&world.config, &mut world.disk);
        if victim == 9 {
            // Nobody knows whether it held something accepted, so it is not cut.
            let fault = opened.unwrap_err();
            assert!(matches!(fault, OpenFault::EndUnreadable { offset: 81_920, .. }), "{fault}");
            world.disk.bad_blocks.clear();
            world.reopen(None);
            assert_eq!(world.queued(1), seqs);
            continue;
        }
        let (_, report) = opened.unwrap();
        assert_eq!((report.unreadable_blocks, report.damaged.len()), (1, 1), "{report:?}");
        assert_eq!(report.damaged[0].offset, 4096 * block as u64);
        assert_eq!(report.entries, 9);
    }
}

#[test]
fn a_read_that_fails_twice_costs_nothing() {
    let mut rng = Rng(1);
    let (mut world, seqs) = ten_batches(&mut rng);
    // Headers are asked for once: of this segment, and of the spare one.
    let (mut reads, fails) = (0, 3);
    let mut opening = Opening::new(small_config(), 7);
    while let Some((id, op)) = opening.poll_disk() {
        let is_read = matches!(op, DiskOp::Read { .. });
        reads += usize::from(is_read);
        if is_read && (3..3 + fails).contains(&reads) {
            world.disk.failing_reads = 1;
        }
        let result = world.disk.execute(op);
        opening.handle_disk(id, result);
    }
    let (_, report) = opening.finish().unwrap();
    assert_eq!((report.entries, report.unreadable_blocks), (seqs.len() as u64, 0), "{report:?}");
}

#[test]
fn damage_after_the_last_attestation_is_a_torn_tail() {
    let mut rng = Rng(1);
    let (mut world, seqs) = ten_batches(&mut rng);
    world.disk.segment(1).flip(4096 * 20 + 99);
    world.reopen(None);
    assert_eq!(world.report.damaged, []);
    assert_eq!(world.report.cut_at, Some((SegmentId(1), 4096 * 20)));
    assert_eq!(world.queued(1), seqs[..9]);
    // The cut is for ever, even if the bytes turn up again.
    world.message(1, &[2], 10);
    world.settle(&mut rng);
    world.disk.segment(1).flip(4096 * 20 + 99);
    world.reopen(None);
    assert_eq!(world.queued(1), seqs[..9]);
    assert_eq!((world.queued(2).len(), world.report.damaged.len()), (1, 0));
}

#[test]
fn an_attested_last_batch_that_rots_is_corruption() {
    let mut rng = Rng(1);
    let (mut world, _) = ten_batches(&mut rng);
    world.settle(&mut rng);
    world.disk.segment(1).flip(4096 * 20 + 99);
    world.reopen(None);
    assert_eq!(world.report.damaged.len(), 1);
    assert_eq!(world.queued(1).len(), 9);
}

#[test]
fn a_damaged_header_or_a_misplaced_batch_hides_nothing_else() {
    let mut rng = Rng(1);
    let (mut world, seqs) = ten_batches(&mut rng);
    world.settle(&mut rng);
    let file = world.disk.segment(1);
    file.flip(20);
    // The write of batch 4 went to the place of batch 3.
    file.content.copy_within(4096 * 8..4096 * 10, 4096 * 6);
    file.flip(4095);
    world.reopen(None);
    assert_eq!(world.report.damaged.len(), 1);
    let left = [&seqs[..2], &seqs[3..]].concat();
    assert_eq!(world.queued(1), left);
}

#[test]
fn rot_under_an_open_store_is_found_by_the_read() {
    let mut rng = Rng(1);
    let (mut world, seqs) = ten_batches(&mut rng);
    world.reopen(None);
    world.disk.segment(1).flip(4096 * 2 + 800);
    let ReadStart::Pending(id) = world.store.read(MailboxId(1), seqs[0]) else { panic!("cached") };
    while world.step(&mut rng) {}
    assert!(matches!(world.read.remove(&id), Some(Err(Fault::Corrupt { .. }))));
    assert!(world.read(1, seqs[1], &mut rng).is_some());
}

#[test]
fn unknown_and_reserved_records_are_refused_by_name() {
    let mut rng = Rng(1);
    for (kind, name) in [(6, "roster or device-list version, reserved"), (77, "no known type")] {
        let (mut world, _) = ten_batches(&mut rng);
        let origin = world.config.origin();
        let file = world.disk.segment(1);
        let batch = &mut file.content[4096 * 2..4096 * 4];
        let head = BatchHead::parse(batch, origin, SegmentId(1), 4096 * 2).unwrap();
        batch[56] = kind;
        head.seal(origin, SegmentId(1), 4096 * 2, batch);
        let fault = open(&world.config, &mut world.disk).unwrap_err();
        assert!(fault.to_string().contains(name), "{fault}");
    }
}

#[test]
fn numbers_that_no_store_gives_are_damage() {
    let mut rng = Rng(1);
    let (mut world, seqs) = ten_batches(&mut rng);
    let origin = world.config.origin();
    for first_batch in [0, u64::MAX] {
        let header = Header { open_count: 1, first_batch }.encode(origin, SegmentId(1));
        world.disk.segment(1).content[..4096].copy_from_slice(&header);
        world.reopen(None);
        assert_eq!(world.queued(1), seqs);
    }
    let number = u64::MAX;
    let head =
        BatchHead { length: 56, records: 0, number, durable_up_to: number - 1, open_count: 1 };
    let place = 4096 * 31;
    let batch = &mut world.disk.segment(1).content[place..];
    head.seal(origin, SegmentId(1), 4096 * 31, batch);
    world.reopen(None);
    assert_eq!(world.report.cut_at, Some((SegmentId(1), place as u64)));
}

#[test]
fn opens_that_are_used_up_are_refused() {
    let mut rng = Rng(1);
    let (mut world, _) = ten_batches(&mut rng);
    for open_count in [(1 << 24) - 1, u32::MAX] {
        let header = Header { open_count, first_batch: 1 };
        let header = header.encode(world.config.origin(), SegmentId(1));
        world.disk.segment(1).content[..4096].copy_from_slice(&header);
        assert_eq!(open(&world.config, &mut world.disk).unwrap_err(), OpenFault::OpensUsedUp);
    }
}

#[test]
fn segments_of_two_logs_are_refused() {
    let mut rng = Rng(1);
    for stray in [SEGMENT_SPAN_MAX, u32::MAX] {
        let (mut world, _) = ten_batches(&mut rng);
        let file = world.disk.segment(1).clone();
        world.disk.files.insert(SegmentId(stray).into(), file);
        let fault = open(&world.config, &mut world.disk).unwrap_err();
        let (first, last) = (SegmentId(1), SegmentId(stray));
        assert_eq!(fault, OpenFault::SegmentsApart { first, last });
    }
}

#[test]
fn files_of_another_store_shard_or_version_are_refused() {
    let mut rng = Rng(1);
    let (mut world, _) = ten_batches(&mut rng);
    let refused = |config: StoreConfig, disk: &mut Disk| open(&config, disk).unwrap_err();
    let config = small_config();
    let fault = refused(StoreConfig { store_id: 1, ..config.clone() }, &mut world.disk);
    assert!(matches!(fault, OpenFault::OtherStore { found: 0x5eed, .. }), "{fault}");
    let fault = refused(StoreConfig { shard: 1, ..config.clone() }, &mut world.disk);
    assert!(matches!(fault, OpenFault::OtherShard { found: 3, .. }), "{fault}");
    for version in [1, 9] {
        let header = &mut world.disk.segment(1).content;
        header[12] = version;
        let crc = crc32c::crc32c(&header[12..40]).to_le_bytes();
        header[8..12].copy_from_slice(&crc);
        let fault = refused(config.clone(), &mut world.disk);
        let wanted = u16::from(version);
        assert!(matches!(fault, OpenFault::Version { found, .. } if found == wanted), "{fault}");
    }
}

#[test]
fn arbitrary_flips_never_panic_and_never_serve_a_changed_record() {
    let mut rng = Rng(5);
    let (mut whole, seqs) = ten_batches(&mut rng);
    whole.receipt(2, 1, 5);
    whole.gap(2);
    whole.device(3);
    whole.settle(&mut rng);
    for _ in 0..300 {
        let mut disk = whole.disk.clone();
        let file = disk.segment(1);
        for _ in 0..=rng.below(6) {
            let byte = rng.below(file.content.len());
            file.flip(byte);
        }
        let mut world = World::with_disk(small_config(), disk);
        for seq in world.queued(1) {
            assert!(seqs.contains(&seq) && world.read(1, seq, &mut rng).is_some());
        }
    }
}

#[test]
fn a_disk_error_closes_the_store_and_keeps_what_was_durable() {
    for kind in [DiskErrorKind::Full, DiskErrorKind::Io] {
        for after in 0..60 {
            let mut rng = Rng(after as u64);
            let (mut world, seqs) = ten_batches(&mut rng);
            world.disk.fail_in = Some((after, kind));
            for _ in 0..20 {
                world.message(1, &[3], 9000);
                while world.step(&mut rng) {}
            }
            if world.disk.executed > 60 && !world.failed {
                continue;
            }
            // No room for the next segment closes nothing.
            assert!(world.failed || world.store.stats().disk_full);
            if world.failed {
                assert!(world.store.poll_disk(9_999_999).is_none());
            }
            assert_eq!(world.message(1, &[3], 10), None);
            let durable = world.store.durable_up_to();
            world.reopen(Some(&mut rng));
            world.check(durable, &mut rng).unwrap();
            assert_eq!(world.queued(1), seqs);
        }
    }
}

/// After a failed sync the page cache still shows the batch, and recovery takes it for good.
#[test]
fn what_a_failed_sync_left_is_written_again_before_it_is_served() {
    for seed in 0..20 {
        let mut rng = Rng(seed);
        let (mut world, _) = ten_batches(&mut rng);
        let seq = world.message(1, &[3], 3_000).unwrap();
        world.disk.loses_next_sync = true;
        while world.step(&mut rng) {}
        assert!(world.failed);
        world.reopen(None);
        assert_eq!(world.queued(3), [seq]);
        world.reopen(Some(&mut rng));
        assert_eq!(world.queued(3), [seq], "seed {seed}: shown, and lost");
        assert_eq!(world.report.damaged, []);
    }
}

#[test]
fn a_failed_store_says_so_once() {
    let mut rng = Rng(3);
    let (mut world, _) = ten_batches(&mut rng);
    world.message(1, &[3], 10).unwrap();
    let (id, op) = world.store.poll_disk(5).unwrap();
    assert!(matches!(op, DiskOp::Write { .. }));
    let text = "no space left on device".to_owned();
    let error = crate::DiskError { kind: DiskErrorKind::Full, text };
    world.store.handle_disk(5, id, Err(error));
    assert!(matches!(world.store.poll_event(), Some(StoreEvent::Failed(Fault::Full { .. }))));
    assert!(world.store.poll_event().is_none() && world.store.poll_disk(6).is_none());
    assert_eq!(world.store.durable_up_to().0 + 1, world.store.last_assigned().0);
    let message = super::world::address(1);
    let refused = world.store.append_message(&crate::NewMessage {
        from: &message,
        install_id: Default::default(),
        send_seq: Default::default(),
        message_number: Default::default(),
        sent_at_ms: 0,
        expires_at_ms: 0,
        urgent: false,
        group: None,
        mailboxes: &[MailboxId(1)],
        envelope: &[],
    });
    assert_eq!(refused, Err(StoreFull::Failed));
}
