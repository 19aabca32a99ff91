use std::sync::{Arc, Mutex};

use ringpost_protocol::id::UserId;
use ringpost_ring::Group;

use super::*;
use crate::control::shard_reports;
use crate::directory::InMemory;
use crate::directory::rules::tests::{fetch, publish, taken};
use crate::mesh::{Mesh, Source};
use crate::shard::message::MeshMessage;

/// Fails as often as told, and notes the sizes of its batches.
#[derive(Default)]
struct Fragile {
    inner: InMemory,
    batches: Arc<Mutex<Vec<usize>>>,
    failures: u32,
}

impl Directory for Fragile {
    fn apply(&mut self, now_ms: u64, requests: &[Request]) -> Result<Vec<Answer>, DirectoryFault> {
        if self.failures > 0 {
            self.failures -= 1;
            return Err(DirectoryFault::DiskFull);
        }
        self.batches.lock().unwrap().push(requests.len());
        self.inner.apply(now_ms, requests)
    }

    fn stock(&self) -> u64 {
        self.inner.stock()
    }

    fn recover(&mut self) -> Result<(), DirectoryFault> {
        match self.failures {
            0 => Ok(()),
            _ => self.apply(0, &[]).map(|_| ()),
        }
    }
}

fn answer(mesh: &Mesh) -> (u32, Answer) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if let Some(inbound) = mesh.pop() {
            assert_eq!(inbound.from, Source::Directory);
            let MeshMessage::Answered(answered) = inbound.message else { panic!() };
            return (answered.ticket, answered.answer);
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("no answer");
}

fn running(directory: Fragile) -> (Running, Mesh) {
    let queues = Queues::new(Group::new(1).unwrap());
    let (reporters, _reports) = shard_reports(1);
    let reporter = DirectoryReporter::beside(&reporters[0]);
    let running = start(Box::new(directory), queues.clone(), reporter).unwrap();
    (running, Mesh::new(0, queues))
}

#[test]
fn answers_come_in_order_and_all_of_them_before_the_end() {
    let (running, mesh) = running(Fragile::default());
    let mut port = running.shard_port(0);
    port.ask(0, publish(("bob", "phone"), 1, 0..100));
    for ticket in 1..=100 {
        port.ask(ticket, fetch("bob"));
    }
    let metrics = running.control_port().metrics;
    drop(port);
    running.into_thread().join().unwrap();
    assert!(matches!(answer(&mesh), (0, Answer::Published { stock: 100 })));
    for ticket in 1..=100 {
        let (of, answer) = answer(&mesh);
        assert_eq!((of, taken(&answer)[0].1), (ticket, Some(ticket - 1)));
    }
    let mut text = String::new();
    metrics.expose(&mut text);
    assert!(text.contains("ringpost_one_time_keys_handed_out_total 100\n"), "{text}");
    assert!(text.contains("ringpost_one_time_keys 0\n"), "{text}");
    assert!(text.contains("ringpost_directory_batch_requests_sum 101\n"), "{text}");
}

#[test]
fn failure_is_told_and_passes() {
    let (running, mesh) = running(Fragile { failures: 2, ..Fragile::default() });
    let mut port = running.shard_port(0);
    port.ask(0, fetch("bob"));
    assert_eq!(answer(&mesh), (0, Answer::Failed));
    let mut ticket = 1;
    // Refused as long as it is not open again.
    let recovered = loop {
        port.ask(ticket, fetch("bob"));
        let (of, answer) = answer(&mesh);
        assert_eq!(of, ticket);
        if answer != Answer::Failed {
            break answer;
        }
        ticket += 1;
    };
    assert_eq!(taken(&recovered), []);
    drop(port);
    running.into_thread().join().unwrap();
}

#[test]
fn what_waits_is_one_batch() {
    let batches = Arc::default();
    let (asked, questions) = sync_channel(10);
    let queues = Queues::new(Group::new(1).unwrap());
    let mesh = Mesh::new(0, queues.clone());
    let mut port = ShardQueue { shard: 0, asked };
    for ticket in 0..10 {
        port.ask(ticket, fetch("bob"));
    }
    drop(port);
    let directory = Box::new(Fragile { batches: Arc::clone(&batches), ..Fragile::default() });
    let metrics = Arc::new(DirectoryMetrics::new(0));
    let (reporters, _reports) = shard_reports(1);
    let desk = Desk { directory, questions, queues, metrics };
    desk.run(DirectoryReporter::beside(&reporters[0]));
    assert_eq!(*batches.lock().unwrap(), [10]);
    assert_eq!(mesh.depth(), 10);
}

/// A request stays in the queue when who asked has left: it counts until it is answered, so that the
/// control thread never takes the room of the shards.
#[tokio::test]
async fn requests_of_control_count_until_they_are_answered() {
    let (asked, questions) = sync_channel(8);
    let metrics = Arc::new(DirectoryMetrics::new(0));
    let port = ControlPort { asked, permits: Arc::new(Semaphore::new(2)), metrics };
    let ask = || port.ask(Request::GetList { user: UserId::new("alice").unwrap() });
    for _ in 0..2 {
        let left = tokio::time::timeout(Duration::from_millis(1), ask()).await;
        assert!(left.is_err(), "nobody answers");
    }
    assert_eq!(ask().await, Answer::Failed);
    assert_eq!(questions.try_iter().count(), 2);
    // Both are gone, and with them what they had taken.
    let left = tokio::time::timeout(Duration::from_millis(1), ask()).await;
    assert!(left.is_err(), "there is room again");
}
