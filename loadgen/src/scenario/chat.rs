//! Pairs of users talk to each other; every message is timed and verified.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::random;
use ringpost_ring::host::monotonic_ns;

use crate::addr::SourceAddresses;
use crate::fleet::{Fleet, Part, Totals};
use crate::gateway::Stop;
use crate::measure::{Measure, PayloadPattern, Stream};
use crate::plan::{ChatPlan, Schedule, connections_of};
use crate::report::chat::ChatReport;
use crate::report::page::Story;
use crate::report::{charts, round};
use crate::sample::Sample;
use crate::scenario::{Options, Server, allow_connections, bar};
use crate::traffic::Traffic;

/// Times around the load.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// Between the last login and the first message.
    pub settle: Duration,
    /// After the load, for what is still on its way.
    pub grace: Duration,
}

/// The report, and whether every message did what it should.
pub struct ChatResult {
    pub report: ChatReport,
    pub measure: Measure,
    pub ramp: Duration,
    /// Messages that were planned and could not be sent: the server was slower than the rate.
    pub unsent: u64,
    pub unanswered: u64,
    samples: Vec<Sample>,
    /// When the load began, monotonic.
    origin_s: f64,
    /// When the gateway was killed, in seconds of the load.
    kills_s: Vec<f64>,
}

impl ChatResult {
    pub fn is_clean(&self) -> bool {
        self.measure.is_clean() && self.unanswered == 0
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        let mut charts = charts::of_run(&self.measure, &self.samples, self.origin_s);
        charts::mark(&mut charts, "kill -9", &self.kills_s);
        Story {
            scenario: "chat",
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts,
        }
    }
}

/// Runs the scenario.
pub fn run(plan: &ChatPlan, pauses: Pauses, options: &Options) -> Result<ChatResult> {
    allow_connections(plan.connections)?;
    let mut server = Server::reach(options)?;
    let threads = options.thread_count(plan.connections / 2);
    let run = random::<u32>();
    let parts = (0..threads)
        .map(|thread| part(plan, &server, run, thread, threads))
        .collect::<Result<Vec<_>>>()?;
    let fleet = Fleet::start(&server.swarm_config(options), options.client_cores.as_ref(), parts)?;

    let started = Instant::now();
    let progress = bar(plan.connections.into(), "connect");
    fleet.run(|_, swarm| swarm.connect_all(), |totals| progress.set_position(totals.open))?;
    progress.finish_and_clear();
    let ramp = started.elapsed();
    let settle_ns = nanoseconds(pauses.settle);
    fleet.run(move |_, swarm| swarm.run_until(swarm.now_ns() + settle_ns, |_| false), |_| ())?;

    let before = server.read_use();
    let planned = planned(plan, threads);
    let progress = bar(planned.unwrap_or_default(), "deliver");
    let mut kills = plan.kill_times().into_iter().peekable();
    let (mut restarts, mut kills_s) = (Vec::new(), Vec::new());
    let started = Instant::now();
    let origin_s = monotonic_ns() as f64 / 1e9;
    let loaded = load(&fleet, plan, pauses, threads, |totals| {
        if kills.next_if(|&time| time <= started.elapsed()).is_some() {
            kills_s.push(started.elapsed().as_secs_f64());
            restarts.push(server.restart(Stop::Kill));
        }
        server.watch(totals);
        if planned.is_none() {
            progress.set_length(totals.delivered);
        }
        progress.set_position(totals.delivered);
    });
    progress.finish_and_clear();
    // A gateway that did not come back explains why the clients gave up.
    let restarts = restarts.into_iter().collect::<Result<Vec<_>>>()?;
    let measures = loaded?;
    let after = server.read_use();
    // A new process counts its CPU time from zero.
    let before = before.filter(|_| restarts.is_empty());
    fleet.run(|_, swarm| swarm.disconnect(), |_| ())?;

    let mut measure = Measure::new();
    measures.iter().for_each(|part| measure.add(part));
    let mut settings = options.settings("chat", threads);
    settings.extend([
        ("rate", plan.rate_per_s.into()),
        ("duration_s", plan.duration.as_secs_f64().into()),
        ("payload_bytes", plan.payload_bytes.into()),
        ("window", (plan.rate_per_s == 0).then_some(plan.window).into()),
        ("planned", planned.into()),
        ("settle_s", pauses.settle.as_secs_f64().into()),
        ("grace_s", pauses.grace.as_secs_f64().into()),
        ("kill_rounds", restarts.len().into()),
        ("ramp_s", round(ramp.as_secs_f64()).into()),
    ]);
    let host = server.host();
    let samples = server.samples().to_vec();
    let report = ChatReport::new(plan.connections, &measure, before, after, host, settings);
    server.finish()?;
    let unsent = planned.map_or(0, |planned| planned.saturating_sub(measure.sent));
    let unanswered = measure.sent - measure.accepted - measure.rejected;
    Ok(ChatResult { report, measure, ramp, unsent, unanswered, samples, origin_s, kills_s })
}

/// The users of one thread: client i sends on stream i to its partner i ^ 1.
pub(super) fn part(
    plan: &ChatPlan,
    server: &Server,
    run: u32,
    thread: usize,
    threads: usize,
) -> Result<Part> {
    let connections = connections_of(thread, threads, plan.connections);
    let identities = connections
        .iter()
        .map(|&connection| server.identity(run, "chat", connection))
        .collect::<Result<Vec<_>>>()?;
    let streams: Vec<Stream> =
        (0u32..).zip(&connections).map(|(client, _)| Stream::new(client, client ^ 1)).collect();
    let pattern = PayloadPattern::new(plan.payload_bytes, plan.seed);
    let tag = run.wrapping_add(u32::try_from(thread).expect("threads are few"));
    let traffic = Traffic::new(identities.len(), streams, pattern, tag);
    let sources = SourceAddresses::new(server.target(), plan.connections, thread, threads);
    Ok(Part { identities, traffic, sources })
}

pub(super) fn load(
    fleet: &Fleet,
    plan: &ChatPlan,
    pauses: Pauses,
    threads: usize,
    watch: impl FnMut(Totals),
) -> Result<Vec<Measure>> {
    let plan = plan.clone();
    let (duration_ns, grace_ns) = (nanoseconds(plan.duration), nanoseconds(pauses.grace));
    let job = move |thread: usize, swarm: &mut crate::swarm::Swarm| {
        if plan.kill_rounds > 0 {
            swarm.handle_crash();
        }
        if plan.rate_per_s == 0 {
            swarm.run_closed(plan.window, duration_ns, grace_ns)?;
        } else {
            let connections = connections_of(thread, threads, plan.connections);
            swarm.run_open(Schedule::new(&plan, &connections), duration_ns, grace_ns)?;
        }
        Ok(swarm.finish())
    };
    fleet.run(job, watch)
}

pub(super) fn planned(plan: &ChatPlan, threads: usize) -> Option<u64> {
    (plan.rate_per_s > 0).then(|| {
        (0..threads)
            .map(|thread| connections_of(thread, threads, plan.connections))
            .map(|connections| Schedule::new(plan, &connections).planned())
            .sum()
    })
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
