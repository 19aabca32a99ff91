//! One segment file, made by hand from records, batches and a header that are nearly right, with
//! right checksums: every reader of them, by way of the tools' view and of an opening.

use ringpost_storage::{FileId, SegmentId};

use crate::disk::Disk;
use crate::image::{self, BLOCK, Head};
use crate::reopen;
use crate::script::Script;
use crate::seeds::Seed;
use crate::store::{SHARD, STORE_ID};

/// The first byte chooses the bytes of a whole file instead of a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let segment = SegmentId(1);
    let file = match script.byte() {
        b'F' => {
            let mut file = image::header(segment, 1, 1);
            file.extend_from_slice(script.rest());
            image::repair(&mut file, true);
            file
        }
        shape => segment_of(&mut script, shape, segment),
    };
    let mut disk = Disk::default();
    disk.files.insert(FileId::Segment(segment), file);
    reopen::check(&disk, &mut script);
}

fn segment_of(script: &mut Script<'_>, shape: u8, segment: SegmentId) -> Vec<u8> {
    let mut number = if shape & 1 != 0 { script.number() } else { 1 };
    let open_count = if shape & 2 != 0 { script.u32() } else { 1 + u32::from(script.byte() % 3) };
    let mut file = image::header(segment, open_count, number);
    match shape >> 2 & 3 {
        1 => file.fill(0),
        2 => file[usize::from(script.byte()) % 40] ^= script.byte(),
        _ => {}
    }
    for _ in 0..script.byte() % 6 {
        let shape = script.byte();
        let (count, records) = records(script, open_count);
        let mut head = Head {
            records: if shape & 1 != 0 { script.u32() } else { count },
            number,
            durable_up_to: number.wrapping_sub(1),
            store_id: STORE_ID,
            segment: segment.0,
            offset: u32::try_from(file.len()).expect("files are short"),
            open_count: if shape & 2 != 0 { script.u32() } else { open_count },
            shard: SHARD,
        };
        match shape >> 2 {
            1 => head.durable_up_to = script.number(),
            2 => head.store_id = script.number(),
            3 => head.offset = head.offset.wrapping_add(u32::from(script.byte()) * 4096),
            4 => head.shard = script.u16(),
            5 => head.segment = script.u32(),
            6 => file.resize(file.len() + BLOCK, script.byte()),
            7 => number = number.wrapping_add(script.number()),
            _ => {}
        }
        image::put_batch(&head, &records, &mut file);
        number = number.wrapping_add(1);
    }
    file
}

fn records(script: &mut Script<'_>, open_count: u32) -> (u32, Vec<u8>) {
    let mut batch = Vec::new();
    let count = u32::from(script.byte() % 8);
    for _ in 0..count {
        let shape = script.byte();
        let kind = shape & 7;
        let fields = fields(script, kind, open_count);
        let version = if shape & 0x80 != 0 { script.byte() } else { 1 };
        image::put_record(kind, version, u16::from(shape >> 3 & 1), &fields, &mut batch);
        if shape & 0x40 != 0 && !batch.is_empty() {
            // Anything, lengths too; the checksum of the batch is right all the same.
            let at = usize::from(script.u16()) % batch.len();
            batch[at] = script.byte();
        }
    }
    (count, batch)
}

/// The fields of a record, mostly of a length that its kind has.
fn fields(script: &mut Script<'_>, kind: u8, open_count: u32) -> Vec<u8> {
    let mailbox = u64::from(script.byte() % 8);
    let shape = script.byte();
    let seq = match shape & 3 {
        3 => script.number(),
        older => u64::from(open_count.saturating_sub(u32::from(older))) << 40 | script.number(),
    };
    let mut out = Vec::new();
    let mut put = |values: &[u64]| {
        values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    };
    let texts: &[&str] = match kind {
        1 => {
            put(&[seq, 1, 2, 3, 4, script.number()]);
            let count = u16::from(script.byte() % 4);
            let count = if shape & 4 != 0 { script.u16() } else { count };
            out.extend_from_slice(&7_u32.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
            for _ in 0..count.min(1200) {
                out.extend_from_slice(&u64::from(script.byte() % 8).to_le_bytes());
            }
            &["bob", "phone", "group"]
        }
        2 => {
            put(&[mailbox, seq]);
            &[]
        }
        3 => {
            put(&[mailbox, seq, script.number(), 4, 5]);
            &["carol", "tablet", ""]
        }
        4 => {
            put(&[mailbox, seq, seq.wrapping_sub(script.number())]);
            out.push(script.byte() % 6);
            &["group"]
        }
        5 => {
            put(&[mailbox, 8]);
            &["bob", ["phone", "tablet"][usize::from(shape >> 3 & 1)]]
        }
        _ => {
            put(&[mailbox, seq]);
            &[]
        }
    };
    if shape & 0x10 == 0 {
        out.extend(texts.iter().map(|text| u8::try_from(text.len()).expect("a short text")));
        texts.iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
    }
    if shape & 0x20 != 0 {
        out.extend_from_slice(script.bytes());
    }
    out
}

/// A record of each kind, several batches, and what is behind the end of them.
pub fn seeds() -> Vec<Seed> {
    let message: &[u8] = &[1, 0, 0, 9, 50, 2, 1, 2];
    let ack: &[u8] = &[2, 1, 0, 5, 0];
    let receipt: &[u8] = &[3, 1, 0, 7, 0, 99];
    let gap: &[u8] = &[4, 2, 0, 11, 4, 1];
    let device: &[u8] = &[5, 3, 0, 0];
    let all = [message, message, receipt, gap, device].concat();
    let script = |head: &[u8], parts: &[&[u8]]| [head, &parts.concat()[..]].concat();
    vec![
        ("kinds", script(&[0, 0, 1], &[&[0, 5], &all])),
        ("acked", script(&[0, 0, 2], &[&[0, 5], &all, &[0, 1], ack])),
        ("hole", script(&[0, 0, 2], &[&[0, 1], message, &[7 << 2, 1, 2, 1, 3], message])),
        ("gap", script(&[0, 0, 2], &[&[0, 1], message, &[6 << 2, 1], message, &[1]])),
        ("numbered", script(&[1, 0xe0, 0, 0, 1], &[&[0, 1], message])),
        ("blank-header", script(&[4, 0, 1], &[&[0, 1], message])),
        (
            "goes-on",
            script(&[0, 0, 1], &[&[0, 5], &all, &[1, 0, 1, 9, 0, 1, 0, 6, 1, 2, 0, 3, 3, 6]]),
        ),
        ("file", [b"F", &image_of(&all)[..]].concat()),
    ]
}

fn image_of(records_script: &[u8]) -> Vec<u8> {
    let segment = SegmentId(1);
    let input = [&[0, 1, 0, 5], records_script].concat();
    segment_of(&mut Script::new(&input), 0, segment).split_off(BLOCK)
}
