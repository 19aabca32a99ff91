use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc as std_mpsc;
use std::thread;

use super::auth::Verifier;
use super::*;
use crate::audit::{AuditFile, Pseudonyms};
use crate::transport::Acceptor;
use crate::transport::tls::ServerConfig;

/// A shard that answers at once; the test has its reporter.
struct FakeShard {
    drains: std_mpsc::Sender<DrainPlan>,
    answers: bool,
}

impl ShardPort for FakeShard {
    fn request_metrics(&self, reply: oneshot::Sender<ShardMetrics>) {
        let mut metrics = ShardMetrics::default();
        metrics.connections.set(21);
        if self.answers {
            reply.send(metrics).unwrap();
        }
    }

    fn apply(&self, _: ShardSettings, applied: oneshot::Sender<()>) {
        applied.send(()).unwrap();
    }

    fn drain(&self, plan: DrainPlan) {
        self.drains.send(plan).unwrap();
    }

    fn tell_keys_low(&self, _: KeysLowNews, _: OwnedSemaphorePermit) {}
}

struct World {
    control: Control,
    admin: SocketAddr,
    reporters: Vec<Mutex<Option<ShardReporter>>>,
    drains: std_mpsc::Receiver<DrainPlan>,
}

const PLAN: DrainPlan = DrainPlan { drain_ms_max: 50, reconnect_jitter_ms: 7 };

fn world(silent: Option<u16>) -> World {
    let admin = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = admin.local_addr().unwrap();
    let (reporters, reports) = shard_reports(2);
    let (drain_sender, drains) = std_mpsc::channel();
    let reporters = reporters.into_iter().map(|reporter| Mutex::new(Some(reporter))).collect();
    let port = |shard| {
        let answers = silent != Some(shard);
        Box::new(FakeShard { drains: drain_sender.clone(), answers }) as Box<dyn ShardPort>
    };
    let ports = (0..2).map(port).collect();
    World {
        control: Control {
            admin,
            ports,
            reports,
            drain: PLAN,
            certificate: Validity { not_before_unix_s: 1, not_after_unix_s: 77 },
            settings: settings(),
            keys_unix_ms: 0,
            refresher: None,
            reloader: None,
            audit: no_audit(),
            directory: None,
            keys_interface: None,
        },
        admin: address,
        reporters,
        drains,
    }
}

fn settings() -> ShardSettings {
    let place = tempfile::tempdir().unwrap();
    let files = dev::prepare(place.path()).unwrap();
    let loaded = tls_files::load(&files.certificate, &files.key).unwrap();
    ShardSettings {
        quic: None,
        acceptor: Acceptor::Tls(ServerConfig::new(loaded.certificates, loaded.key).unwrap()),
        verifier: Arc::new(Verifier::load(&files.jwks, "ringpost").unwrap()),
        limits: Arc::default(),
        reconnect_jitter_ms: 0,
        audits: false,
    }
}

fn no_audit() -> AuditLog {
    let place = tempfile::tempdir().unwrap();
    let file = AuditFile::open(None).unwrap();
    AuditLog::start(file, Pseudonyms::of(place.path()).unwrap()).unwrap()
}

fn request(admin: SocketAddr, line: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin).unwrap();
    write!(stream, "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

fn take(reporter: &Mutex<Option<ShardReporter>>) -> ShardReporter {
    reporter.lock().unwrap().take().unwrap()
}

fn ready(reporter: &Mutex<Option<ShardReporter>>) {
    reporter.lock().unwrap().as_ref().unwrap().ready();
}

fn set_reopening(reporter: &Mutex<Option<ShardReporter>>, reopening: bool) {
    reporter.lock().unwrap().as_ref().unwrap().set_reopening(reopening);
}

/// The only test that raises a signal: the whole process gets it.
#[test]
fn a_gateway_starts_serves_and_drains() {
    let World { control, admin, reporters, drains } = world(Some(1));
    let (serving, is_serving) = std_mpsc::channel();
    let control = thread::spawn(move || control.run(move || serving.send(()).unwrap()));

    let (status, answer) = request(admin, "GET /healthz");
    assert!(status == 200 && answer.contains(r#""status":"alive""#), "{answer}");
    ready(&reporters[0]);
    let (status, answer) = request(admin, "GET /readyz");
    assert!(status == 503 && answer.contains("starting"), "{answer}");
    ready(&reporters[1]);
    is_serving.recv().unwrap();
    let (status, answer) = request(admin, "GET /readyz");
    assert!(status == 200 && answer.contains(r#""shards_ready":2"#), "{answer}");

    set_reopening(&reporters[1], true);
    let (status, answer) = request(admin, "GET /readyz");
    assert!(status == 503 && answer.contains(r#""status":"reopening""#), "{answer}");
    assert!(answer.contains(r#""shards_reopening":[1]"#), "{answer}");
    assert!(answer.contains(r#""shards_ready":1"#) && answer.contains("reason"), "{answer}");
    set_reopening(&reporters[1], false);
    assert_eq!(request(admin, "GET /readyz").0, 200);

    let (status, answer) = request(admin, "GET /metrics");
    assert!(status == 200 && answer.contains("\nringpost_connections 21\n"), "{answer}");
    assert!(answer.contains("\nringpost_shards_silent 1\n"), "{answer}");
    let expiry = "\nringpost_certificate_not_after_timestamp_seconds 77\n";
    assert!(answer.contains(expiry), "{answer}");
    assert!(answer.contains("\nringpost_reloads_total{result=\"ok\"} 0\n"), "{answer}");
    assert!(answer.contains("\nprocess_cpu_seconds_total "), "{answer}");
    assert_eq!(request(admin, "GET /").0, 404);
    let (status, answer) = request(admin, "POST /metrics");
    assert!(status == 405 && answer.contains("allow: GET, HEAD"), "{answer}");

    let kill = format!("kill -TERM {}", std::process::id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(drains.recv().unwrap(), PLAN);
    assert_eq!(drains.recv().unwrap(), PLAN);
    let (status, answer) = request(admin, "GET /readyz");
    assert!(status == 503 && answer.contains("draining"), "{answer}");
    for reporter in &reporters {
        take(reporter).drained();
    }
    assert!(matches!(control.join().unwrap(), Ok(ExitReason::Drained)));
}

#[test]
fn a_failing_shard_ends_the_gateway() {
    let World { control, reporters, .. } = world(None);
    take(&reporters[1]).failed("the disk is full");
    let fault = control.run(|| unreachable!("never ready")).unwrap_err();
    assert_eq!(fault.to_string(), "shard 1 failed: the disk is full");
}

#[test]
fn a_shard_that_vanishes_is_noticed() {
    let World { control, reporters, .. } = world(None);
    ready(&reporters[0]);
    drop(take(&reporters[0]));
    let fault = control.run(|| {}).unwrap_err();
    assert!(matches!(fault, ControlFault::ShardFailed { shard: 0, .. }), "{fault}");
}
