//! The same by `fio`, so that the yardstick is not of our making.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::plain_file::file_of_zeros;
use super::{Outcome, SEGMENT_BYTES, Work};

/// Its version; `None` when it is not installed.
pub fn version() -> Option<String> {
    let output = Command::new("fio").arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) fn run(work: &Work, directory: &Path) -> Result<Outcome, Box<dyn Error>> {
    let began = Instant::now();
    let path = file_of_zeros(directory)?;
    let preparing = began.elapsed();
    let bytes = work.bytes_per_batch * work.batches as usize;
    let output = Command::new("fio")
        .args(["--name=batches", "--rw=write", "--ioengine=psync", "--fdatasync=1"])
        // Unless told so it makes the file anew, and then measures the allocation of its blocks.
        .args(["--overwrite=1", "--allow_file_create=0", "--fallocate=none", "--invalidate=0"])
        .arg("--output-format=json")
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--bs={}", work.bytes_per_batch))
        .arg(format!("--size={SEGMENT_BYTES}"))
        .arg(format!("--io_size={bytes}"))
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let job = &serde_json::from_slice::<Value>(&output.stdout)?["jobs"][0];
    let per_second = job["write"]["iops"].as_f64().ok_or("fio says no iops")?;
    let time = Duration::try_from_secs_f64(f64::from(work.batches) / per_second)?;
    // It has a histogram of the writes and one of the syncs, and none of both together.
    let batch_times = (0..100)
        .map(|percent| sum_at(job, percent))
        .collect::<Option<_>>()
        .ok_or("fio says no percentiles")?;
    Ok(Outcome::of(time, time + preparing, batch_times))
}

/// Write and sync at the next percentile that fio tells.
fn sum_at(job: &Value, percent: usize) -> Option<Duration> {
    let named = if percent < 75 { "50.000000" } else { "99.000000" };
    let write = job["write"]["clat_ns"]["percentile"][named].as_u64()?;
    let sync = job["sync"]["lat_ns"]["percentile"][named].as_u64()?;
    Some(Duration::from_nanos(write + sync))
}
