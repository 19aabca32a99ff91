use std::collections::HashSet;

use super::*;

fn exposed(metrics: &ShardMetrics) -> String {
    let mut text = String::new();
    metrics.expose(&mut text);
    text
}

#[test]
fn shards_are_summed() {
    let mut one = ShardMetrics::default();
    one.connections += 3;
    one.connections -= 1;
    one.bound_hits.add(Bound::MeshCredits);
    one.time_to_delivery.observe(50_000);
    let mut two = ShardMetrics::default();
    two.connections.set(5);
    two.set_ring(&RingCounters { enters: 9, ..RingCounters::default() });
    two.bound_hits.add(Bound::MeshCredits);
    two.time_to_delivery.observe(2_400_000);
    two.time_to_delivery.observe(u64::MAX / 4);
    one.merge(&two);

    let text = exposed(&one);
    for line in [
        "# HELP ringpost_connections Open client sockets.",
        "# TYPE ringpost_connections gauge",
        "ringpost_connections 7",
        "ringpost_ring_enters_total 9",
        "ringpost_bound_hits_total{bound=\"mesh_credits\"} 2",
        "ringpost_hello_refused_total{code=\"token_expired\"} 0",
        "# TYPE ringpost_time_to_delivery_seconds histogram",
        "ringpost_time_to_delivery_seconds_bucket{le=\"0.00005\"} 1",
        "ringpost_time_to_delivery_seconds_bucket{le=\"0.001\"} 1",
        "ringpost_time_to_delivery_seconds_bucket{le=\"0.0025\"} 2",
        "ringpost_time_to_delivery_seconds_bucket{le=\"3600\"} 2",
        "ringpost_time_to_delivery_seconds_bucket{le=\"+Inf\"} 3",
        "ringpost_time_to_delivery_seconds_count 3",
        "ringpost_store_batch_records_bucket{le=\"16384\"} 0",
    ] {
        assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
    }
}

/// The rules of the format: HELP and TYPE once per name and before its samples, counters end in
/// `_total`, no sample twice, every value a number, a newline at the end.
#[test]
fn the_exposition_keeps_the_rules_of_the_format() {
    let mut text = exposed(&ShardMetrics::default());
    ProcessMetrics::read().expose(&mut text);
    assert!(text.ends_with('\n'));
    let mut names = HashSet::new();
    let mut samples = HashSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            current = help.split_once(' ').unwrap().0.to_owned();
            assert!(names.insert(current.clone()), "{current} is described twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(&current), "{sample} follows {current}");
            assert!(samples.insert(sample), "{sample} twice");
            value.parse::<f64>().unwrap();
        }
    }
    assert!(names.len() > 30);
}

#[test]
fn buckets_hold_their_bound() {
    let mut histogram = Histogram::<Records>::default();
    for value in [0, 1, 2, 4, 5] {
        histogram.observe(value);
    }
    let mut text = String::new();
    histogram.expose("h", &mut text);
    assert!(text.starts_with("h_bucket{le=\"1\"} 2\nh_bucket{le=\"4\"} 4\nh_bucket{le=\"16\"} 5"));
    assert!(text.ends_with("h_sum 12\nh_count 5\n"), "{text}");
}
