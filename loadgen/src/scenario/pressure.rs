//! Well-behaved clients, quiet and then beside others that are not: what the first notice of the
//! second, and what the second cost the gateway and the kernel.

mod readers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::random;
use ringpost_ring::host::monotonic_ns;

use crate::attack::{Attack, AttackCounts, Target};
use crate::fleet::Fleet;
use crate::measure::Measure;
use crate::plan::ChatPlan;
use crate::plan::pressure::{Pressure, PressurePlan};
use crate::report::page::Story;
use crate::report::pressure::{PhaseReport, PressureReport};
use crate::report::{Percentiles, charts, round};
use crate::sample::{Sample, own_cpu_seconds};
use crate::scenario::chat::{self, Pauses, nanoseconds};
use crate::scenario::{Options, Server, allow_connections};

use readers::Readers;

/// The report, and what it was made of.
pub struct PressureResult {
    pub report: PressureReport,
    /// Of the well-behaved.
    pub measure: Measure,
    /// Of the readers, when the pressure came from readers.
    pub mail: Option<Measure>,
    /// Of the well-behaved, by the name of the phase.
    phases: Vec<(&'static str, Measure)>,
    samples: Vec<Sample>,
    origin_s: f64,
    /// When the pressure began, in seconds of the run.
    pressure_s: f64,
}

impl PressureResult {
    /// The well-behaved lost nothing, the readers got their mail in the end, no wrong token passed.
    pub fn is_clean(&self) -> bool {
        let mail = self.mail.as_ref().is_none_or(Measure::is_kept);
        self.measure.is_clean() && mail && self.report.others.wrongly_welcomed == 0
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        let lines: Vec<_> =
            self.phases.iter().map(|(name, phase)| (*name, &phase.delivered_us)).collect();
        let title = "The well-behaved: delivered after, from the intended send time";
        let curve = charts::percentile_curve(title, &lines);
        let mut charts = charts::of_run(&self.measure, &self.samples, self.origin_s);
        charts[0] = curve;
        charts::mark(&mut charts, self.report.pressure, &[self.pressure_s]);
        Story {
            scenario: self.report.pressure,
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts,
        }
    }
}

type Phase = (Measure, PhaseReport);

/// The well-behaved.
struct Crowd {
    fleet: Fleet,
    plan: ChatPlan,
    threads: usize,
    measure: Measure,
}

impl Crowd {
    fn start(plan: &ChatPlan, server: &Server, options: &Options) -> Result<Self> {
        let threads = options.thread_count(plan.connections / 2);
        let run = random::<u32>();
        let parts = (0..threads)
            .map(|thread| chat::part(plan, server, run, thread, threads))
            .collect::<Result<Vec<_>>>()?;
        let fleet =
            Fleet::start(&server.swarm_config(options), options.client_cores.as_ref(), parts)?;
        fleet.run(|_, swarm| swarm.connect_all(), |_| ())?;
        let settle_ns = nanoseconds(SETTLE);
        fleet
            .run(move |_, swarm| swarm.run_until(swarm.now_ns() + settle_ns, |_| false), |_| ())?;
        Ok(Self { fleet, plan: plan.clone(), threads, measure: Measure::new() })
    }

    /// One phase: what it saw, and what it cost.
    fn run(&mut self, server: &mut Server) -> Result<Phase> {
        let pauses = Pauses { settle: Duration::ZERO, grace: GRACE };
        let (started, own_before) = (Instant::now(), own_cpu_seconds());
        let before = server.sample();
        let first = server.samples().len();
        let parts = chat::load(&self.fleet, &self.plan, pauses, self.threads, |totals| {
            server.watch(totals);
        })?;
        let after = server.sample();
        let wall_s = started.elapsed().as_secs_f64();
        let mut all = Measure::new();
        parts.iter().for_each(|part| all.add(part));
        let phase = all.since(&self.measure);
        self.measure = all;
        let samples = &server.samples()[first..];
        let peak = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or_default();
        let cpu_s =
            after.server_cpu_s.zip(before.server_cpu_s).map(|(after, before)| after - before);
        let report = PhaseReport {
            sent: phase.sent,
            delivered: phase.delivered,
            accepted_us: Percentiles::of(&phase.accepted_us),
            delivered_us: Percentiles::of(&phase.delivered_us),
            server_cpu_cores: cpu_s.map(|cpu_s| round(cpu_s / wall_s)),
            client_cpu_cores: round((own_cpu_seconds() - own_before) / wall_s),
            server_rss_bytes_max: samples.iter().filter_map(|sample| sample.server_rss_bytes).max(),
            server_send_queue_bytes_max: samples
                .iter()
                .filter_map(|sample| sample.server_send_queue_bytes)
                .max(),
            slab_bytes_max: peak(|sample| sample.slab_bytes),
            tcp_bytes_max: peak(|sample| sample.tcp_bytes),
        };
        Ok((phase, report))
    }
}

/// Runs the scenario.
pub fn run(plan: &PressurePlan, options: &Options) -> Result<PressureResult> {
    allow_connections(plan.chat.connections + plan.pressure.sockets(plan.count))?;
    let limits = match plan.pressure.is_reading() {
        true => vec![("mailbox_records_max", plan.mailbox_messages)],
        false => Vec::new(),
    };
    let mut server = Server::reach_limited(options, limits)?;
    let readers = match plan.pressure.is_reading() {
        true => Some(Readers::start(plan, &mut server, options)?),
        false => None,
    };
    let mut crowd = Crowd::start(&plan.chat, &server, options)?;
    let origin_s = monotonic_ns() as f64 / 1e9;
    let (quiet, quiet_report) = crowd.run(&mut server)?;
    let pressure_s = monotonic_ns() as f64 / 1e9 - origin_s;
    let stop = Arc::new(AtomicBool::new(false));
    let target = Target::new(&server, plan.count, plan.chat.duration)?;
    let (phases, others) = thread::scope(|scope| {
        let attack = scope.spawn(|| match &readers {
            Some(readers) => readers.attack(&stop),
            None => {
                // On a core that both share, who is measured must not wait for who is not. Where it is
                // not allowed the figures say so by themselves.
                let _ = rustix::process::setpriority_process(None, NICE_MAX);
                Attack::of(plan.pressure).run(&target, &stop)
            }
        });
        let phases =
            under_pressure(&mut crowd, &mut server, readers.as_ref(), || attack.is_finished());
        stop.store(true, Ordering::Relaxed);
        (phases, attack.join().expect("the others do not panic"))
    });
    // What the others failed at explains what the well-behaved noticed.
    let others: AttackCounts = others?;
    let (onset, (loaded, loaded_report)) = phases?;
    let (onset, onset_report) = onset.unzip();
    let mail = readers.map(|readers| readers.drain(&mut server)).transpose()?;
    crowd.fleet.run(|_, swarm| swarm.disconnect(), |_| ())?;
    let samples = server.samples().to_vec();
    let report = PressureReport {
        pressure: plan.pressure.name(),
        count: plan.count,
        connections: plan.chat.connections,
        p99_ratio: ratio(&quiet_report, &loaded_report),
        p99_ratio_onset: onset_report.as_ref().and_then(|onset| ratio(&quiet_report, onset)),
        quiet: quiet_report,
        onset: onset_report,
        loaded: loaded_report,
        lost: crowd.measure.lost,
        duplicated: crowd.measure.duplicated,
        reordered: crowd.measure.reordered,
        others,
        mail: mail.as_ref().map(Into::into),
        slow_consumers: server.read_counter("ringpost_slow_consumers_total"),
        host: server.host(),
        settings: settings(plan, options, crowd.threads),
    };
    server.finish()?;
    let phases = [("quiet", Some(quiet)), ("onset", onset), ("under pressure", Some(loaded))];
    let phases = phases.into_iter().filter_map(|(name, phase)| Some((name, phase?))).collect();
    Ok(PressureResult {
        report,
        measure: crowd.measure,
        mail,
        phases,
        samples,
        origin_s,
        pressure_s,
    })
}

/// Readers first return, which is a storm of logins and of mail until they are seen to stop; the
/// time after that is told apart. `ended`: the others have given up.
fn under_pressure(
    crowd: &mut Crowd,
    server: &mut Server,
    readers: Option<&Readers>,
    ended: impl Fn() -> bool,
) -> Result<(Option<Phase>, Phase)> {
    let onset = match readers {
        Some(readers) => {
            let onset = crowd.run(server)?;
            while !readers.have_returned() && !ended() {
                thread::sleep(LOOK);
            }
            if readers.do_stop() {
                wait_until_still(server);
            }
            Some(onset)
        }
        None => None,
    };
    Ok((onset, crowd.run(server)?))
}

/// Until the gateway delivers nothing any more, as far as it tells.
fn wait_until_still(server: &mut Server) {
    let deadline = Instant::now() + STILL_TIME_MAX;
    let mut last = None;
    while Instant::now() < deadline {
        let delivered = server.read_counter("ringpost_messages_delivered_total");
        if delivered.is_none() || delivered == last {
            return;
        }
        last = delivered;
        thread::sleep(STILL);
    }
}

fn ratio(quiet: &PhaseReport, loaded: &PhaseReport) -> Option<f64> {
    let (quiet, loaded) = (quiet.delivered_us.p99, loaded.delivered_us.p99);
    (quiet > 0).then(|| round(loaded as f64 / quiet as f64))
}

fn settings(plan: &PressurePlan, options: &Options, threads: usize) -> crate::host::Settings {
    let mut settings = options.settings(plan.pressure.name(), threads);
    settings.extend([
        ("rate", plan.chat.rate_per_s.into()),
        ("phase_s", plan.chat.duration.as_secs_f64().into()),
        ("payload_bytes", plan.chat.payload_bytes.into()),
    ]);
    if plan.pressure.is_reading() {
        settings.extend([
            ("mailbox_messages", plan.mailbox_messages.into()),
            ("mailbox_payload_bytes", plan.mailbox_payload_bytes.into()),
        ]);
    }
    if plan.pressure == Pressure::ReadSlowly {
        settings.insert("pause_ms", (plan.pause_ns / 1_000_000).into());
    }
    settings
}

/// Of the thread that sets it, and of those that it starts.
const NICE_MAX: i32 = 19;
const SETTLE: Duration = Duration::from_millis(300);
/// Without a delivery for so long, readers have stopped.
const STILL: Duration = Duration::from_millis(500);
const STILL_TIME_MAX: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);
const GRACE: Duration = Duration::from_secs(30);
