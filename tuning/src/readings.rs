//! What the host says. The only file that looks at it; everything else is arithmetic.

use std::fs;

use ringpost_ring::host::usable_cores;
use ringpost_ring::probe::{Feature, probe};

/// One host as it is. `None`: the kernel does not say (another kernel, or a container hides it).
#[derive(Clone, Debug)]
pub(crate) struct Readings {
    pub(crate) kernel: String,
    pub(crate) cores: u64,
    /// The features of io_uring, or why there is no ring at all.
    pub(crate) io_uring: Result<Vec<Feature>, String>,
    pub(crate) memlock_bytes: Option<Limit>,
    pub(crate) open_files: Option<Limit>,
    pub(crate) nr_open: Option<u64>,
    pub(crate) file_max: Option<u64>,
    pub(crate) somaxconn: Option<u64>,
    pub(crate) syn_backlog: Option<u64>,
    pub(crate) port_range: Option<(u64, u64)>,
    /// The three thresholds, in pages of [`PAGE_BYTES`].
    pub(crate) tcp_mem_pages: Option<[u64; 3]>,
    /// Minimum, default, maximum in bytes.
    pub(crate) tcp_rmem_bytes: Option<[u64; 3]>,
    pub(crate) tcp_wmem_bytes: Option<[u64; 3]>,
    /// What one socket may ask for.
    pub(crate) rmem_max_bytes: Option<u64>,
    pub(crate) wmem_max_bytes: Option<u64>,
    /// The smaller of what the host has free and what the control group allows.
    pub(crate) memory_bytes: Option<u64>,
    /// `None`: connection tracking is not loaded.
    pub(crate) conntrack_max: Option<u64>,
}

/// A limit of the process; `u64::MAX` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Readings {
    pub(crate) fn collect() -> Self {
        let limits = read("/proc/self/limits").unwrap_or_default();
        let memory = read("/proc/meminfo").unwrap_or_default();
        let free = available_bytes(&memory);
        let allowed = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
            .into_iter()
            .find_map(number);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
            cores: usable_cores().map_or(1, |cores| cores.len() as u64),
            io_uring: probe().map_err(|fault| format!("{fault}: {}", fault.fix())),
            memlock_bytes: limit(&limits, "Max locked memory"),
            open_files: limit(&limits, "Max open files"),
            nr_open: number("/proc/sys/fs/nr_open"),
            file_max: number("/proc/sys/fs/file-max"),
            somaxconn: number("/proc/sys/net/core/somaxconn"),
            syn_backlog: number("/proc/sys/net/ipv4/tcp_max_syn_backlog"),
            port_range: numbers("/proc/sys/net/ipv4/ip_local_port_range").map(|[a, b]| (a, b)),
            tcp_mem_pages: numbers("/proc/sys/net/ipv4/tcp_mem"),
            tcp_rmem_bytes: numbers("/proc/sys/net/ipv4/tcp_rmem"),
            tcp_wmem_bytes: numbers("/proc/sys/net/ipv4/tcp_wmem"),
            rmem_max_bytes: number("/proc/sys/net/core/rmem_max"),
            wmem_max_bytes: number("/proc/sys/net/core/wmem_max"),
            memory_bytes: free.map(|free| allowed.map_or(free, |allowed| allowed.min(free))),
            conntrack_max: number("/proc/sys/net/netfilter/nf_conntrack_max"),
        }
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

fn numbers<const COUNT: usize>(path: &str) -> Option<[u64; COUNT]> {
    parse_numbers(&read(path)?)
}

fn parse_numbers<const COUNT: usize>(text: &str) -> Option<[u64; COUNT]> {
    let values: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    values.ok()?.try_into().ok()
}

/// A line of `/proc/self/limits`: the name, soft, hard, unit.
fn limit(limits: &str, name: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut values = line.split_whitespace().map(|value| match value {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some(Limit { soft: values.next()??, hard: values.next()?? })
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Of `tcp_mem`; the kernels that Ringpost is built for have this size.
pub(crate) const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
            Max open files            1024                 20000                files\n\
            Max locked memory         8388608              unlimited            bytes\n";
        let files = limit(limits, "Max open files");
        assert_eq!(files, Some(Limit { soft: 1024, hard: 20_000 }));
        let memory = limit(limits, "Max locked memory");
        assert_eq!(memory, Some(Limit { soft: 8_388_608, hard: u64::MAX }));
        assert_eq!(limit(limits, "Max stack size"), None);
        assert_eq!(parse_numbers("4096\t131072\t6291456"), Some([4096, 131_072, 6_291_456]));
        assert_eq!(parse_numbers::<3>("4096 131072"), None);
        let meminfo = "MemTotal:  100 kB\nMemAvailable:       50 kB\n";
        assert_eq!(available_bytes(meminfo), Some(51_200));
    }

    #[test]
    fn this_host_can_be_read() {
        let readings = Readings::collect();
        assert!(readings.cores > 0 && readings.open_files.is_some());
    }
}
