//! One gateway: its directory, its process, its end.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use super::binaries::binaries;
use super::keys::Keys;
use super::{PATIENCE, wait_until};

/// What differs from a small gateway with two shards.
#[derive(Clone)]
pub struct Settings {
    pub shards: u16,
    /// `None`: the key is left out.
    pub storage_shards: Option<u16>,
    pub mailbox_records_max: u32,
    pub frame_bytes_max: u32,
    pub drain_ms_max: u64,
    pub reconnect_jitter_ms: u64,
    /// `None`: beside the configuration.
    pub data_dir: Option<PathBuf>,
    /// `None`: the keys come from the file.
    pub jwks_url: Option<String>,
    /// More keys of `limits`.
    pub limits: &'static str,
    /// More lines beside `listen`.
    pub listener: &'static str,
    /// Keeps an audit log, beside the configuration.
    pub audits: bool,
    /// Datagrams find their shard; `false`: a gateway of the library alone, for tests.
    pub steers: bool,
    /// Where clients connect; `None`: an address of 127.0.0.0/8.
    pub listen: Option<IpAddr>,
    /// A parent has the sockets, and starts it again whenever it ends.
    pub held: bool,
    /// A shard that refuses a token panics.
    pub is_fragile: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shards: 2,
            storage_shards: None,
            mailbox_records_max: 1000,
            frame_bytes_max: 65_536,
            drain_ms_max: 10_000,
            reconnect_jitter_ms: 100,
            data_dir: None,
            jwks_url: None,
            limits: "",
            listener: "",
            audits: false,
            steers: true,
            listen: None,
            held: false,
            is_fragile: false,
        }
    }
}

pub struct Gateway {
    directory: TempDir,
    pub keys: Keys,
    pub settings: Settings,
    running: Option<Running>,
    /// The first start takes free ports, later ones the same again: clients come back to them.
    listen: SocketAddr,
    admin: SocketAddr,
}

struct Running {
    child: Child,
}

impl Gateway {
    pub fn start(settings: Settings) -> Self {
        Self::try_start(settings).unwrap_or_else(|log| panic!("the gateway did not start:\n{log}"))
    }

    /// The log, if it ends without serving.
    pub fn try_start(settings: Settings) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::prepare(directory.path());
        // An address of its own: nobody else takes its port while it is down.
        let free_port = SocketAddr::from((own_address(), 0));
        let listen = settings.listen.map_or(free_port, |address| SocketAddr::from((address, 0)));
        let mut gateway =
            Self { directory, keys, settings, running: None, listen, admin: free_port };
        gateway.try_restart()?;
        Ok(gateway)
    }

    /// Starts it again on the same data and addresses.
    pub fn restart(&mut self) {
        if let Err(log) = self.try_restart() {
            panic!("the gateway did not start:\n{log}");
        }
    }

    /// The log, if it ends without serving.
    pub fn try_restart(&mut self) -> Result<(), String> {
        let mut child = self.spawn();
        let announced = read_announcement(&mut child);
        let Some((listen, admin)) = announced else {
            wait_for_exit(&mut child);
            return Err(self.log());
        };
        self.running = Some(Running { child });
        (self.listen, self.admin) = (listen, admin);
        Ok(())
    }

    /// Starts it and ends it with kill -9 some time after it logged `sign`.
    pub fn kill_while_starting(&mut self, sign: &str, after: Duration) {
        let old = if self.log_path().exists() { self.log().len() } else { 0 };
        let mut child = self.spawn();
        wait_until(sign, || self.log()[old..].contains(sign).then_some(()));
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn spawn(&self) -> Child {
        assert!(self.running.is_none(), "it still runs");
        std::fs::write(self.config_path(), self.config()).unwrap();
        let log = File::options().append(true).create(true).open(self.log_path()).unwrap();
        let binary = match &self.settings {
            Settings { is_fragile: true, .. } => Path::new(env!("CARGO_BIN_EXE_fragile")),
            Settings { steers: false, .. } => Path::new(env!("CARGO_BIN_EXE_unsteered")),
            _ => &binaries().gateway,
        };
        let mut command = Command::new(binary);
        if self.settings.held {
            command = Command::new(env!("CARGO_BIN_EXE_holder"));
            let shards = self.settings.shards.to_string();
            command.arg(self.listen.ip().to_string()).arg(shards).arg(binary);
            command.stdin(Stdio::piped());
        } else {
            command.args(["serve", "--config"]).stdin(Stdio::null());
        }
        command.arg(self.config_path()).stdout(Stdio::piped()).stderr(log).spawn().unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap()
    }

    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("ringpost.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.kill_and(|| ());
    }

    /// kill -9, and then something without which it may not end: an operation of the disk that does
    /// not come back.
    pub fn kill_and<T>(&mut self, then: impl FnOnce() -> T) -> T {
        let mut running = self.running.take().expect("it runs");
        running.child.kill().unwrap();
        let result = then();
        running.child.wait().unwrap();
        result
    }

    /// Its id.
    pub fn process(&self) -> u32 {
        self.running.as_ref().expect("it runs").child.id()
    }

    pub fn is_running(&mut self) -> bool {
        let running = self.running.as_mut().expect("it was started");
        running.child.try_wait().unwrap().is_none()
    }

    /// Ends one with a parent by a signal ("TERM", "KILL"), and waits until it is gone; its parent
    /// starts it again, on the same addresses.
    pub fn end_held(&self, signal: &str) {
        std::fs::write(self.config_path(), self.config()).unwrap();
        let parent = self.process();
        let child = || {
            let children =
                std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
            children.unwrap().trim().to_owned()
        };
        let before = child();
        assert!(Command::new("kill").args(["-s", signal, &before]).status().unwrap().success());
        wait_until("the gateway ends", || (child() != before).then_some(()));
    }

    /// SIGTERM; gives the status it ended with.
    pub fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    pub fn terminate(&self) {
        let running = self.running.as_ref().expect("it runs");
        terminate(&running.child);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let running = self.running.as_mut().expect("it runs");
        let status = wait_for_exit(&mut running.child);
        self.running = None;
        status
    }

    pub fn config(&self) -> String {
        let Settings {
            shards,
            storage_shards,
            mailbox_records_max,
            frame_bytes_max,
            drain_ms_max,
            reconnect_jitter_ms,
            data_dir,
            jwks_url,
            limits,
            listener,
            audits,
            steers: _,
            listen: _,
            held: _,
            is_fragile: _,
        } = &self.settings;
        let comma = if limits.is_empty() { "" } else { ", " };
        let data_dir = data_dir.as_deref().unwrap_or_else(|| Path::new("store")).display();
        let keys = match jwks_url {
            Some(url) => format!("jwks_url = \"{url}\""),
            None => "jwks_path = \"jwks.json\"".to_owned(),
        };
        let Self { listen, admin, .. } = self;
        let mut text = String::new();
        if let Some(storage_shards) = storage_shards {
            writeln!(text, "storage_shards = {storage_shards}").unwrap();
        }
        write!(
            text,
            "listen = \"{listen}\"\n\
             {listener}\n\
             admin_listen = \"{admin}\"\n\
             data_dir = \"{data_dir}\"\n\
             shards = {shards}\n\
             tls = {{ certificate_path = \"cert.pem\", key_path = \"key.pem\" }}\n\
             auth = {{ {keys} }}\n\
             limits = {{ mailbox_records_max = {mailbox_records_max}, \
             frame_bytes_max = {frame_bytes_max}{comma}{limits} }}\n\
             storage = {{ segment_bytes = 4194304 }}\n\
             drain = {{ drain_ms_max = {drain_ms_max}, \
             reconnect_jitter_ms = {reconnect_jitter_ms} }}\n\
             log = {{ filter = \"debug\" }}\n"
        )
        .unwrap();
        if *audits {
            text.push_str("audit.path = \"audit.jsonl\"\n");
        }
        text
    }

    /// Has the configuration read again, now with this text; says whether it was taken.
    pub fn reload(&self, config: &str) -> bool {
        let counts = || {
            ["ok", "refused"].map(|result| {
                self.metric(&format!("ringpost_reloads_total{{result=\"{result}\"}}"))
            })
        };
        let [taken, refused] = counts();
        std::fs::write(self.config_path(), config).unwrap();
        self.hang_up();
        let after = || Some(counts()).filter(|&counts| counts != [taken, refused]);
        wait_until("the reload is done", after) == [taken + 1.0, refused]
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        let running = self.running.as_ref().expect("it runs");
        signal(&running.child, "HUP");
    }

    /// GET on the admin endpoint: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect_timeout(&self.admin, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: ringpost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200);
        let is_of =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let lines: Vec<&str> = body.lines().filter(is_of).collect();
        assert!(!lines.is_empty(), "no metric {name} in\n{body}");
        lines.iter().map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            if self.settings.held {
                drop(running.child.stdin.take()); // it ends the gateway first
            } else {
                // It may have ended by itself.
                let _ = running.child.kill();
            }
            let _ = running.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(LOG_TAIL_BYTES);
            let tail = log.get(start..).unwrap_or(&log);
            eprintln!("--- end of the gateway's log ---\n{tail}\n--- that was the log ---");
        }
    }
}

/// SIGTERM.
pub fn terminate(child: &Child) {
    signal(child, "TERM");
}

/// Without unsafe code, from the shell that every system has.
fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let status = Command::new("sh").args(["-c", "kill -$0 $1", name, &id]).status();
    assert!(status.unwrap().success(), "the process is gone");
}

pub fn wait_for_exit(child: &mut Child) -> ExitStatus {
    wait_until("the process ends", || child.try_wait().unwrap())
}

/// `None`: it ended without one.
pub fn read_announcement(child: &mut Child) -> Option<(SocketAddr, SocketAddr)> {
    let stdout = child.stdout.take().expect("piped");
    let (found, announcement) = mpsc::channel();
    std::thread::spawn(move || {
        // Reads on after the line was found, so that the gateway never writes into a closed pipe.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("listening on ") {
                let (listen, admin) = rest.split_once(", admin on http://").unwrap();
                let _ = found.send((listen.parse().unwrap(), admin.parse().unwrap()));
            }
        }
    });
    match announcement.recv_timeout(PATIENCE) {
        Ok(addresses) => Some(addresses),
        Err(mpsc::RecvTimeoutError::Disconnected) => None,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("no announcement within {PATIENCE:?}"),
    }
}

/// A loopback address that no other gateway of these tests uses, nor any outgoing connection.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let number = u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).expect("few gateways");
    Ipv4Addr::new(127, 64 | high >> 2, low, number)
}

const LOG_TAIL_BYTES: usize = 6000;
