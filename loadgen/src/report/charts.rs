//! The charts that scenarios have in common.

use hdrhistogram::Histogram;

use crate::measure::Measure;
use crate::report::svg::{Chart, Line, XAxis};
use crate::sample::Sample;
use crate::timeline::Timeline;

/// Latency at every quantile, from the least to the highest.
pub fn percentile_curve(title: &str, lines: &[(&str, &Histogram<u64>)]) -> Chart {
    let line = |(name, histogram): &(&str, &Histogram<u64>)| {
        let count = histogram.len() as f64;
        let points = QUANTILES
            .iter()
            .copied()
            // Beyond this the quantile is the highest value, whatever it is called.
            .filter(|quantile| (1.0 - quantile) * count >= 1.0)
            .map(|quantile| (quantile, histogram.value_at_quantile(quantile) as f64 / 1e3));
        Line::new(name, points.collect())
    };
    Chart {
        title: title.to_owned(),
        x: XAxis::Quantile,
        y_label: "ms".into(),
        log_y: true,
        lines: lines.iter().map(line).collect(),
        marks: Vec::new(),
    }
}

/// Latency of delivery, second by second; `origin_s`: monotonic, where the axis begins.
pub fn latency_over_time(timeline: &Timeline, origin_s: f64) -> Chart {
    let line = |name: &str, of: fn(&crate::timeline::Second) -> u64| {
        let points = timeline
            .seconds()
            .filter(|(at, _)| *at as f64 >= origin_s.floor())
            .map(|(at, second)| ((at as f64 - origin_s).max(0.0), of(second) as f64 / 1e3));
        Line::new(name, points.collect())
    };
    Chart {
        title: "Delivered after, second by second".into(),
        x: XAxis::Seconds,
        y_label: "ms".into(),
        log_y: true,
        lines: vec![
            line("p50", |second| second.quantile_us(0.5)),
            line("p99", |second| second.quantile_us(0.99)),
            line("max", crate::timeline::Second::max_us),
        ],
        marks: Vec::new(),
    }
}

/// Messages delivered in each second.
pub fn throughput(timeline: &Timeline, origin_s: f64) -> Chart {
    let mut points = Vec::new();
    let mut last = None;
    for (at, second) in timeline.seconds().filter(|(at, _)| *at as f64 >= origin_s.floor()) {
        // A second in which nothing came is a zero, not a gap.
        let silent = last.map_or(at, |last| last + 1)..at;
        points.extend(silent.map(|at| ((at as f64 - origin_s).max(0.0), 0.0)));
        points.push(((at as f64 - origin_s).max(0.0), second.count() as f64));
        last = Some(at);
    }
    Chart {
        title: "Delivered messages a second".into(),
        x: XAxis::Seconds,
        y_label: "messages/s".into(),
        log_y: false,
        lines: vec![Line::new("delivered", points)],
        marks: Vec::new(),
    }
}

/// Memory of the gateway, and what the kernel holds more than at the start.
pub fn memory(samples: &[Sample], origin_s: f64) -> Chart {
    let samples: Vec<Sample> =
        samples.iter().filter(|sample| sample.at_s >= origin_s).copied().collect();
    let first = samples.first().copied().unwrap_or_default();
    let line = |name: &str, of: &dyn Fn(&Sample) -> Option<u64>| {
        let points = samples.iter().filter_map(|sample| {
            Some((sample.at_s - origin_s, of(sample)? as f64 / (1024.0 * 1024.0)))
        });
        Line::new(name, points.collect())
    };
    let mut lines = vec![
        line("gateway RSS", &|sample| sample.server_rss_bytes),
        line("slab of the host, growth", &|sample| {
            Some(sample.slab_bytes.saturating_sub(first.slab_bytes))
        }),
        line("TCP buffers of the host, growth", &|sample| {
            Some(sample.tcp_bytes.saturating_sub(first.tcp_bytes))
        }),
        line("gateway's send queues", &|sample| sample.server_send_queue_bytes),
    ];
    lines.retain(|line| !line.points.is_empty());
    Chart {
        title: "Memory".into(),
        x: XAxis::Seconds,
        y_label: "MiB".into(),
        log_y: false,
        lines,
        marks: Vec::new(),
    }
}

/// Cores' worth of CPU time that the gateway uses; a new process starts a new count.
pub fn cpu(samples: &[Sample], origin_s: f64) -> Chart {
    let samples: Vec<&Sample> = samples.iter().filter(|sample| sample.at_s >= origin_s).collect();
    let points = samples.windows(2).filter_map(|pair| {
        let (before, after) = (pair[0], pair[1]);
        let used = after.server_cpu_s? - before.server_cpu_s?;
        let wall = after.at_s - before.at_s;
        (used >= 0.0 && wall > 0.1).then(|| (after.at_s - origin_s, used / wall))
    });
    Chart {
        title: "CPU time of the gateway".into(),
        x: XAxis::Seconds,
        y_label: "cores".into(),
        log_y: false,
        lines: vec![Line::new("user + system", points.collect())],
        marks: Vec::new(),
    }
}

/// All of them, for a run whose load began at `origin_s`.
pub fn of_run(measure: &Measure, samples: &[Sample], origin_s: f64) -> Vec<Chart> {
    vec![
        percentile_curve(
            "Latency from the intended send time",
            &[("accepted", &measure.accepted_us), ("delivered", &measure.delivered_us)],
        ),
        latency_over_time(&measure.timeline, origin_s),
        throughput(&measure.timeline, origin_s),
        cpu(samples, origin_s),
        memory(samples, origin_s),
    ]
}

/// Points out what happened at these seconds, in the charts over time.
pub fn mark(charts: &mut [Chart], what: &str, seconds: &[f64]) {
    for chart in charts.iter_mut().filter(|chart| chart.x == XAxis::Seconds) {
        // Names of many marks would cover each other: the first one explains the rest.
        let name = |number: usize| if number == 0 { what.to_owned() } else { String::new() };
        let marks = seconds.iter().enumerate().map(|(number, &at)| (at, name(number)));
        chart.marks.extend(marks);
    }
}

const QUANTILES: [f64; 25] = [
    0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99,
    0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999, 0.99999, 0.999_999,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_does_not_show_as_negative_time() {
        let sample =
            |at_s: f64, cpu: f64| Sample { at_s, server_cpu_s: Some(cpu), ..Sample::default() };
        let chart = cpu(&[sample(10.0, 5.0), sample(11.0, 5.5), sample(12.0, 0.1)], 10.0);
        assert_eq!(chart.lines[0].points, [(1.0, 0.5)]);
    }

    #[test]
    fn quantiles_end_where_the_values_do() {
        let mut measure = Measure::new();
        for us in 1..=1_000u64 {
            measure.delivered(0, us * 1_000);
        }
        let chart = percentile_curve("x", &[("delivered", &measure.delivered_us)]);
        assert_eq!(chart.lines[0].points.last().map(|point| point.0), Some(0.999));
        let over_time = throughput(&measure.timeline, 0.0);
        assert_eq!(over_time.lines[0].points, [(0.0, 1_000.0)]);
    }
}
