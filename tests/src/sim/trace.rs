//! What happened, line by line: printed, or the last lines kept for the report of a failure.
//!
//! A world that runs without either formats nothing. So a hunt through many seeds costs no memory
//! and no text; when a world fails, it is run again, which gives the same events, and then keeps
//! its last lines.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Where the lines go. Clones share it, so that whoever starts a world can still read it after the
/// world has panicked.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Rc<Sink>>);

#[derive(Debug)]
enum Sink {
    Print,
    Keep { lines: RefCell<VecDeque<String>>, count_max: usize },
}

impl Trace {
    /// Formats nothing.
    pub fn off() -> Self {
        Self(None)
    }

    pub fn printing() -> Self {
        Self(Some(Rc::new(Sink::Print)))
    }

    /// Keeps the last `count_max` lines.
    pub fn keeping(count_max: usize) -> Self {
        let lines = RefCell::new(VecDeque::with_capacity(count_max));
        Self(Some(Rc::new(Sink::Keep { lines, count_max })))
    }

    pub fn tell(&self, now_ns: u64, text: impl FnOnce() -> String) {
        let Some(sink) = &self.0 else { return };
        let line = format!("{:>12.3} ms  {}", now_ns as f64 / 1e6, text());
        match &**sink {
            Sink::Print => eprintln!("{line}"),
            Sink::Keep { lines, count_max } => {
                let mut lines = lines.borrow_mut();
                if lines.len() == *count_max {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        }
    }

    /// What was kept.
    pub fn lines(&self) -> Vec<String> {
        match self.0.as_deref() {
            Some(Sink::Keep { lines, .. }) => lines.borrow().iter().cloned().collect(),
            Some(Sink::Print) | None => Vec::new(),
        }
    }
}
