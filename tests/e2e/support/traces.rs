//! What a process and its files hold: every byte that can be read of them, searched for markers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A text that occurs nowhere by chance. All begin with the same rare byte, so that one pass finds
/// them all.
pub fn marker(kind: &str) -> String {
    format!("{FIRST}{kind}{:032x}", rand::random::<u128>())
}

/// Which of the markers occur, and where.
pub type Traces = BTreeMap<String, Vec<String>>;

/// Searches the memory of a running process: all that is resident and readable, shared or not.
///
/// # Panics
/// If it may not be read: that takes root, or to be the parent of a process that permits it.
pub fn in_memory(process: u32, markers: &[String]) -> Traces {
    let memory = File::open(format!("/proc/{process}/mem")).expect("a child's memory is readable");
    let mut traces = Traces::new();
    let (mut read_bytes, mut chunk) = (0, vec![0; CHUNK_BYTES]);
    for (start, end, name) in resident(process) {
        let mut at = start;
        while at < end {
            let count = usize::try_from(end - at).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
            // What the process has given back since, or a device's.
            let Ok(count @ 1..) = memory.read_at(&mut chunk[..count], at) else { break };
            read_bytes += count;
            note(&mut traces, &chunk[..count], markers, &format!("memory {name}"));
            let overlap = if count == CHUNK_BYTES { MARKER_BYTES_MAX } else { 0 };
            at += u64::try_from(count - overlap).expect("a chunk is short");
        }
    }
    assert!(read_bytes > MEMORY_BYTES_MIN, "only {read_bytes} bytes of memory were read");
    traces
}

/// Searches every file below a directory; gives their names as well.
pub fn in_files(directory: &Path, markers: &[String]) -> (Traces, Vec<PathBuf>) {
    let (mut traces, mut files, mut directories) =
        (Traces::new(), Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            // A file may go while the gateway runs.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            note(&mut traces, &bytes, markers, &format!("file {}", path.display()));
            note(&mut traces, path.as_os_str().as_encoded_bytes(), markers, "a file's name");
            files.push(path);
        }
    }
    (traces, files)
}

pub fn in_text(text: &str, markers: &[String], place: &str) -> Traces {
    let mut traces = Traces::new();
    note(&mut traces, text.as_bytes(), markers, place);
    traces
}

fn note(traces: &mut Traces, bytes: &[u8], markers: &[String], place: &str) {
    let mut rest = bytes;
    while rest.skip_until(FIRST.as_bytes()[0]).expect("memory is readable") > 0 {
        for marker in markers {
            if rest.starts_with(&marker.as_bytes()[1..]) {
                traces.entry(marker.clone()).or_default().push(place.to_owned());
            }
        }
    }
}

/// The mappings of which something is in memory: reading the others would only make zeros.
fn resident(process: u32) -> Vec<(u64, u64, String)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let (mut mappings, mut last) = (Vec::new(), None);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |hex| u64::from_str_radix(hex, 16).expect("an address");
            let is_readable = words.next().is_some_and(|rights| rights.starts_with('r'));
            let name = words.nth(3).unwrap_or("[anonymous]").to_owned();
            last = is_readable.then(|| (number(start), number(end), name));
        } else if first == "Rss:" && words.next() != Some("0") {
            mappings.extend(last.take());
        }
    }
    mappings
}

/// Two bytes of UTF-8, neither of them ASCII.
const FIRST: &str = "\u{1c2}";
const CHUNK_BYTES: usize = 1024 * 1024;
const MARKER_BYTES_MAX: usize = 128;
/// A gateway has more than this; less means that the search did not search.
const MEMORY_BYTES_MIN: usize = 4 * 1024 * 1024;
