//! A store in the long run: nine of ten messages are deleted at once, the tenth waits until its
//! device comes back. How much more than the live bytes the disk holds, and what reclaim costs the
//! commits beside it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use ringpost_bench::disk;
use ringpost_bench::fixture;
use ringpost_bench::workers::Workers;
use ringpost_loadgen::host::Host;
use ringpost_protocol::id::{DeviceAddress, MailboxId, MessageNumber, SendSeq};
use ringpost_storage::{
    DiskOp, DiskOpId, FileId, NewMessage, RecordNumber, Store, StoreConfig, StoreEvent, blocking,
};
use serde_json::{Value, json};

/// Space amplification, and commit latency during reclaim beside its quiet value.
#[derive(Parser)]
struct Cli {
    /// MiB of messages that wait, once the store is filled
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..))]
    live_mib: u64,
    /// MiB of one segment
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    segment_mib: u32,
    /// Bytes of each envelope
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// Messages of one commit
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Devices that are away
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    mailboxes: u64,
    /// Before measuring: bytes written, as a multiple of the live ones
    #[arg(long, default_value_t = 12)]
    turns: u64,
    /// While measuring: commits asked for per second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    commits_per_second: u64,
    /// How long to measure
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where to put the files; removed afterwards [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the result here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    let parent = cli.directory.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::tempdir_in(parent)?;
    let path = directory.path();
    println!("{}", ringpost_bench::host_facts("steady", Some(path)));
    println!(
        "# {} MiB live in segments of {} MiB; messages of {} bytes, {} per commit, nine of ten \
         deleted at once; {WORKERS} disk operations at a time",
        cli.live_mib, cli.segment_mib, cli.payload, cli.batch
    );
    let mut bench = Steady::new(&cli, path);
    let began = Instant::now();
    bench.fill(cli.turns * (cli.live_mib << 20));
    println!("filled and turned over in {:.1} s", began.elapsed().as_secs_f64());
    let result = bench.measure(&cli, path)?;
    report(&result);
    if let Some(file) = &cli.json {
        let whole = json!({"host": Host::read(Some(path)), "result": result});
        fs::write(file, format!("{whole:#}\n"))?;
    }
    Ok(())
}

struct Steady {
    store: Store,
    disk: Workers,
    from: DeviceAddress,
    envelope: Vec<u8>,
    batch: u64,
    mailboxes: u64,
    live_bytes_max: u64,
    began: Instant,
    appended: u64,
    /// Appended and not yet durable.
    waiting: VecDeque<Commit>,
    /// Operations of reclaim under way.
    reclaiming: Reclaiming,
    latencies: [Vec<Duration>; 2],
}

/// The messages of one commit.
struct Commit {
    /// When it was to be asked for; it may have been asked for later.
    due: Instant,
    number: RecordNumber,
    /// To be deleted at once.
    read: Vec<MailboxId>,
    saw_reclaim: bool,
}

/// From the first read of a segment until its removal is durable.
#[derive(Default)]
struct Reclaiming {
    is_active: bool,
    is_unlinked: bool,
    /// The sync of the directory behind the removal.
    sync: Option<DiskOpId>,
}

impl Steady {
    fn new(cli: &Cli, directory: &Path) -> Self {
        let config = StoreConfig {
            segment_bytes: cli.segment_mib << 20,
            mailbox_records_max: u32::MAX,
            mailbox_bytes_max: u32::MAX,
            ..StoreConfig::new(0, STORE_ID)
        };
        let mut first = disk::files_in(directory);
        let opened = blocking::open(&mut first, config, HASH_SEED, |_| ());
        let (store, _) = opened.expect("the directory is empty");
        Self {
            store,
            disk: Workers::new(WORKERS, || disk::files_in(directory)),
            from: fixture::device(1),
            envelope: fixture::envelope(cli.payload),
            batch: cli.batch,
            mailboxes: cli.mailboxes,
            live_bytes_max: cli.live_mib << 20,
            began: Instant::now(),
            appended: 0,
            waiting: VecDeque::new(),
            reclaiming: Reclaiming::default(),
            latencies: [Vec::new(), Vec::new()],
        }
    }

    /// At full speed until so many bytes were appended.
    fn fill(&mut self, bytes: u64) {
        let mut left = bytes;
        while left > 0 || !self.waiting.is_empty() {
            while left > 0 && self.waiting.len() < COMMITS_AHEAD && self.commit(Instant::now()) {
                left = left.saturating_sub(self.batch * self.envelope.len() as u64);
            }
            self.run_for(Duration::from_millis(1));
        }
        // What reclaim had no time for.
        let mut rest = Instant::now();
        while rest.elapsed() < REST {
            self.run_for(TIMER);
            if self.reclaiming.is_active {
                rest = Instant::now();
            }
        }
        self.latencies = [Vec::new(), Vec::new()];
    }

    /// At an even pace; looks at the disk once a second.
    fn measure(&mut self, cli: &Cli, directory: &Path) -> Result<Value, Box<dyn Error>> {
        let began = Instant::now();
        let interval = Duration::from_secs(1) / u32::try_from(cli.commits_per_second)?;
        let (mut due, mut look) = (began, began);
        let before = self.store.stats();
        let mut amplifications = Vec::new();
        while began.elapsed().as_secs() < cli.seconds {
            while due <= Instant::now() && self.commit(due) {
                due += interval;
            }
            self.run_for(due.saturating_duration_since(Instant::now()).max(SHORTEST_WAIT));
            if look <= Instant::now() {
                look += Duration::from_secs(1);
                amplifications.push(ratio(disk_bytes(directory)?, self.store.stats().live_bytes));
            }
        }
        let after = self.store.stats();
        let [quiet, busy] = &mut self.latencies;
        let mean = amplifications.iter().sum::<f64>() / ratio(amplifications.len() as u64, 1);
        Ok(json!({
            "live_bytes": after.live_bytes,
            "entries": after.entries,
            "space_amplification_mean": mean,
            "space_amplification_worst": amplifications.iter().copied().fold(0.0, f64::max),
            "reclaimed_segments": after.reclaimed_segments - before.reclaimed_segments,
            "copied_per_appended": ratio(
                after.reclaim_copied_bytes - before.reclaim_copied_bytes,
                after.batch_bytes_written - before.batch_bytes_written,
            ),
            "quiet": latencies(quiet),
            "during_reclaim": latencies(busy),
        }))
    }

    /// Appends the messages of one commit; `false`: the store takes no more just now.
    fn commit(&mut self, due: Instant) -> bool {
        let mut read = Vec::new();
        for _ in 0..self.batch {
            let is_read = !self.appended.is_multiple_of(10);
            // Devices that are away, and others that are there.
            let index = fixture::mailbox(self.appended).0 % self.mailboxes;
            let mailbox = fixture::mailbox(if is_read { self.mailboxes + index } else { index });
            let message = NewMessage {
                from: &self.from,
                install_id: fixture::INSTALL,
                send_seq: SendSeq(self.appended + 1),
                message_number: MessageNumber(self.appended + 1),
                sent_at_ms: fixture::UNIX_MS,
                expires_at_ms: u64::MAX,
                urgent: false,
                group: None,
                mailboxes: &[mailbox],
                envelope: &self.envelope,
            };
            if self.store.append_message(&message).is_err() {
                if read.is_empty() {
                    return false;
                }
                break;
            }
            self.appended += 1;
            if is_read {
                read.push(mailbox);
            }
        }
        let number = self.store.last_assigned();
        let saw_reclaim = self.reclaiming.is_active;
        self.waiting.push_back(Commit { due, number, read, saw_reclaim });
        // Some that were away come back, whichever.
        let mut turn = self.appended;
        while self.store.stats().live_bytes > self.live_bytes_max {
            turn += 1;
            let mailbox = fixture::mailbox(fixture::mailbox(!turn).0 % self.mailboxes);
            self.store.ack(mailbox, self.store.tail(mailbox));
        }
        true
    }

    /// Runs disk operations for so long, or until one commit is durable.
    fn run_for(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        let waiting = self.waiting.len();
        loop {
            let now_ms = self.now_ms();
            while let Some((id, op)) = self.store.poll_disk(now_ms) {
                self.reclaiming.asked(id, &op);
                self.disk.start(id, op);
            }
            if self.reclaiming.is_active {
                self.waiting.iter_mut().for_each(|commit| commit.saw_reclaim = true);
            }
            let left = until.saturating_duration_since(Instant::now());
            let Some((id, result)) = self.disk.wait_for(left.min(TIMER)) else {
                if left.is_zero() {
                    return;
                }
                continue;
            };
            self.reclaiming.answered(id);
            self.store.handle_disk(now_ms, id, result);
            self.take_events();
            if self.waiting.len() < waiting {
                return;
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.store.poll_event() {
            match event {
                StoreEvent::Durable { up_to } => self.durable(up_to),
                StoreEvent::Failed(fault) => panic!("{fault}"),
                other => panic!("nothing is read, expires or is damaged here: {other:?}"),
            }
        }
    }

    fn durable(&mut self, up_to: RecordNumber) {
        while self.waiting.front().is_some_and(|commit| commit.number <= up_to) {
            let commit = self.waiting.pop_front().expect("just seen");
            self.latencies[usize::from(commit.saw_reclaim)].push(commit.due.elapsed());
            for mailbox in commit.read {
                self.store.ack(mailbox, self.store.tail(mailbox));
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).expect("a bench ends") + 1
    }
}

impl Reclaiming {
    fn asked(&mut self, id: DiskOpId, op: &DiskOp) {
        match op {
            DiskOp::Read { .. } => self.is_active = true,
            DiskOp::Unlink { file: FileId::Segment(_) } => {
                (self.is_active, self.is_unlinked) = (true, true);
            }
            DiskOp::SyncDir if self.is_unlinked => self.sync = Some(id),
            _ => {}
        }
    }

    fn answered(&mut self, id: DiskOpId) {
        if self.sync == Some(id) {
            *self = Self::default();
        }
    }
}

fn disk_bytes(directory: &Path) -> Result<u64, Box<dyn Error>> {
    Ok(disk::files_in(directory).list()?.iter().map(|(_, bytes)| bytes).sum())
}

fn latencies(samples: &mut [Duration]) -> Value {
    samples.sort_unstable();
    let at = |per_mille: usize| {
        let index = (samples.len() * per_mille / 1000).min(samples.len().saturating_sub(1));
        samples.get(index).map(|sample| sample.as_secs_f64() * 1e3)
    };
    json!({
        "commits": samples.len(), "p50_ms": at(500), "p99_ms": at(990), "p999_ms": at(999),
    })
}

fn report(result: &Value) {
    println!(
        "\nspace: {:.3} bytes on disk per live byte, at worst {:.3}; {} MiB live in {} entries",
        result["space_amplification_mean"].as_f64().unwrap_or_default(),
        result["space_amplification_worst"].as_f64().unwrap_or_default(),
        result["live_bytes"].as_u64().unwrap_or_default() >> 20,
        result["entries"],
    );
    println!(
        "reclaim: {} segments, {:.3} bytes copied per byte of log",
        result["reclaimed_segments"],
        result["copied_per_appended"].as_f64().unwrap_or_default(),
    );
    println!("\n{:<16} {:>8} {:>8} {:>8} {:>8}", "commit, ms", "count", "p50", "p99", "p99.9");
    for name in ["quiet", "during_reclaim"] {
        let figure = |key: &str| result[name][key].as_f64().unwrap_or_default();
        println!(
            "{name:<16} {:>8} {:>8.2} {:>8.2} {:>8.2}",
            result[name]["commits"].to_string(),
            figure("p50_ms"),
            figure("p99_ms"),
            figure("p999_ms")
        );
    }
    let p99 = |name: &str| result[name]["p99_ms"].as_f64().unwrap_or_default();
    println!("p99 during reclaim / quiet: {:.2}", p99("during_reclaim") / p99("quiet"));
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

const STORE_ID: u64 = 0x5eed;
const HASH_SEED: u64 = 7;
/// As many as the kernel has workers for one file, more than enough for what is under way.
const WORKERS: usize = 4;
const COMMITS_AHEAD: usize = 4;
const SHORTEST_WAIT: Duration = Duration::from_micros(50);
const REST: Duration = Duration::from_millis(500);
/// So often the store's own times are looked at.
const TIMER: Duration = Duration::from_millis(5);
