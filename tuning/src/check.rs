//! The table: each reading against what the plan needs, why, and the fix. Pure arithmetic.
//!
//! Every figure is an estimate of what must not run out; where it comes from stands next to it.

use serde::Serialize;

use crate::readings::{Limit, PAGE_BYTES, Readings};

/// What the gateway shall do on this host.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) connections: u64,
    pub(crate) shards: u64,
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    pub(crate) value: String,
    pub(crate) wanted: String,
    pub(crate) why: String,
    pub(crate) fix: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// Works, but is worth a look; or the host does not say.
    Note,
    /// The plan does not fit.
    Short,
}

/// All rows, in the order in which a connection meets them.
pub(crate) fn checks(readings: &Readings, plan: Plan) -> Vec<Check> {
    let mut checks = vec![kernel(readings)];
    checks.extend(io_uring(readings));
    checks.extend([
        locked_memory(readings, plan),
        open_files(readings, plan),
        nr_open(readings, plan),
        file_max(readings, plan),
        somaxconn(readings, plan),
        syn_backlog(readings, plan),
        port_range(readings),
        tcp_mem(readings, plan),
        socket_buffers("net.ipv4.tcp_rmem", readings.tcp_rmem_bytes),
        socket_buffers("net.ipv4.tcp_wmem", readings.tcp_wmem_bytes),
        datagram_buffer("net.core.rmem_max", readings.rmem_max_bytes, DATAGRAM_RECEIVE_BYTES),
        datagram_buffer("net.core.wmem_max", readings.wmem_max_bytes, DATAGRAM_SEND_BYTES),
        memory(readings, plan),
        conntrack(readings, plan),
    ]);
    checks
}

pub(crate) fn is_short(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.verdict == Verdict::Short)
}

fn kernel(readings: &Readings) -> Check {
    Check {
        name: "kernel".to_owned(),
        verdict: Verdict::Ok,
        value: readings.kernel.clone(),
        wanted: "6.1 or later".to_owned(),
        why: "for information: what counts is the next row, asked of the kernel itself".to_owned(),
        fix: "none needed".to_owned(),
    }
}

/// One row if all is well, otherwise one for each feature that is absent.
fn io_uring(readings: &Readings) -> Vec<Check> {
    let row = |verdict, value: String, wanted: &str, why: String, fix: String| {
        let name = "io_uring".to_owned();
        Check { name, verdict, value, wanted: wanted.to_owned(), why, fix }
    };
    let features = match &readings.io_uring {
        Ok(features) => features,
        Err(fault) => {
            let why = "the gateway has no other way to the network and the disk".to_owned();
            return vec![row(Verdict::Short, "none".to_owned(), "a ring", why, fault.clone())];
        }
    };
    let present = features.iter().filter(|feature| feature.present).count();
    let value = format!("{present} of {} features", features.len());
    let why = "operations and flags that the shards use".to_owned();
    let mut rows = vec![row(Verdict::Ok, value, "all required", why, "none needed".to_owned())];
    for feature in features.iter().filter(|feature| !feature.present) {
        let verdict = if feature.required { Verdict::Short } else { Verdict::Note };
        let why = format!("needed for {}", feature.needed_by);
        let fix = format!("run Linux {} or later", feature.since);
        rows.push(row(verdict, format!("no {}", feature.name), feature.name, why, fix));
    }
    rows
}

fn locked_memory(readings: &Readings, plan: Plan) -> Check {
    let wanted = plan.shards * RING_BYTES;
    let fix = "LimitMEMLOCK=infinity in the service (gateway.service), or limits.conf";
    at_least("memlock", readings.memlock_bytes.map(|limit| limit.hard), wanted, bytes)
        .why("some kernels charge ring memory to it, about 512 KiB for each shard".to_owned())
        .fix(fix.to_owned())
}

fn open_files(readings: &Readings, plan: Plan) -> Check {
    let wanted = descriptors(plan);
    let hard = readings.open_files.map(|limit| limit.hard);
    let soft = match readings.open_files {
        Some(Limit { soft, hard }) if soft < hard => "; the gateway raises soft to hard by itself",
        _ => "",
    };
    at_least("nofile (hard)", hard, wanted, count)
        .why(format!("a descriptor for each connection, and some for rings and segments{soft}"))
        .fix(format!("LimitNOFILE={wanted} in the service (gateway.service), or limits.conf"))
}

fn nr_open(readings: &Readings, plan: Plan) -> Check {
    let wanted = descriptors(plan);
    at_least("fs.nr_open", readings.nr_open, wanted, count)
        .why("nofile cannot be set higher than this".to_owned())
        .fix(format!("sysctl -w fs.nr_open={wanted}"))
}

fn file_max(readings: &Readings, plan: Plan) -> Check {
    let wanted = descriptors(plan) + OTHER_PROCESSES_FILES;
    at_least("fs.file-max", readings.file_max, wanted, count)
        .why("open files of the whole host".to_owned())
        .fix(format!("sysctl -w fs.file-max={wanted}"))
}

fn somaxconn(readings: &Readings, plan: Plan) -> Check {
    let wanted = backlog(plan);
    at_least("net.core.somaxconn", readings.somaxconn, wanted, count)
        .why("the kernel cuts the listeners' backlog to it; a reconnect storm needs it".to_owned())
        .fix(format!("sysctl -w net.core.somaxconn={wanted}"))
}

fn syn_backlog(readings: &Readings, plan: Plan) -> Check {
    let wanted = backlog(plan);
    at_least("net.ipv4.tcp_max_syn_backlog", readings.syn_backlog, wanted, count)
        .why(
            "half-open connections beyond it are dropped or get cookies without options".to_owned(),
        )
        .fix(format!("sysctl -w net.ipv4.tcp_max_syn_backlog={wanted}"))
}

/// Never short: the gateway only answers, and clients have their own addresses.
fn port_range(readings: &Readings) -> Check {
    let (value, ports) = match readings.port_range {
        Some((low, high)) => (format!("{low} {high}"), (high + 1).saturating_sub(low)),
        None => (UNREADABLE.to_owned(), 0),
    };
    let verdict = if ports >= PORTS_WANTED { Verdict::Ok } else { Verdict::Note };
    Check {
        name: "net.ipv4.ip_local_port_range".to_owned(),
        verdict,
        value,
        wanted: "1024 65535".to_owned(),
        why: "connections of one source address to one target: matters to loadgen and balancers"
            .to_owned(),
        fix: "sysctl -w net.ipv4.ip_local_port_range='1024 65535', or more source addresses"
            .to_owned(),
    }
}

fn tcp_mem(readings: &Readings, plan: Plan) -> Check {
    let wanted = plan.connections * QUEUED_BYTES_PER_CONNECTION / PAGE_BYTES;
    let pages = |pages: u64| bytes(pages * PAGE_BYTES);
    at_least("net.ipv4.tcp_mem (max)", readings.tcp_mem_pages.map(|[.., max]| max), wanted, pages)
        .why("above it every socket is throttled; one in 16 with 16 KiB queued".to_owned())
        .fix(format!("sysctl -w net.ipv4.tcp_mem='{} {} {wanted}'", wanted / 2, wanted * 3 / 4))
}

/// Never short: it says what a slow or hostile peer may take.
fn socket_buffers(name: &str, setting: Option<[u64; 3]>) -> Check {
    let verdict = match setting {
        Some([_, _, max]) if max <= SOCKET_BYTES_MAX => Verdict::Ok,
        _ => Verdict::Note,
    };
    Check {
        name: name.to_owned(),
        verdict,
        value: setting
            .map_or_else(|| UNREADABLE.to_owned(), |[min, def, max]| format!("{min} {def} {max}")),
        wanted: format!("max <= {SOCKET_BYTES_MAX}"),
        why: "one peer can hold up to the maximum; messages are at most some KiB".to_owned(),
        fix: format!("sysctl -w {name}='4096 16384 {SOCKET_BYTES_MAX}'"),
    }
}

/// Never short: QUIC works with less, and loses datagrams in a burst.
fn datagram_buffer(name: &str, value: Option<u64>, wanted: u64) -> Check {
    let check = at_least(name, value, wanted, bytes);
    let verdict = if check.verdict == Verdict::Ok { Verdict::Ok } else { Verdict::Note };
    Check { verdict, ..check }
        .why("all QUIC connections of a shard share one socket, whose buffer it bounds".to_owned())
        .fix(format!("sysctl -w {name}={wanted}"))
}

fn memory(readings: &Readings, plan: Plan) -> Check {
    let wanted =
        plan.connections * (USER_BYTES + KERNEL_BYTES) + plan.shards * SHARD_BYTES + PROCESS_BYTES;
    at_least("memory", readings.memory_bytes, wanted, bytes)
        .why(format!(
            "estimate: {USER_BYTES} B of ours + {KERNEL_BYTES} B of the kernel per idle \
             connection, {} per shard",
            bytes(SHARD_BYTES)
        ))
        .fix(
            "a larger host, a larger memory limit of the control group, or fewer connections"
                .to_owned(),
        )
}

fn conntrack(readings: &Readings, plan: Plan) -> Check {
    let wanted = plan.connections + plan.connections / 4;
    let Some(max) = readings.conntrack_max else {
        return Check {
            name: "conntrack".to_owned(),
            verdict: Verdict::Ok,
            value: "not loaded".to_owned(),
            wanted: "not loaded".to_owned(),
            why: "tracking costs about 320 B and two look-ups per connection".to_owned(),
            fix: "none needed".to_owned(),
        };
    };
    at_least("net.netfilter.nf_conntrack_max", Some(max), wanted, count)
        .why("new connections are dropped when the table is full".to_owned())
        .fix(format!(
            "keep the port out of it (nft: tcp and udp dport 7443 notrack, and the way back), or \
             sysctl -w net.netfilter.nf_conntrack_max={wanted}"
        ))
}

/// A row that is short below `wanted`, and a note when the host does not say.
fn at_least(name: &str, value: Option<u64>, wanted: u64, show: impl Fn(u64) -> String) -> Check {
    let (verdict, value) = match value {
        None => (Verdict::Note, UNREADABLE.to_owned()),
        Some(u64::MAX) => (Verdict::Ok, "unlimited".to_owned()),
        Some(value) if value >= wanted => (Verdict::Ok, show(value)),
        Some(value) => (Verdict::Short, show(value)),
    };
    let wanted = show(wanted);
    Check { name: name.to_owned(), verdict, value, wanted, why: String::new(), fix: String::new() }
}

impl Check {
    fn why(self, why: String) -> Self {
        Self { why, ..self }
    }

    fn fix(self, fix: String) -> Self {
        Self { fix, ..self }
    }
}

fn descriptors(plan: Plan) -> u64 {
    plan.connections + plan.shards * SHARD_DESCRIPTORS + PROCESS_DESCRIPTORS
}

/// A sixteenth of all clients knocking at once, as far as a backlog can go.
fn backlog(plan: Plan) -> u64 {
    (plan.connections / 16).clamp(128, 65_535)
}

fn count(value: u64) -> String {
    value.to_string()
}

fn bytes(value: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(size, _)| value >= *size) {
        Some((size, unit)) => format!("{}.{} {unit}", value / size, value % size * 10 / size),
        None => format!("{value} B"),
    }
}

const UNREADABLE: &str = "unreadable";

/// Per idle TLS connection: connection, session, TLS, mailbox head, allocator slack.
const USER_BYTES: u64 = 768;

/// Per idle connection: socket, inode, file, armed receive, in slab pages.
const KERNEL_BYTES: u64 = 4200;

/// Receive pool, rings, write batch and read cache of one shard.
const SHARD_BYTES: u64 = 32 << 20;

/// The program, its control plane, and room for a burst.
const PROCESS_BYTES: u64 = 128 << 20;

/// Queues of one ring and its buffer descriptors, rounded up.
const RING_BYTES: u64 = 512 << 10;

/// Ring, wake-up, listener, and open segments.
const SHARD_DESCRIPTORS: u64 = 64;

/// Admin connections, log, certificates.
const PROCESS_DESCRIPTORS: u64 = 256;

const OTHER_PROCESSES_FILES: u64 = 65_536;

/// One connection in sixteen with 16 KiB under way.
const QUEUED_BYTES_PER_CONNECTION: u64 = 1024;

const SOCKET_BYTES_MAX: u64 = 1 << 20;

const PORTS_WANTED: u64 = 60_000;

/// The defaults of `quic.receive_buffer_bytes` and `quic.send_buffer_bytes`.
const DATAGRAM_RECEIVE_BYTES: u64 = 2 << 20;
const DATAGRAM_SEND_BYTES: u64 = 1 << 20;

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
