//! The kinds of metrics: counter, gauge, labelled counters, histogram.

use std::marker::PhantomData;
use std::ops::{AddAssign, SubAssign};

use super::write_line;

/// What every kind can do.
pub(super) trait Metric {
    const TYPE: &'static str;
    fn merge(&mut self, other: &Self);
    fn expose(&self, name: &str, out: &mut String);
}

/// Only rises. `counter += 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter(u64);

/// Rises and falls. `gauge += 1`, `gauge -= 1`, or [`Gauge::set`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauge(u64);

/// Rises and falls; of several shards the highest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Highest(u64);

/// One counter per value of a label. `family.add(Bound::MeshCredits)`.
#[derive(Clone, Debug)]
pub struct Family<L> {
    counts: [u64; LABEL_VALUES_MAX],
    label: PhantomData<L>,
}

/// The values of a label, made by `labels!`.
pub trait Label: Copy {
    /// The label's name.
    const NAME: &'static str;
    /// What each value is called, in the order of [`Label::index`].
    const VALUES: &'static [&'static str];
    fn index(self) -> usize;
}

/// Counts in fixed buckets, and their sum.
#[derive(Clone, Debug)]
pub struct Histogram<S> {
    /// Per bucket, not cumulative; the last one has no upper bound.
    counts: [u64; BOUNDS_MAX + 1],
    sum: u64,
    scale: PhantomData<S>,
}

/// Upper ends of a histogram's buckets, and how its values are shown.
pub trait Scale {
    /// Rising, at most 20 of them; a value equal to a bound is in its bucket.
    const BOUNDS: &'static [u64];
    /// Raw values per unit of the exposition.
    const PER_UNIT: u64;
}

/// Durations, shown in seconds: 50 us to an hour.
#[derive(Clone, Copy, Debug)]
pub struct Nanoseconds;

/// Counts of records: powers of four.
#[derive(Clone, Copy, Debug)]
pub struct Records;

impl Scale for Nanoseconds {
    const BOUNDS: &'static [u64] = &[
        50 * US,
        100 * US,
        250 * US,
        500 * US,
        MS,
        2_500 * US,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        200 * MS,
        500 * MS,
        1_000 * MS,
        2_500 * MS,
        10_000 * MS,
        60_000 * MS,
        600_000 * MS,
        3_600_000 * MS,
    ];
    const PER_UNIT: u64 = 1_000 * MS;
}

impl Scale for Records {
    const BOUNDS: &'static [u64] = &[1, 4, 16, 64, 256, 1024, 4096, 16_384];
    const PER_UNIT: u64 = 1;
}

impl Counter {
    pub fn get(self) -> u64 {
        self.0
    }

    /// For a number that is counted elsewhere.
    pub fn set(&mut self, value: u64) {
        self.0 = value;
    }
}

impl Gauge {
    pub fn get(self) -> u64 {
        self.0
    }

    pub fn set(&mut self, value: u64) {
        self.0 = value;
    }
}

impl Highest {
    pub fn get(self) -> u64 {
        self.0
    }

    pub fn set(&mut self, value: u64) {
        self.0 = value;
    }
}

impl AddAssign<u64> for Counter {
    fn add_assign(&mut self, count: u64) {
        self.0 += count;
    }
}

impl AddAssign<u64> for Gauge {
    fn add_assign(&mut self, count: u64) {
        self.0 += count;
    }
}

impl SubAssign<u64> for Gauge {
    fn sub_assign(&mut self, count: u64) {
        self.0 -= count;
    }
}

impl<L: Label> Family<L> {
    pub fn add(&mut self, value: L) {
        self.counts[value.index()] += 1;
    }

    pub fn add_many(&mut self, value: L, count: u64) {
        self.counts[value.index()] += count;
    }

    /// Every value of the label, and its count.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        L::VALUES.iter().copied().zip(self.counts)
    }

    pub fn get(&self, value: L) -> u64 {
        self.counts[value.index()]
    }
}

impl<L> Default for Family<L> {
    fn default() -> Self {
        Self { counts: [0; LABEL_VALUES_MAX], label: PhantomData }
    }
}

impl<S: Scale> Histogram<S> {
    pub fn observe(&mut self, value: u64) {
        self.counts[S::BOUNDS.partition_point(|&bound| bound < value)] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl<S> Default for Histogram<S> {
    fn default() -> Self {
        Self { counts: [0; BOUNDS_MAX + 1], sum: 0, scale: PhantomData }
    }
}

impl Metric for Counter {
    const TYPE: &'static str = "counter";

    fn merge(&mut self, other: &Self) {
        self.0 += other.0;
    }

    fn expose(&self, name: &str, out: &mut String) {
        write_line(out, format_args!("{name} {}", self.0));
    }
}

impl Metric for Gauge {
    const TYPE: &'static str = "gauge";

    fn merge(&mut self, other: &Self) {
        self.0 += other.0;
    }

    fn expose(&self, name: &str, out: &mut String) {
        write_line(out, format_args!("{name} {}", self.0));
    }
}

impl Metric for Highest {
    const TYPE: &'static str = "gauge";

    fn merge(&mut self, other: &Self) {
        self.0 = self.0.max(other.0);
    }

    fn expose(&self, name: &str, out: &mut String) {
        write_line(out, format_args!("{name} {}", self.0));
    }
}

impl<L: Label> Metric for Family<L> {
    const TYPE: &'static str = "counter";

    fn merge(&mut self, other: &Self) {
        add_each(&mut self.counts, &other.counts);
    }

    fn expose(&self, name: &str, out: &mut String) {
        for (value, count) in L::VALUES.iter().zip(&self.counts) {
            write_line(out, format_args!("{name}{{{}=\"{value}\"}} {count}", L::NAME));
        }
    }
}

impl<S: Scale> Metric for Histogram<S> {
    const TYPE: &'static str = "histogram";

    fn merge(&mut self, other: &Self) {
        add_each(&mut self.counts, &other.counts);
        self.sum = self.sum.saturating_add(other.sum);
    }

    fn expose(&self, name: &str, out: &mut String) {
        const { assert!(S::BOUNDS.len() <= BOUNDS_MAX) };
        let mut total = 0;
        for (bound, count) in S::BOUNDS.iter().zip(&self.counts) {
            total += count;
            let bound = in_units::<S>(*bound);
            write_line(out, format_args!("{name}_bucket{{le=\"{bound}\"}} {total}"));
        }
        let total = self.count();
        write_line(out, format_args!("{name}_bucket{{le=\"+Inf\"}} {total}"));
        write_line(out, format_args!("{name}_sum {}", in_units::<S>(self.sum)));
        write_line(out, format_args!("{name}_count {total}"));
    }
}

fn add_each(to: &mut [u64], from: &[u64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// An exact decimal, so that `le` is `0.0025` and the same in every release.
fn in_units<S: Scale>(value: u64) -> String {
    let (whole, rest) = (value / S::PER_UNIT, value % S::PER_UNIT);
    if rest == 0 {
        return whole.to_string();
    }
    let digits = S::PER_UNIT.ilog10() as usize;
    format!("{whole}.{rest:0digits$}").trim_end_matches('0').to_owned()
}

macro_rules! labels {
    (
        $(#[$attribute:meta])*
        pub enum $name:ident by $label:literal {
            $($(#[$value_attribute:meta])* $value:ident = $text:literal,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$value_attribute])* $value,)*
        }

        impl $crate::metrics::Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = {
                let values: &[&str] = &[$($text),*];
                assert!(values.len() <= $crate::metrics::kinds::LABEL_VALUES_MAX);
                values
            };

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use labels;

/// Buckets of a histogram that have an upper bound.
const BOUNDS_MAX: usize = 20;
/// Values of one label.
pub(super) const LABEL_VALUES_MAX: usize = 40;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
