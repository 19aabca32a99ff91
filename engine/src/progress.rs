//! How far long work is: a bar on a terminal, a log line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::info;

/// Bytes of one piece of work. Goes to standard error, like the logs.
#[derive(Debug)]
pub struct WorkProgress {
    what: &'static str,
    bar: Option<ProgressBar>,
    started: Instant,
    logged: Instant,
}

impl WorkProgress {
    /// `what`: the work, as in "re-sharding".
    pub fn begin(what: &'static str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(TEMPLATE).expect("the template is constant");
            bar.with_style(style).with_message(what)
        });
        let now = Instant::now();
        Self { what, bar, started: now, logged: now }
    }

    pub fn show(&mut self, bytes_done: u64, bytes_total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(bytes_total);
            bar.set_position(bytes_done);
        } else if self.logged.elapsed() >= LOG_INTERVAL {
            self.logged = Instant::now();
            let left_s = left_ms(self.started.elapsed(), bytes_done, bytes_total) / 1000;
            info!(bytes_done, bytes_total, left_s, "{}", self.what);
        }
    }
}

impl Drop for WorkProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Milliseconds that remain at the pace so far; none before the first byte.
fn left_ms(elapsed: Duration, bytes_done: u64, bytes_total: u64) -> u64 {
    let left = u128::from(bytes_total.saturating_sub(bytes_done));
    let ms = elapsed.as_millis() * left / u128::from(bytes_done.max(1));
    if bytes_done == 0 { 0 } else { u64::try_from(ms).unwrap_or(u64::MAX) }
}

const TEMPLATE: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
const LOG_INTERVAL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_pace() {
        let second = Duration::from_secs(1);
        assert_eq!(left_ms(second, 100, 400), 3000);
        assert_eq!([left_ms(second, 0, 400), left_ms(second, 400, 400)], [0, 0]);
        assert_eq!(left_ms(second, u64::MAX, 1), 0);
    }
}
