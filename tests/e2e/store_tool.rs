//! `ringpost store` on what a real gateway left, and a reader that knows the format page only.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ringpost_client::Status;
use serde_json::Value;

use crate::support::binaries::binaries;
use crate::support::gateway::{Gateway, Settings};
use crate::support::peer::{Peer, Place};

/// Mailbox to its queued entries.
pub type Queues = BTreeMap<String, Vec<Value>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_written_from_the_format_page_sees_what_the_store_sees() {
    let mut gateway = filled_gateway().await;
    let data_dir = data_dir(&gateway);
    gateway.kill();
    let queues = inspected_queues(&data_dir);
    let kinds = |kind: &str| {
        let entries = queues.values().flatten();
        entries.filter(|entry| entry["kind"] == kind).count()
    };
    assert!(kinds("message") >= 200 && kinds("receipt") > 0, "{queues:?}");
    assert_eq!(read_queues(&data_dir), queues);

    // Again after a start, which replays, and after compaction, which writes anew.
    gateway.restart();
    assert_eq!(gateway.stop().code(), Some(0));
    assert_eq!(places_left_out(inspected_queues(&data_dir)), places_left_out(queues.clone()));
    assert_eq!(read_queues(&data_dir), inspected_queues(&data_dir));
    assert_eq!(store(&["compact"], &data_dir).status.code(), Some(0));
    assert_eq!(places_left_out(inspected_queues(&data_dir)), places_left_out(queues.clone()));
    assert_eq!(read_queues(&data_dir), inspected_queues(&data_dir));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_tells_whole_damaged_and_running_apart() {
    let mut gateway = filled_gateway().await;
    let data_dir = data_dir(&gateway);
    let running = store(&["verify"], &data_dir);
    assert_eq!(running.status.code(), Some(2), "{running:?}");
    assert!(String::from_utf8_lossy(&running.stderr).contains("in use by another gateway"));
    gateway.kill();
    let clean = store(&["verify"], &data_dir);
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    let nowhere = store(&["verify"], gateway.path());
    assert_eq!(nowhere.status.code(), Some(2), "{nowhere:?}");

    // A copy without its lock will do, and so does one shard's directory.
    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("copy");
    assert!(Command::new("cp").arg("-r").args([&data_dir, &copied]).status().unwrap().success());
    fs::remove_file(copied.join("LOCK")).unwrap();
    let records = inspect(&["--records"], &copied);
    let record = records.iter().find(|line| line["type"] == "record" && line["kind"] == "message");
    let record = record.unwrap();
    let shard = copied.join(format!("store/gen-1/shard-{:03}", record["shard"].as_u64().unwrap()));
    let segment = shard.join(record["segment"].as_str().unwrap());
    let file = fs::File::options().write(true).read(true).open(segment).unwrap();
    let at = record["offset"].as_u64().unwrap() + 40;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    for directory in [&copied, &shard] {
        let damaged = store(&["verify", "--json"], directory);
        assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
        let findings = lines(&damaged);
        let damage = findings.iter().find(|line| line["type"] == "damage").unwrap();
        let text = damage["text"].as_str().unwrap();
        assert!(text.contains("attested") && text.contains("batches"), "{text}");
        assert_eq!(findings.last().unwrap()["is_clean"], false);
    }
    assert_eq!(store(&["compact"], &copied).status.code(), Some(1), "something was left behind");
    assert_eq!(store(&["verify"], &copied).status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_frees_what_is_dead_and_keeps_what_waits() {
    let settings = Settings::default();
    let mut gateway = Gateway::start(settings);
    let place = Place::new();
    let sender = Peer::connect(&gateway, "sender", "phone", &place.file("sender")).await;
    let reader = Peer::connect(&gateway, "reader", "phone", &place.file("reader")).await;
    Peer::connect(&gateway, "absent", "phone", &place.file("absent")).await.close().await;
    for number in 0..400 {
        let to = if number % 10 == 0 { "absent" } else { "reader" };
        sender.send(to, &format!("{number} {}", "x".repeat(5000))).await;
    }
    sender.wait_sent(400).await;
    reader.wait_messages(360).await;
    reader.close().await;
    sender.close().await;
    assert_eq!(gateway.stop().code(), Some(0));

    let data_dir = data_dir(&gateway);
    let compacted = store(&["compact", "--json"], &data_dir);
    assert_eq!(compacted.status.code(), Some(0), "{compacted:?}");
    let figures = &lines(&compacted)[0];
    let bytes = |key: &str| figures[key].as_u64().unwrap();
    assert!(bytes("bytes_after") < bytes("bytes_before") / 4, "{figures}");
    assert_eq!((bytes("devices"), bytes("generation")), (3, 2));
    gateway.restart();
    let absent = Peer::connect(&gateway, "absent", "phone", &place.file("absent")).await;
    absent.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
    let texts = absent.close().await.texts();
    let numbers: Vec<_> = texts.iter().map(|text| text.split(' ').next().unwrap()).collect();
    let expected: Vec<_> = (0..400).step_by(10).map(|number: i32| number.to_string()).collect();
    assert_eq!(numbers, expected);
}

/// Everything that a mailbox can hold, some of it acknowledged, in two storage shards.
async fn filled_gateway() -> Gateway {
    let gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let open = async |user: &str, device: &str| {
        Peer::connect(&gateway, user, device, &place.file(&format!("{user}-{device}"))).await
    };
    // Two devices share a record; the sender is away when what it sent is delivered.
    for user in ["ada", "bert", "cleo", "dora"] {
        open(user, "phone").await.close().await;
        open(user, "tablet").await.close().await;
    }
    let sender = open("sender", "phone").await;
    for number in 0..60 {
        for user in ["ada", "bert", "cleo", "dora"] {
            sender.send(user, &format!("{number} to {user}")).await;
        }
    }
    sender.wait_sent(240).await;
    sender.close().await;
    for user in ["ada", "cleo"] {
        let peer = open(user, "phone").await;
        peer.wait_messages(60).await;
        peer.close().await;
    }
    gateway
}

fn data_dir(gateway: &Gateway) -> PathBuf {
    gateway.path().join("store")
}

pub fn store(arguments: &[&str], directory: &Path) -> Output {
    Command::new(&binaries().gateway).arg("store").args(arguments).arg(directory).output().unwrap()
}

pub fn inspect(arguments: &[&str], directory: &Path) -> Vec<Value> {
    let arguments: Vec<_> = ["inspect", "--json"].iter().chain(arguments).copied().collect();
    let output = store(&arguments, directory);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    lines(&output)
}

fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn inspected_queues(data_dir: &Path) -> Queues {
    let mailboxes = inspect(&["--mailboxes"], data_dir);
    let mailboxes = mailboxes.into_iter().filter(|line| line["type"] == "mailbox");
    let queue = |line: Value| {
        let key = format!("{} {}", line["shard"], line["mailbox"].as_str().unwrap());
        (key, line["entries"].as_array().unwrap().clone())
    };
    mailboxes.map(queue).collect()
}

pub fn read_queues(data_dir: &Path) -> Queues {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/format/reader.py");
    let output = Command::new("python3").arg(reader).arg(data_dir).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut queues = Queues::new();
    for shard in found["shards"].as_array().unwrap() {
        for (mailbox, entries) in shard["mailboxes"].as_object().unwrap() {
            let key = format!("{} {mailbox}", shard["shard"]);
            queues.insert(key, entries.as_array().unwrap().clone());
        }
    }
    queues
}

/// Restarts and compaction move records.
fn places_left_out(mut queues: Queues) -> Queues {
    for entry in queues.values_mut().flatten() {
        *entry = serde_json::json!([entry["seq"], entry["kind"]]);
    }
    queues
}
