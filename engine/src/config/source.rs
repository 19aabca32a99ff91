//! The text of a configuration, taken apart key by key.
//!
//! What is asked for is what exists: a key that nobody asked for is unknown. Faults are gathered, so
//! that one look at a file names them all; a key with a fault counts as left out meanwhile.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigFault, Place};

/// A file under examination.
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    faults: Vec<ConfigFault>,
    /// Every key that was asked for, with the name of its table.
    known: Vec<String>,
}

/// One table of the file, or the file itself. Ended by [`Section::finish`].
pub(super) struct Section<'a> {
    source: &'a Source<'a>,
    /// Name of the table and a dot; empty for the file itself.
    prefix: String,
    entries: DeTable<'a>,
}

/// A value and where it stands.
pub(super) struct Given<'a> {
    key: String,
    value: Spanned<DeValue<'a>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text, found: RefCell::default() }
    }

    /// Reads the whole file with `read`, and gives what it made if there was no fault.
    pub(super) fn read<T>(
        &'a self,
        read: impl FnOnce(&mut Section<'a>) -> T,
    ) -> Result<T, Vec<ConfigFault>> {
        let entries = match DeTable::parse(self.text) {
            Ok(entries) => entries.into_inner(),
            Err(error) => {
                let place = self.place(error.span().unwrap_or(0..0));
                let text = error.message().replace('\n', ", ");
                return Err(vec![ConfigFault::Syntax { place, text }]);
            }
        };
        let mut root = Section { source: self, prefix: String::new(), entries };
        let made = read(&mut root);
        root.finish();
        let mut faults = std::mem::take(&mut self.found.borrow_mut().faults);
        faults.sort_by_key(ConfigFault::position);
        if faults.is_empty() { Ok(made) } else { Err(faults) }
    }

    /// Every key that was asked for.
    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<String> {
        self.found.borrow().known.clone()
    }

    fn add(&self, fault: ConfigFault) {
        self.found.borrow_mut().faults.push(fault);
    }

    fn place(&self, span: Range<usize>) -> Place {
        let start = span.start.min(self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place {
            path: self.path.to_owned(),
            line: 1 + before.bytes().filter(|&byte| byte == b'\n').count(),
            column: 1 + before[line_start..].chars().count(),
        }
    }

    /// The value as written, cut when it is long.
    fn written(&self, span: Range<usize>) -> String {
        let text = self.text.get(span).unwrap_or_default().trim();
        let mut shown: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        if shown.len() < text.len() {
            shown.push_str("...");
        }
        shown
    }
}

impl<'a> Section<'a> {
    /// Reads the table `name` of this one, which may be left out.
    pub(super) fn table<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Self) -> T) -> T {
        let entries = match self.take(name) {
            None => DeTable::new(),
            Some(given) => match given.value.get_ref() {
                DeValue::Table(_) => {
                    let DeValue::Table(entries) = given.value.into_inner() else {
                        unreachable!("matched above")
                    };
                    entries
                }
                _ => {
                    self.refuse(&given, &format!("a table: [{name}]"));
                    DeTable::new()
                }
            },
        };
        let prefix = format!("{}{name}.", self.prefix);
        let mut section = Section { source: self.source, prefix, entries };
        let made = read(&mut section);
        section.finish();
        made
    }

    /// The value of `key`, for those below and for whoever parses it further.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Given<'a>> {
        let full = format!("{}{key}", self.prefix);
        self.source.found.borrow_mut().known.push(full.clone());
        let value = self.entries.remove(key)?;
        Some(Given { key: full, value })
    }

    pub(super) fn number<T: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<u64>,
        default: T,
    ) -> T {
        self.optional_number(key, allowed).unwrap_or(default)
    }

    pub(super) fn optional_number<T: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<u64>,
    ) -> Option<T> {
        let given = self.take(key)?;
        let number = given.integer().filter(|number| allowed.contains(number));
        let checked = number.and_then(|number| T::try_from(number).ok());
        if checked.is_none() {
            let range = format!("a number from {} to {}", allowed.start(), allowed.end());
            self.refuse(&given, &range);
        }
        checked
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        let Some(given) = self.take(key) else { return default };
        given.value.get_ref().as_bool().unwrap_or_else(|| {
            self.refuse(&given, "true or false");
            default
        })
    }

    pub(super) fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        let Some(given) = self.take(key) else { return default };
        given.text().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            self.refuse(&given, "an IP address and a port, as in \"0.0.0.0:7443\"");
            default
        })
    }

    pub(super) fn optional_address(&mut self, key: &'static str) -> Option<SocketAddr> {
        let given = self.take(key)?;
        let address = given.text().and_then(|text| text.parse().ok());
        if address.is_none() {
            self.refuse(&given, "an IP address and a port, as in \"0.0.0.0:7444\"");
        }
        address
    }

    /// A path; a relative one counts from the directory of the file.
    pub(super) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let given = self.take(key)?;
        let Some(text) = given.text().filter(|text| !text.is_empty()) else {
            self.refuse(&given, "a path in quotes");
            return None;
        };
        // `join` keeps an absolute path as it is.
        let directory = self.source.path.parent().unwrap_or_else(|| Path::new(""));
        Some(directory.join(text))
    }

    /// `meaning`: what to set it to.
    pub(super) fn path(&mut self, key: &'static str, meaning: &'static str) -> PathBuf {
        let is_given = self.has(key);
        let path = self.optional_path(key);
        if !is_given {
            self.missing(key, meaning);
        }
        path.unwrap_or_default()
    }

    /// One of the words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
        default: T,
    ) -> T {
        let Some(given) = self.take(key) else { return default };
        let found = words.iter().find(|(word, _)| given.text() == Some(word));
        found.map_or_else(
            || {
                let quoted: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                self.refuse(&given, &quoted.join(" or "));
                default
            },
            |&(_, value)| value,
        )
    }

    /// A text that `parse` takes.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let given = self.take(key)?;
        let parsed = given.text().and_then(parse);
        if parsed.is_none() {
            self.refuse(&given, allowed);
        }
        parsed
    }

    /// A list of texts, each of which `parse` takes; its error is told.
    pub(super) fn texts<T, E: std::fmt::Display>(
        &mut self,
        key: &'static str,
        allowed: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let given = self.take(key)?;
        let DeValue::Array(items) = given.value.get_ref() else {
            self.refuse(&given, &format!("a list of {allowed}"));
            return None;
        };
        let mut parsed = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_str().map(&parse) {
                Some(Ok(value)) => parsed.push(value),
                Some(Err(fault)) => {
                    self.refuse_at(item.span(), &given.key, &format!("{allowed} ({fault})"));
                }
                None => self.refuse_at(item.span(), &given.key, &format!("{allowed}, in quotes")),
            }
        }
        Some(parsed)
    }

    /// Whether the file has `key`, with whatever value, and nobody has taken it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn missing(&self, key: &str, meaning: &'static str) {
        let path = self.source.path.to_owned();
        let key = format!("{}{key}", self.prefix);
        self.source.add(ConfigFault::Missing { path, key, meaning });
    }

    /// The value is not allowed; `allowed` says what is.
    pub(super) fn refuse(&self, given: &Given<'_>, allowed: &str) {
        self.refuse_at(given.value.span(), &given.key, allowed);
    }

    fn refuse_at(&self, span: Range<usize>, key: &str, allowed: &str) {
        self.source.add(ConfigFault::NotAllowed {
            place: self.source.place(span.clone()),
            key: key.to_owned(),
            value: self.source.written(span),
            allowed: allowed.to_owned(),
        });
    }

    /// What is left was not asked for.
    fn finish(self) {
        for (key, _) in self.entries {
            let place = self.source.place(key.span());
            let full = format!("{}{}", self.prefix, key.get_ref());
            let similar = self.source.most_similar(&full);
            self.source.add(ConfigFault::UnknownKey { place, key: full, similar });
        }
    }
}

impl Source<'_> {
    /// A known key that somebody may have meant: the same one in another table, or one that differs
    /// by few letters.
    fn most_similar(&self, unknown: &str) -> Option<String> {
        let found = self.found.borrow();
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let edits = |key: &String| match last(key) == last(unknown) {
            true => 0,
            false => strsim::damerau_levenshtein(key, unknown),
        };
        let nearest = found.known.iter().min_by_key(|key| edits(key))?;
        (edits(nearest) * LETTERS_PER_EDIT <= unknown.len()).then(|| nearest.clone())
    }
}

impl Given<'_> {
    pub(super) fn text(&self) -> Option<&str> {
        self.value.get_ref().as_str()
    }

    fn integer(&self) -> Option<u64> {
        let integer = self.value.get_ref().as_integer()?;
        u64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }
}

/// With more edits a proposal would confuse.
const LETTERS_PER_EDIT: usize = 4;
