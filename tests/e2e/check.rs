//! `ringpost check`: finds what a start would refuse, and disturbs nothing.

use std::path::Path;
use std::process::Command;

use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

use crate::support::binaries::binaries;
use crate::support::gateway::{Gateway, Settings, own_address};
use crate::support::keys::Keys;
use crate::support::raw::Raw;

/// Exit code and what was printed.
fn check(config: &Path, more: &[&str]) -> (i32, String) {
    let output = Command::new(&binaries().gateway)
        .args(["check", "--config"])
        .arg(config)
        .args(more)
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// The findings of one grade, as JSON has them.
fn findings(config: &Path, grade: &str) -> Vec<Value> {
    let (code, text) = check(config, &["--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, i32::from(report["problems"] != 0), "{text}");
    let all = report["findings"].as_array().unwrap().clone();
    all.into_iter().filter(|finding| finding["grade"] == grade).collect()
}

#[test]
fn a_gateway_that_runs_is_fine_and_stays_so() {
    let gateway = Gateway::start(Settings::default());
    let (code, text) = check(&gateway.config_path(), &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("0 problems, 0 warnings") && text.contains("a gateway runs"), "{text}");
    assert_eq!(findings(&gateway.config_path(), "ok").len(), 9);
    Raw::open(&gateway, "alice", "phone");
}

#[test]
fn everything_wrong_is_named_at_once() {
    let place = tempfile::tempdir().unwrap();
    let keys = Keys::prepare(place.path());
    let path = place.path().join("ringpost.toml");
    let taken = std::net::TcpListener::bind((own_address(), 0)).unwrap();
    let good = format!(
        "data_dir = \"store\"\nlisten = \"{}\"\nadmin_listen = \"127.0.0.1:0\"\n\
         tls = {{ certificate_path = \"cert.pem\", key_path = \"key.pem\" }}\n\
         auth = {{ jwks_path = \"jwks.json\" }}\n",
        taken.local_addr().unwrap()
    );
    std::fs::write(&path, good.replace("admin", "admim").replace("\"store\"", "7")).unwrap();
    let problems = findings(&path, "problem");
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!((&problems[0]["line"], &problems[0]["column"]), (&1.into(), &12.into()));
    assert!(problems[1]["fix"].as_str().unwrap().contains("admin_listen"), "{problems:?}");
    assert_eq!(problems[1]["line"], 3);

    std::fs::write(&path, &good).unwrap();
    std::fs::write(&keys.files.jwks, "{}").unwrap();
    std::fs::write(place.path().join("store"), "a file").unwrap();
    std::fs::remove_file(&keys.files.key).unwrap();
    let problems = findings(&path, "problem");
    let subjects: Vec<_> =
        problems.iter().map(|found| found["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects, ["certificate", "keys", "data_dir", "listen"]);
    let (code, text) = check(&path, &[]);
    assert_eq!(code, 1);
    assert_eq!(text.matches("fix: ").count(), 4, "{text}");
    assert!(text.contains("4 problems"), "{text}");
    assert_eq!(check(&place.path().join("none.toml"), &[]).0, 1);
}

#[test]
fn a_damaged_secret_of_quic_is_refused_with_the_fix() {
    let mut gateway = Gateway::start(Settings::default());
    gateway.stop();
    let secret = gateway.path().join("store/quic-secret");
    std::fs::write(&secret, b"short").unwrap();
    let problems = findings(&gateway.config_path(), "problem");
    assert_eq!((problems.len(), &problems[0]["subject"]), (1, &"quic".into()), "{problems:?}");
    let fix = problems[0]["fix"].as_str().unwrap();
    assert!(fix.contains(&format!("remove {}", secret.display())), "{fix}");
    let log = gateway.try_restart().unwrap_err();
    assert!(log.contains("5 bytes, not 32") && log.contains(fix), "{log}");
    std::fs::remove_file(&secret).unwrap();
    gateway.restart();
}

#[test]
fn a_certificate_is_warned_of_before_it_expires() {
    let place = tempfile::tempdir().unwrap();
    let keys = Keys::prepare(place.path());
    let path = place.path().join("ringpost.toml");
    std::fs::write(
        &path,
        "data_dir = \"store\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n\
         tls = { certificate_path = \"cert.pem\", key_path = \"key.pem\" }\n\
         auth = { jwks_path = \"jwks.json\" }\n\
         limits = { connections_per_shard_max = 1048576 }\n",
    )
    .unwrap();
    let pair = KeyPair::generate().unwrap();
    std::fs::write(&keys.files.key, pair.serialize_pem()).unwrap();
    let days_from_now = |days: i64| {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let now = std::time::SystemTime::now();
        let day = std::time::Duration::from_secs(86_400);
        // An hour more, so that a slow test does not lose a day.
        let offset = day * u32::try_from(days.abs()).unwrap() + day / 24;
        params.not_before = (now - day * 400).into();
        params.not_after = if days < 0 { now - offset } else { now + offset }.into();
        let certificate = params.self_signed(&pair).unwrap();
        std::fs::write(&keys.files.certificate, certificate.pem()).unwrap();
    };
    let said = |grade: &str| {
        let found = findings(&path, grade);
        let of_it = found.iter().find(|found| found["subject"] == "certificate");
        of_it.map(|found| found["text"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    days_from_now(31);
    assert!(said("ok").contains("valid for 31 days"), "{}", said("ok"));
    days_from_now(10);
    assert!(said("warning").contains("expires in 10 days"), "{}", said("warning"));
    days_from_now(-3);
    assert!(said("problem").contains("expired 3 days ago"), "{}", said("problem"));
    assert!(!place.path().join("store").exists(), "nothing was opened");

    // More connections than any process may have files.
    let found = findings(&path, "warning");
    assert!(found.iter().any(|found| found["fix"].as_str().unwrap().contains("LimitNOFILE")));
}
