//! Bits that flip at rest, anywhere: a message is served as it was, or its mailbox has a gap that
//! says so, or the opening names the range. Never is anything served changed.

use ringpost_protocol::id::Seq;

use super::disk::Rng;
use super::world::{MAILBOXES, World, small_config};
use crate::{FileId, GapReason, StoredRecord};

/// Messages in all mailboxes, some of them copied by reclaim, all attested; the cache is empty.
fn grown(rng: &mut Rng) -> (World, Vec<(u64, Seq, usize)>) {
    let mut world = World::new(small_config());
    let mut kept = Vec::new();
    for round in 0..300_u64 {
        let mailbox = round % MAILBOXES;
        let bytes = 200 + rng.below(3000);
        let seq = world.message(1, &[mailbox, 50], bytes).unwrap();
        while world.step(rng) {}
        if round % 5 == 0 {
            kept.extend([(mailbox, seq, bytes), (50, seq, bytes)]);
            // What came before it goes, but for the last ones of mailbox 50.
            world.ack(mailbox, Seq(seq.0 - 1));
            kept.retain(|(id, old, _)| *id != mailbox || *old == seq);
        }
        world.now_ms += 1;
    }
    world.settle(rng);
    world.reopen(None);
    world.settle(rng);
    (world, kept)
}

fn check(world: &mut World, kept: &[(u64, Seq, usize)], rng: &mut Rng) {
    for (mailbox, seq, bytes) in kept {
        match world.read(*mailbox, *seq, rng) {
            Some(StoredRecord::Message(message)) => {
                let fill = message.envelope.first();
                assert_eq!(message.envelope.len(), *bytes);
                assert!(message.envelope.iter().all(|byte| Some(byte) == fill));
                assert_eq!(&*message.from_user, "user1");
            }
            Some(other) => panic!("{other:?}"),
            None => {
                world.settle(rng);
                let damaged = (GapReason::Damaged, None);
                let said = !world.report.damaged.is_empty()
                    || world.gaps(*mailbox, rng).contains(&damaged);
                assert!(said, "{mailbox} {seq:?} vanished silently");
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_never_served_and_never_hidden() {
    let mut rng = Rng(11);
    let (grown, kept) = grown(&mut rng);
    assert!(kept.len() > 60);
    for round in 0..200 {
        let mut world = World::with_disk(grown.config.clone(), grown.disk.clone());
        world.settle(&mut rng);
        let all = world.disk.files.keys().copied();
        let all: Vec<_> = all.filter(|id| matches!(id, FileId::Segment(_))).collect();
        // Most bytes of a prepared segment are zeros: blocks that hold something count more.
        let file = world.disk.files.get_mut(&all[rng.below(all.len())]).unwrap();
        let mut byte = rng.below(file.content.len());
        for _ in 0..8 {
            if file.content[byte] == 0 {
                byte = rng.below(file.content.len());
            }
        }
        file.flip(byte);
        if round % 2 == 0 {
            world.reopen(None);
        }
        check(&mut world, &kept, &mut rng);
        assert!(!world.failed);
        if round % 10 == 0 {
            // Reclaim meets it too.
            while world.store.stats().reclaimed_segments < 4 {
                let seq = world.message(1, &[77], 9000).unwrap();
                while world.step(&mut rng) {}
                world.ack(77, seq);
                world.now_ms += 1;
            }
            check(&mut world, &kept, &mut rng);
        }
    }
}
