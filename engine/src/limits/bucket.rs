//! Token buckets, as one word each: the generic cell rate algorithm. The word is the time at which
//! the bucket is full again; what is spent moves it on, and a bucket may be in debt for at most the
//! time in which its burst is refilled.

/// How much, and how much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 0: no limit.
    pub per_second: u32,
    /// What a bucket holds that was not used for a while; at least 1.
    pub burst: u32,
}

/// So many in an hour, and at once after an hour without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerHour(
    /// 0: no limit.
    pub u32,
);

/// What one connection, user or address has left. A new one is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Monotonic, nanoseconds.
    full_at_ns: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { per_second: 0, burst: 1 };

    /// Time in which `units` are refilled.
    fn refill_ns(self, units: u32) -> u64 {
        // Below 2^62: 2^32 units times 10^9.
        u64::from(units) * NS_PER_SECOND / u64::from(self.per_second)
    }
}

impl PerHour {
    /// No limit.
    pub const UNLIMITED: Self = Self(0);

    fn refill_ns(self, units: u32) -> u64 {
        u64::from(units).saturating_mul(NS_PER_HOUR) / u64::from(self.0)
    }
}

impl Bucket {
    /// As [`Bucket::take`].
    pub fn take_of_hour(&mut self, rate: PerHour, now_ms: u64, units: u32) -> Result<(), u64> {
        if rate == PerHour::UNLIMITED {
            return Ok(());
        }
        let (full_at_ns, wait_ms) = self.after(rate.refill_ns(units), NS_PER_HOUR, now_ms);
        if wait_ms > 0 {
            return Err(wait_ms);
        }
        self.full_at_ns = full_at_ns;
        Ok(())
    }

    /// Takes `units`, or nothing: then `Err` says after how many milliseconds to ask again. More
    /// than the burst is never there.
    pub fn take(&mut self, rate: Rate, now_ms: u64, units: u32) -> Result<(), u64> {
        if rate.per_second == 0 {
            return Ok(());
        }
        let (spent_ns, burst_ns) = (rate.refill_ns(units), rate.refill_ns(rate.burst));
        let (full_at_ns, wait_ms) = self.after(spent_ns, burst_ns, now_ms);
        if wait_ms > 0 {
            return Err(wait_ms);
        }
        self.full_at_ns = full_at_ns;
        Ok(())
    }

    /// Takes `units` that were used already. Gives the milliseconds to wait until that is paid; 0:
    /// it was there.
    pub fn charge(&mut self, rate: Rate, now_ms: u64, units: u32) -> u64 {
        if rate.per_second == 0 {
            return 0;
        }
        let (spent_ns, burst_ns) = (rate.refill_ns(units), rate.refill_ns(rate.burst));
        let (full_at_ns, wait_ms) = self.after(spent_ns, burst_ns, now_ms);
        self.full_at_ns = full_at_ns;
        wait_ms
    }

    /// Whether it is as good as a new one.
    pub fn is_full(self, now_ms: u64) -> bool {
        self.full_at_ns <= now_ms * NS_PER_MS
    }

    /// When the bucket would be full again without what takes `spent_ns` to refill, and how long until
    /// it is not in debt. All of it is refilled in `burst_ns`.
    fn after(self, spent_ns: u64, burst_ns: u64, now_ms: u64) -> (u64, u64) {
        let now_ns = now_ms * NS_PER_MS;
        let full_at_ns = self.full_at_ns.max(now_ns).saturating_add(spent_ns);
        let in_debt_until_ns = full_at_ns - burst_ns.min(full_at_ns);
        (full_at_ns, in_debt_until_ns.saturating_sub(now_ns).div_ceil(NS_PER_MS))
    }
}

const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;
const NS_PER_HOUR: u64 = 3_600 * NS_PER_SECOND;

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = Bucket::default();
        for _ in 0..5 {
            assert_eq!(bucket.take(RATE, 1_000, 1), Ok(()));
        }
        assert_eq!(bucket.take(RATE, 1_000, 1), Err(100));
        assert_eq!(bucket.take(RATE, 1_099, 1), Err(1), "a refusal costs nothing");
        assert_eq!(bucket.take(RATE, 1_100, 1), Ok(()));
        assert_eq!(bucket.take(RATE, 1_100, 1), Err(100));
        // The wait is enough, and a full bucket does not overflow.
        assert!(!bucket.is_full(1_599));
        assert!(bucket.is_full(1_600));
        for _ in 0..5 {
            assert_eq!(bucket.take(RATE, 1_000_000, 1), Ok(()));
        }
        assert_eq!(bucket.take(RATE, 1_000_000, 1), Err(100));
    }

    #[test]
    fn what_was_used_is_paid_by_waiting() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.charge(RATE, 0, 5), 0);
        assert_eq!(bucket.charge(RATE, 0, 20), 2_000);
        assert_eq!(bucket.charge(RATE, 1_000, 0), 1_000);
        assert_eq!(bucket.charge(RATE, 2_000, 0), 0);
        assert_eq!(bucket.charge(RATE, 2_000, 1), 100);
    }

    #[test]
    fn over_any_time_no_more_than_burst_and_rate_passes() {
        for (per_second, burst) in [(1, 1), (3, 7), (999, 10), (1_000_000, 1)] {
            let rate = Rate { per_second, burst };
            let (mut bucket, mut passed, mut now_ms) = (Bucket::default(), 0, 77);
            for step in 0..10_000_u64 {
                passed += u64::from(bucket.take(rate, now_ms, 1).is_ok());
                now_ms += step % 3;
            }
            let elapsed_ms = now_ms - 77;
            assert!(passed <= u64::from(burst) + elapsed_ms * u64::from(per_second) / 1_000);
            assert!(passed > 0);
        }
    }

    #[test]
    fn no_limit_is_no_limit_and_extremes_do_not_overflow() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(Rate::UNLIMITED, 5, u32::MAX), Ok(()));
        assert_eq!(bucket.charge(Rate::UNLIMITED, 5, u32::MAX), 0);
        assert_eq!(bucket, Bucket::default());
        let slow = Rate { per_second: 1, burst: u32::MAX };
        assert_eq!(bucket.charge(slow, 1 << 40, u32::MAX), 0);
        assert!(bucket.charge(slow, 1 << 40, u32::MAX) > 0);
        let fast = Rate { per_second: u32::MAX, burst: u32::MAX };
        assert_eq!(Bucket::default().charge(fast, 1 << 40, u32::MAX), 0);
    }
}
