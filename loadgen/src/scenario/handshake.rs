//! Logins and nothing else: how many a second, and what each costs the gateway, with full and
//! resumed handshakes and both ways to agree on keys.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::random;

use crate::addr::SourceAddresses;
use crate::fleet::{Fleet, Part};
use crate::measure::{PAYLOAD_BYTES_MIN, PayloadPattern};
use crate::plan::HandshakePlan;
use crate::report::handshake::{HandshakeReport, LoginRow};
use crate::report::page::Story;
use crate::report::{Percentiles, charts, round};
use crate::sample::own_cpu_seconds;
use crate::scenario::{Options, Server, allow_connections};
use crate::swarm::{Logins, Swarm};
use crate::tokens::{KeyExchange, tls_config_of};
use crate::traffic::Traffic;

/// The report, and the latencies that it was made of.
pub struct HandshakeResult {
    pub report: HandshakeReport,
    logins: Vec<Logins>,
    connections: u32,
}

impl HandshakeResult {
    /// Every kind of login came about, and those that should resume did. A login that was broken off
    /// took its ticket along: each client may have to make a full handshake once.
    pub fn is_clean(&self) -> bool {
        self.report.logins.iter().all(|row| match row.resume {
            true => {
                let full_max = u64::from(self.connections) + row.count / 10;
                row.resumed > 0 && row.count - row.resumed <= full_max
            }
            false => row.count > 0 && row.resumed == 0,
        })
    }

    /// For the HTML page.
    pub fn story(&self) -> Story {
        let names: Vec<String> = self.report.logins.iter().map(LoginRow::name).collect();
        let lines: Vec<_> = names
            .iter()
            .zip(&self.logins)
            .map(|(name, logins)| (name.as_str(), &logins.latency_us))
            .collect();
        Story {
            scenario: "handshake",
            clean: self.is_clean(),
            rows: self.report.rows(),
            host: self.report.host.clone(),
            settings: self.report.settings.clone(),
            charts: vec![charts::percentile_curve("Time from connect to Welcome", &lines)],
        }
    }
}

/// Runs the four kinds, one after the other.
pub fn run(plan: &HandshakePlan, options: &Options) -> Result<HandshakeResult> {
    allow_connections(plan.connections)?;
    let mut server = Server::reach(options)?;
    let threads = options.thread_count(plan.connections);
    let run = random::<u32>();
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for (exchange, resume) in KINDS {
        let (row, logins) = measure(plan, exchange, resume, &server, options, (run, threads))?;
        rows.push(row);
        all.push(logins);
    }
    let mut settings = options.settings("handshake", threads);
    settings.extend([
        ("connections", plan.connections.into()),
        ("duration_s", plan.duration.as_secs_f64().into()),
    ]);
    let rss = server.sample().server_rss_bytes;
    let host = server.host();
    server.finish()?;
    let report = HandshakeReport { logins: rows, server_rss_bytes: rss, host, settings };
    Ok(HandshakeResult { report, logins: all, connections: plan.connections })
}

fn measure(
    plan: &HandshakePlan,
    exchange: KeyExchange,
    resume: bool,
    server: &Server,
    options: &Options,
    (run, threads): (u32, usize),
) -> Result<(LoginRow, Logins)> {
    let tls = tls_config_of(&server.data, exchange, resume)?;
    let parts = (0..threads)
        .map(|thread| part(plan, server, run, thread, threads))
        .collect::<Result<Vec<_>>>()?;
    let config = server.swarm_config_of(options, tls);
    let fleet = Fleet::start(&config, options.client_cores.as_ref(), parts)?;
    let log_in = |duration: Duration, count_min: u64| {
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let all = fleet
            .run(move |_, swarm: &mut Swarm| swarm.run_logins(duration_ns, count_min), |_| ())?;
        let mut sum = Logins::new();
        all.iter().for_each(|part| sum.add(part));
        Ok::<Logins, anyhow::Error>(sum)
    };
    // Mailboxes exist from the first Welcome, and tickets from the first handshake.
    log_in(Duration::ZERO, 3 * u64::from(plan.connections))?;
    let (before, own_before, started) = (server.read_use(), own_cpu_seconds(), Instant::now());
    let logins = log_in(plan.duration, 1)?;
    let wall_s = started.elapsed().as_secs_f64();
    let own_s = own_cpu_seconds() - own_before;
    let server_s =
        before.zip(server.read_use()).map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
    let count = logins.count as f64;
    let row = LoginRow {
        key_exchange: match exchange {
            KeyExchange::Classic => "X25519",
            KeyExchange::PostQuantum => "X25519MLKEM768",
        },
        resume,
        count: logins.count,
        resumed: logins.resumed,
        logins_per_second: round(count / logins.seconds.max(f64::EPSILON)),
        server_cpu_us_per_login: server_s.map(|cpu_s| round(cpu_s * 1e6 / count)),
        server_cpu_cores: server_s.map(|cpu_s| round(cpu_s / wall_s)),
        client_cpu_cores: round(own_s / wall_s),
        login_us: Percentiles::of(&logins.latency_us),
    };
    Ok((row, logins))
}

fn part(
    plan: &HandshakePlan,
    server: &Server,
    run: u32,
    thread: usize,
    threads: usize,
) -> Result<Part> {
    let identities = (0..plan.connections)
        .filter(|connection| *connection as usize % threads == thread)
        .map(|connection| server.identity(run, "login", connection))
        .collect::<Result<Vec<_>>>()?;
    let pattern = PayloadPattern::new(PAYLOAD_BYTES_MIN, plan.seed);
    let traffic = Traffic::new(identities.len(), Vec::new(), pattern, run);
    let sources = SourceAddresses::new(server.target(), plan.connections, thread, threads);
    Ok(Part { identities, traffic, sources })
}

const KINDS: [(KeyExchange, bool); 4] = [
    (KeyExchange::Classic, false),
    (KeyExchange::Classic, true),
    (KeyExchange::PostQuantum, false),
    (KeyExchange::PostQuantum, true),
];
