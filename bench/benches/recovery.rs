//! Opening a store: every record is read, checked and put into the index. The files are in the
//! page cache, as after kill -9.

use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput};
use ringpost_bench::disk::files_in;
use ringpost_bench::store::{OpenStore, open};

fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut criterion = ringpost_bench::criterion_on("recovery", folder);
    let counts: &[u64] =
        if ringpost_bench::is_quick() { &[100_000] } else { &[100_000, 1_000_000] };
    for &records in counts {
        recover(&mut criterion, folder, records);
    }
    criterion.final_summary();
}

fn recover(criterion: &mut Criterion, folder: &Path, records: u64) {
    let directory = tempfile::tempdir_in(folder).expect("the target folder is writable");
    let log_bytes = fill(directory.path(), records);
    let (_, report) = open(&mut files_in(directory.path()));
    assert_eq!((report.records, report.entries, &report.damaged[..]), (records, records, &[][..]));
    let mut group = criterion.benchmark_group("recovery/open");
    group.throughput(Throughput::Bytes(log_bytes)).sample_size(10);
    group.bench_function(BenchmarkId::from_parameter(format!("records={records}")), |bencher| {
        bencher.iter_with_large_drop(|| open(&mut files_in(directory.path())));
    });
    group.finish();
    println!(
        "log of {log_bytes} bytes, {} batches; {} bytes read in {} segments",
        report.batches, report.bytes_read, report.segments
    );
}

/// Returns the length of the log, without the zeros ahead of it.
fn fill(directory: &Path, records: u64) -> u64 {
    let mut store = OpenStore::new(files_in(directory), ENVELOPE_BYTES);
    let mut left = records;
    while left > 0 {
        let batch = left.min(RECORDS_PER_BATCH);
        (0..batch).for_each(|_| store.append());
        store.commit();
        left -= batch;
    }
    store.prepare();
    store.file_bytes()
}

const ENVELOPE_BYTES: usize = 200;
/// What gathers during one fdatasync at a few ten thousand messages a second.
const RECORDS_PER_BATCH: u64 = 100;
