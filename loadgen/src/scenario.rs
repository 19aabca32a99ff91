//! What every scenario needs: a server, users, a bar, and numbers from the server.

pub mod chat;
pub mod churn;
pub mod group;
pub mod handover;
pub mod handshake;
pub mod keys;
pub mod offline;
pub mod pressure;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use ringpost_ring::host::raise_open_files;
use rustls::pki_types::ServerName;

use crate::client::Identity;
use crate::cores::CoreList;
use crate::fleet::Totals;
use crate::gateway::{self, Gateway, GatewayConfig, Stop};
use crate::host::{Host, Settings, cores};
use crate::plan::mix;
use crate::report::ServerUse;
use crate::sample::{Sample, Sampler};
use crate::scrape;
use crate::stage::Stage;
use crate::swarm::SwarmConfig;
use crate::tokens::{self, KeyExchange, TokenMint, tls_config_of};

/// Where the server is, and how the load generator runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// None: a gateway of our own.
    pub target: Option<String>,
    /// Holds the target's `ca.pem`, `token-key.pem` and `jwks.json`.
    pub data: Option<PathBuf>,
    /// URL of the target's metrics.
    pub metrics: Option<String>,
    /// Name in the target's certificate; the host of `target` if none is given.
    pub server_name: Option<String>,
    /// Binary of our own gateway.
    pub gateway: Option<PathBuf>,
    /// Shards of our own gateway.
    pub shards: Option<u16>,
    /// Where our own gateway runs; it then has as many shards, if `shards` does not say otherwise.
    pub server_cores: Option<CoreList>,
    /// Where the load generator runs.
    pub client_cores: Option<CoreList>,
    /// None: one per client core; without those half of the cores, the server has the other half.
    pub threads: Option<usize>,
    pub seed: u64,
    pub connecting_max: u32,
    pub tick: Duration,
}

/// The server under load.
pub struct Server {
    own: Option<Gateway>,
    metrics: Option<(SocketAddr, String)>,
    target: SocketAddr,
    data: PathBuf,
    mint: TokenMint,
    tls: Arc<rustls::ClientConfig>,
    server_name: ServerName<'static>,
    server_cores: Option<CoreList>,
    client_cores: Option<CoreList>,
    sampler: Sampler,
}

impl Server {
    /// Finds the server, or starts one.
    pub fn reach(options: &Options) -> Result<Self> {
        Self::reach_limited(options, Vec::new())
    }

    /// `limits`: for a gateway of our own, lines of its section `[limits]`.
    pub fn reach_limited(options: &Options, limits: Vec<(&'static str, u64)>) -> Result<Self> {
        let (own, target, data) = match (&options.target, &options.data) {
            (Some(target), Some(data)) => (None, scrape::resolve(target)?, data.clone()),
            (Some(_), None) => anyhow::bail!("--target needs --data"),
            (None, _) => {
                let binary = gateway::find_binary(options.gateway.clone())?;
                let cores = options.server_cores.clone();
                let per_core = cores.as_ref().and_then(|cores| u16::try_from(cores.count()).ok());
                let shards = options.shards.or(per_core);
                let own = Gateway::start(binary, GatewayConfig { shards, cores, limits })?;
                let (target, data) = (own.target(), own.data().to_owned());
                (Some(own), target, data)
            }
        };
        let metrics = match (&own, &options.metrics) {
            (Some(own), _) => Some((own.admin(), "/metrics".to_owned())),
            (None, Some(url)) => Some(scrape::parse_metrics_url(url)?),
            (None, None) => None,
        };
        let host = options.target.as_deref().and_then(|target| Some(target.rsplit_once(':')?.0));
        let name = options.server_name.as_deref().or(host).unwrap_or("127.0.0.1");
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        if let Some(cores) = &options.client_cores {
            cores.pin_thread().context("run on the load generator's cores")?;
        }
        Ok(Self {
            sampler: Sampler::new(own.as_ref().map(Gateway::process), target),
            server_cores: options.server_cores.clone().filter(|_| own.is_some()),
            client_cores: options.client_cores.clone(),
            own,
            metrics,
            target,
            mint: TokenMint::load(&data, TOKEN_LIFETIME)?,
            tls: tokens::tls_config(&data)?,
            data,
            server_name: ServerName::try_from(name).context("the server's name is not legal")?,
        })
    }

    pub fn swarm_config(&self, options: &Options) -> Arc<SwarmConfig> {
        self.swarm_config_of(options, Arc::clone(&self.tls))
    }

    fn swarm_config_of(
        &self,
        options: &Options,
        tls: Arc<rustls::ClientConfig>,
    ) -> Arc<SwarmConfig> {
        Arc::new(self.swarm_config_with(options, tls))
    }

    fn swarm_config_with(&self, options: &Options, tls: Arc<rustls::ClientConfig>) -> SwarmConfig {
        SwarmConfig {
            target: self.target,
            server_name: self.server_name.clone(),
            tls,
            own_tickets: false,
            quic: None,
            connecting_max: options.connecting_max,
            tick_ns: u64::try_from(options.tick.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// CPU time and memory of the server; unknown without metrics, or when they cannot be read.
    pub fn read_use(&self) -> Option<ServerUse> {
        let (address, path) = self.metrics.as_ref()?;
        scrape::read_metrics(*address, path)
            .inspect_err(|error| eprintln!("warning: no metrics: {error:#}"))
            .ok()
    }

    /// A counter or gauge of the gateway; unknown without metrics.
    fn read_counter(&self, name: &str) -> Option<u64> {
        let (address, path) = self.metrics.as_ref()?;
        scrape::read_counter(*address, path, name)
    }

    /// A place for files of the run, on a disk if there is one.
    fn scratch(&self) -> PathBuf {
        self.own.as_ref().map_or_else(std::env::temp_dir, |own| own.data().to_owned())
    }

    /// Another copy of what signs tokens.
    pub fn mint(&self) -> Result<TokenMint> {
        TokenMint::load(&self.data, TOKEN_LIFETIME)
    }

    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.tls)
    }

    /// The same with another key exchange; every connection makes a full handshake.
    pub fn tls_of(&self, exchange: KeyExchange) -> Result<Arc<rustls::ClientConfig>> {
        tls_config_of(&self.data, exchange, false)
    }

    pub fn server_name(&self) -> ServerName<'static> {
        self.server_name.clone()
    }

    pub fn own(&mut self) -> Option<&mut Gateway> {
        self.own.as_mut()
    }

    pub fn host(&self) -> Host {
        let cores = |list: &Option<CoreList>| list.as_ref().map(|list| list.as_slice().to_vec());
        Host {
            server_cores: cores(&self.server_cores),
            client_cores: cores(&self.client_cores),
            ..Host::read(self.own.as_ref().map(Gateway::data))
        }
    }

    /// Ends our own gateway and starts it again on its store; how long each took. None when the
    /// gateway is not ours.
    pub fn restart(&mut self, how: Stop) -> Result<Option<(Duration, Duration)>> {
        let Some(own) = &mut self.own else { return Ok(None) };
        let times = (own.stop(how)?, own.restart()?);
        self.sampler.set_process(own.process());
        Ok(Some(times))
    }

    /// Takes a sample of the machine when one is due; called while a run goes on.
    pub fn watch(&mut self, totals: Totals) {
        self.sampler.poll(totals);
    }

    /// Takes a sample now.
    pub fn sample(&mut self) -> Sample {
        self.sampler.take(Totals::default())
    }

    pub fn samples(&self) -> &[Sample] {
        self.sampler.samples()
    }

    /// Drains a gateway of our own; it must exit with 0.
    pub fn finish(mut self) -> Result<()> {
        match &mut self.own {
            Some(own) => own.stop(Stop::Drain).map(drop),
            None => Ok(()),
        }
    }

    /// A new user with one device. Names carry the run's number, so that runs against one server
    /// do not meet each other's mail.
    fn identity(&self, run: u32, role: &str, number: u32) -> Result<Identity> {
        let user = format!("loadgen-{run:08x}-{role}-{number}");
        Identity::new(&user, mix(u64::from(run) << 32 | u64::from(number)), &self.mint)
    }
}

impl Options {
    /// Never more threads than there are pairs or devices.
    fn thread_count(&self, units: u32) -> usize {
        let of_cores = || self.client_cores.as_ref().map(CoreList::count);
        let threads = self.threads.or_else(of_cores).unwrap_or_else(|| (cores() / 2).max(1));
        threads.clamp(1, units.max(1) as usize)
    }

    fn settings(&self, scenario: &str, threads: usize) -> Settings {
        let own = self.target.is_none();
        Settings::from([
            ("scenario", scenario.into()),
            ("gateway", if own { "own" } else { "external" }.into()),
            ("shards", self.shards.into()),
            ("server_cores", self.server_cores.as_ref().map(CoreList::to_string).into()),
            ("client_cores", self.client_cores.as_ref().map(CoreList::to_string).into()),
            ("threads", threads.into()),
            ("seed", self.seed.into()),
            ("connecting_max", self.connecting_max.into()),
            ("tick_us", (self.tick.as_micros() as f64).into()),
        ])
    }
}

/// Raises the limit of open files as far as it goes; one that is too low is told before the ramp.
fn allow_connections(connections: u32) -> Result<()> {
    let limit = raise_open_files().context("read the limit of open files")?;
    let wanted = u64::from(connections) + FILES_BESIDE_CONNECTIONS;
    anyhow::ensure!(
        limit >= wanted,
        "{connections} connections need {wanted} open files, the limit is {limit}: raise \
         RLIMIT_NOFILE (ulimit -Hn)"
    );
    Ok(())
}

/// Waits until it is over; false when nothing has moved for a long time. `expected`: what the
/// progress will be, as far as that is known.
fn await_stage(
    stage: &Stage,
    expected: u64,
    is_over: impl Fn() -> bool,
    server: &mut Server,
) -> Result<bool> {
    let progress = bar(expected, "done");
    let (mut moved, mut last) = (Instant::now(), 0);
    while !is_over() {
        anyhow::ensure!(!stage.has_failed(), "a connection has failed");
        let done = stage.progress.load(Ordering::Relaxed);
        let now = done + u64::from(stage.through());
        if now != last {
            (moved, last) = (Instant::now(), now);
        }
        if moved.elapsed() > STALL_TIME_MAX {
            return Ok(false);
        }
        progress.set_position(done);
        server.watch(Totals::default());
        thread::sleep(STAGE_INTERVAL);
    }
    progress.finish_and_clear();
    Ok(true)
}

/// A bar on a terminal, nothing elsewhere.
fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>10} {wide_bar} {pos}/{len} {per_sec} {eta}")
        .expect("the template is constant");
    ProgressBar::new(length).with_style(style).with_message(what)
}

fn is_data_directory(path: &Path) -> bool {
    ["ca.pem", "token-key.pem", "jwks.json"].iter().all(|name| path.join(name).is_file())
}

impl Options {
    /// What can be told to be wrong before anything starts.
    pub fn check(&self) -> Result<()> {
        anyhow::ensure!(self.connecting_max >= 1, "--connecting-max must be at least 1");
        anyhow::ensure!(self.threads != Some(0), "--threads must be at least 1");
        for cores in [&self.server_cores, &self.client_cores].into_iter().flatten() {
            let unusable = cores.unusable().context("ask for the usable cores")?;
            anyhow::ensure!(unusable.is_empty(), "cores {unusable:?} may not be used here");
        }
        if let Some(data) = &self.data {
            anyhow::ensure!(
                is_data_directory(data),
                "{} does not hold ca.pem, token-key.pem and jwks.json",
                data.display()
            );
        }
        Ok(())
    }
}

/// Rings, logs, the standard streams.
const FILES_BESIDE_CONNECTIONS: u64 = 64;
/// Without any movement for so long, a phase has ended.
const STALL_TIME_MAX: Duration = Duration::from_secs(20);
/// Between two looks at a stage.
const STAGE_INTERVAL: Duration = Duration::from_millis(2);
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
