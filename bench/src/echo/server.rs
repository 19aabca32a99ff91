//! A server in a process of its own, kept on one core, and what it has cost so far.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;

use ringpost_ring::host::{pin_to_core, raise_open_files};

use super::Runtime;

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts this program again, as `serve --runtime X --core C`: see [`serve`].
    pub fn start(runtime: Runtime, core: usize) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--runtime", runtime.name(), "--core", &core.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse();
        let mut server = Self { child, address: SocketAddr::from(([0, 0, 0, 0], 0)) };
        server.address = address.map_err(|_| format!("{} does not serve here", runtime.name()))?;
        Ok(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time of all threads so far, user and system, also those that the kernel started for it.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        let mut sum_ns = 0;
        for task in fs::read_dir(self.proc_file("task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
            sum_ns += first.ok_or_else(|| io::Error::other("schedstat has no number"))?;
        }
        Ok(sum_ns)
    }

    /// Exact, unlike that of `status`, which lags behind.
    pub fn rss_bytes(&self) -> io::Result<u64> {
        let rollup = fs::read_to_string(self.proc_file("smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.map(|kib: u64| kib << 10).ok_or_else(|| io::Error::other("smaps_rollup has no Rss"))
    }

    fn proc_file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, or does now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side of [`Server::start`]: says where it listens, and echoes until its standard input
/// ends, which it does with the process that started it.
pub fn serve(runtime: Runtime, core: usize) -> io::Result<()> {
    pin_to_core(core)?;
    raise_open_files()?;
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    runtime.serve(|address| println!("{address}"))
}
