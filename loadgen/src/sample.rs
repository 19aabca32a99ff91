//! What the machine says while a run goes on: CPU time and memory of a gateway of our own, memory
//! of the kernel, and how far the run has come.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringpost_ring::host::monotonic_ns;
use serde::Serialize;

use crate::fleet::Totals;

/// One look. Kernel memory is that of the whole host, both ends of each connection included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Monotonic.
    pub at_s: f64,
    pub open: u64,
    pub answered: u64,
    pub delivered: u64,
    /// User and system time of the gateway; null when it is not ours.
    pub server_cpu_s: Option<f64>,
    /// Resident memory of the gateway.
    pub server_rss_bytes: Option<u64>,
    pub slab_bytes: u64,
    /// Pages that TCP holds for data in socket buffers.
    pub tcp_bytes: u64,
    /// Data that the gateway's kernel holds for clients that do not take it.
    pub server_send_queue_bytes: Option<u64>,
}

/// Takes a sample a second.
#[derive(Debug)]
pub struct Sampler {
    process: Option<u32>,
    listen: SocketAddr,
    interval: Duration,
    next: Instant,
    /// The table of all sockets is long: it is read the less often the longer that takes.
    next_queues: Instant,
    send_queue_bytes: Option<u64>,
    samples: Vec<Sample>,
}

impl Sampler {
    /// `process`: the gateway, when it is ours.
    pub fn new(process: Option<u32>, listen: SocketAddr) -> Self {
        let now = Instant::now();
        Self {
            process,
            listen,
            interval: INTERVAL,
            next: now,
            next_queues: now,
            send_queue_bytes: None,
            samples: Vec::new(),
        }
    }

    /// The gateway is another process now.
    pub fn set_process(&mut self, process: u32) {
        self.process = Some(process);
    }

    /// Takes a sample when one is due.
    pub fn poll(&mut self, totals: Totals) {
        if Instant::now() >= self.next {
            self.next = Instant::now() + self.interval;
            self.take(totals);
        }
    }

    /// Takes a sample now.
    pub fn take(&mut self, totals: Totals) -> Sample {
        self.read_queues();
        let sample = Sample {
            at_s: monotonic_ns() as f64 / 1e9,
            open: totals.open,
            answered: totals.answered,
            delivered: totals.delivered,
            server_cpu_s: self.process.and_then(process_cpu_seconds),
            server_rss_bytes: self.process.and_then(process_rss_bytes),
            slab_bytes: slab_bytes(),
            tcp_bytes: tcp_bytes(),
            server_send_queue_bytes: self.send_queue_bytes,
        };
        self.samples.push(sample);
        sample
    }

    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn read_queues(&mut self) {
        let started = Instant::now();
        if self.process.is_none() || started < self.next_queues {
            return;
        }
        let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        self.send_queue_bytes = Some(send_queue_bytes(&table, self.listen.port()));
        self.next_queues = started + started.elapsed() * QUEUES_SHARE;
    }
}

/// Bytes a minute by which the values rise, by least squares; null when there are too few.
pub fn slope_per_minute(points: &[(f64, f64)]) -> Option<f64> {
    if points.len() < 3 {
        return None;
    }
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let together: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    (spread > 0.0).then(|| together / spread * 60.0)
}

/// User and system time of a process, its ended threads included.
pub fn process_cpu_seconds(process: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command may hold spaces and parentheses: counting starts behind it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_S)
}

/// CPU time of this process.
pub fn own_cpu_seconds() -> f64 {
    process_cpu_seconds(std::process::id()).unwrap_or_default()
}

fn process_rss_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    kibibytes(&status, "VmRSS")
}

fn slab_bytes() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kibibytes(&memory, "Slab").unwrap_or_default()
}

fn tcp_bytes() -> u64 {
    let page = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    tcp_pages(&page).unwrap_or_default() * PAGE_BYTES
}

/// `TCP: inuse 5 orphan 0 tw 0 alloc 8 mem 3`
fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    line.split_once(" mem ")?.1.split_ascii_whitespace().next()?.parse().ok()
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number * 1024)
}

/// The sum over the sockets of one local port: column 2 is `ADDRESS:PORT`, column 5 `TX:RX`, all in
/// hexadecimal. A listening socket's queue counts connections: it is left out.
fn send_queue_bytes(table: &str, port: u16) -> u64 {
    let wanted = format!(":{port:04X}");
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next()?;
            let state = fields.nth(1)?;
            let (send, _) = fields.next()?.split_once(':')?;
            let counts = local.ends_with(&wanted) && state != LISTENING;
            counts.then(|| u64::from_str_radix(send, 16).ok())?
        })
        .sum()
}

const INTERVAL: Duration = Duration::from_secs(1);
/// At most this part of the time is spent on the table of sockets.
const QUEUES_SHARE: u32 = 20;
/// Linux shows user space clock ticks of 10 ms, whatever its own are.
const TICKS_PER_S: f64 = 100.0;
const PAGE_BYTES: u64 = 4_096;
const LISTENING: &str = "0A";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line() {
        let flat: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), 7.0)).collect();
        assert_eq!(slope_per_minute(&flat), Some(0.0));
        let rising: Vec<(f64, f64)> =
            (0..10).map(|x| (f64::from(x), 100.0 + 2.0 * f64::from(x))).collect();
        assert!((slope_per_minute(&rising).unwrap() - 120.0).abs() < 1e-9);
        assert_eq!(slope_per_minute(&rising[..2]), None);
    }

    #[test]
    fn queues_of_the_port_are_summed() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
             0: 0100007F:1D13 00000000:0000 0A 00000000:00000005 00:00000000\n\
             1: 0100007F:1D13 0100007F:9C40 01 00000100:00000000 00:00000000\n\
             2: 0100007F:1D13 0100007F:9C41 01 00000010:00000000 00:00000000\n\
             3: 0100007F:9C40 0100007F:1D13 01 00001000:00000000 00:00000000\n";
        assert_eq!(send_queue_bytes(table, 0x1d13), 0x110);
    }

    #[test]
    fn the_kernel_is_understood() {
        assert_eq!(
            tcp_pages("sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 8 mem 3\n"),
            Some(3)
        );
        assert_eq!(kibibytes("MemFree: 2 kB\nSlab:   7 kB\n", "Slab"), Some(7 * 1024));
        let own = std::process::id();
        assert!(process_rss_bytes(own).unwrap() > 0 && process_cpu_seconds(own).is_some());
        assert!(slab_bytes() > 0 && tcp_pages("UDP: mem 3").is_none());
    }

    #[test]
    fn samples_are_taken_at_their_time() {
        let mut sampler = Sampler::new(Some(std::process::id()), "127.0.0.1:1".parse().unwrap());
        sampler.poll(Totals { delivered: 1, ..Totals::default() });
        sampler.poll(Totals { delivered: 2, ..Totals::default() });
        assert_eq!(sampler.samples().len(), 1);
        let sample = sampler.take(Totals { delivered: 3, ..Totals::default() });
        assert!(sample.server_rss_bytes.is_some() && sample.delivered == 3);
    }
}
