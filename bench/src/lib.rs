//! What the benches share: the allocator of the gateway, the header beside every figure, seeded
//! data ([`fixture`]), a store on a disk that runs each operation at once ([`disk`], [`store`]) or
//! several beside each other ([`workers`]),
//! and TLS connections in memory ([`tls`]).
//!
//! A bench is named `layer/op/param=value`. No figure is asserted: they are read by people, next
//! to the machine they were taken on.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use criterion::Criterion;
use ringpost_loadgen::host::Host;

pub mod fixture;
pub mod session;
pub mod disk;
pub mod workers;
pub mod store;
pub mod tls;
pub mod memory_ring;
pub mod exchange;
pub mod paths;
pub mod idle;
pub mod slab;
#[cfg(feature = "faceoff")]
pub mod echo;
#[cfg(feature = "faceoff")]
pub mod stores;

/// The gateway's own, so that allocations cost here what they cost there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prints the header of the bench `name` and makes its criterion, set up by the command line.
///
/// Short times: with `--quick` each bench takes at least the warm-up time. CI runs all of them, each
/// once.
pub fn criterion(name: &str) -> Criterion {
    println!("{}", host_facts(name, None));
    configured()
}

/// The same for a bench that writes files in `folder`.
pub fn criterion_on(name: &str, folder: &Path) -> Criterion {
    println!("{}", host_facts(name, Some(folder)));
    configured()
}

fn configured() -> Criterion {
    Criterion::default()
        .warm_up_time(WARM_UP_TIME)
        .measurement_time(MEASUREMENT_TIME)
        .configure_from_args()
}

/// Whether the command line asks for criterion's quick mode, or this is a test.
pub fn is_quick() -> bool {
    cfg!(debug_assertions) || std::env::args().any(|argument| argument == "--quick")
}

/// One paragraph on the machine and the settings of a run. `data`: where files are written.
pub fn host_facts(name: &str, data: Option<&Path>) -> String {
    let host = Host::read(data);
    let mode = match (cfg!(debug_assertions), is_quick()) {
        (true, _) => "debug build: the figures mean nothing",
        (false, true) => "quick",
        (false, false) => "full",
    };
    let data = match (data, &host.data_filesystem) {
        (Some(path), Some(kind)) => format!("; files on {kind} in {}", path.display()),
        _ => String::new(),
    };
    format!(
        "# {name}: {date}; {machine}, {cpu}, {cores} cores, {memory} MiB; kernel {kernel}\n\
         # settings: {mode}, mimalloc, one thread unless the name says otherwise{data}",
        date = host.date,
        machine = host.machine,
        cpu = host.cpu_model,
        cores = host.cores,
        memory = host.memory_bytes >> 20,
        kernel = host.kernel,
    )
}

/// What else the machine does: `/proc/loadavg`.
pub fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

/// The middle one, or the lower of the two in the middle. `values` has at least one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

const WARM_UP_TIME: Duration = Duration::from_millis(500);
const MEASUREMENT_TIME: Duration = Duration::from_secs(2);
