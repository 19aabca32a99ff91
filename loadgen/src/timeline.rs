//! What each second of a run saw: latencies in coarse buckets, so that twenty minutes cost a
//! megabyte and not a histogram a second.

use std::collections::BTreeMap;

/// Latencies by the second in which they ended.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    seconds: BTreeMap<u64, Box<Second>>,
}

/// One second of one thread or of all.
#[derive(Clone, Debug)]
pub struct Second {
    counts: [u32; BUCKETS],
    max_us: u64,
}

impl Timeline {
    /// `now_ns`: on the monotonic clock, which all threads share.
    pub fn record(&mut self, now_ns: u64, latency_us: u64) {
        let second = self.seconds.entry(now_ns / NS_PER_S).or_default();
        second.counts[bucket(latency_us)] += 1;
        second.max_us = second.max_us.max(latency_us);
    }

    pub fn add(&mut self, other: &Self) {
        for (&at, second) in &other.seconds {
            let own = self.seconds.entry(at).or_default();
            for (count, more) in own.counts.iter_mut().zip(&second.counts) {
                *count += more;
            }
            own.max_us = own.max_us.max(second.max_us);
        }
    }

    /// (second on the monotonic clock, what it saw), in order; seconds without any are left out.
    pub fn seconds(&self) -> impl Iterator<Item = (u64, &Second)> {
        self.seconds.iter().map(|(&at, second)| (at, &**second))
    }
}

impl Second {
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// Upper end of the bucket that holds this quantile, at most an eighth above the true value.
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        let wanted = (self.count() as f64 * quantile).ceil().max(1.0);
        let mut seen = 0.0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += f64::from(count);
            if seen >= wanted {
                return upper_us(bucket).min(self.max_us);
            }
        }
        self.max_us
    }

    pub fn max_us(&self) -> u64 {
        self.max_us
    }
}

impl Default for Second {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], max_us: 0 }
    }
}

/// Values below 8 have their own bucket; above, each power of two has eight.
fn bucket(us: u64) -> usize {
    let us = us.min(US_MAX);
    let index = if us < STEPS {
        us
    } else {
        let octave = u64::from(us.ilog2()) - STEP_BITS;
        octave * STEPS + (us >> octave)
    };
    usize::try_from(index).expect("below BUCKETS")
}

fn upper_us(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket;
    }
    let octave = bucket / STEPS - 1;
    ((STEPS + bucket % STEPS + 1) << octave) - 1
}

const STEP_BITS: u64 = 3;
const STEPS: u64 = 1 << STEP_BITS;
/// 18 minutes; what takes longer is counted as this.
const US_MAX: u64 = (1 << 30) - 1;
/// 28 octaves of eight, the first for the values below eight.
const BUCKETS: usize = 224;
const _: () = assert!(BUCKETS as u64 == (30 - STEP_BITS + 1) * STEPS);
const NS_PER_S: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_all_values_within_an_eighth() {
        let mut last = 0;
        for us in (0..200_000).chain([1 << 20, US_MAX, u64::MAX]) {
            let bucket = bucket(us);
            assert!(bucket >= last && bucket < BUCKETS, "{us}");
            last = bucket;
            let us = us.min(US_MAX);
            let upper = upper_us(bucket);
            assert!(upper >= us && upper - us <= us / 8, "{us}: {upper}");
        }
    }

    #[test]
    fn seconds_are_kept_apart_and_threads_add_up() {
        let mut one = Timeline::default();
        for us in 1..=100 {
            one.record(5_000_000_000 + us, us);
        }
        let mut two = Timeline::default();
        two.record(5_999_999_999, 5_000);
        two.record(6_000_000_000, 7);
        one.add(&two);
        let seconds: Vec<(u64, u64, u64)> =
            one.seconds().map(|(at, second)| (at, second.count(), second.max_us())).collect();
        assert_eq!(seconds, [(5, 101, 5_000), (6, 1, 7)]);
        let (_, first) = one.seconds().next().unwrap();
        assert!((50..=57).contains(&first.quantile_us(0.5)));
        assert_eq!(first.quantile_us(1.0), 5_000);
    }
}
