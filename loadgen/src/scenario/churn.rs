//! Pairs of users talk while clients vanish and return, the gateway is killed and apps are killed:
//! nothing accepted may be lost, doubled or swapped, and memory must not grow.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::random;
use ringpost_ring::host::monotonic_ns;

use crate::durable::DurablePlan;
use crate::durable::processes::Processes;
use crate::durable::verify::DurableCounts;
use crate::fleet::{Fleet, Totals};
use crate::gateway::Stop;
use crate::host::{Host, Settings};
use crate::measure::Measure;
use crate::plan::churn::ChurnPlan;
use crate::plan::{Schedule, connections_of};
use crate::report::churn::{ChurnReport, MemorySlopes};
use crate::report::page::Story;
use crate::report::{Percentiles, charts, round};
use crate::sample::Sample;
use crate::scenario::chat::{self, nanoseconds};
use crate::scenario::{Options, Server, allow_connections, bar};
use crate::swarm::{Churn, GHOST_NS, Swarm};

/// The report, and what it was made of.
pub struct ChurnResult {
    pub report: ChurnReport,
    pub measure: Measure,
    pub unanswered: u64,
    samples: Vec<Sample>,
    origin_s: f64,
    kills_s: Vec<f64>,
}

impl ChurnResult {
    /// A refusal is no loss: while a killed gateway opens its store, it may refuse for a moment.
    pub fn is_clean(&self) -> bool {
        let durable = self.report.durable.as_ref().is_none_or(DurableCounts::is_kept);
        self.measure.is_kept() && self.unanswered == 0 && durable
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        let mut charts = charts::of_run(&self.measure, &self.samples, self.origin_s);
        charts::mark(&mut charts, "kill -9", &self.kills_s);
        Story {
            scenario: "churn",
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts,
        }
    }
}

/// What happens to the gateway and the apps while the chat goes on.
struct Disturbance<'a> {
    server: &'a mut Server,
    apps: Option<Processes>,
    gateway_kills: std::iter::Peekable<std::vec::IntoIter<Duration>>,
    client_kills: std::iter::Peekable<std::vec::IntoIter<Duration>>,
    started: Instant,
    kills_s: Vec<f64>,
    restart_max: Duration,
    clients_killed: u32,
    /// The first thing that went wrong; explains what the clients say.
    fault: Option<anyhow::Error>,
}

impl Disturbance<'_> {
    fn poll(&mut self, totals: Totals) {
        if let Err(error) = self.disturb() {
            self.fault.get_or_insert(error);
        }
        self.server.watch(totals);
    }

    fn disturb(&mut self) -> Result<()> {
        let elapsed = self.started.elapsed();
        if self.gateway_kills.next_if(|&at| at <= elapsed).is_some() {
            self.kills_s.push(elapsed.as_secs_f64());
            if let Some((_, restart)) = self.server.restart(Stop::Kill)? {
                self.restart_max = self.restart_max.max(restart);
            }
        }
        let Some(apps) = &mut self.apps else { return Ok(()) };
        if self.client_kills.next_if(|&at| at <= elapsed).is_some() {
            apps.kill_next(APP_PAUSE)?;
            self.clients_killed += 1;
        }
        apps.poll()
    }
}

/// Runs the scenario. `executable`: `ringpost-loadgen`, for the processes of the apps.
pub fn run(plan: &ChurnPlan, executable: PathBuf, options: &Options) -> Result<ChurnResult> {
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the plan")]
    let ghosts = (plan.vanish_per_s * GHOST_NS as f64 / 1e9) as u32;
    allow_connections(plan.chat.connections + ghosts)?;
    let mut server = Server::reach(options)?;
    let threads = options.thread_count(plan.chat.connections / 2);
    let run = random::<u32>();
    let apps_directory = tempfile::tempdir_in(server.scratch()).context("make a directory")?;
    let apps = match plan.client_processes {
        0 => None,
        _ => {
            let plan = durable_plan(plan, &server, run, apps_directory.path().to_owned());
            Some(Processes::start(plan, executable)?)
        }
    };
    let parts = (0..threads)
        .map(|thread| chat::part(&plan.chat, &server, run, thread, threads))
        .collect::<Result<Vec<_>>>()?;
    let fleet = Fleet::start(&server.swarm_config(options), options.client_cores.as_ref(), parts)?;
    let progress = bar(plan.chat.connections.into(), "connect");
    fleet.run(|_, swarm| swarm.connect_all(), |totals| progress.set_position(totals.open))?;
    progress.finish_and_clear();

    let origin_s = monotonic_ns() as f64 / 1e9;
    let mut disturbance = Disturbance {
        server: &mut server,
        apps,
        gateway_kills: plan.gateway_kills().into_iter().peekable(),
        client_kills: plan.client_kills().into_iter().peekable(),
        started: Instant::now(),
        kills_s: Vec::new(),
        restart_max: Duration::ZERO,
        clients_killed: 0,
        fault: None,
    };
    let planned = chat::planned(&plan.chat, threads).unwrap_or_default();
    let progress = bar(planned, "deliver");
    let loaded = load(&fleet, plan, threads, |totals| {
        disturbance.poll(totals);
        progress.set_position(totals.delivered);
    });
    progress.finish_and_clear();
    let Disturbance { apps, kills_s, restart_max, clients_killed, fault, .. } = disturbance;
    if let Some(fault) = fault {
        return Err(fault);
    }
    let parts = loaded?;
    let durable = apps.map(|apps| apps.finish(plan.grace)).transpose()?;
    fleet.run(|_, swarm| swarm.disconnect(), |_| ())?;

    let mut measure = Measure::new();
    parts.iter().for_each(|part| measure.add(part));
    let samples = server.samples().to_vec();
    let kills = (kills_s.len(), clients_killed);
    let report = ChurnReport {
        restart_ms_max: (!kills_s.is_empty())
            .then(|| u64::try_from(restart_max.as_millis()).unwrap_or(u64::MAX)),
        durable,
        memory: MemorySlopes::of(&samples, origin_s, plan.chat.duration, kills_s.is_empty()),
        server_rss_bytes: samples.last().and_then(|sample| sample.server_rss_bytes),
        settings: settings(plan, options, threads),
        ..report(plan, &measure, kills, server.host())
    };
    server.finish()?;
    let unanswered = measure.sent - measure.accepted - measure.rejected;
    Ok(ChurnResult { report, measure, unanswered, samples, origin_s, kills_s })
}

/// `kills`: of the gateway, and of apps.
fn report(plan: &ChurnPlan, measure: &Measure, kills: (usize, u32), host: Host) -> ChurnReport {
    ChurnReport {
        connections: plan.chat.connections,
        sent: measure.sent,
        accepted: measure.accepted,
        rejected: measure.rejected,
        delivered: measure.delivered,
        lost: measure.lost,
        duplicated: measure.duplicated,
        duplicated_on_wire: measure.duplicated_on_wire,
        reordered: measure.reordered,
        vanished: measure.vanished,
        restart_ms_max: None,
        gateway_kills: u32::try_from(kills.0).unwrap_or(u32::MAX),
        client_kills: kills.1,
        delivered_us: Percentiles::of(&measure.delivered_us),
        durable: None,
        memory: MemorySlopes::default(),
        server_rss_bytes: None,
        host,
        settings: Settings::new(),
    }
}

fn load(
    fleet: &Fleet,
    plan: &ChurnPlan,
    threads: usize,
    watch: impl FnMut(Totals),
) -> Result<Vec<Measure>> {
    let plan = plan.clone();
    let job = move |thread: usize, swarm: &mut Swarm| {
        if plan.kill_gateway_rounds > 0 {
            swarm.handle_crash();
        }
        let duration_ns = nanoseconds(plan.chat.duration);
        let churn = plan.vanish_interval_ns(threads).map(|interval_ns| {
            let absence_ns = nanoseconds(plan.absence_max);
            let seed = plan.chat.seed ^ thread as u64;
            Churn::new(seed, swarm.now_ns(), duration_ns, interval_ns, absence_ns)
        });
        swarm.set_churn(churn);
        let connections = connections_of(thread, threads, plan.chat.connections);
        let schedule = Schedule::new(&plan.chat, &connections);
        swarm.run_open(schedule, duration_ns, nanoseconds(plan.absence_max + plan.grace))?;
        swarm.set_churn(None);
        Ok(swarm.finish())
    };
    fleet.run(job, watch)
}

fn durable_plan(plan: &ChurnPlan, server: &Server, run: u32, directory: PathBuf) -> DurablePlan {
    DurablePlan {
        processes: plan.client_processes,
        users_per_process: plan.users_per_process,
        interval: plan.durable_interval(),
        payload_bytes: plan.chat.payload_bytes,
        run,
        directory,
        data: server.data.clone(),
        target: server.target(),
        server_name: server.server_name.to_str().into_owned(),
    }
}

fn settings(plan: &ChurnPlan, options: &Options, threads: usize) -> Settings {
    let mut settings = options.settings("churn", threads);
    settings.extend([
        ("rate", plan.chat.rate_per_s.into()),
        ("duration_s", plan.chat.duration.as_secs_f64().into()),
        ("payload_bytes", plan.chat.payload_bytes.into()),
        ("vanish_per_s", round(plan.vanish_per_s).into()),
        ("absence_max_s", plan.absence_max.as_secs_f64().into()),
        ("client_processes", plan.client_processes.into()),
        ("users_per_process", plan.users_per_process.into()),
        ("durable_rate", plan.durable_rate_per_s.into()),
    ]);
    settings
}

/// For which an app that was killed stays away.
const APP_PAUSE: Duration = Duration::from_millis(300);
