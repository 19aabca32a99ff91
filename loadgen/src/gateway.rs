//! A gateway of our own, on a temporary directory and free ports: found or built, started, asked
//! for its metrics, stopped.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::random_range;

use crate::cores::CoreList;
use crate::host::{filesystem, is_memory_filesystem};
use crate::scrape::http_get;
use crate::tokens;

/// A running gateway; killed when dropped.
pub struct Gateway {
    binary: PathBuf,
    cores: Option<CoreList>,
    directory: tempfile::TempDir,
    child: Child,
    target: SocketAddr,
    admin: SocketAddr,
}

/// What a gateway of our own is to be like.
#[derive(Clone, Debug, Default)]
pub struct GatewayConfig {
    /// None: what the gateway thinks best for its cores.
    pub shards: Option<u16>,
    /// None: all.
    pub cores: Option<CoreList>,
    /// Lines of the section `[limits]`.
    pub limits: Vec<(&'static str, u64)>,
}

/// How to end a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: it drains and must exit with 0.
    Drain,
    /// SIGKILL: a crash.
    Kill,
}

impl Gateway {
    /// Starts `binary` with fresh keys and a fresh store.
    pub fn start(binary: PathBuf, config: GatewayConfig) -> Result<Self> {
        let directory = temporary_directory()?;
        let data = directory.path();
        tokens::write_credentials(data)?;
        let target = free_port()?;
        let admin = free_port()?;
        fs::write(data.join(CONFIG_FILE), config_text(data, target, admin, &config))
            .context("write the configuration")?;
        let cores = config.cores;
        let child = spawn(&binary, data, cores.as_ref())?;
        let mut gateway = Self { binary, cores, directory, child, target, admin };
        gateway.wait_ready()?;
        Ok(gateway)
    }

    /// Where clients connect to.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// Address of `/metrics`.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The present process; another one after [`Gateway::restart`].
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Holds `ca.pem`, `token-key.pem`, `jwks.json` and the store.
    pub fn data(&self) -> &Path {
        self.directory.path()
    }

    /// Bytes of the store on disk.
    pub fn store_bytes(&self) -> u64 {
        allocated_bytes(&self.data().join(STORE_DIRECTORY))
    }

    /// Bytes of the directory's file on disk.
    pub fn directory_bytes(&self) -> u64 {
        let file = self.data().join(STORE_DIRECTORY).join("directory.redb");
        fs::metadata(file).map_or(0, |metadata| blocks_bytes(&metadata))
    }

    /// Ends the process and says how long that took.
    pub fn stop(&mut self, how: Stop) -> Result<Duration> {
        let started = Instant::now();
        match how {
            Stop::Kill => {
                self.child.kill().context("kill the gateway")?;
                self.child.wait().context("wait for the gateway")?;
            }
            Stop::Drain => {
                terminate(&self.child)?;
                let status = self.wait_exit(STOP_TIME_MAX)?;
                ensure!(
                    status.success(),
                    "the gateway ended with {status}\n{}",
                    self.log_end(LOG_END_LINES)
                );
            }
        }
        Ok(started.elapsed())
    }

    /// Starts the process again on the same store and says how long it took until it was ready.
    /// While its port is in use it tries again, as a supervisor does: the kernel may still be
    /// closing the sockets of a killed ring.
    pub fn restart(&mut self) -> Result<Duration> {
        let started = Instant::now();
        loop {
            self.child = spawn(&self.binary, self.data(), self.cores.as_ref())?;
            match self.wait_ready() {
                Ok(()) => return Ok(started.elapsed()),
                Err(_)
                    if started.elapsed() < RESTART_TIME_MAX
                        && self.log_end(LOG_END_LINES).contains("is in use") =>
                {
                    sleep(Duration::from_millis(100));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_TIME_MAX;
        loop {
            if let Some(status) = self.child.try_wait().context("ask for the gateway's status")? {
                let log = self.log_end(LOG_END_LINES);
                bail!("the gateway ended at start with {status}\n{log}");
            }
            if http_get(self.admin, "/readyz").is_ok() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the gateway is not ready\n{}",
                self.log_end(LOG_END_LINES)
            );
            sleep(Duration::from_millis(2));
        }
    }

    fn wait_exit(&mut self, time_max: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + time_max;
        loop {
            if let Some(status) = self.child.try_wait().context("ask for the gateway's status")? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "the gateway did not end within {time_max:?} after SIGTERM\n{}",
                self.log_end(LOG_END_LINES)
            );
            sleep(Duration::from_millis(2));
        }
    }

    fn log_end(&self, line_count: usize) -> String {
        let text = fs::read_to_string(self.data().join(LOG_FILE)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(line_count)..].join("\n")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Either call fails only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `ringpost` binary: what `--gateway` names; under cargo, built now so that it is never stale;
/// else the one beside this executable.
pub fn find_binary(named: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = named {
        ensure!(path.is_file(), "{} is not a file", path.display());
        // It is started in another folder.
        return std::path::absolute(&path).with_context(|| path.display().to_string());
    }
    let own = std::env::current_exe().context("find this executable")?;
    let folder = own.parent().context("an executable has a folder")?;
    let beside = folder.join("ringpost");
    match (std::env::var_os("CARGO"), std::env::var_os("CARGO_MANIFEST_DIR")) {
        (Some(cargo), Some(manifest)) => {
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "-p", "ringpost-engine", "--bin", "ringpost"]);
            if folder.ends_with("release") {
                build.arg("--release");
            }
            if let Some(target) = folder.parent() {
                build.arg("--target-dir").arg(target);
            }
            let status = build.current_dir(manifest).status().context("run cargo build")?;
            ensure!(status.success(), "building the gateway failed");
        }
        _ => ensure!(
            beside.is_file(),
            "no gateway at {}: build it with `cargo build --release -p ringpost-engine`, or name \
             one with --gateway or --target",
            beside.display()
        ),
    }
    Ok(beside)
}

fn config_text(
    data: &Path,
    target: SocketAddr,
    admin: SocketAddr,
    config: &GatewayConfig,
) -> String {
    let path = |name: &str| toml_string(&data.join(name));
    let shards = config.shards.map_or_else(String::new, |count| format!("shards = {count}\n"));
    let limits: String =
        config.limits.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
    format!(
        "listen = \"{target}\"\nadmin_listen = \"{admin}\"\ndata_dir = {}\n{shards}\n\
         [tls]\ncertificate_path = {}\nkey_path = {}\n\n[auth]\njwks_path = {}\n\n\
         [limits]\n{limits}",
        path(STORE_DIRECTORY),
        path("cert.pem"),
        path("key.pem"),
        path("jwks.json"),
    )
}

/// A path as a TOML basic string.
fn toml_string(path: &Path) -> String {
    serde_json::Value::from(path.display().to_string()).to_string()
}

/// The new process inherits the cores of the thread that starts it: a thread of its own for that.
fn spawn(binary: &Path, data: &Path, cores: Option<&CoreList>) -> Result<Child> {
    let Some(cores) = cores else { return spawn_here(binary, data) };
    thread::scope(|scope| {
        let started = scope.spawn(|| {
            cores.pin_thread().with_context(|| format!("run on cores {cores}"))?;
            spawn_here(binary, data)
        });
        started.join().expect("starting a process does not panic")
    })
}

fn spawn_here(binary: &Path, data: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(data.join(LOG_FILE))
        .context("open the gateway's log")?;
    Command::new(binary)
        .args(["serve", "--config"])
        .arg(data.join(CONFIG_FILE))
        .current_dir(data)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the log")?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", binary.display()))
}

/// The standard library can only SIGKILL; the shell's built-in `kill` needs no unsafe code here.
fn terminate(child: &Child) -> Result<()> {
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -TERM {}", child.id()))
        .status()
        .context("run kill")?;
    ensure!(status.success(), "kill -TERM failed: {status}");
    Ok(())
}

/// Where TMPDIR says; without it, the first usual place whose `fdatasync` reaches a disk.
fn temporary_directory() -> Result<tempfile::TempDir> {
    let mut places = vec![std::env::temp_dir()];
    if std::env::var_os("TMPDIR").is_none() {
        places.push(PathBuf::from("/var/tmp"));
        places.extend(std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned())));
    }
    let on_disk =
        |place: &&PathBuf| filesystem(place).is_some_and(|kind| !is_memory_filesystem(&kind));
    let place = places.iter().find(on_disk).unwrap_or(&places[0]);
    tempfile::Builder::new()
        .prefix("ringpost-loadgen-")
        .tempdir_in(place)
        .with_context(|| format!("make a directory in {}", place.display()))
}

/// A port that was free a moment ago, below the range of ephemeral ports: while the gateway is
/// down, a client that is given the target's own port as its source would connect to itself, and
/// keep the port from the gateway.
fn free_port() -> Result<SocketAddr> {
    (0..FREE_PORT_TRIES)
        .find_map(|_| {
            let port = random_range(FREE_PORTS);
            TcpListener::bind(("127.0.0.1", port)).ok()?.local_addr().ok()
        })
        .context("no free port on loopback")
}

/// Bytes that the files below `path` occupy, not their length: segments are preallocated.
fn allocated_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => allocated_bytes(&entry.path()),
            Ok(metadata) => blocks_bytes(&metadata),
            Err(_) => 0,
        })
        .sum()
}

fn blocks_bytes(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

const CONFIG_FILE: &str = "ringpost.toml";
const LOG_FILE: &str = "gateway.log";
const STORE_DIRECTORY: &str = "store";
const LOG_END_LINES: usize = 20;
const FREE_PORTS: std::ops::Range<u16> = 20_000..32_000;
const FREE_PORT_TRIES: usize = 1_000;
const READY_TIME_MAX: Duration = Duration::from_secs(60);
const RESTART_TIME_MAX: Duration = Duration::from_secs(15);
const STOP_TIME_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_not_put_into_memory_by_default() {
        let directory = temporary_directory().unwrap();
        if std::env::var_os("TMPDIR").is_none() {
            let kind = filesystem(directory.path()).unwrap();
            assert!(!is_memory_filesystem(&kind), "{kind}");
        }
    }
}
