//! A disk that fails or fills up under the real gateway.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use ringpost_client::Transports;
use ringpost_protocol::message::RejectCode;
use ringpost_protocol::wire::{self, GapReason, client_frame, server_frame};

use crate::support::PATIENCE;
use crate::support::disk::{FragileDisk, Operation, SECTOR_BYTES, SmallDisk};
use crate::support::gateway::{Gateway, Settings};
use crate::support::load::Load;
use crate::support::raw::{Raw, send_frame};
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_loses_nothing() {
    a_failure_loses_nothing(Operation::Sync, Transports::TlsOnly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_loses_nothing_over_quic() {
    a_failure_loses_nothing(Operation::Sync, Transports::QuicOnly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_loses_nothing() {
    a_failure_loses_nothing(Operation::Write, Transports::TlsOnly).await;
}

/// EIO once under load: the store is opened again in place and the gateway goes on. Then the power
/// fails: what a failed sync left in the page cache is not on the disk, whatever later syncs say.
async fn a_failure_loses_nothing(operation: Operation, transports: Transports) {
    let disk = FragileDisk::mount(11);
    let data_dir = Some(disk.data_dir());
    let mut gateway = Gateway::start(Settings { data_dir, ..Settings::default() });
    let load = Load::start_over(transports, &gateway).await;
    for skip in [0, 1, 5] {
        load.wait_for_progress(10).await;
        let (faults, reopens) = (disk.counts().faults, gateway.metric(REOPENS));
        disk.fail(operation, skip, 1);
        wait_until("the failure", || (disk.counts().faults > faults).then_some(()));
        wait_until("the store open again", || (gateway.metric(REOPENS) > reopens).then_some(()));
    }
    load.wait_for_progress(10).await;
    assert!(gateway.is_running());
    gateway.kill_and(|| disk.lose_power());
    disk.restore_power();
    gateway.restart();
    load.wait_for_progress(1).await;
    let messages = load.finish(PATIENCE).await.unwrap_or_else(|fault| panic!("{fault}"));
    println!("{messages} messages");
}

/// What does not go away: the process ends instead of trying for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_stays_broken_ends_the_process() {
    let disk = FragileDisk::mount(12);
    let data_dir = Some(disk.data_dir());
    let mut gateway = Gateway::start(Settings { data_dir, ..Settings::default() });
    let load = Load::start(&gateway).await;
    load.wait_for_progress(10).await;
    for operation in [Operation::Sync, Operation::Write] {
        disk.fail(operation, 0, u32::MAX);
    }
    let status = gateway.wait();
    assert_eq!(status.code(), Some(1), "{status}");
    disk.lose_power();
    disk.restore_power();
    gateway.restart();
    load.wait_for_progress(10).await;
    load.finish(PATIENCE).await.unwrap_or_else(|fault| panic!("{fault}"));
}

/// A stored message whose sectors cannot be read any more: its device is told of damage and gets
/// what came after it; others on the same disk notice nothing, and the gateway goes on, also from
/// the same disk.
#[test]
fn an_unreadable_record_is_told_as_damage_and_harms_nothing_else() {
    let disk = FragileDisk::mount(15);
    let data_dir = Some(disk.data_dir());
    let mut gateway = Gateway::start(Settings { shards: 1, data_dir, ..Settings::default() });
    for user in ["bob", "carol"] {
        drop(Raw::open(&gateway, user, "phone"));
    }
    let mut alice = Raw::open(&gateway, "alice", "phone");
    let send = |alice: &mut Raw, send_seq: u64, to: &str| {
        let text = format!("message {send_seq} for {to}.");
        alice.send(client_frame::Frame::Send(send_frame(send_seq, to, &text)));
        assert!(alice.expect_answer().1.is_ok());
    };
    for send_seq in 1..=20 {
        send(&mut alice, send_seq, if send_seq % 2 == 1 { "bob" } else { "carol" });
    }
    drop(alice);
    // So that nothing is in memory.
    assert!(gateway.stop().success());
    gateway.restart();
    disk.spoil("message 9 for bob.");

    let mut bob = Raw::open(&gateway, "bob", "phone");
    let (taken, gaps) = take_until_damaged(&mut bob);
    assert_eq!(taken, [1, 3, 5, 7, 11, 13, 15, 17, 19]);
    assert_eq!(gaps, [GapReason::Damaged]);
    assert_eq!(disk.counts().faults, READ_ATTEMPTS);
    let mut carol = Raw::open(&gateway, "carol", "phone");
    assert_eq!(take_until_caught_up(&mut carol), (2..=20).step_by(2).collect::<Vec<_>>());

    let mut alice = Raw::open(&gateway, "alice", "phone");
    for (send_seq, to, device) in [(21, "bob", &mut bob), (22, "carol", &mut carol)] {
        send(&mut alice, send_seq, to);
        let delivered = device.expect(|frame| match frame {
            server_frame::Frame::Deliver(deliver) => Some(deliver.send_seq),
            _ => None,
        });
        assert_eq!(delivered, send_seq);
    }
    assert_eq!(gateway.metric(REOPENS), 0.0, "one record is no reason to open the store again");
    gateway.kill();
    gateway.restart();
    let mut bob = Raw::open(&gateway, "bob", "phone");
    assert_eq!(take_until_caught_up(&mut bob), [21]);
    assert!(gateway.is_running());
}

/// What is delivered until a Gap has told of damage and the mailbox is at its end, all of which is
/// acknowledged. The Gap comes once it is durable: behind later messages, and behind CaughtUp.
fn take_until_damaged(device: &mut Raw) -> (Vec<u64>, Vec<GapReason>) {
    let (mut taken, mut gaps, mut caught_up) = (Vec::new(), Vec::new(), false);
    while gaps.is_empty() || !caught_up {
        let seq = match device.read_frame().expect("the connection has ended") {
            server_frame::Frame::Deliver(deliver) => {
                taken.push(deliver.send_seq);
                deliver.seq
            }
            server_frame::Frame::Gap(gap) => {
                gaps.push(gap.reason());
                gap.seq
            }
            server_frame::Frame::CaughtUp(_) => {
                caught_up = true;
                continue;
            }
            _ => continue,
        };
        device.send(client_frame::Frame::Ack(wire::Ack { up_to_seq: seq }));
    }
    (taken, gaps)
}

#[test]
fn a_gateway_that_starts_on_a_full_disk_names_the_fix() {
    let disk = SmallDisk::mount(16 << 20);
    let ballast = disk.fill();
    let settings = Settings { data_dir: Some(disk.data_dir()), ..Settings::default() };
    let Err(log) = Gateway::try_start(settings.clone()) else { panic!("on a full disk") };
    assert!(log.contains("free disk space"), "{log}");
    fs::remove_file(ballast).unwrap();
    let mut gateway = Gateway::start(Settings { shards: 1, ..settings });
    assert!(gateway.stop().success());
}

#[test]
fn a_full_ext4_refuses_messages_and_recovers() {
    let disk = SmallDisk::mount(48 << 20);
    let ballast = disk.path().join(SmallDisk::BALLAST);
    a_full_disk(disk.data_dir(), || drop(disk.fill()), || fs::remove_file(ballast).unwrap());
}

#[test]
fn a_disk_full_at_once_refuses_messages_and_recovers() {
    let disk = FragileDisk::mount(14);
    let (fill, free) = (|| disk.set_free_bytes(Some(0)), || disk.set_free_bytes(None));
    a_full_disk(disk.data_dir(), fill, free);
}

/// Sends are refused, what is stored is delivered and acknowledged, and with room all goes on by
/// itself; after a restart every accepted message is there once.
fn a_full_disk(data_dir: PathBuf, fill: impl FnOnce(), free: impl FnOnce()) {
    let settings = Settings { shards: 1, data_dir: Some(data_dir), ..Settings::default() };
    let mut gateway = Gateway::start(settings);
    // Many: none of their mailboxes shall be full before the disk is.
    let recipients: Vec<String> = (0..12).map(|number| format!("recipient-{number}")).collect();
    for recipient in &recipients {
        drop(Raw::open(&gateway, recipient, "phone"));
    }
    let mut alice = Raw::open(&gateway, "alice", "phone");
    let mut accepted = vec![Vec::new(); recipients.len()];
    fill();
    let mut send_seq = 0;
    let refused = loop {
        send_seq += 1;
        assert!(send_seq < 1000, "the disk does not fill up");
        let index = usize::try_from(send_seq).unwrap() % recipients.len();
        let code = send_large(&mut alice, send_seq, &recipients[index], false);
        match code {
            None => accepted[index].push(send_seq),
            Some(code) => break (index, code),
        }
    };
    assert_eq!(refused.1, RejectCode::StorageFull);
    assert!(accepted[0].len() > 1, "filled before it was used");

    let mut phone = Raw::open(&gateway, &recipients[0], "phone");
    assert_eq!(take_until_caught_up(&mut phone), accepted[0]);
    accepted[0].clear();
    drop(phone);
    // An acknowledgement counts once it is durable; until then its message comes again.
    wait_until("acknowledged on the full disk", || {
        let mut phone = Raw::open(&gateway, &recipients[0], "phone");
        take_until_caught_up(&mut phone).is_empty().then_some(())
    });
    assert!(gateway.is_running());

    free();
    wait_until("room for messages", || {
        send_seq += 1;
        let answer = send_large(&mut alice, send_seq, &recipients[refused.0], true);
        assert!(answer.is_none_or(|code| code == RejectCode::StorageFull), "{answer:?}");
        answer.is_none().then(|| accepted[refused.0].push(send_seq))
    });
    gateway.kill();
    gateway.restart();
    for (recipient, accepted) in recipients.iter().zip(accepted) {
        let mut phone = Raw::open(&gateway, recipient, "phone");
        assert_eq!(take_until_caught_up(&mut phone), accepted, "{recipient}");
    }
}

/// Why it was refused.
fn send_large(sender: &mut Raw, send_seq: u64, to: &str, after_reject: bool) -> Option<RejectCode> {
    let text = "x".repeat(40_000);
    let send = wire::Send { after_reject, ..send_frame(send_seq, to, &text) };
    sender.send(client_frame::Frame::Send(send));
    let (answered, answer) = sender.expect_answer();
    assert_eq!(answered, send_seq);
    answer.err().map(|rejected| rejected.code())
}

/// The numbers of what is delivered, all of which is acknowledged.
fn take_until_caught_up(device: &mut Raw) -> Vec<u64> {
    let mut taken = Vec::new();
    loop {
        match device.read_frame().expect("the connection has ended") {
            server_frame::Frame::Deliver(deliver) => {
                taken.push(deliver.send_seq);
                let ack = wire::Ack { up_to_seq: deliver.seq };
                device.send(client_frame::Frame::Ack(ack));
            }
            server_frame::Frame::CaughtUp(_) => break,
            _ => {}
        }
    }
    // Its answer comes after the acknowledgements were taken.
    device.send(client_frame::Frame::Ping(wire::Ping {}));
    device.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(()));
    taken
}

/// The tool itself: what was synced is there after a power failure, of the rest any sector or none.
#[test]
fn the_fragile_disk_keeps_what_was_synced_and_nothing_else_for_sure() {
    let disk = FragileDisk::mount(13);
    let names = ["synced", "half", "nameless"].map(|name| disk.path().join(name));
    let [synced, half, nameless] = &names;
    let old = vec![1; 100 * SECTOR_BYTES];
    for path in [synced, half] {
        fs::write(path, &old).unwrap();
        File::open(path).unwrap().sync_all().unwrap();
    }
    File::open(disk.path()).unwrap().sync_all().unwrap();
    let mut open = File::options().write(true).open(half).unwrap();
    open.write_all(&vec![2; 100 * SECTOR_BYTES]).unwrap();
    // A failed sync gives up what it should have written, and the next one does not know.
    disk.fail(Operation::Sync, 0, 1);
    assert_eq!(open.sync_data().unwrap_err().raw_os_error(), Some(EIO));
    open.sync_data().unwrap();
    assert!(fs::read(half).unwrap().iter().all(|byte| *byte == 2), "the cache has it");
    for number in 0..20 {
        fs::write(nameless.with_extension(number.to_string()), "synced without its name").unwrap();
    }

    let loss = disk.lose_power();
    assert!(loss.sectors_lost > 0 && loss.sectors_kept > 0, "{loss:?}");
    assert!(loss.names_lost > 0 && loss.names_kept > 0, "{loss:?}");
    assert!(fs::read(synced).is_err(), "the power is off");
    disk.restore_power();
    assert!(open.write_all(b"from before").is_err());
    assert!(fs::read(synced).unwrap() == old);
    let torn = fs::read(half).unwrap();
    let is_whole = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
    assert!(torn.chunks(SECTOR_BYTES).all(is_whole), "torn at sectors only");
    assert!(torn.contains(&1) && torn.contains(&2));

    disk.set_free_bytes(Some(1000));
    let full = fs::write(disk.path().join("large"), [0; 1001]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    disk.set_free_bytes(None);
    fs::write(disk.path().join("large"), [0; 1001]).unwrap();
}

const REOPENS: &str = "ringpost_store_reopens_total";
const EIO: i32 = 5;
/// Of a place, before it counts as lost.
const READ_ATTEMPTS: u64 = 3;
