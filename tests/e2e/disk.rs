//! A disk that fails or fills up under the real gateway.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};

use crate::support::PATIENCE;
use crate::support::disk::{FragileDisk, Operation, SECTOR_BYTES, SmallDisk};
use crate::support::gateway::{Gateway, Settings};
use crate::support::load::Load;
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_loses_nothing() {
    a_failure_loses_nothing(Operation::Sync).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_loses_nothing() {
    a_failure_loses_nothing(Operation::Write).await;
}

/// EIO once under load: the store is opened again in place and the gateway goes on. Then the power
/// fails: what a failed sync left in the page cache is not on the disk, whatever later syncs say.
async fn a_failure_loses_nothing(operation: Operation) {
    let disk = FragileDisk::mount(11);
    let data_dir = Some(disk.data_dir());
    let mut gateway = Gateway::start(Settings { data_dir, ..Settings::default() });
    let load = Load::start(&gateway).await;
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
