use ringpost_ring::probe::Feature;

use super::*;

fn feature(name: &'static str, required: bool, present: bool) -> Feature {
    Feature { name, needed_by: "the test", since: "6.1", required, present }
}

/// A host made for a million connections.
fn large_host() -> Readings {
    Readings {
        kernel: "6.18.0".to_owned(),
        cores: 16,
        io_uring: Ok(vec![feature("OP_RECV", true, true)]),
        memlock_bytes: Some(Limit { soft: u64::MAX, hard: u64::MAX }),
        open_files: Some(Limit { soft: 1024, hard: 2_000_000 }),
        nr_open: Some(2_000_000),
        file_max: Some(4_000_000),
        somaxconn: Some(65_535),
        syn_backlog: Some(65_535),
        port_range: Some((1024, 65_535)),
        tcp_mem_pages: Some([1_000_000, 2_000_000, 3_000_000]),
        tcp_rmem_bytes: Some([4096, 16_384, 1 << 20]),
        tcp_wmem_bytes: Some([4096, 16_384, 1 << 20]),
        rmem_max_bytes: Some(2 << 20),
        wmem_max_bytes: Some(1 << 20),
        memory_bytes: Some(64 << 30),
        conntrack_max: None,
    }
}

const MILLION: Plan = Plan { connections: 1_000_000, shards: 16 };

fn verdict_of(readings: &Readings, plan: Plan, name: &str) -> Verdict {
    let checks = checks(readings, plan);
    let worst = checks.iter().filter(|check| check.name == name).map(|check| check.verdict);
    worst.max_by_key(|verdict| *verdict as u8).expect("a row of that name")
}

#[test]
fn a_large_host_passes_and_every_row_explains_itself() {
    let checks = checks(&large_host(), MILLION);
    assert!(!is_short(&checks));
    for check in &checks {
        assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        assert!(!check.why.is_empty() && !check.fix.is_empty(), "{check:?}");
    }
}

#[test]
fn each_shortage_is_found_alone() {
    type Change = fn(&mut Readings);
    let cases: [(&str, Change); 10] = [
        ("io_uring", |r| r.io_uring = Err("blocked".to_owned())),
        ("memlock", |r| r.memlock_bytes = Some(Limit { soft: 0, hard: 65_536 })),
        ("nofile (hard)", |r| r.open_files = Some(Limit { soft: 20_000, hard: 20_000 })),
        ("fs.nr_open", |r| r.nr_open = Some(1_000_000)),
        ("fs.file-max", |r| r.file_max = Some(1_000_000)),
        ("net.core.somaxconn", |r| r.somaxconn = Some(4096)),
        ("net.ipv4.tcp_max_syn_backlog", |r| r.syn_backlog = Some(4096)),
        ("net.ipv4.tcp_mem (max)", |r| r.tcp_mem_pages = Some([1, 2, 3])),
        ("memory", |r| r.memory_bytes = Some(4 << 30)),
        ("net.netfilter.nf_conntrack_max", |r| r.conntrack_max = Some(262_144)),
    ];
    for (name, change) in cases {
        let mut readings = large_host();
        change(&mut readings);
        let checks = checks(&readings, MILLION);
        let short: Vec<_> = checks.iter().filter(|c| c.verdict == Verdict::Short).collect();
        assert_eq!(short.len(), 1, "{name}");
        assert_eq!(short[0].name, name);
        assert!(is_short(&checks));
    }
}

#[test]
fn an_absent_feature_is_short_only_if_required() {
    let mut readings = large_host();
    readings.io_uring = Ok(vec![feature("NO_IOWAIT", false, false)]);
    assert_eq!(verdict_of(&readings, MILLION, "io_uring"), Verdict::Note);
    readings.io_uring = Ok(vec![feature("OP_MSG_RING", true, false)]);
    assert_eq!(verdict_of(&readings, MILLION, "io_uring"), Verdict::Short);
}

#[test]
fn what_the_host_does_not_say_is_a_note() {
    let mut readings = large_host();
    readings.somaxconn = None;
    readings.memory_bytes = None;
    readings.port_range = None;
    assert!(!is_short(&checks(&readings, MILLION)));
    assert_eq!(verdict_of(&readings, MILLION, "net.core.somaxconn"), Verdict::Note);
    assert_eq!(verdict_of(&readings, MILLION, "memory"), Verdict::Note);
    readings.rmem_max_bytes = Some(212_992);
    assert!(!is_short(&checks(&readings, MILLION)), "QUIC works with less");
    assert_eq!(verdict_of(&readings, MILLION, "net.core.rmem_max"), Verdict::Note);
    assert_eq!(verdict_of(&readings, MILLION, "net.core.wmem_max"), Verdict::Ok);
    assert_eq!(verdict_of(&readings, MILLION, "net.ipv4.ip_local_port_range"), Verdict::Note);
}

#[test]
fn wants_grow_with_the_plan() {
    let plan = |connections| Plan { connections, shards: 2 };
    assert_eq!(backlog(plan(1)), 128);
    assert_eq!(backlog(plan(64_000)), 4000);
    assert_eq!(backlog(plan(10_000_000)), 65_535);
    assert_eq!(descriptors(plan(1000)), 1000 + 2 * 64 + 256);
    let mut readings = large_host();
    readings.open_files = Some(Limit { soft: 1024, hard: 20_000 });
    assert_eq!(verdict_of(&readings, plan(19_000), "nofile (hard)"), Verdict::Ok);
    assert_eq!(verdict_of(&readings, plan(20_000), "nofile (hard)"), Verdict::Short);
}

#[test]
fn bytes_are_shown_for_people() {
    assert_eq!(bytes(768), "768 B");
    assert_eq!(bytes(8 << 20), "8.0 MiB");
    assert_eq!(bytes((3 << 30) + (1 << 29)), "3.5 GiB");
}
