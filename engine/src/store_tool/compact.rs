//! `ringpost store compact`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ringpost_storage::StoreConfig;
use serde_json::json;

use super::{StoreToolFault, json_line, line, mib};
use crate::data_dir::DataDir;
use crate::progress::WorkProgress;

#[derive(Debug, Args)]
pub struct CompactArgs {
    /// The data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The outcome as one JSON object
    #[arg(long)]
    json: bool,
    /// Length of a new segment file, as storage.segment_bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20,
        value_parser = clap::value_parser!(u32).range(4 << 20..=1 << 30))]
    segment_bytes: u32,
}

pub(super) fn run(args: &CompactArgs, out: &mut impl Write) -> Result<u8, StoreToolFault> {
    let mut data = DataDir::open_existing(&args.dir)?;
    let config =
        StoreConfig { segment_bytes: args.segment_bytes, ..StoreConfig::new(0, data.store_id()) };
    let mut progress = WorkProgress::begin("compacting");
    let shards = data.storage_shards();
    let done = data.reshard(shards, &config, &mut |now| {
        progress.show(now.bytes_done, now.bytes_total);
    })?;
    drop(progress);
    let report = &done.report;
    let (before, after) = (report.plan.file_bytes, report.file_bytes);
    let damaged: Vec<String> = report
        .plan
        .damaged
        .iter()
        .map(|(shard, range)| format!("shard {shard}: {range}"))
        .collect();
    let leftover = done.leftover.as_ref().map(ToString::to_string);
    if args.json {
        let value = json!({
            "type": "compacted",
            "generation": done.current.generation,
            "bytes_before": before,
            "bytes_after": after,
            "devices": report.devices,
            "entries": report.entries,
            "damaged": damaged,
            "damaged_entries": report.damaged_entries,
            "orphaned_entries": report.orphaned_entries,
            "leftover": leftover,
        });
        json_line(out, &value)?;
    } else {
        let generation = done.current.generation;
        let kept = format!("{} devices and {} entries kept", report.devices, report.entries);
        line(
            out,
            &format!(
                "generation {generation}: {} before, {} after; {kept}",
                mib(before),
                mib(after)
            ),
        )?;
        for range in &damaged {
            line(out, &format!("left out, damaged: {range}"))?;
        }
        if report.damaged_entries > 0 {
            line(out, &format!("{} entries were damaged", report.damaged_entries))?;
        }
        if let Some(error) = &leftover {
            line(out, &format!("the old generation goes at the next start: {error}"))?;
        }
    }
    Ok(u8::from(!damaged.is_empty() || report.damaged_entries > 0))
}

pub(super) const HELP: &str = "\
Writes what is live into a new generation, switches CURRENT to it once it is complete and synced, and
removes the old one. A crash at any moment leaves one complete generation. About the live bytes (see
`ringpost store inspect`) must be free on the file system of DIR.

Examples:
  ringpost store compact /var/lib/ringpost
  ringpost store compact --json DIR | jq .bytes_after

Exit codes: 0 compacted, 1 compacted but something was damaged, 2 not compacted (nothing changed).";
