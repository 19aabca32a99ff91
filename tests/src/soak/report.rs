//! What a hunt has covered, for people and for programs.

use std::process::Command;
use std::time::Duration;

use ringpost_loadgen::host::Host;
use serde_json::{Map, Value, json};

use super::hunt::Failure;
use crate::sim::counts::{Coverage, FaultCounts};
use crate::sim::settle::Settled;
use crate::sim::world::Report;

/// Sums over the worlds that kept every promise, and the failures of the others.
#[derive(Debug)]
pub struct Totals {
    pub commit: String,
    pub host: Host,
    pub threads: usize,
    pub seeds: u64,
    pub events: u64,
    pub virtual_ms: u64,
    pub messages: u64,
    pub accepted: u64,
    pub refused: u64,
    pub gaps: u64,
    pub faults: FaultCounts,
    pub coverage: Coverage,
    /// The longest of them all, each for itself.
    pub settled: Settled,
    pub failures: Vec<(u64, Failure)>,
    pub elapsed: Duration,
}

impl Totals {
    pub fn new(threads: usize) -> Self {
        Self {
            commit: commit(),
            host: Host::read(None),
            threads,
            seeds: 0,
            events: 0,
            virtual_ms: 0,
            messages: 0,
            accepted: 0,
            refused: 0,
            gaps: 0,
            faults: FaultCounts::default(),
            coverage: Coverage::default(),
            settled: Settled::default(),
            failures: Vec::new(),
            elapsed: Duration::ZERO,
        }
    }

    pub fn add(&mut self, seed: u64, result: Result<Report, Failure>) {
        self.seeds += 1;
        match result {
            Ok(report) => {
                self.events += report.events;
                self.virtual_ms += report.virtual_ms;
                self.messages += report.messages as u64;
                self.accepted += report.accepted;
                self.refused += report.refused;
                self.gaps += report.gaps;
                self.faults.add(&report.faults);
                self.coverage.add(&report.coverage);
                let (longest, settled) = (&mut self.settled, report.settled);
                longest.whole_ms = longest.whole_ms.max(settled.whole_ms);
                longest.still_ms = longest.still_ms.max(settled.still_ms);
            }
            Err(failure) => self.failures.push((seed, failure)),
        }
    }

    pub fn seeds_per_second(&self) -> f64 {
        self.seeds as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn simulated_hours(&self) -> f64 {
        self.virtual_ms as f64 / 3_600_000.0
    }

    /// The machine, the tree and the settings; printed before anything runs.
    pub fn header(&self, settings: &str) -> String {
        let Host { machine, cpu_model, cores, memory_bytes, kernel, date, .. } = &self.host;
        format!(
            "ringpost soak, {date}, commit {}\n{cpu_model}, {machine}, {cores} cores, {} GiB, \
             kernel {kernel}, {} threads; {settings}",
            self.commit,
            memory_bytes >> 30,
            self.threads,
        )
    }

    /// Everything, for people.
    pub fn summary(&self) -> String {
        let mut lines = vec![
            format!(
                "{} seeds in {:.1} s: {:.1} seeds/s, {:.1} simulated hours, {} events",
                self.seeds,
                self.elapsed.as_secs_f64(),
                self.seeds_per_second(),
                self.simulated_hours(),
                self.events,
            ),
            format!(
                "messages: {} sent, {} accepted, {} refused, {} gaps told",
                self.messages, self.accepted, self.refused, self.gaps,
            ),
            format!(
                "after the last fault: all delivered within {} simulated seconds, never still for \
                 more than {}",
                self.settled.whole_ms / 1_000,
                self.settled.still_ms / 1_000,
            ),
            format!("faults: {}", named(&self.faults.named())),
            format!("reached: {}", named(&self.coverage.named())),
        ];
        lines.push(match self.failures.len() {
            0 => "no violation".to_owned(),
            count => format!("{count} seeds FAILED: {:?}", self.failed_seeds()),
        });
        lines.join("\n")
    }

    /// Everything, for programs. The keys are an interface.
    pub fn json(&self) -> Value {
        let counts = |named: Vec<(&'static str, u64)>| {
            let pairs = named.into_iter().map(|(name, count)| (name.to_owned(), json!(count)));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|(seed, failure)| {
                json!({ "seed": seed, "text": failure.text, "events": failure.events })
            })
            .collect();
        json!({
            "commit": self.commit,
            "host": self.host,
            "threads": self.threads,
            "seeds": self.seeds,
            "seconds": self.elapsed.as_secs_f64(),
            "seeds_per_second": self.seeds_per_second(),
            "simulated_hours": self.simulated_hours(),
            "events": self.events,
            "messages": self.messages,
            "accepted": self.accepted,
            "refused": self.refused,
            "gaps": self.gaps,
            "settled_ms_max": self.settled.whole_ms,
            "still_ms_max": self.settled.still_ms,
            "faults": counts(self.faults.named()),
            "reached": counts(self.coverage.named()),
            "failures": failures,
        })
    }

    fn failed_seeds(&self) -> Vec<u64> {
        self.failures.iter().map(|(seed, _)| *seed).collect()
    }
}

/// How one world failed, and how to see it again.
pub fn failure_text(seed: u64, commit: &str, failure: &Failure) -> String {
    let Failure { text, events } = failure;
    format!(
        "seed {seed} FAILED at commit {commit}: {text}\nits last {} events:\n{}\nreplay: cargo run \
         --release -p ringpost-tests --bin soak -- --seed {seed} --trace",
        events.len(),
        events.join("\n"),
    )
}

fn named(counts: &[(&str, u64)]) -> String {
    let texts: Vec<String> =
        counts.iter().map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    texts.join(", ")
}

/// Of the tree that the worlds are made of, as far as git knows it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    if changed.is_some_and(|changed| !changed.is_empty()) { commit + " (changed)" } else { commit }
}
