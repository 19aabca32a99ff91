//! `ringpost store inspect`.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ringpost_storage::inspect::{self, RecordFound};
use ringpost_storage::{DeviceRecord, FileId, RecoveryReport, SegmentId, Store, blocking};
use serde_json::{Value, json};

use super::fields::{fields, id, live_mailboxes, plain};
use super::scan::{SegmentFound, scan};
use super::target::{Target, TargetShard};
use super::{StoreToolFault, json_line, line, mib};
use crate::data_dir::LogOnly;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The data directory, or one storage shard's directory in it (store/gen-N/shard-NNN)
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// One JSON object per line: data_dir, then of each shard its segments, checkpoints, mailboxes
    /// and a sum
    #[arg(long)]
    json: bool,
    /// Also every record: its place and fields, never its content
    #[arg(long)]
    records: bool,
    /// Also every mailbox that holds something: its device and the records that wait for it
    #[arg(long)]
    mailboxes: bool,
    /// Show ids of users, devices and groups whole; they are personal data
    #[arg(long)]
    full_ids: bool,
}

/// What goes where.
struct Output<'a, W> {
    out: &'a mut W,
    args: &'a InspectArgs,
}

pub(super) fn run(args: &InspectArgs, out: &mut impl Write) -> Result<u8, StoreToolFault> {
    let target = Target::find(&args.dir)?;
    let mut output = Output { out, args };
    output.data_dir(&target)?;
    for shard in &target.shards {
        output.shard(shard)?;
    }
    Ok(0)
}

impl<W: Write> Output<'_, W> {
    /// One thing, for machines or for people.
    fn emit(&mut self, value: &Value, text: impl FnOnce() -> String) -> Result<(), StoreToolFault> {
        if self.args.json { json_line(self.out, value) } else { line(self.out, &text()) }
    }

    fn data_dir(&mut self, target: &Target) -> Result<(), StoreToolFault> {
        let Some(current) = &target.current else { return Ok(()) };
        let path = target.path.display();
        let (generation, shards) = (current.generation, current.storage_shards);
        let store_id = format!("{:016x}", current.store_id);
        let value = json!({
            "type": "data_dir",
            "path": path.to_string(),
            "generation": generation,
            "storage_shards": shards,
            "store_id": store_id,
            "leftover_generations": target.leftovers,
        });
        let leftovers = &target.leftovers;
        self.emit(&value, || {
            let mut text = format!(
                "{path}: generation {generation}, {shards} storage shards, store {store_id}"
            );
            if !leftovers.is_empty() {
                text +=
                    &format!("\n  leftover generations, removed at the next start: {leftovers:?}");
            }
            text
        })
    }

    fn shard(&mut self, shard: &TargetShard) -> Result<(), StoreToolFault> {
        let disk = shard.disk();
        let fault = |error| StoreToolFault::Io { path: shard.path.clone(), error };
        let files = disk.list().map_err(fault)?;
        // Opened as at a start, on files that stay as they are: what is live is what it would serve.
        // From the log alone, so that damage shows wherever it is.
        let opened = blocking::open(&mut LogOnly(disk), shard.config(), 0, |_| {});
        let store = opened.as_ref().ok().map(|(store, _)| store);
        let (mut file_bytes, mut record_bytes) = (0, 0);
        for (file, bytes) in files {
            file_bytes += bytes;
            match file {
                FileId::Segment(segment) => {
                    let found = self.scan(shard, segment, bytes, store)?;
                    record_bytes += found.record_bytes;
                    self.segment(shard, &found, store)?;
                }
                FileId::Checkpoint(_) => self.checkpoint(shard, file, bytes)?,
            }
        }
        match &opened {
            Ok((store, report)) => {
                if self.args.mailboxes {
                    self.mailboxes(shard, store)?;
                }
                self.sum(shard, store, report, [file_bytes, record_bytes])
            }
            Err(fault) => {
                let value =
                    json!({"type": "shard", "shard": shard.shard, "fault": fault.to_string()});
                self.emit(&value, || format!("shard {}: cannot be opened: {fault}", shard.shard))
            }
        }
    }

    fn scan(
        &mut self,
        shard: &TargetShard,
        segment: SegmentId,
        file_bytes: u64,
        store: Option<&Store>,
    ) -> Result<SegmentFound, StoreToolFault> {
        let mut disk = shard.disk();
        let wanted = self.args.records;
        let mut on_record = |batch: &inspect::BatchFound, record: &RecordFound<'_>| {
            if wanted { self.record(shard, batch, record, store) } else { Ok(()) }
        };
        scan(shard, &mut disk, segment, file_bytes, &mut on_record, &mut |_| {})
    }

    fn record(
        &mut self,
        shard: &TargetShard,
        batch: &inspect::BatchFound,
        record: &RecordFound<'_>,
        store: Option<&Store>,
    ) -> Result<(), StoreToolFault> {
        let segment = batch.segment;
        let mut value = fields(record, self.args.full_ids);
        let live = store.and_then(|store| live_mailboxes(store, record, segment));
        value["type"] = "record".into();
        value["shard"] = shard.shard.into();
        value["segment"] = segment.to_string().into();
        value["batch"] = batch.number.into();
        value["offset"] = record.offset.into();
        value["length_bytes"] = record.length_bytes.into();
        value["kind"] = record.name.into();
        value["is_intact"] = record.is_intact.into();
        if let Some(live) = live {
            value["live_mailboxes"] = live.into();
        }
        let fields = fields(record, self.args.full_ids);
        let (offset, name) = (record.offset, record.name);
        self.emit(&value, || {
            let fields = fields.as_object().into_iter().flatten();
            let fields: String =
                fields.map(|(key, value)| format!(" {key}={}", plain(value))).collect();
            let dead = if live == Some(0) { ", dead" } else { "" };
            format!("    {segment} {offset}: {name}{fields}{dead}")
        })
    }

    fn segment(
        &mut self,
        shard: &TargetShard,
        found: &SegmentFound,
        store: Option<&Store>,
    ) -> Result<(), StoreToolFault> {
        let uses = store.map(inspect::segments).unwrap_or_default();
        let live = uses.iter().find(|used| used.segment == found.segment);
        let live_bytes = live.map_or(0, |used| used.live_bytes);
        let header = if found.has_own_header(shard) { "valid" } else { "blank or damaged" };
        let open_count = found.open_count();
        let value = json!({
            "type": "segment",
            "shard": shard.shard,
            "segment": found.segment.to_string(),
            "file_bytes": found.file_bytes,
            "header": header,
            "open_count": open_count,
            "first_batch": found.first_batch,
            "last_batch": found.last_batch,
            "batches": found.batches,
            "records": found.records,
            "record_bytes": found.record_bytes,
            "live_bytes": live_bytes,
            "dead_bytes": found.record_bytes.saturating_sub(live_bytes),
            "log_end": found.good_end,
            "not_batches": found.damaged,
            "faults": found.faults,
        });
        self.emit(&value, || {
            let batches = match (found.first_batch, found.last_batch) {
                (Some(first), Some(last)) => format!("batches {first} to {last}"),
                _ => "no batch".to_owned(),
            };
            let open =
                open_count.map_or_else(|| format!("header {header}"), |n| format!("open {n}"));
            let records = found.records.iter().map(|(name, count)| format!(", {count} {name}"));
            let mut text = format!(
                "  {}  {open}, {batches}{}; live {}, dead {}",
                found.segment,
                records.collect::<String>(),
                mib(live_bytes),
                mib(found.record_bytes.saturating_sub(live_bytes)),
            );
            for (offset, end) in &found.damaged {
                text +=
                    &format!("\n    bytes {offset} to {end}: no batch (torn, stale or damaged)");
            }
            for fault in &found.faults {
                text += &format!("\n    {fault}");
            }
            text
        })
    }

    fn checkpoint(
        &mut self,
        shard: &TargetShard,
        file: FileId,
        bytes: u64,
    ) -> Result<(), StoreToolFault> {
        let value = json!({
            "type": "checkpoint",
            "shard": shard.shard,
            "checkpoint": file.to_string(),
            "file_bytes": bytes,
        });
        self.emit(&value, || format!("  {file}  checkpoint, {}", mib(bytes)))
    }

    fn mailboxes(&mut self, shard: &TargetShard, store: &Store) -> Result<(), StoreToolFault> {
        let devices: HashMap<u64, DeviceRecord> =
            store.devices().map(|device| (device.mailbox.0, device)).collect();
        for mailbox in inspect::mailboxes(store) {
            let device = devices.get(&mailbox.0).map(|device| &device.address);
            let user =
                device.map_or_else(String::new, |at| id(at.user.as_str(), self.args.full_ids));
            let name =
                device.map_or_else(String::new, |at| id(at.device.as_str(), self.args.full_ids));
            let entries = inspect::entries(store, mailbox);
            let listed = entries.iter().map(|entry| {
                json!({
                    "seq": entry.seq.to_string(),
                    "kind": entry.name,
                    "segment": entry.segment.to_string(),
                    "offset": entry.offset,
                    "length_bytes": entry.length_bytes,
                })
            });
            let value = json!({
                "type": "mailbox",
                "shard": shard.shard,
                "mailbox": format!("{:016x}", mailbox.0),
                "user": user,
                "device": name,
                "entries": listed.collect::<Vec<_>>(),
            });
            self.emit(&value, || {
                let seqs = entries.iter().map(|entry| format!(" {}:{}", entry.name, entry.seq));
                let seqs: String = seqs.collect();
                format!("  mailbox {:016x} of {user}/{name}:{seqs}", mailbox.0)
            })?;
        }
        Ok(())
    }

    fn sum(
        &mut self,
        shard: &TargetShard,
        store: &Store,
        report: &RecoveryReport,
        [file_bytes, record_bytes]: [u64; 2],
    ) -> Result<(), StoreToolFault> {
        let stats = store.stats();
        let damaged: Vec<String> = report.damaged.iter().map(ToString::to_string).collect();
        let torn = report.cut_at.map(|(segment, offset)| format!("{segment} at {offset}"));
        let dead_bytes = record_bytes.saturating_sub(stats.live_bytes);
        let value = json!({
            "type": "shard",
            "shard": shard.shard,
            "opens": report.open_count.saturating_sub(1),
            "file_bytes": file_bytes,
            "live_bytes": stats.live_bytes,
            "dead_bytes": dead_bytes,
            "mailboxes": stats.mailboxes,
            "entries": stats.entries,
            "devices": stats.devices,
            "damaged": damaged,
            "torn_at": torn,
        });
        self.emit(&value, || {
            let mut text = format!(
                "shard {}: {} devices, {} mailboxes with {} entries; live {}, dead {}, files {}",
                shard.shard,
                stats.devices,
                stats.mailboxes,
                stats.entries,
                mib(stats.live_bytes),
                mib(dead_bytes),
                mib(file_bytes),
            );
            for range in &damaged {
                text += &format!("\n  DAMAGED: {range}");
            }
            if let Some(torn) = &torn {
                text += &format!("\n  torn tail, never reported durable: {torn}");
            }
            text
        })
    }
}

pub(super) const HELP: &str = "\
Examples:
  ringpost store inspect /var/lib/ringpost               one line per segment, one per shard
  ringpost store inspect --mailboxes DIR                 who has what waiting
  ringpost store inspect --records DIR | less            every record, content left out
  ringpost store inspect --json DIR | jq 'select(.type == \"shard\")'

live: bytes of records that some mailbox still needs. dead: acknowledged, replaced or moved; a running
gateway frees them segment by segment, `ringpost store compact` all at once. files: all bytes of the
files, with what is prepared for records to come. A torn tail is what a
crash cut off before it was durable; damage is what was durable and is unreadable now.
In JSON, 64-bit numbers that may pass 2^53 are strings: seq in decimal, mailbox and store_id in hex.
Exit codes: 0 shown, 2 not examined (a gateway runs on it, or it is no data directory).";
