//! A terminal with `ringpost-chat` in it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;

use super::PATIENCE;
use super::binaries::binaries;
use super::gateway::{own_address, read_announcement, wait_for_exit};

/// Ends the process with the test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The development gateway as a newcomer starts it, on free ports.
pub fn start_development_gateway(data: &Path) -> (Guard, SocketAddr) {
    let free_port = format!("{}:0", own_address());
    let mut gateway = Guard(
        Command::new(&binaries().gateway)
            .arg("--data")
            .arg(data)
            .args(["--listen", &free_port, "--admin-listen", &free_port])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let (address, _) = read_announcement(&mut gateway.0).expect("it starts");
    (gateway, address)
}

/// The program, told where the gateway is.
pub fn chat_command(user: &str, gateway: SocketAddr, data: &Path, store: &Path) -> Command {
    let mut command = Command::new(&binaries().chat);
    command
        .args(["--user", user, "--server-name", "localhost", "--server", &gateway.to_string()])
        .arg("--data")
        .arg(data)
        .arg("--store")
        .arg(store);
    command
}

pub struct Terminal {
    process: Guard,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// All that it has shown.
    pub seen: Vec<String>,
}

impl Terminal {
    /// Waits until it is connected.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (line, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                if line.send(text).is_err() {
                    return;
                }
            }
        });
        let mut terminal = Self { process: Guard(child), input, lines, seen: Vec::new() };
        terminal.expect("-- connected");
        terminal
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn expect(&mut self, wanted: &str) {
        self.expect_such(wanted, |line| line == wanted);
    }

    /// Gives the first line from here on that is such a one.
    pub fn expect_such(&mut self, what: &str, is_such: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|fault| {
                panic!("no {what:?} ({fault}), but {:?}", self.seen);
            });
            self.seen.push(line.clone());
            if is_such(&line) {
                return line;
            }
        }
    }

    /// Closes the terminal; gives every line it has shown.
    pub fn quit(mut self) -> Vec<String> {
        self.say("/quit");
        self.wait()
    }

    /// The same after something else has ended it.
    pub fn wait(mut self) -> Vec<String> {
        let status = wait_for_exit(&mut self.process.0);
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        assert!(status.success(), "{status}, after {:?}", self.seen);
        self.seen
    }
}
