//! `ringpost store verify`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ringpost_storage::inspect::{self, HeaderFound};
use ringpost_storage::{FileId, OpenFault, RecoveryReport, Store, blocking};
use serde_json::json;

use super::scan::{SegmentFound, scan};
use super::target::{Target, TargetShard};
use super::{StoreToolFault, json_line, line, mib};
use crate::data_dir::LogOnly;
use crate::progress::WorkProgress;

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The data directory, or one storage shard's directory in it (store/gen-N/shard-NNN)
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// One JSON object per finding and one at the end
    #[arg(long)]
    json: bool,
}

/// What was found, and where it goes.
struct Findings<'a, W> {
    out: &'a mut W,
    json: bool,
    damages: u64,
    notes: u64,
}

pub(super) fn run(args: &VerifyArgs, out: &mut impl Write) -> Result<u8, StoreToolFault> {
    let target = Target::find(&args.dir)?;
    let mut findings = Findings { out, json: args.json, damages: 0, notes: 0 };
    let mut files = Vec::new();
    for shard in &target.shards {
        let fault = |error| StoreToolFault::Io { path: shard.path.clone(), error };
        files.push(shard.disk().list().map_err(fault)?);
    }
    let bytes_of = |files: &Vec<(FileId, u64)>| files.iter().map(|(_, bytes)| bytes).sum::<u64>();
    // Once as bytes, once as a store.
    let bytes_total: u64 = 2 * files.iter().map(bytes_of).sum::<u64>();
    let mut progress = WorkProgress::begin("verifying");
    let mut bytes_done = 0;
    let mut batches = 0;
    for (shard, files) in target.shards.iter().zip(&files) {
        for (file, bytes) in files {
            if let FileId::Segment(segment) = *file {
                let mut disk = shard.disk();
                let mut on_bytes = |bytes| {
                    bytes_done += bytes;
                    progress.show(bytes_done, bytes_total);
                };
                let found =
                    scan(shard, &mut disk, segment, *bytes, &mut |_, _| Ok(()), &mut on_bytes)?;
                batches += found.batches;
                findings.segment(shard, &found)?;
            }
        }
        let before = bytes_done;
        let opened = blocking::open(&mut LogOnly(shard.disk()), shard.config(), 0, |now| {
            bytes_done = before + now.bytes_read;
            progress.show(bytes_done, bytes_total);
        });
        match opened {
            Ok((store, report)) => {
                findings.store(shard, &report)?;
                findings.checkpoints(shard, files, &store)?;
            }
            Err(fault) => findings.unopened(shard, &fault)?,
        }
    }
    drop(progress);
    let examined = Examined { shards: target.shards.len(), batches, bytes: bytes_total / 2 };
    findings.end(&examined)
}

/// How much was looked at.
struct Examined {
    shards: usize,
    batches: u64,
    bytes: u64,
}

impl<W: Write> Findings<'_, W> {
    fn find(&mut self, kind: &str, shard: u16, text: &str) -> Result<(), StoreToolFault> {
        if kind == "damage" {
            self.damages += 1;
        } else {
            self.notes += 1;
        }
        if self.json {
            json_line(self.out, &json!({"type": kind, "shard": shard, "text": text}))
        } else {
            line(self.out, &format!("{kind}: shard {shard}: {text}"))
        }
    }

    /// What can be said of one file alone.
    fn segment(&mut self, shard: &TargetShard, found: &SegmentFound) -> Result<(), StoreToolFault> {
        let segment = found.segment;
        let is_used = found.batches > 0;
        match found.header {
            HeaderFound::Valid(header) if !found.has_own_header(shard) => {
                let text = format!(
                    "{segment}: the header is of {}, shard {}, store {:016x}, format version {}",
                    header.segment, header.shard, header.store_id, header.format_version
                );
                self.find("damage", shard.shard, &text)?;
            }
            // The batches say the same, so nothing is lost.
            HeaderFound::Damaged | HeaderFound::Blank if is_used => {
                self.find("damage", shard.shard, &format!("{segment}: the header is damaged"))?;
            }
            HeaderFound::Damaged => {
                let text = format!("{segment}: a header was being written; the file is not used");
                self.find("note", shard.shard, &text)?;
            }
            HeaderFound::Valid(_) | HeaderFound::Blank => {}
        }
        for fault in &found.faults {
            self.find("damage", shard.shard, &format!("{segment}: {fault}"))?;
        }
        Ok(())
    }

    /// What the whole log says: numbers that are missing, and what came after the last of them.
    fn store(
        &mut self,
        shard: &TargetShard,
        report: &RecoveryReport,
    ) -> Result<(), StoreToolFault> {
        for range in &report.damaged {
            let text = format!("{range}: attested as durable and unreadable");
            self.find("damage", shard.shard, &text)?;
        }
        if let Some((segment, offset)) = report.cut_at {
            let text = format!("{segment} from byte {offset}: torn tail, never reported durable");
            self.find("note", shard.shard, &text)?;
        }
        if report.unused_segments > 0 {
            let text = format!("{} segments were prepared and not used", report.unused_segments);
            self.find("note", shard.shard, &text)?;
        }
        Ok(())
    }

    /// A start with the checkpoint must come to what the whole log says.
    fn checkpoints(
        &mut self,
        shard: &TargetShard,
        files: &[(FileId, u64)],
        from_log: &Store,
    ) -> Result<(), StoreToolFault> {
        let checkpoints = files.iter().filter(|(file, _)| matches!(file, FileId::Checkpoint(_)));
        if checkpoints.clone().next().is_none() {
            return Ok(());
        }
        let opened = blocking::open(&mut shard.disk(), shard.config(), 0, |_| {});
        let (from_image, report) = match opened {
            Ok(opened) => opened,
            Err(fault) => return self.unopened(shard, &fault),
        };
        for (file, _) in checkpoints {
            if report.checkpoint.map(FileId::Checkpoint) != Some(*file) {
                let text =
                    format!("{file}: not whole, or older than another; a start passes it over");
                self.find("note", shard.shard, &text)?;
            }
        }
        if let Some(checkpoint) = report.checkpoint
            && let Some(difference) = difference(from_log, &from_image)
        {
            let text = format!("{checkpoint}: a start with it differs from the log: {difference}");
            self.find("damage", shard.shard, &text)?;
        }
        Ok(())
    }

    fn unopened(&mut self, shard: &TargetShard, fault: &OpenFault) -> Result<(), StoreToolFault> {
        match fault {
            OpenFault::Disk { .. }
            | OpenFault::EndUnreadable { .. }
            | OpenFault::Version { .. } => {
                Err(StoreToolFault::Open { path: shard.path.clone(), fault: fault.clone() })
            }
            _ => self.find("damage", shard.shard, &format!("the store cannot be opened: {fault}")),
        }
    }

    fn end(&mut self, examined: &Examined) -> Result<u8, StoreToolFault> {
        let Examined { shards, batches, bytes } = *examined;
        let clean = self.damages == 0;
        if self.json {
            let value = json!({
                "type": "verified",
                "is_clean": clean,
                "damages": self.damages,
                "notes": self.notes,
                "shards": shards,
                "batches": batches,
                "bytes": bytes,
            });
            json_line(self.out, &value)?;
        } else {
            let verdict =
                if clean { "clean".to_owned() } else { format!("{} damages", self.damages) };
            let text =
                format!("{verdict}: {shards} shards, {batches} batches, {} read", mib(bytes));
            line(self.out, &text)?;
        }
        Ok(u8::from(!clean))
    }
}

/// The first thing in which two openings of one store differ.
fn difference(log: &Store, image: &Store) -> Option<String> {
    let mut mailboxes = [inspect::mailboxes(log), inspect::mailboxes(image)].concat();
    mailboxes.sort_unstable();
    mailboxes.dedup();
    for mailbox in mailboxes {
        let (known, shown) = (inspect::entries(log, mailbox), inspect::entries(image, mailbox));
        if known != shown {
            let (known, shown) = (known.len(), shown.len());
            return Some(format!("mailbox {:016x}: {known} entries, {shown} with it", mailbox.0));
        }
    }
    let devices = |store: &Store| {
        let mut all: Vec<_> =
            store.devices().map(|device| (device.address, device.mailbox)).collect();
        all.sort_unstable();
        all
    };
    (devices(log) != devices(image)).then(|| "the devices".to_owned())
}

pub(super) const HELP: &str = "\
Reads every file twice: byte by byte, for the checksums of headers, batches and records, and as a
start would without its checkpoints, for batches that are missing though a later one attests them.
Nothing is changed, so it works on a copy and on a read-only file system.

damage: something that was durable cannot be read. The gateway serves the rest; restore the directory
from a backup, or go on: `ringpost store compact` leaves the damaged ranges behind.
note: what a crash leaves and the next start clears; nothing that was reported durable is in it.

Examples:
  ringpost store verify /var/lib/ringpost
  ringpost store verify --json DIR | jq 'select(.type == \"damage\")'

Exit codes: 0 clean, 1 damaged, 2 not examined (a gateway runs on it, or a file cannot be read).";
