//! The bytes of the batches alone, one after the other into a file of zeros, each made durable: what
//! the disk and its file system can do.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Outcome, SEGMENT_BYTES, Work};
use crate::fixture;

pub(super) fn run(work: &Work, directory: &Path) -> Result<Outcome, Box<dyn Error>> {
    let began = Instant::now();
    let path = file_of_zeros(directory)?;
    let preparing = began.elapsed();
    let file = File::options().write(true).open(path)?;
    let batch = fixture::envelope(work.bytes_per_batch);
    let mut outcome = Outcome::timed(work, |number| {
        file.write_all_at(&batch, number * batch.len() as u64)?;
        Ok(file.sync_data()?)
    })?;
    outcome.time_all_in += preparing;
    Ok(outcome)
}

/// A file as long as a segment; nothing of it is on its way to the disk any more.
pub(super) fn file_of_zeros(directory: &Path) -> io::Result<PathBuf> {
    let path = directory.join("batches");
    let file = File::create_new(&path)?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..SEGMENT_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, offset as u64)?;
    }
    file.sync_all()?;
    Ok(path)
}
