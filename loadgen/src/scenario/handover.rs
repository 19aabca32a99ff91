//! Pairs of users talk while their networks change: over QUIC, where the connection moves, and over
//! TCP, where it breaks within a frame and is resumed. The same load, one after the other.

use std::time::Duration;

use anyhow::Result;
use rand::random;
use ringpost_ring::host::monotonic_ns;

use crate::fleet::Fleet;
use crate::measure::Measure;
use crate::plan::handover::HandoverPlan;
use crate::plan::{Schedule, connections_of};
use crate::report::charts;
use crate::report::handover::{HandoverReport, PhaseReport};
use crate::report::page::Story;
use crate::scenario::chat::{self, nanoseconds};
use crate::scenario::{Options, Server, allow_connections, bar};
use crate::swarm::{Handovers, Swarm, SwarmConfig, quic_config};
use crate::tokens::KeyExchange;

/// The report, and what it was made of.
pub struct HandoverResult {
    pub report: HandoverReport,
    /// Of both transports.
    pub measure: Measure,
    pub unanswered: u64,
    quic: Phase,
    tcp: Phase,
}

/// One transport.
struct Phase {
    measure: Measure,
    handovers: Handovers,
    unanswered: u64,
    origin_s: f64,
    foreign: Option<u64>,
    forwarded: Option<u64>,
}

impl HandoverResult {
    /// Every message arrived once, in order, and no QUIC connection was lost in a change.
    pub fn is_clean(&self) -> bool {
        let is_whole = |row: &PhaseReport| row.handovers == row.handovers_planned;
        self.measure.is_clean()
            && self.unanswered == 0
            && is_whole(&self.report.quic)
            && is_whole(&self.report.reconnect)
            && self.quic.measure.reconnects == 0
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        let names = ("QUIC moves", "TCP resumes");
        let (quic, tcp) = (&self.quic, &self.tcp);
        let mut charts = vec![
            charts::percentile_curve(
                "Silence: last frame before a change to the first one after",
                &[(names.0, &quic.handovers.silence_us), (names.1, &tcp.handovers.silence_us)],
            ),
            charts::percentile_curve(
                "From a change to the first frame after it",
                &[(names.0, &quic.handovers.recovery_us), (names.1, &tcp.handovers.recovery_us)],
            ),
            charts::percentile_curve(
                "Delivered after, from the intended send time",
                &[(names.0, &quic.measure.delivered_us), (names.1, &tcp.measure.delivered_us)],
            ),
        ];
        for (name, phase) in [(names.0, quic), (names.1, tcp)] {
            let mut chart = charts::latency_over_time(&phase.measure.timeline, phase.origin_s);
            chart.title = format!("{name}: delivered after, second by second");
            charts.push(chart);
        }
        Story {
            scenario: "handover",
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts,
        }
    }
}

/// Runs the scenario.
pub fn run(plan: &HandoverPlan, options: &Options) -> Result<HandoverResult> {
    // A socket that is left stays open for a second.
    let left = u64::from(plan.chat.connections) * u64::from(plan.rebinds)
        / plan.chat.duration.as_secs().max(1);
    allow_connections(
        plan.chat.connections.saturating_add(u32::try_from(left).unwrap_or(u32::MAX)),
    )?;
    let mut server = Server::reach(options)?;
    let threads = options.thread_count(plan.chat.connections / 2);
    let full = server.tls_of(KeyExchange::PostQuantum)?;
    let quic = SwarmConfig {
        quic: Some(quic_config(full.clone())?),
        ..server.swarm_config_with(options, full.clone())
    };
    let tcp = SwarmConfig { own_tickets: true, ..server.swarm_config_with(options, full) };
    let quic = run_phase(plan, quic, "QUIC", &mut server, options, threads)?;
    let mut tcp = run_phase(plan, tcp, "TCP", &mut server, options, threads)?;
    // The others are what the run is about.
    tcp.measure.reconnects = tcp.measure.reconnects.saturating_sub(tcp.handovers.count);

    let mut measure = Measure::new();
    measure.add(&quic.measure);
    measure.add(&tcp.measure);
    let mut settings = options.settings("handover", threads);
    settings.extend([
        ("rate", plan.chat.rate_per_s.into()),
        ("duration_s", plan.chat.duration.as_secs_f64().into()),
        ("payload_bytes", plan.chat.payload_bytes.into()),
        ("rebinds", plan.rebinds.into()),
        ("grace_s", plan.grace.as_secs_f64().into()),
    ]);
    let planned = u64::from(plan.chat.connections) * u64::from(plan.rebinds);
    let row = |phase: &Phase| {
        PhaseReport::new(plan.chat.connections, planned, &phase.measure, &phase.handovers)
    };
    let report = HandoverReport {
        connections: plan.chat.connections,
        quic: row(&quic),
        reconnect: row(&tcp),
        foreign_datagrams: quic.foreign,
        forwarded_datagrams: quic.forwarded,
        server_rss_bytes: server.sample().server_rss_bytes,
        host: server.host(),
        settings,
    };
    server.finish()?;
    let unanswered = quic.unanswered + tcp.unanswered;
    Ok(HandoverResult { report, measure, unanswered, quic, tcp })
}

fn run_phase(
    plan: &HandoverPlan,
    config: SwarmConfig,
    name: &'static str,
    server: &mut Server,
    options: &Options,
    threads: usize,
) -> Result<Phase> {
    let run = random::<u32>();
    let parts = (0..threads)
        .map(|thread| chat::part(&plan.chat, server, run, thread, threads))
        .collect::<Result<Vec<_>>>()?;
    let fleet = Fleet::start(&config.into(), options.client_cores.as_ref(), parts)?;
    let progress = bar(plan.chat.connections.into(), name);
    fleet.run(|_, swarm| swarm.connect_all(), |totals| progress.set_position(totals.open))?;
    progress.finish_and_clear();

    let counters = |server: &Server| FOREIGN.map(|name| server.read_counter(name));
    let before = counters(server);
    let origin_s = monotonic_ns() as f64 / 1e9;
    let progress = bar(chat::planned(&plan.chat, threads).unwrap_or_default(), "deliver");
    let parts = load(&fleet, plan, threads, |delivered| progress.set_position(delivered), server)?;
    progress.finish_and_clear();
    let after = counters(server);
    fleet.run(|_, swarm| swarm.disconnect(), |_| ())?;

    let (mut measure, mut handovers) = (Measure::new(), Handovers::new());
    for (part_measure, part_handovers) in &parts {
        measure.add(part_measure);
        handovers.add(part_handovers);
    }
    let unanswered = measure.sent - measure.accepted - measure.rejected;
    let grown = |index: usize| Some(after[index]?.saturating_sub(before[index]?));
    let (foreign, forwarded) = (grown(0), grown(1));
    Ok(Phase { measure, handovers, unanswered, origin_s, foreign, forwarded })
}

fn load(
    fleet: &Fleet,
    plan: &HandoverPlan,
    threads: usize,
    show: impl Fn(u64),
    server: &mut Server,
) -> Result<Vec<(Measure, Handovers)>> {
    let plan = plan.clone();
    let job = move |thread: usize, swarm: &mut Swarm| {
        let connections = connections_of(thread, threads, plan.chat.connections);
        swarm.set_changes(plan.chat.seed ^ thread as u64, plan.changes(&connections));
        let schedule = Schedule::new(&plan.chat, &connections);
        let duration_ns = nanoseconds(plan.chat.duration);
        swarm.run_open(schedule, duration_ns, nanoseconds(plan.grace))?;
        swarm.hurry_changes();
        swarm.run_until(swarm.now_ns() + nanoseconds(SETTLE), Swarm::is_settled)?;
        Ok((swarm.finish(), swarm.handovers().clone()))
    };
    fleet.run(job, |totals| {
        server.watch(totals);
        show(totals.delivered);
    })
}

/// Datagrams that came to a shard other than that of their connection, and those that were passed on.
const FOREIGN: [&str; 2] =
    ["ringpost_datagrams_foreign_total", "ringpost_datagrams_forwarded_total"];
const SETTLE: Duration = Duration::from_secs(5);
