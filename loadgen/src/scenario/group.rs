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
use crate::group::{Device, Findings, Phase, Seen, Tally, verify};
use crate::host::Settings;
use crate::line::{Door, Line};
use crate::plan::group::GroupPlan;
use crate::plan::mix;
use crate::report::group::GroupReport;
use crate::report::page::Story;
use crate::report::{Percentiles, round};
use crate::scenario::{Options, Server, allow_connections, await_stage};
use crate::stage::Stage;

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
    let (stage, tally) = (Arc::new(Stage::default()), Arc::new(Tally::default()));
    let devices = gather(plan, &server, &stage, &tally)?;
    for phase in [Phase::Login, Phase::Create, Phase::Read] {
        stage.begin(phase);
        let is_over = await_stage(&stage, 0, || stage.through() >= plan.devices(), &mut server)?;
        ensure!(is_over, "{phase:?} did not end");
    }
    let before = spent(&server);
    let started = Instant::now();
    stage.begin(Phase::Talk);
    // What is lost is counted when nothing moves any more.
    await_stage(
        &stage,
        plan.messages * u64::from(plan.devices() - 1),
        || {
            let is_said = stage.through() >= plan.devices();
            let delivered = stage.progress.load(Ordering::Relaxed);
            is_said && delivered >= tally.expected.load(Ordering::Acquire)
        },
        &mut server,
    )?;
    let seconds = started.elapsed().as_secs_f64().max(f64::EPSILON);
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
    tally: &Arc<Tally>,
) -> Result<Vec<JoinHandle<Result<Seen>>>> {
    let run = random::<u32>();
    let group = UserId::new(&format!("loadgen-{run:08x}-group")).context("a name of a group")?;
    let users: Vec<UserId> = (0..plan.members)
        .map(|member| UserId::new(&format!("loadgen-{run:08x}-member-{member}")))
        .collect::<Result<_, _>>()
        .context("a name of a user")?;
    let door = Door { target: server.target(), tls: server.tls(), name: server.server_name() };
    let mint = server.mint()?;
    (0..plan.devices())
        .map(|index| {
            let (member, device) =
                (index / plan.devices_per_member, index % plan.devices_per_member);
            let install_id = mix(u64::from(run) << 32 | u64::from(index));
            let (user, name) = (users[member as usize].as_str(), format!("device-{device}"));
            let identity = Identity::of_device(user, &name, install_id, &mint)?;
            let line = Line::connect(identity, &door)?;
            let together = (Arc::clone(stage), Arc::clone(tally));
            let device = Device::new(plan, index, (group.clone(), &users), line, together)?;
            thread::Builder::new().spawn(move || device.run()).context("start a thread")
        })
        .collect()
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
        ("changes", plan.changes.into()),
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
    let Findings { accepted, delivered, lost, leaked, reordered } = verify(plan, seen);
    let per_delivery = |amount: f64| (delivered > 0).then(|| round(amount / delivered as f64));
    GroupReport {
        members: plan.members,
        devices: plan.devices(),
        messages: plan.messages,
        accepted,
        changes: seen[0].changes,
        stale: sum(|seen| seen.stale),
        outside: sum(|seen| seen.outside),
        rejected: sum(|seen| seen.rejected),
        skipped: sum(|seen| seen.skipped),
        delivered,
        lost,
        leaked,
        duplicated: sum(|seen| seen.duplicated),
        reordered,
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

const LINGER: Duration = Duration::from_millis(500);
