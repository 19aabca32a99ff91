//! Messages for devices that are away: fill, restart, return, drain, verify.

use std::time::Duration;

use anyhow::Result;
use rand::random;
use ringpost_ring::host::monotonic_ns;

use crate::addr::SourceAddresses;
use crate::fleet::{Fleet, Part};
use crate::gateway::Stop;
use crate::host::{Host, Settings};
use crate::measure::{Measure, PayloadPattern, Stream};
use crate::plan::OfflinePlan;
use crate::report::offline::OfflineReport;
use crate::report::page::Story;
use crate::report::{ServerUse, charts, round};
use crate::sample::Sample;
use crate::scenario::{Options, Server, allow_connections, bar};
use crate::swarm::Swarm;
use crate::traffic::Traffic;

/// The report, and what it was made of.
pub struct OfflineResult {
    pub report: OfflineReport,
    pub measure: Measure,
    pub unanswered: u64,
    samples: Vec<Sample>,
    /// When the first device connected, monotonic.
    origin_s: f64,
    /// When the gateway was restarted, in seconds after that.
    restart_s: Option<f64>,
}

impl OfflineResult {
    pub fn is_clean(&self) -> bool {
        self.measure.is_clean() && self.unanswered == 0
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        let mut charts = charts::of_run(&self.measure, &self.samples, self.origin_s);
        charts::mark(&mut charts, "restart", self.restart_s.as_slice());
        Story {
            scenario: "offline",
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts,
        }
    }
}

/// Clients and streams of one thread: its devices first, then its senders.
pub(super) struct Share {
    devices: Vec<u32>,
    senders: u32,
    streams: Vec<Stream>,
    /// (stream, messages).
    pub(super) counts: Vec<(u32, u64)>,
}

impl Share {
    /// The clients that send.
    pub(super) fn sender_range(&self) -> std::ops::Range<u32> {
        let first = u32::try_from(self.devices.len()).expect("devices are counted in u32");
        first..first + self.senders
    }

    /// Each device gets its messages from `senders_per_device` of the thread's senders.
    pub(super) fn new(plan: &OfflinePlan, thread: usize, threads: usize) -> Self {
        let devices: Vec<u32> =
            (0..plan.devices).filter(|device| *device as usize % threads == thread).collect();
        let first_sender = u32::try_from(devices.len()).expect("devices are counted in u32");
        let per_device = plan.senders_per_device();
        let senders = SENDERS_PER_THREAD.max(per_device);
        let (mut streams, mut counts) = (Vec::new(), Vec::new());
        for (receiver, &device) in (0u32..).zip(&devices) {
            let messages = plan.messages_for(device);
            for part in 0..per_device {
                let sender = first_sender + (receiver * per_device + part) % senders;
                let share = messages / u64::from(per_device)
                    + u64::from(u64::from(part) < messages % u64::from(per_device));
                let stream = u32::try_from(streams.len()).expect("streams fit u32");
                streams.push(Stream::new(sender, receiver));
                counts.push((stream, share));
            }
        }
        Self { devices, senders, streams, counts }
    }
}

/// Runs the scenario. `how`: whether our own gateway is drained or killed; another one stays up.
pub fn run(plan: &OfflinePlan, how: Stop, options: &Options) -> Result<OfflineResult> {
    allow_connections(plan.devices)?;
    let mut server = Server::reach(options)?;
    let threads = options.thread_count(plan.devices);
    let run = random::<u32>();
    let parts = (0..threads)
        .map(|thread| part(plan, &server, run, thread, threads))
        .collect::<Result<Vec<_>>>()?;
    let fleet = Fleet::start(&server.swarm_config(options), options.client_cores.as_ref(), parts)?;
    let origin_s = monotonic_ns() as f64 / 1e9;

    register(&fleet, plan, threads, &mut server)?;
    let fill_s = fill(&fleet, plan, threads, &mut server)?;
    let store_bytes = server.own().map(|own| own.store_bytes());
    let restart = server.restart(how)?;
    let restart_s = restart.map(|_| monotonic_ns() as f64 / 1e9 - origin_s);
    let queued = server.read_use();
    let crashed = restart.is_some() && how == Stop::Kill;
    let drain_s = drain(&fleet, plan, threads, crashed, &mut server)?;
    let after = server.read_use();
    let parts = fleet.run(
        |_, swarm| {
            swarm.disconnect()?;
            Ok(swarm.finish())
        },
        |_| (),
    )?;

    let mut measure = Measure::new();
    parts.iter().for_each(|part| measure.add(part));
    let times = Times { fill_s, restart, drain_s };
    let report = report(plan, &measure, times, store_bytes, [queued, after], server.host());
    let mut settings = options.settings("offline", threads);
    settings.extend([
        ("payload_bytes", plan.payload_bytes.into()),
        ("restart", restart.map(|_| if how == Stop::Kill { "kill" } else { "drain" }).into()),
        ("fill_s", round(fill_s).into()),
        ("drain_s", round(drain_s).into()),
    ]);
    let report = OfflineReport { settings, ..report };
    let samples = server.samples().to_vec();
    server.finish()?;
    let unanswered = measure.sent - measure.accepted - measure.rejected;
    Ok(OfflineResult { report, measure, unanswered, samples, origin_s, restart_s })
}

/// How long each part took.
struct Times {
    fill_s: f64,
    /// To stop, and to start again until ready.
    restart: Option<(Duration, Duration)>,
    drain_s: f64,
}

/// `uses`: of the server with all mailboxes full, and at the end.
fn report(
    plan: &OfflinePlan,
    measure: &Measure,
    times: Times,
    store_bytes: Option<u64>,
    [queued, after]: [Option<ServerUse>; 2],
    host: Host,
) -> OfflineReport {
    let payload_bytes = measure.accepted * plan.payload_bytes as u64;
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    OfflineReport {
        devices: plan.devices,
        messages: plan.messages,
        accepted: measure.accepted,
        rejected: measure.rejected,
        filled_per_second: round(measure.accepted as f64 / times.fill_s),
        stop_ms: times.restart.map(|(stop, _)| milliseconds(stop)),
        restart_ms: times.restart.map(|(_, restart)| milliseconds(restart)),
        drained_per_second: round(measure.delivered as f64 / times.drain_s),
        delivered: measure.delivered,
        duplicated: measure.duplicated,
        duplicated_on_wire: measure.duplicated_on_wire,
        reordered: measure.reordered,
        lost: measure.lost,
        disk_bytes_per_payload_byte: store_bytes
            .filter(|_| payload_bytes > 0)
            .map(|bytes| round(bytes as f64 / payload_bytes as f64)),
        memory_bytes_per_queued_record: queued.and_then(|server| server.index_bytes_per_record()),
        server_rss_bytes_queued: queued.map(|server| server.rss_bytes),
        server_rss_bytes: after.map(|server| server.rss_bytes),
        host,
        settings: Settings::new(),
    }
}

/// A device exists from its first Welcome.
pub(super) fn register(
    fleet: &Fleet,
    plan: &OfflinePlan,
    threads: usize,
    server: &mut Server,
) -> Result<()> {
    let progress = bar(plan.devices.into(), "register");
    let all_devices = plan.clone();
    let log_in = move |thread: usize, swarm: &mut Swarm| {
        swarm.connect(devices_of(&all_devices, thread, threads))?;
        swarm.disconnect()
    };
    fleet.run(log_in, |totals| {
        server.watch(totals);
        progress.set_position(totals.open);
    })?;
    progress.finish_and_clear();
    Ok(())
}

/// Seconds from the first Send to the last answer; the logins of the senders come before.
pub(super) fn fill(
    fleet: &Fleet,
    plan: &OfflinePlan,
    threads: usize,
    server: &mut Server,
) -> Result<f64> {
    let all_devices = plan.clone();
    let login = move |thread: usize, swarm: &mut Swarm| {
        swarm.connect(Share::new(&all_devices, thread, threads).sender_range())
    };
    fleet.run(login, |_| ())?;
    let progress = bar(plan.messages, "fill");
    let all_devices = plan.clone();
    let send = move |thread: usize, swarm: &mut Swarm| {
        swarm.run_fill(&Share::new(&all_devices, thread, threads).counts)?;
        Ok(swarm.seconds_until_last_answer())
    };
    let seconds = fleet.run(send, |totals| {
        server.watch(totals);
        progress.set_position(totals.answered);
    })?;
    progress.finish_and_clear();
    fleet.run(|_, swarm| swarm.disconnect(), |_| ())?;
    Ok(seconds.into_iter().fold(f64::EPSILON, f64::max))
}

/// Seconds from the first login of a returning device to the last message.
fn drain(
    fleet: &Fleet,
    plan: &OfflinePlan,
    threads: usize,
    crashed: bool,
    server: &mut Server,
) -> Result<f64> {
    let progress = bar(plan.messages, "drain");
    let all_devices = plan.clone();
    let receive = move |thread: usize, swarm: &mut Swarm| {
        if crashed {
            swarm.handle_crash();
        }
        let started_ns = swarm.now_ns();
        swarm.connect(devices_of(&all_devices, thread, threads))?;
        swarm.run_drain()?;
        Ok(swarm.seconds_until_last_delivery(started_ns))
    };
    let seconds = fleet.run(receive, |totals| {
        server.watch(totals);
        progress.set_position(totals.delivered);
    })?;
    progress.finish_and_clear();
    Ok(seconds.into_iter().fold(f64::EPSILON, f64::max))
}

pub(super) fn devices_of(
    plan: &OfflinePlan,
    thread: usize,
    threads: usize,
) -> std::ops::Range<u32> {
    let count = Share::new(plan, thread, threads).devices.len();
    0..u32::try_from(count).expect("devices are counted in u32")
}

pub(super) fn part(
    plan: &OfflinePlan,
    server: &Server,
    run: u32,
    thread: usize,
    threads: usize,
) -> Result<Part> {
    let share = Share::new(plan, thread, threads);
    let thread_number = u32::try_from(thread).expect("threads are few");
    let devices = share.devices.iter().map(|&device| server.identity(run, "device", device));
    let senders = (0..share.senders)
        .map(|sender| server.identity(run, "sender", thread_number << 16 | sender));
    let identities = devices.chain(senders).collect::<Result<Vec<_>>>()?;
    let pattern = PayloadPattern::new(plan.payload_bytes, plan.seed);
    let traffic =
        Traffic::new(identities.len(), share.streams, pattern, run.wrapping_add(thread_number));
    let sources = SourceAddresses::new(server.target(), plan.devices, thread, threads);
    Ok(Part { identities, traffic, sources })
}

const SENDERS_PER_THREAD: u32 = 32;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn shares_cover_all_messages_and_no_sender_takes_over_a_mailbox() {
        for (devices, messages) in [(1, 1_000), (10, 10_000), (1_000, 100_000), (7, 20)] {
            let plan = OfflinePlan {
                devices,
                messages,
                payload_bytes: 200,
                mailbox_records_max: 1_000,
                seed: 1,
            };
            let mut total = 0;
            for thread in 0..2 {
                let share = Share::new(&plan, thread, 2);
                let mut by_pair = BTreeMap::new();
                for (stream, &(number, count)) in share.streams.iter().zip(&share.counts) {
                    assert_eq!(share.counts[number as usize].1, count);
                    *by_pair.entry((stream.sender, stream.receiver)).or_insert(0) += count;
                    total += count;
                }
                assert!(by_pair.values().all(|&count| count <= 250), "{devices} {messages}");
            }
            assert_eq!(total, messages);
        }
    }
}
