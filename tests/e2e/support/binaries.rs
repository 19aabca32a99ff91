//! The binaries under test, built once per test process.
//!
//! They are built by a cargo of their own: the workspace's tests unify features, and the simulator's
//! unencrypted transport must not be in the gateway that is tested here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub struct Binaries {
    pub gateway: PathBuf,
    pub chat: PathBuf,
}

pub fn binaries() -> &'static Binaries {
    static BINARIES: OnceLock<Result<Binaries, String>> = OnceLock::new();
    BINARIES.get_or_init(build).as_ref().unwrap_or_else(|errors| panic!("{errors}"))
}

/// Into the target directory, and with the profile, that this test was built with.
fn build() -> Result<Binaries, String> {
    let test = std::env::current_exe().unwrap();
    let profile_dir = test.parent().and_then(Path::parent).expect("TARGET/PROFILE/deps/TEST");
    let target_dir = profile_dir.parent().expect("TARGET/PROFILE");
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("a profile's directory has a name"),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--locked", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .args(["-p", "ringpost-engine", "--bin", "ringpost"])
        .args(["-p", "ringpost-client", "--bin", "ringpost-chat"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("building the binaries failed:\n{errors}"));
    }
    let binary = |name: &str| profile_dir.join(name);
    Ok(Binaries { gateway: binary("ringpost"), chat: binary("ringpost-chat") })
}
