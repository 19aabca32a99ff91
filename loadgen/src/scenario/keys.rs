//! Public keys: published, taken, refilled when few are left, used up; no one-time key goes to two.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rand::random;
use ringpost_protocol::id::UserId;

use crate::fleet::Totals;
use crate::gateway::Gateway;
use crate::host::Settings;
use crate::keys::{Owner, Phase, Published, Taken, Taker, duplicates};
use crate::line::{Door, Line};
use crate::plan::keys::KeysPlan;
use crate::report::keys::KeysReport;
use crate::report::page::Story;
use crate::report::{Percentiles, round};
use crate::scenario::{Options, Server, allow_connections, await_stage};
use crate::stage::Stage;

/// The report, which is all there is.
pub struct KeysResult {
    pub report: KeysReport,
}

impl KeysResult {
    pub fn is_clean(&self) -> bool {
        self.report.is_clean()
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        Story {
            scenario: "keys",
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts: Vec::new(),
        }
    }
}

/// All devices, each on a thread of its own.
struct Crowd {
    owners: Vec<JoinHandle<Result<Published>>>,
    takers: Vec<JoinHandle<Result<Taken>>>,
}

/// What one phase took.
struct Span {
    seconds: f64,
    cpu_seconds: Option<f64>,
}

/// What was seen from outside of the devices.
struct Course {
    publish: Span,
    fetch: Span,
    /// By which the directory's file grew while the stocks were filled.
    disk_bytes: Option<u64>,
}

/// Runs the scenario.
pub fn run(plan: &KeysPlan, options: &Options) -> Result<KeysResult> {
    allow_connections(plan.devices())?;
    // One address and few users ask for what a whole city would.
    let unlimited = vec![("user_key_reads_per_hour", 0), ("device_one_time_keys_per_hour", 0)];
    let mut server = Server::reach_limited(options, unlimited)?;
    let stage = Arc::new(Stage::default());
    let crowd = gather(plan, &server, &stage)?;
    let course = direct(plan, &stage, &mut server)?;
    let published = crowd
        .owners
        .into_iter()
        .map(|owner| owner.join().expect("a device does not panic"))
        .collect::<Result<Vec<_>>>()?;
    let taken = crowd
        .takers
        .into_iter()
        .map(|taker| taker.join().expect("a device does not panic"))
        .collect::<Result<Vec<_>>>()?;
    let settings = settings(plan, options);
    let report = report(plan, (&published, &taken), &course, &server, settings);
    server.finish()?;
    Ok(KeysResult { report })
}

fn gather(plan: &KeysPlan, server: &Server, stage: &Arc<Stage>) -> Result<Crowd> {
    let run = random::<u32>();
    let door = Door { target: server.target(), tls: server.tls(), name: server.server_name() };
    let connect = |role: &str, number: u32| {
        let identity = server.identity(run, role, number)?;
        Ok::<_, anyhow::Error>((identity.user.clone(), Line::connect(identity, &door)?))
    };
    let (mut users, mut owners) = (Vec::<UserId>::new(), Vec::new());
    for number in 0..plan.owners {
        let (user, line) = connect("owner", number)?;
        users.push(user);
        let owner = Owner::new(plan, number, line, Arc::clone(stage));
        owners.push(thread::Builder::new().spawn(move || owner.run()).context("start a thread")?);
    }
    let users: Arc<[UserId]> = users.into();
    let mut takers = Vec::new();
    for number in 0..plan.takers {
        let (_, line) = connect("taker", number)?;
        let taker = Taker::new(plan, number, Arc::clone(&users), line, Arc::clone(stage));
        takers.push(thread::Builder::new().spawn(move || taker.run()).context("start a thread")?);
    }
    Ok(Crowd { owners, takers })
}

fn direct(plan: &KeysPlan, stage: &Stage, server: &mut Server) -> Result<Course> {
    let through = |stage: &Stage, phase: Phase, server: &mut Server| {
        stage.begin(phase);
        let is_over = || stage.through() >= plan.devices();
        let is_over = await_stage(stage, 0, is_over, server)?;
        ensure!(is_over, "{phase:?} did not end");
        Ok(())
    };
    through(stage, Phase::Login, server)?;
    let disk_before = directory_bytes(server);
    let publish = span(server, |server| through(stage, Phase::Publish, server))?;
    let disk_after = directory_bytes(server);
    let fetch = span(server, |server| {
        stage.begin(Phase::Fetch);
        let end = Instant::now() + plan.duration;
        while Instant::now() < end {
            ensure!(!stage.has_failed(), "a connection has failed");
            server.watch(Totals::default());
            thread::sleep(LOOK_INTERVAL.min(end.saturating_duration_since(Instant::now())));
        }
        through(stage, Phase::Settle, server)
    })?;
    for phase in [Phase::Exhaust, Phase::Count] {
        through(stage, phase, server)?;
    }
    stage.begin(Phase::Leave);
    let disk_bytes =
        disk_before.zip(disk_after).map(|(before, after)| after.saturating_sub(before));
    Ok(Course { publish, fetch, disk_bytes })
}

fn span(server: &mut Server, run: impl FnOnce(&mut Server) -> Result<()>) -> Result<Span> {
    let before = server.read_use();
    let started = Instant::now();
    run(server)?;
    let seconds = started.elapsed().as_secs_f64().max(f64::EPSILON);
    let cpu = before.zip(server.read_use()).map(|(a, b)| b.cpu_seconds - a.cpu_seconds);
    Ok(Span { seconds, cpu_seconds: cpu })
}

fn directory_bytes(server: &mut Server) -> Option<u64> {
    server.own().map(|own| Gateway::directory_bytes(own))
}

fn settings(plan: &KeysPlan, options: &Options) -> Settings {
    let mut settings = options.settings("keys", plan.devices() as usize);
    settings.extend([
        ("keys", plan.keys.into()),
        ("window", plan.window.into()),
        ("duration_s", plan.duration.as_secs_f64().into()),
    ]);
    settings
}

fn report(
    plan: &KeysPlan,
    (owners, takers): (&[Published], &[Taken]),
    course: &Course,
    server: &Server,
    settings: Settings,
) -> KeysReport {
    let of_owners = |count: fn(&Published) -> u64| owners.iter().map(count).sum::<u64>();
    let of_takers = |count: fn(&Taken) -> u64| takers.iter().map(count).sum::<u64>();
    let mut keys: Vec<(u32, u32)> =
        takers.iter().flat_map(|taker| taker.handed_out.iter().copied()).collect();
    let handed_out = keys.len() as u64;
    let duplicates = duplicates(&mut keys);
    // Nobody has published them.
    let invented = keys.iter().filter(|&&(owner, id)| id >= owners[owner as usize].keys).count();
    let (published, remaining) = (
        of_owners(|owner| owner.keys.into()),
        of_owners(|owner| owner.remaining.unwrap_or_default().into()),
    );
    let (publishes, fetches) = (filling_frames(plan), of_takers(|taker| taker.fetched));
    let first_keys = u64::from(plan.owners) * u64::from(plan.keys);
    let per = |amount: Option<f64>, count: u64| {
        Some(round(amount? / (count > 0).then_some(count as f64)?))
    };
    KeysReport {
        owners: plan.owners,
        takers: plan.takers,
        published,
        handed_out,
        duplicates,
        lost: (published + duplicates).saturating_sub(handed_out + remaining),
        corrupted: of_takers(|taker| taker.corrupted) + invented as u64,
        refused: of_owners(|owner| owner.refused) + of_takers(|taker| taker.refused),
        fallbacks: of_takers(|taker| taker.fallbacks),
        remaining,
        warnings: of_owners(|owner| owner.warnings),
        refills: of_owners(|owner| owner.refills),
        publishes,
        publishes_per_second: round(publishes as f64 / course.publish.seconds),
        keys_published_per_second: round(first_keys as f64 / course.publish.seconds),
        fetches,
        fetches_per_second: round(fetches as f64 / course.fetch.seconds),
        server_cpu_us_per_publish: per(micros(&course.publish), publishes),
        server_cpu_us_per_fetch: per(micros(&course.fetch), fetches),
        disk_bytes_per_key: per(course.disk_bytes.map(|bytes| bytes as f64), first_keys),
        publish_us: merged(owners.iter().map(|owner| &owner.publish_us)),
        fetch_us: merged(takers.iter().map(|taker| &taker.fetch_us)),
        host: server.host(),
        settings,
    }
}

/// Frames with which the stocks are filled at first.
fn filling_frames(plan: &KeysPlan) -> u64 {
    let frame_max = ringpost_protocol::limits::ONE_TIME_KEYS_PER_PUBLISH_MAX as u64;
    u64::from(plan.owners) * u64::from(plan.keys).div_ceil(frame_max)
}

fn micros(span: &Span) -> Option<f64> {
    span.cpu_seconds.map(|seconds| seconds * 1e6)
}

fn merged<'a>(parts: impl Iterator<Item = &'a Histogram<u64>>) -> Percentiles {
    let mut all = Histogram::new(3).expect("3 digits are legal");
    parts.for_each(|part| all.add(part).expect("of the same kind"));
    Percentiles::of(&all)
}

const LOOK_INTERVAL: Duration = Duration::from_millis(20);
