//! The processes of the apps: started, killed, started again, ended.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::DurablePlan;
use super::verify::{DurableCounts, verify};

/// Killed when dropped.
pub struct Processes {
    plan: DurablePlan,
    executable: PathBuf,
    children: Vec<Child>,
    /// A process that was killed and when it is started again.
    down: Option<(usize, Instant)>,
    kills: u32,
}

impl Processes {
    /// `executable`: `ringpost-loadgen`.
    pub fn start(plan: DurablePlan, executable: PathBuf) -> Result<Self> {
        fs::create_dir_all(&plan.directory).context("make a directory for the apps")?;
        let mut processes = Self { plan, executable, children: Vec::new(), down: None, kills: 0 };
        for process in 0..processes.plan.processes {
            let child = processes.spawn(process)?;
            processes.children.push(child);
        }
        processes.wait_known()?;
        Ok(processes)
    }

    /// A user can be sent to from its first Welcome on: only then do they all begin.
    fn wait_known(&mut self) -> Result<()> {
        let deadline = Instant::now() + KNOWN_TIME_MAX;
        let plan = self.plan.clone();
        while let Some(user) = (0..plan.users()).find(|&user| !plan.known_file(user).exists()) {
            for index in 0..self.children.len() {
                if let Some(status) = self.children[index].try_wait().context("wait for an app")? {
                    bail!("an app ended at start with {status}: {}", self.log_end());
                }
            }
            ensure!(Instant::now() < deadline, "user {user} did not log in: {}", self.log_end());
            sleep(LOOK);
        }
        fs::write(self.plan.start_file(), "").context("write the start file")
    }

    /// What the apps had to say.
    fn log_end(&self) -> String {
        (0..self.plan.processes)
            .filter_map(|process| fs::read_to_string(self.log_path(process)).ok())
            .collect::<String>()
    }

    fn log_path(&self, process: u32) -> PathBuf {
        self.plan.directory.join(format!("process-{process}.log"))
    }

    /// Kills the next process in turn; it is started again by [`Processes::poll`] after `pause`.
    pub fn kill_next(&mut self, pause: Duration) -> Result<()> {
        self.restart_killed()?;
        let index = self.kills as usize % self.children.len();
        self.kills += 1;
        let child = &mut self.children[index];
        child.kill().context("kill an app")?;
        let status = child.wait().context("wait for an app")?;
        // One that was dead already had a reason of its own.
        ensure!(status.code().is_none(), "an app had ended by itself with {status}");
        self.down = Some((index, Instant::now() + pause));
        Ok(())
    }

    /// Starts what is due.
    pub fn poll(&mut self) -> Result<()> {
        if self.down.is_some_and(|(_, at)| at <= Instant::now()) {
            self.restart_killed()?;
        }
        Ok(())
    }

    /// Lets nobody send any more, waits until everything has arrived, as long as something does
    /// within `stall_max`, and ends the processes.
    pub fn finish(mut self, stall_max: Duration) -> Result<DurableCounts> {
        self.restart_killed()?;
        fs::write(self.plan.stop_file(), "").context("write the stop file")?;
        // Those that were starting up have sent by now, or never will.
        sleep(SETTLE);
        let mut last = (verify(&self.plan)?, Instant::now());
        while last.0.lost > 0 && last.1.elapsed() < stall_max {
            sleep(LOOK);
            let counts = verify(&self.plan)?;
            if counts != last.0 {
                last = (counts, Instant::now());
            }
        }
        // What comes twice comes after the first time.
        sleep(SETTLE);
        fs::write(self.plan.finish_file(), "").context("write the finish file")?;
        let deadline = Instant::now() + END_TIME_MAX;
        for index in 0..self.children.len() {
            let status = loop {
                if let Some(status) = self.children[index].try_wait().context("wait for an app")? {
                    break status;
                }
                ensure!(Instant::now() < deadline, "an app did not end within {END_TIME_MAX:?}");
                sleep(LOOK);
            };
            if !status.success() {
                bail!("an app ended with {status}: {}", self.log_end());
            }
        }
        verify(&self.plan)
    }

    fn restart_killed(&mut self) -> Result<()> {
        if let Some((index, _)) = self.down.take() {
            let process = u32::try_from(index).context("processes are few")?;
            self.children[index] = self.spawn(process)?;
        }
        Ok(())
    }

    fn spawn(&self, process: u32) -> Result<Child> {
        let plan = &self.plan;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path(process))
            .context("open an app's log")?;
        Command::new(&self.executable)
            .arg("durable-app")
            .args(["--process", &process.to_string()])
            .args(["--processes", &plan.processes.to_string()])
            .args(["--users", &plan.users_per_process.to_string()])
            .args(["--interval-us", &plan.interval.as_micros().to_string()])
            .args(["--payload", &plan.payload_bytes.to_string()])
            .args(["--run", &plan.run.to_string()])
            .args(["--target", &plan.target.to_string()])
            .args(["--server-name", &plan.server_name])
            .arg("--directory")
            .arg(&plan.directory)
            .arg("--data")
            .arg(&plan.data)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.executable.display()))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Either call fails only when the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const LOOK: Duration = Duration::from_millis(200);
const KNOWN_TIME_MAX: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_millis(500);
const END_TIME_MAX: Duration = Duration::from_secs(20);
