//! Facts about the machine that go beside every number.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The machine of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    pub machine: String,
    pub cpu_model: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// Type of the file system that the gateway's data is on; null when it is not ours.
    pub data_filesystem: Option<String>,
    /// Cores that our own gateway is kept on; null when it may use all.
    pub server_cores: Option<Vec<usize>>,
    /// Cores that the load generator is kept on; null when it may use all.
    pub client_cores: Option<Vec<usize>>,
    /// UTC, ISO 8601.
    pub date: String,
}

impl Host {
    /// `data`: the directory of the gateway's store, when this process chose it.
    pub fn read(data: Option<&Path>) -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = |name: &str| {
            fs::read_to_string(format!("/proc/sys/kernel/{name}"))
                .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
        };
        let kibibytes: u64 = field(&memory, "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .unwrap_or_default();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            machine: kernel("arch"),
            cpu_model: field(&cpu, "model name").unwrap_or("unknown").to_owned(),
            cores: cpu.lines().filter(|line| line.starts_with("processor")).count().max(1),
            memory_bytes: kibibytes * 1024,
            kernel: kernel("osrelease"),
            data_filesystem: data.and_then(filesystem),
            server_cores: None,
            client_cores: None,
            date: iso_8601(seconds),
        }
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The type of the file system that holds `path`, from the longest mount point above it.
pub fn filesystem(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = Path::new(before.split(' ').nth(4)?);
            let kind = after.split(' ').next()?;
            path.starts_with(point).then_some((point.as_os_str().len(), kind))
        })
        // Later lines are mounted over earlier ones, and max_by_key keeps the last.
        .max_by_key(|&(length, _)| length)
        .map(|(_, kind)| kind.to_owned())
}

/// Whether `fdatasync` on this file system writes to no disk at all.
pub fn is_memory_filesystem(kind: &str) -> bool {
    matches!(kind, "tmpfs" | "ramfs")
}

/// Settings of a run, in the order of their names.
pub type Settings = BTreeMap<&'static str, serde_json::Value>;

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// The civil date of a Unix time, by the days-from-civil algorithm run backwards.
fn iso_8601(unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso_8601(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(iso_8601(1_795_309_793), "2026-11-22T01:09:53Z");
    }

    #[test]
    fn facts_are_found() {
        let host = Host::read(Some(Path::new("/")));
        assert!(host.cores >= 1 && host.memory_bytes > 0);
        assert!(host.data_filesystem.is_some());
        assert_eq!(filesystem(Path::new("/proc")).as_deref(), Some("proc"));
    }
}
