//! Start-up refusals: each names what is wrong and what to do, and exits as documented.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::binaries::binaries;
use crate::support::gateway::{Gateway, Settings, own_address, wait_for_exit};
use crate::support::keys::Keys;
use crate::support::peer::Place;

/// Exit code and standard error of a gateway that must not start.
fn refused(arguments: &[&str]) -> (i32, String) {
    let mut child = Command::new(&binaries().gateway)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = wait_for_exit(&mut child);
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    (status.code().unwrap(), errors)
}

/// Runs `serve` with this configuration; all the words must be in the answer.
fn expect_refusal(config: &Path, exit_code: i32, words: &[&str]) {
    let (code, errors) = refused(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(code, exit_code, "{errors}");
    for word in words.iter().chain(&["error: ", "fix: "]) {
        assert!(errors.contains(word), "no {word:?} in: {errors}");
    }
}

fn write_config(directory: &Path, text: &str) -> std::path::PathBuf {
    let path = directory.join("refused.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_second_gateway() {
    let gateway = Gateway::start(Settings::default());
    let config = gateway.config();
    // Same directory, other ports.
    let address = own_address();
    let elsewhere = config
        .replace(&gateway.address().to_string(), &format!("{address}:0"))
        .replace(&gateway.admin().to_string(), &format!("{address}:0"));
    let path = write_config(gateway.path(), &elsewhere);
    expect_refusal(&path, 1, &["in use by another gateway", "data_dir"]);

    // Other directory, same port for clients; then the same one for admin.
    let own_store = config.replace("\"store\"", "\"other-store\"");
    let admin = gateway.admin().to_string();
    let path = write_config(gateway.path(), &own_store.replace(&admin, &format!("{address}:0")));
    expect_refusal(&path, 1, &[&gateway.address().to_string(), "listen"]);
    let listen = gateway.address().to_string();
    let path = write_config(gateway.path(), &own_store.replace(&listen, &format!("{address}:0")));
    expect_refusal(&path, 1, &[&gateway.admin().to_string(), "admin_listen"]);
}

#[test]
fn a_port_that_another_program_has() {
    let taken = TcpListener::bind((own_address(), 0)).unwrap();
    let gateway = Gateway::start(Settings::default());
    let listen = taken.local_addr().unwrap().to_string();
    let config = gateway
        .config()
        .replace("\"store\"", "\"other-store\"")
        .replace(&gateway.admin().to_string(), &format!("{}:0", own_address()))
        .replace(&gateway.address().to_string(), &listen);
    let path = write_config(gateway.path(), &config);
    expect_refusal(&path, 1, &[&listen, "in use", "listen"]);
}

#[test]
fn wrong_files_and_configurations() {
    let place = Place::new();
    let directory = place.file("");
    let keys = Keys::prepare(&directory);
    let other = tempfile::tempdir().unwrap();
    let stranger = Keys::prepare(other.path());
    std::fs::copy(&stranger.files.key, directory.join("other-key.pem")).unwrap();
    std::fs::write(directory.join("empty.pem"), "").unwrap();
    let good = "data_dir = \"store\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n\
                tls = { certificate_path = \"cert.pem\", key_path = \"key.pem\" }\n\
                auth = { jwks_path = \"jwks.json\" }\n";
    let refuse = |from: &str, to: &str, words: &[&str]| {
        assert!(good.contains(from));
        expect_refusal(&write_config(&directory, &good.replace(from, to)), 2, words);
    };
    refuse("cert.pem", "missing.pem", &["missing.pem", "tls.certificate_path"]);
    refuse("cert.pem", "empty.pem", &["empty.pem", "BEGIN CERTIFICATE"]);
    refuse("\"key.pem", "\"missing.pem", &["missing.pem", "tls.key_path"]);
    refuse("\"key.pem", "\"other-key.pem", &["other-key.pem", "does not belong", "cert.pem"]);
    refuse("jwks.json", "missing.json", &["missing.json"]);
    refuse("jwks.json", "cert.pem", &["cert.pem", "JWK"]);
    refuse("data_dir = \"store\"\n", "", &["data_dir"]);
    refuse("data_dir", "shards = 0\ndata_dir", &["refused.toml:1", "shards", "1 to 256"]);
    refuse("data_dir", "data_dirs = 1\ndata_dir", &["data_dirs"]);
    refuse("data_dir = \"store\"", "data_dir = 7", &["refused.toml:1", "data_dir"]);
    expect_refusal(&directory.join("missing.toml"), 2, &["missing.toml"]);
    assert!(!directory.join("store").exists(), "nothing was opened");

    // A store that is no directory is the host's fault.
    std::fs::write(directory.join("store"), "").unwrap();
    expect_refusal(&write_config(&directory, good), 1, &["store", "data_dir"]);
    assert_eq!(keys.files.certificate, directory.join("cert.pem"));
}

#[test]
fn wrong_usage() {
    for arguments in [&["serve"][..], &["--no-such-option"], &["token", "--user", "alice"]] {
        let (code, errors) = refused(arguments);
        assert_eq!(code, 2, "{errors}");
        assert!(errors.contains("Usage") || errors.contains("--help"), "{errors}");
    }
    let place = Place::new();
    let data = place.file("none");
    let data = data.to_str().unwrap();
    let (code, errors) = refused(&["token", "--user", "a", "--device", "d", "--data", data]);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("fix: ") && errors.contains("--data"), "{errors}");
}
