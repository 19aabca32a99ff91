//! Files, the spill queue, wakes between threads, and a ring that is dropped while it works.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod support;

use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use ringpost_ring::{
    Completion, Errno, File, Group, Op, OpenMode, Outcome, Ring, Uring, UringConfig, WOKEN_TOKEN,
};
use support::{completion_of, pair, ring, ring_with, run_until, small};

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn run(ring: &mut Uring, op: Op) -> Result<Outcome, Errno> {
    let op = ring.submit(1, op);
    completion_of(ring, op).result
}

fn open(ring: &mut Uring, path: &Path, mode: OpenMode) -> Result<File, Errno> {
    match run(ring, Op::Open { path: c_path(path), mode })? {
        Outcome::Opened(file) => Ok(file),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_lives_from_create_to_unlink() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let mut ring = ring();
    let directory = open(&mut ring, folder.path(), OpenMode::Directory).unwrap();
    let file = open(&mut ring, &path, OpenMode::CreateNew).unwrap();
    assert_eq!(open(&mut ring, &path, OpenMode::CreateNew).unwrap_err(), Errno::EXIST);
    run(&mut ring, Op::SyncAll { file: directory }).unwrap();

    let data = Bytes::from((0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    run(&mut ring, Op::Write { file, offset: 10, data: data.clone() }).unwrap();
    run(&mut ring, Op::SyncData { file }).unwrap();
    run(&mut ring, Op::CloseFile { file }).unwrap();

    let file = open(&mut ring, &path, OpenMode::ReadOnly).unwrap();
    let whole = Op::Read { file, offset: 10, length_bytes: 1_200_000 };
    let Ok(Outcome::Read(read)) = run(&mut ring, whole) else { panic!() };
    assert!(read == data);
    let past_the_end = Op::Read { file, offset: 1_200_000, length_bytes: 4096 };
    let Ok(Outcome::Read(read)) = run(&mut ring, past_the_end) else { panic!() };
    assert_eq!(read, data[1_199_990..]);
    let write = Op::Write { file, offset: 0, data: Bytes::from_static(b"read only") };
    assert!(run(&mut ring, write).is_err());
    run(&mut ring, Op::CloseFile { file }).unwrap();

    run(&mut ring, Op::Unlink { path: c_path(&path) }).unwrap();
    assert_eq!(open(&mut ring, &path, OpenMode::ReadWrite).unwrap_err(), Errno::NOENT);
    run(&mut ring, Op::CloseFile { file: directory }).unwrap();
}

#[test]
fn thousands_of_submissions_spill_and_all_complete() {
    const WRITES: u32 = 5000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let mut ring = ring_with(small());
    let file = open(&mut ring, &path, OpenMode::CreateNew).unwrap();
    for n in 0..WRITES {
        let data = Bytes::copy_from_slice(&n.to_le_bytes());
        ring.submit(u64::from(n), Op::Write { file, offset: u64::from(n) * 4, data });
    }
    assert!(ring.counters().spilled > u64::from(WRITES) - 16);
    let mut seen = vec![false; WRITES as usize];
    run_until(&mut ring, |ring, completion| {
        completion.result.unwrap();
        let seen = &mut seen[usize::try_from(completion.token).unwrap()];
        assert!(!*seen);
        *seen = true;
        ring.in_flight() == 0
    });
    assert!(seen.iter().all(|seen| *seen));
    let written = std::fs::read(&path).unwrap();
    let expected: Vec<u8> = (0..WRITES).flat_map(u32::to_le_bytes).collect();
    assert!(written == expected);
}

#[test]
fn completions_survive_an_overflow_of_their_queue() {
    const SOCKETS: usize = 200;
    let (sockets, mut peers): (Vec<_>, Vec<_>) = (0..SOCKETS).map(|_| pair()).unzip();
    let config = UringConfig { receive_buffer_count: 512, ..small() };
    let mut ring = ring_with(config);
    for (index, socket) in sockets.iter().enumerate() {
        ring.submit(index as u64, Op::Recv { socket: *socket, multishot: true });
    }
    let mut completions = Vec::new();
    for _ in 0..SOCKETS {
        ring.enter(0, &mut completions);
    }
    assert!(completions.is_empty());
    for peer in &mut peers {
        peer.write_all(b"x").unwrap();
    }
    let mut received = 0;
    let mut rearmed = 0;
    run_until(&mut ring, |ring, completion| {
        let Ok(Outcome::Received(Some(lease))) = completion.result else { panic!() };
        ring.release(lease);
        received += 1;
        rearmed += usize::from(!completion.more);
        received == SOCKETS
    });
    assert_eq!(ring.in_flight() + rearmed, SOCKETS);
    assert!(ring.counters().overflows > 0);
}

/// One thread counts up a shared number and wakes the other only when that one sleeps.
#[test]
fn a_sleeping_shard_misses_no_wake() {
    const ROUNDS: u64 = 100_000;
    let group = Group::new(2).unwrap();
    // Two queues of one word each: a token that goes to and fro.
    let words = [AtomicU64::new(0), AtomicU64::new(0)];
    let wakes = AtomicU64::new(0);
    let started = std::time::Instant::now();
    thread::scope(|scope| {
        for shard in 0..2u16 {
            let (group, words, wakes) = (&group, &words, &wakes);
            scope.spawn(move || {
                let mut ring = Uring::new(group, shard, UringConfig::default()).unwrap();
                let (mine, theirs) = (&words[usize::from(shard)], &words[usize::from(1 - shard)]);
                let mut done = 0;
                let mut completions = Vec::new();
                if shard == 0 {
                    mine.store(1, Ordering::Release);
                }
                while done < ROUNDS {
                    if mine.load(Ordering::Acquire) > done {
                        done += 1;
                        // Shard 0 sends round n and gets n + 1 back.
                        let next = if shard == 0 { done } else { done + 1 };
                        theirs.store(next, Ordering::Release);
                        if group.claim(1 - shard) {
                            wakes.fetch_add(1, Ordering::Relaxed);
                            ring.submit(0, Op::Wake { shard: 1 - shard });
                        }
                    }
                    group.arm(shard);
                    let idle = mine.load(Ordering::Acquire) <= done && done < ROUNDS;
                    ring.enter(if idle { 20_000_000_000 } else { 0 }, &mut completions);
                    group.disarm(shard);
                    let woken = completions.drain(..).all(|c| c.token == WOKEN_TOKEN);
                    assert!(woken, "only wakes are expected");
                }
                ring.enter(0, &mut completions);
            });
        }
    });
    assert!(wakes.load(Ordering::Relaxed) > 0);
    println!("{wakes:?} wakes for {ROUNDS} rounds in {:?}", started.elapsed());
}

#[test]
fn a_thread_without_a_ring_wakes_a_shard_again_and_again() {
    let group = Group::new(1).unwrap();
    let handle = group.handle(0);
    handle.wake(); // before there is a ring
    let mut ring = Uring::new(&group, 0, UringConfig::default()).unwrap();
    let mut woken = 0;
    let waker = thread::spawn(move || {
        for _ in 0..200 {
            handle.wake();
            thread::sleep(std::time::Duration::from_micros(200));
        }
    });
    run_until(&mut ring, |_, completion| {
        assert_eq!(completion.token, WOKEN_TOKEN);
        assert!(matches!(completion.result, Ok(Outcome::Woken)));
        woken += 1;
        woken == 100
    });
    waker.join().unwrap();
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn waking_a_shard_without_a_ring_does_nothing_and_oneself_something() {
    let group = Group::new(2).unwrap();
    let mut ring = Uring::new(&group, 0, UringConfig::default()).unwrap();
    ring.submit(1, Op::Wake { shard: 1 });
    let mut completions: Vec<Completion> = Vec::new();
    ring.enter(10_000_000, &mut completions);
    assert!(completions.is_empty());
    ring.submit(1, Op::Wake { shard: 0 });
    ring.enter(u64::MAX, &mut completions);
    assert_eq!(completions.pop().unwrap().token, WOKEN_TOKEN);
}

#[test]
fn a_ring_may_be_dropped_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let group = Group::new(1).unwrap();
    for round in 0..5 {
        let (socket, mut peer) = pair();
        let (full, _reads_nothing) = pair();
        let mut ring = Uring::new(&group, 0, small()).unwrap();
        let path = folder.path().join(round.to_string());
        let file = open(&mut ring, &path, OpenMode::CreateNew).unwrap();
        ring.submit(2, Op::Recv { socket, multishot: true });
        peer.write_all(&[1; 100]).unwrap();
        for _ in 0..20 {
            let data = Bytes::from(vec![2; 1 << 18]);
            ring.submit(3, Op::Send { socket: full, data: vec![data.clone(), data.clone()] });
            ring.submit(4, Op::Write { file, offset: 0, data });
            ring.submit(5, Op::SyncData { file });
            ring.submit(6, Op::Open { path: c_path(&path), mode: OpenMode::ReadOnly });
        }
        for _ in 0..round {
            let mut completions = Vec::new();
            ring.enter(0, &mut completions);
        }
        assert!(ring.in_flight() > 0);
        drop(ring);
        // The receive is gone with the ring: what comes now stays in the socket.
        peer.write_all(b"later").unwrap();
        let mut again = ring_with(small());
        again.submit(1, Op::Recv { socket, multishot: true });
        let mut last = Vec::new();
        run_until(&mut again, |ring, completion| {
            if let Ok(Outcome::Received(Some(lease))) = completion.result {
                last.extend_from_slice(ring.bytes(&lease));
                ring.release(lease);
            }
            last.ends_with(b"later")
        });
        peer.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(peer.read(&mut [0; 8]).unwrap_or(0), 0);
    }
}
