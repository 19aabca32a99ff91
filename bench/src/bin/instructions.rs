//! Counts the instructions of the hot paths under valgrind and compares them with recorded figures:
//! unlike times, they are the same on a busy machine.
//!
//! Exit status: 0 within the band, 1 outside of it or when a count failed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Parser;
use ringpost_bench::paths::{self, Path};
use ringpost_loadgen::host::Host;
use serde::{Deserialize, Serialize};

/// Instructions of each hot path, one time, against those recorded in bench/instructions.toml.
#[derive(Parser)]
struct Cli {
    /// Write what is measured into the file instead of comparing
    #[arg(long)]
    record: bool,
    /// Only this path
    #[arg(long, value_name = "NAME", conflicts_with = "record")]
    path: Option<String>,
    /// The recorded figures
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Also write the result here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Go a path: what this program starts itself for
    #[arg(long, hide = true, num_args = 2, value_names = ["NAME", "TIMES"])]
    run: Option<Vec<String>>,
}

/// bench/instructions.toml.
#[derive(Deserialize, Serialize)]
struct Recorded {
    /// What they were taken with; another compiler gives other figures.
    rustc: String,
    valgrind: String,
    machine: String,
    date: String,
    /// Instructions of one time.
    paths: BTreeMap<String, u64>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let cli = Cli::parse();
    if let Some([name, times]) = cli.run.as_deref() {
        let path = Path::find(name).ok_or_else(|| format!("no path {name}"))?;
        path.run(times.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", ringpost_bench::host_facts("instructions", None));
    let valgrind = version_of("valgrind")?;
    println!("# counted with {valgrind} as the difference of twice as many times and as many");
    let wanted =
        |path: &&Path| cli.path.as_deref().is_none_or(|wanted| path.name.starts_with(wanted));
    let chosen: Vec<_> = paths::ALL.iter().filter(wanted).collect();
    let mut measured = BTreeMap::new();
    for pair in chosen.chunks(COUNTED_AT_ONCE) {
        // Counts do not disturb each other, as times would.
        let counts: Result<Vec<_>, _> = pair.iter().map(|path| Count::start(path)).collect();
        for (path, count) in pair.iter().zip(counts?) {
            measured.insert(path.name.to_owned(), count.finish()?);
        }
    }
    if let Some(file) = &cli.json {
        let result = serde_json::json!({ "host": Host::read(None), "instructions": measured });
        fs::write(file, format!("{result:#}\n"))?;
    }
    if cli.record {
        return record(&cli.file, valgrind, measured);
    }
    let text = fs::read_to_string(&cli.file)
        .map_err(|error| format!("{}: {error}; write it with --record", cli.file.display()))?;
    Ok(compare(&toml::from_str(&text)?, &chosen, &measured))
}

fn record(
    file: &FilePath,
    valgrind: String,
    paths: BTreeMap<String, u64>,
) -> Result<ExitCode, Box<dyn Error>> {
    let host = Host::read(None);
    let recorded = Recorded {
        rustc: version_of("rustc")?,
        valgrind,
        machine: format!("{}, {}", host.machine, host.cpu_model),
        date: host.date,
        paths,
    };
    let head = "# Instructions of the hot paths: cargo ci-instructions -- --record\n";
    fs::write(file, format!("{head}{}", toml::to_string(&recorded)?))?;
    for (name, instructions) in &recorded.paths {
        println!("{name:<28} {instructions:>10}");
    }
    println!("recorded in {}", file.display());
    Ok(ExitCode::SUCCESS)
}

fn compare(recorded: &Recorded, chosen: &[&Path], measured: &BTreeMap<String, u64>) -> ExitCode {
    println!("\n{:<28} {:>10} {:>10} {:>8}", "path", "recorded", "measured", "change");
    let mut outside = Vec::new();
    for path in chosen {
        let now = measured[path.name];
        let Some(&before) = recorded.paths.get(path.name) else {
            println!("{:<28} {:>10} {now:>10} {:>8}", path.name, "-", "new");
            outside.push(format!("{}: not recorded, measured {now}", path.name));
            continue;
        };
        let change_percent = (figure(now) / figure(before) - 1.0) * 100.0;
        println!("{:<28} {before:>10} {now:>10} {change_percent:>+7.2}%", path.name);
        if change_percent.abs() > BAND_PERCENT {
            outside.push(format!(
                "{}: recorded {before}, measured {now}: {change_percent:+.2} %, allowed {BAND_PERCENT} % ({})",
                path.name, path.about
            ));
        }
    }
    if outside.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("\noutside of what is recorded:");
    outside.iter().for_each(|line| eprintln!("  {line}"));
    eprintln!(
        "recorded with {}, {}, on {}\nif the change is meant, or the compiler is another one: \
         cargo ci-instructions -- --record, and commit bench/instructions.toml",
        recorded.rustc, recorded.valgrind, recorded.machine
    );
    ExitCode::FAILURE
}

/// Two runs of one path under valgrind: the difference is free of what the first times cost.
struct Count {
    times: u64,
    once: Child,
    twice: Child,
}

impl Count {
    fn start(path: &Path) -> Result<Self, Box<dyn Error>> {
        let run = |times: u64| {
            Command::new("valgrind")
                .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
                .arg(format!("--toggle-collect={COUNTED_FUNCTION}"))
                .arg(std::env::current_exe()?)
                .args(["--run", path.name, &times.to_string()])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
        };
        Ok(Self { times: path.times, once: run(path.times)?, twice: run(2 * path.times)? })
    }

    /// Instructions of one time.
    fn finish(self) -> Result<u64, Box<dyn Error>> {
        let (once, twice) = (collected(self.once)?, collected(self.twice)?);
        let difference = twice.checked_sub(once).ok_or("more times cost less")?;
        Ok(difference.div_ceil(self.times))
    }
}

fn collected(child: Child) -> Result<u64, Box<dyn Error>> {
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let count = text
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok())
        .filter(|&count| count > 0 && output.status.success());
    count.ok_or_else(|| format!("valgrind counted nothing:\n{text}").into())
}

fn version_of(program: &str) -> Result<String, Box<dyn Error>> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|error| format!("{program}: {error}; install it, for example with apt"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn figure(count: u64) -> f64 {
    count as f64
}

const DEFAULT_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");
/// As a pattern of valgrind's.
const COUNTED_FUNCTION: &str = "ringpost_bench::paths::measured";
/// Paths under valgrind at the same time; each is two processes.
const COUNTED_AT_ONCE: usize = 1;
const BAND_PERCENT: f64 = 3.0;
