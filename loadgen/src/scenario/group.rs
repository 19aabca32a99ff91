//! One group: random members send, all others must get everything once, and all in one order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rand::random;
use ringpost_protocol::id::UserId;

use crate::client::Identity;
use crate::fleet::Totals;
use crate::group::{Device, Door, Phase, Seen, Stage, reordered};
use crate::host::Settings;
use crate::plan::group::GroupPlan;
use crate::plan::mix;
use crate::report::group::GroupReport;
use crate::report::page::Story;
use crate::report::{Percentiles, round};
use crate::scenario::{Options, Server, allow_connections, bar};

/// The report, which is all there is.
pub struct GroupResult {
    pub report: GroupReport,
}

impl GroupResult {
    pub fn is_clean(&self) -> bool {
        self.report.is_clean()
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        Story {
            scenario: "group",
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts: Vec::new(),
        }
    }
}

/// What the server's counters said.
#[derive(Clone, Copy)]
struct Spent {
    cpu_seconds: f64,
    written_bytes: u64,
}

/// Runs the scenario.
pub fn run(plan: &GroupPlan, options: &Options) -> Result<GroupResult> {
    allow_connections(plan.devices())?;
    let mut server = Server::reach(options)?;
    let stage = Arc::new(Stage::default());
    let devices = gather(plan, &server, &stage)?;
    wait(plan, &stage, Phase::Login, &mut server)?;
    stage.begin(Phase::Create);
    wait(plan, &stage, Phase::Create, &mut server)?;
    let before = spent(&server);
    let started = Instant::now();
    stage.begin(Phase::Talk);
    let done = wait(plan, &stage, Phase::Talk, &mut server)?;
    let seconds = (done - started).as_secs_f64().max(f64::EPSILON);
    // Receipts and acknowledgements of the last ones; and a doubled message comes after the first.
    thread::sleep(LINGER);
    let after = spent(&server);
    stage.begin(Phase::Leave);
    let seen = devices
        .into_iter()
        .map(|device| device.join().expect("a device does not panic"))
        .collect::<Result<Vec<Seen>>>()?;
    let settings = settings(plan, options);
    let report = report(plan, &seen, seconds, before.zip(after), &server, settings);
    server.finish()?;
    Ok(GroupResult { report })
}

fn gather(
    plan: &GroupPlan,
    server: &Server,
    stage: &Arc<Stage>,
) -> Result<Vec<JoinHandle<Result<Seen>>>> {
    let run = random::<u32>();
    let user = |member: u32| format!("loadgen-{run:08x}-member-{member}");
    let group = UserId::new(&format!("loadgen-{run:08x}-group")).context("a name of a group")?;
    let others: Vec<UserId> = (1..plan.members)
        .map(|member| UserId::new(&user(member)))
        .collect::<Result<_, _>>()
        .context("a name of a user")?;
    let door = Door { target: server.target(), tls: server.tls(), name: server.server_name() };
    let mint = server.mint()?;
    (0..plan.devices())
        .map(|index| {
            let (member, device) =
                (index / plan.devices_per_member, index % plan.devices_per_member);
            let install_id = mix(u64::from(run) << 32 | u64::from(index));
            let name = format!("device-{device}");
            let identity = Identity::of_device(&user(member), &name, install_id, &mint)?;
            let who = (identity, group.clone(), others.clone());
            let device = Device::connect(plan, index, who, &door, Arc::clone(stage))?;
            thread::Builder::new().spawn(move || device.run()).context("start a thread")
        })
        .collect()
}

/// Waits until all devices are through with a phase, or nothing moves any more. Gives the time.
fn wait(plan: &GroupPlan, stage: &Stage, phase: Phase, server: &mut Server) -> Result<Instant> {
    let expected = plan.messages * u64::from(plan.devices() - 1);
    let progress = bar(expected, "deliver");
    let (mut moved, mut last) = (Instant::now(), 0);
    while stage.through() < plan.devices() {
        ensure!(!stage.has_failed(), "a connection has failed");
        let delivered = stage.delivered.load(Ordering::Relaxed);
        if delivered + u64::from(stage.through()) > last {
            (moved, last) = (Instant::now(), delivered + u64::from(stage.through()));
        }
        if moved.elapsed() > STALL_TIME_MAX {
            ensure!(phase == Phase::Talk, "{phase:?} did not end");
            break; // what is lost is counted
        }
        progress.set_position(delivered);
        server.watch(Totals::default());
        thread::sleep(Duration::from_millis(2));
    }
    progress.finish_and_clear();
    Ok(Instant::now())
}

fn spent(server: &Server) -> Option<Spent> {
    let cpu_seconds = server.read_use()?.cpu_seconds;
    let written_bytes = server.read_counter("ringpost_store_written_bytes_total")?;
    Some(Spent { cpu_seconds, written_bytes })
}

fn settings(plan: &GroupPlan, options: &Options) -> Settings {
    let mut settings = options.settings("group", plan.devices() as usize);
    settings.extend([
        ("payload_bytes", plan.payload_bytes.into()),
        ("devices_per_member", plan.devices_per_member.into()),
    ]);
    settings
}

fn report(
    plan: &GroupPlan,
    seen: &[Seen],
    seconds: f64,
    spent: Option<(Spent, Spent)>,
    server: &Server,
    settings: Settings,
) -> GroupReport {
    let sum = |count: fn(&Seen) -> u64| seen.iter().map(count).sum::<u64>();
    let merged = |of: fn(&Seen) -> &Histogram<u64>| {
        let mut all = Histogram::new(3).expect("3 digits are legal");
        seen.iter().for_each(|seen| all.add(of(seen)).expect("of the same kind"));
        Percentiles::of(&all)
    };
    let orders: Vec<&[u64]> = seen.iter().map(|seen| &seen.order[..]).collect();
    let delivered = sum(|seen| seen.order.len() as u64);
    let accepted = sum(|seen| seen.accepted);
    let per_delivery = |amount: f64| (delivered > 0).then(|| round(amount / delivered as f64));
    GroupReport {
        members: plan.members,
        devices: plan.devices(),
        messages: plan.messages,
        accepted,
        rejected: sum(|seen| seen.rejected),
        skipped: sum(|seen| seen.skipped),
        delivered,
        lost: (accepted * u64::from(plan.devices() - 1)).saturating_sub(delivered),
        duplicated: sum(|seen| seen.duplicated),
        reordered: reordered(&orders, plan.messages),
        corrupted: sum(|seen| seen.corrupted),
        gaps: sum(|seen| seen.gaps),
        seconds: round(seconds),
        deliveries_per_second: round(delivered as f64 / seconds),
        server_cpu_us_per_delivery: spent
            .and_then(|(a, b)| per_delivery((b.cpu_seconds - a.cpu_seconds) * 1e6)),
        disk_bytes_per_delivery: spent
            .and_then(|(a, b)| per_delivery((b.written_bytes - a.written_bytes) as f64)),
        accepted_after_us: merged(|seen| &seen.answers_us),
        delivered_after_us: merged(|seen| &seen.deliveries_us),
        host: server.host(),
        settings,
    }
}

/// Without any movement for so long, a phase has ended.
const STALL_TIME_MAX: Duration = Duration::from_secs(20);
const LINGER: Duration = Duration::from_millis(500);
