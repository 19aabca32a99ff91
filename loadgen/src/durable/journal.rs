//! What one user's app knows, one line each, appended with a single `write`: that survives the death
//! of the process, which is all that is tested here.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The app is about to send its message of this number.
    Sending(u64),
    /// The client library has taken it: from now on it must arrive.
    Taken { number: u64, send_id: u64 },
    /// The server refused it for good.
    Refused { send_id: u64 },
    /// A piece of news that the app has dealt with; `number`: of the message, if it was one.
    News { event_id: u64, number: Option<u64> },
    /// The server says that it lost something.
    Gap { event_id: u64 },
}

/// Open for appending.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Opens or makes it, and gives what it holds. A line that was cut off is removed.
    pub fn open(path: &Path) -> Result<(Self, Vec<Entry>)> {
        let place = || format!("open {}", path.display());
        let entries = read(path)?;
        let whole: usize = entries.iter().map(|entry| entry.line().len()).sum();
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(place)?;
        file.set_len(whole as u64).with_context(place)?;
        Ok((Self(file), entries))
    }

    pub fn append(&mut self, entry: Entry) -> Result<()> {
        self.0.write_all(entry.line().as_bytes()).context("write to a journal")
    }
}

/// The whole lines of a journal; none when there is no such file.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| {
            Entry::parse(line).with_context(|| format!("{}: line {line:?}", path.display()))
        })
        .collect()
}

impl Entry {
    fn line(self) -> String {
        match self {
            Self::Sending(number) => format!("sending {number}\n"),
            Self::Taken { number, send_id } => format!("taken {number} {send_id}\n"),
            Self::Refused { send_id } => format!("refused {send_id}\n"),
            Self::News { event_id, number: Some(number) } => {
                format!("message {event_id} {number}\n")
            }
            Self::News { event_id, number: None } => format!("news {event_id}\n"),
            Self::Gap { event_id } => format!("gap {event_id}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        Some(match kind {
            "sending" => Self::Sending(number()?),
            "taken" => Self::Taken { number: number()?, send_id: number()? },
            "refused" => Self::Refused { send_id: number()? },
            "message" => Self::News { event_id: number()?, number: Some(number()?) },
            "news" => Self::News { event_id: number()?, number: None },
            "gap" => Self::Gap { event_id: number()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_survives_and_its_torn_end_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let entries = [
            Entry::Sending(1),
            Entry::Taken { number: 1, send_id: 7 },
            Entry::Refused { send_id: 7 },
            Entry::News { event_id: 3, number: Some(9) },
            Entry::News { event_id: 4, number: None },
            Entry::Gap { event_id: 5 },
        ];
        let (mut journal, before) = Journal::open(&path).unwrap();
        assert!(before.is_empty());
        entries.iter().for_each(|&entry| journal.append(entry).unwrap());
        journal.0.write_all(b"sending 2").unwrap();
        let (mut journal, before) = Journal::open(&path).unwrap();
        assert_eq!(before, entries);
        journal.append(Entry::Sending(3)).unwrap();
        assert_eq!(read(&path).unwrap()[6..], [Entry::Sending(3)]);
    }
}
