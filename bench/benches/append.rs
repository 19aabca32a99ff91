//! Appending to the store until it is durable: on a file, and without a disk.

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use ringpost_bench::disk::{NullDisk, files_in};
use ringpost_bench::store::OpenStore;
use ringpost_storage::BlockingDisk;

fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut criterion = ringpost_bench::criterion_on("append", folder);
    for batch in [1, 64, 1024] {
        let mut directory = None;
        append(&mut criterion, "append/commit_file", batch, || {
            // Removes the one before; the store in it is dropped when it is replaced.
            let made = tempfile::tempdir_in(folder).expect("the target folder is writable");
            files_in(directory.insert(made).path())
        });
        append(&mut criterion, "append/commit_null", batch, NullDisk::default);
    }
    criterion.final_summary();
}

/// One iteration appends `batch` records and waits until they are durable.
fn append<D: BlockingDisk>(
    criterion: &mut Criterion,
    name: &str,
    batch: u64,
    mut new_disk: impl FnMut() -> D,
) {
    let mut store = OpenStore::new(new_disk(), ENVELOPE_BYTES);
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(batch));
    group.bench_function(format!("batch={batch}"), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                if store.file_bytes() > LOG_BYTES_MAX {
                    store = OpenStore::new(new_disk(), ENVELOPE_BYTES);
                }
                let started = Instant::now();
                for _ in 0..batch {
                    store.append();
                }
                store.commit();
                elapsed += started.elapsed();
                store.prepare();
            }
            elapsed
        });
    });
    group.finish();
}

const ENVELOPE_BYTES: usize = 200;
/// A store that has grown to this is replaced. Less than one segment: batches of one record fill a
/// small part of their block, and reclaim would start to copy them.
const LOG_BYTES_MAX: u64 = 48 << 20;
