//! What the kernel says about this process, under the names that Prometheus clients share.

use super::{expose_gauge, expose_head, write_line};

/// CPU, memory and files of the process; what cannot be read is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMetrics {
    pub cpu_ms: Option<u64>,
    pub resident_bytes: Option<u64>,
    pub open_fds: Option<u64>,
}

impl ProcessMetrics {
    pub fn read() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").ok();
        let status = std::fs::read_to_string("/proc/self/status").ok();
        Self {
            cpu_ms: stat.as_deref().and_then(cpu_ms),
            resident_bytes: status.as_deref().and_then(resident_bytes),
            // Minus the descriptor that lists the directory.
            open_fds: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| (entries.count() as u64).saturating_sub(1)),
        }
    }

    /// Appends the text exposition.
    pub fn expose(&self, out: &mut String) {
        if let Some(cpu_ms) = self.cpu_ms {
            let name = "process_cpu_seconds_total";
            expose_head(out, name, "User and system CPU time of all threads.", "counter");
            let (seconds, rest) = (cpu_ms / 1000, cpu_ms % 1000);
            write_line(out, format_args!("{name} {seconds}.{rest:03}"));
        }
        if let Some(bytes) = self.resident_bytes {
            expose_gauge(out, "process_resident_memory_bytes", "Resident memory.", bytes);
        }
        if let Some(count) = self.open_fds {
            expose_gauge(out, "process_open_fds", "Open file descriptors.", count);
        }
    }
}

/// Fields 14 and 15 of proc_pid_stat(5): user and system time. The command, field 2, may itself
/// hold spaces and parentheses, so counting starts after its last one.
fn cpu_ms(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * MS_PER_TICK)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// The kernel shows times in units of USER_HZ, which is 100 on every architecture we build for.
const MS_PER_TICK: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194560 1 0 0 0 150 25 0 0 20 0 1 0 9 9 9";
        assert_eq!(cpu_ms(stat), Some(1750));
        assert_eq!(resident_bytes("VmSize:\t 9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        let here = ProcessMetrics::read();
        assert!(here.cpu_ms.is_some() && here.open_fds > Some(2), "{here:?}");
        assert!(here.resident_bytes > Some(1 << 20), "{here:?}");
    }
}
