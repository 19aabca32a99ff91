//! One world: a gateway, its clients, what goes wrong, and the order of it all.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ringpost_protocol::message::{GapReason, Mode};

use super::client::Client;
use super::clock::{MS, Stream};
use super::connection::Login;
use super::counts::{Coverage, FaultCounts};
use super::end::DRAIN_MS_MAX;
use super::gateway::{Gateway, Reshard};
use super::keys::Keys;
use super::net::LinkId;
use super::oracle::{Oracle, Violation};
use super::quic::{Heard, Rebind};
use super::ring::{Host, Ready};
use super::settle::Settled;
use super::shape::Shape;
use super::trace::Trace;
use super::weights::{Fault, Weights};
use super::workload::{Author, GroupWork};

/// What can happen.
#[derive(Debug)]
pub enum Event {
    Turn { shard: u16, ticket: u64 },
    Ready { process: u64, shard: u16, ready: Ready },
    Woken { process: u64, shard: u16 },
    FileDue { process: u64, shard: u16, slot: u32 },
    Syn { link: LinkId },
    ToServer { link: LinkId, data: Vec<u8> },
    FinToServer { link: LinkId },
    RstToServer { link: LinkId },
    ToClient { link: LinkId, data: Vec<u8> },
    FinToClient { link: LinkId },
    RstToClient { link: LinkId },
    DatagramToServer { from: SocketAddr, ecn: u8, data: Vec<u8> },
    DatagramToClient { to: SocketAddr, ecn: u8, data: Vec<u8> },
    QuicTimer { link: LinkId, ticket: u64 },
    Rebinds { link: LinkId, rebind: Rebind },
    ClientTimer { client: usize, ticket: u64 },
    ClientWritten { client: usize, life: u64 },
    ClientReads { client: usize },
    RogueLeaves { link: LinkId },
    Work { client: usize },
    Burst { client: usize, to: usize, group: Option<usize> },
    GivesUp { client: usize },
    Fault(Fault),
    CrashInSync { process: u64, loses_power: bool },
    DirectoryCommits { process: u64 },
    DirectoryAnswers { process: u64 },
    GatewayStarts,
    DrainDue { process: u64 },
}

impl Event {
    /// For the trace: what it is, without the bytes that it carries.
    fn describe(&self) -> String {
        match self {
            Self::ToServer { link, data } => format!("link {link}: {} bytes up", data.len()),
            Self::ToClient { link, data } => format!("link {link}: {} bytes down", data.len()),
            Self::DatagramToServer { from, data, .. } => {
                format!("{} bytes from {from}", data.len())
            }
            Self::DatagramToClient { to, data, .. } => format!("{} bytes to {to}", data.len()),
            Self::Ready { shard, ready, .. } => format!("shard {shard}: {}", ready.describe()),
            other => format!("{other:?}"),
        }
    }
}

/// How a world differs from the usual one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The mutant: `fdatasync` makes nothing durable.
    pub lie_about_sync: bool,
    /// Mailboxes fill up whatever else happens. So a Send whose outcome a crash has lost is refused
    /// when it is replayed, though it was stored, and is retried under a new number.
    pub tight_mailboxes: bool,
    /// Two clients, a second or two, and nothing goes wrong by chance.
    pub small: bool,
    /// All connections go over QUIC, whatever the seed says.
    pub quic: bool,
    /// The process ends at this moment.
    pub crash: Option<Crash>,
}

/// The process ends when a completion has reached its ring, and before it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Crash {
    /// Number of the completion, from 1.
    pub completion: u64,
    /// The machine goes down with it.
    pub loses_power: bool,
}

/// What a run that kept every promise did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub fingerprint: u64,
    pub events: u64,
    pub virtual_ms: u64,
    pub messages: usize,
    pub accepted: u64,
    pub refused: u64,
    pub gaps: u64,
    /// Completions that the rings were given.
    pub completions: u64,
    pub faults: FaultCounts,
    pub coverage: Coverage,
    pub settled: Settled,
}

pub struct World {
    pub(super) host: Rc<RefCell<Host>>,
    pub(super) shape: Shape,
    pub(super) gateway: Gateway,
    pub(super) clients: Vec<Client>,
    pub(super) oracle: Oracle,
    keys: Keys,
    pub(super) author: Author,
    work: Stream,
    pub(super) group_work: GroupWork,
    tokens: Stream,
    pub(super) bursts: Stream,
    /// Until then messages are sent and things go wrong.
    pub(super) calm_ns: u64,
    events: u64,
    start_ms: u64,
    /// Still to come.
    pub(super) crash: Option<Crash>,
    /// The apps do nothing more.
    pub(super) is_over: bool,
    pub(super) settled: Settled,
}

impl World {
    pub fn new(seed: u64, keys: &Keys, options: Options, trace: Trace) -> Self {
        let shape = Shape::of(seed, options);
        let mut host = Host::new(seed, shape.shards, shape.devices.len());
        if options.small {
            host.faults.weights = Weights::none();
        }
        if options.quic {
            host.faults.weights.quic = 1_000;
        }
        host.disk.lie_about_sync = options.lie_about_sync;
        host.trace = trace;
        host.tell(|| format!("{shape:?} {:?}", host.faults.weights));
        let calm_ns = host.clock.now_ns() + shape.busy_ms * MS;
        let start_ms = host.clock.now_ms();
        let host = Rc::new(RefCell::new(host));
        let devices = shape.devices.iter().enumerate();
        let clients = devices
            .map(|(index, address)| Client::new(index, address.clone(), seed, &shape))
            .collect();
        let verifier = Arc::clone(&keys.verifier);
        Self {
            gateway: Gateway::new(Rc::clone(&host), verifier, seed, shape.clone()),
            host,
            clients,
            oracle: Oracle::new(shape.devices.clone()),
            shape,
            keys: keys.clone(),
            author: Author::new(seed),
            work: Stream::new(seed, "work"),
            group_work: GroupWork::new(seed),
            tokens: Stream::new(seed, "tokens"),
            bursts: Stream::new(seed, "bursts"),
            calm_ns,
            events: 0,
            start_ms,
            crash: options.crash,
            is_over: false,
            settled: Settled::default(),
        }
    }

    /// Runs one world to its end.
    pub fn run(seed: u64, keys: &Keys, options: Options) -> Result<Report, Violation> {
        Self::run_traced(seed, keys, options, Trace::off())
    }

    /// Runs one world to its end, telling `trace` what happens.
    pub fn run_traced(
        seed: u64,
        keys: &Keys,
        options: Options,
        trace: Trace,
    ) -> Result<Report, Violation> {
        let mut world = Self::new(seed, keys, options, trace);
        world.begin();
        world.run_until(world.calm_ns, |_| false)?;
        world.become_kind();
        world.settle()?;
        world.hand_over()?;
        world.end()?;
        world.oracle.verdict()?;
        Ok(world.report())
    }

    fn begin(&mut self) {
        self.oracle.registry.process_started(self.host.borrow().clock.now_ns());
        self.gateway.start(None);
        for client in 0..self.clients.len() {
            self.clients[client].drive(&mut self.host.borrow_mut(), &mut self.oracle);
            self.plan_work(client);
        }
        self.plan_faults();
    }

    /// Runs until `is_over`, or until `end_ns`; gives whether it was over.
    pub(super) fn run_until(
        &mut self,
        end_ns: u64,
        is_over: impl Fn(&Self) -> bool,
    ) -> Result<bool, Violation> {
        loop {
            if is_over(self) {
                return Ok(true);
            }
            let next = self.host.borrow_mut().clock.next_until(end_ns);
            let Some(event) = next else { return Ok(false) };
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(Violation("too much happens: something spins".into()));
            }
            if !matches!(event, Event::Turn { .. }) {
                self.host.borrow().tell(|| event.describe());
            }
            self.handle(event);
            self.oracle.verdict()?;
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Turn { shard, ticket } => {
                let mut host = self.host.borrow_mut();
                let kernel = host.kernel(shard);
                if kernel.turn_ticket == ticket {
                    kernel.turn_at_ns = u64::MAX;
                    drop(host);
                    self.gateway.turn(shard, &mut self.oracle);
                }
            }
            Event::Work { client } => self.work(client),
            Event::Burst { client, to, group } => self.burst(client, to, group),
            Event::GivesUp { client } => self.give_up(client),
            Event::Fault(fault) => self.strike(fault),
            Event::CrashInSync { process, loses_power } => {
                let mut host = self.host.borrow_mut();
                if host.process == process && host.faults.active {
                    host.faults.counts.crashes_in_sync += 1;
                    drop(host);
                    self.end_process(loses_power);
                }
            }
            Event::DirectoryCommits { process } => {
                self.gateway.directory_commits(process, &mut self.oracle);
            }
            Event::DirectoryAnswers { process } => self.gateway.directory_answers(process),
            Event::GatewayStarts => {
                if !self.gateway.is_up() {
                    self.start_gateway();
                }
            }
            Event::DrainDue { process } => self.check_drain(process),
            Event::ClientTimer { client, ticket } => {
                let is_due = {
                    let host = &mut *self.host.borrow_mut();
                    self.clients[client].handle_timer(host, &mut self.oracle, ticket)
                };
                if is_due {
                    self.connect(client);
                }
            }
            event => self.handle_below(event),
        }
        self.hear();
        if self.gateway.is_finished() {
            self.end_process(false);
        }
        if let Some(reason) = self.gateway.failure.take() {
            self.fail_process(&reason);
        }
        self.excuse();
        let completions = self.host.borrow().completions;
        if let Some(crash) = self.crash.take_if(|crash| crash.completion <= completions) {
            self.host.borrow().tell(|| format!("the process ends: {crash:?}"));
            self.end_process(crash.loses_power);
        }
    }

    /// What happens to the machine and the clients alone.
    fn handle_below(&mut self, event: Event) {
        let host = &mut *self.host.borrow_mut();
        match event {
            Event::Ready { process, shard, ready } => host.handle_ready(process, shard, ready),
            Event::Woken { process, shard } => host.handle_woken(process, shard),
            Event::FileDue { process, shard, slot } => host.handle_file_due(process, shard, slot),
            Event::Syn { link } => host.handle_syn(link),
            Event::ToServer { link, data } => host.handle_to_server(link, &data),
            Event::FinToServer { link } => host.handle_fin_to_server(link),
            Event::RstToServer { link } => host.handle_rst_to_server(link),
            Event::ToClient { link, .. }
            | Event::FinToClient { link }
            | Event::RstToClient { link }
                if self.clients.get(host.link(link).client).is_some_and(Client::is_blind) =>
            {
                self.clients[host.link(link).client].hold_back(event);
            }
            Event::ToClient { link, data } => {
                if host.handle_to_client(link, data.len()) {
                    let client = host.link(link).client;
                    host.clock.note(&[3, client as u64, data.len() as u64]);
                    if let Some(client) = self.clients.get_mut(client) {
                        client.handle_data(host, &mut self.oracle, link, &data);
                    }
                }
            }
            Event::FinToClient { link } | Event::RstToClient { link } => {
                let reset = matches!(event, Event::RstToClient { .. });
                if host.handle_end_to_client(link, reset) {
                    let client = host.link(link).client;
                    if let Some(client) = self.clients.get_mut(client) {
                        client.handle_end(host, &mut self.oracle, link);
                    }
                }
            }
            Event::ClientWritten { client, life } => {
                self.clients[client].handle_written(host, &mut self.oracle, life);
            }
            Event::ClientReads { client } => self.clients[client].handle_reads(host),
            Event::RogueLeaves { link } => host.client_close(link),
            Event::DatagramToServer { from, ecn, data } => {
                host.handle_datagram_to_server(from, ecn, data);
            }
            Event::DatagramToClient { to, ecn, data } => {
                host.handle_datagram_to_client(to, ecn, &data);
            }
            Event::QuicTimer { link, ticket } => host.handle_quic_timer(link, ticket),
            Event::Rebinds { link, rebind } => {
                if host.faults.active {
                    host.quic_rebind(link, rebind);
                }
            }
            other => unreachable!("handled above: {other:?}"),
        }
    }

    /// Tells the clients what their QUIC connections have for them.
    fn hear(&mut self) {
        let host = &mut *self.host.borrow_mut();
        while let Some((client, link, heard)) = host.quic.next_heard() {
            let worker = &mut self.clients[client];
            match heard {
                Heard::Data(data) => {
                    host.clock.note(&[5, client as u64, data.len() as u64]);
                    worker.handle_data(host, &mut self.oracle, link, &data);
                }
                Heard::End => worker.handle_end(host, &mut self.oracle, link),
            }
        }
    }

    fn connect(&mut self, client: usize) {
        let host = &mut *self.host.borrow_mut();
        let is_forged = host.faults.active && self.tokens.chance(10);
        let is_short = host.faults.active && self.tokens.chance(100);
        // Now and then one that ends while it is used, or another device's.
        let ttl_s = if is_short { 10 } else { 400 * 86_400 };
        // The token says whose connection it is; the Hello names the device once more.
        let other = &self.clients[(client + 1) % self.clients.len()];
        let own = self.clients[client].address();
        let is_forged = is_forged && other.address().device != own.device;
        let owner = if is_forged { other.address() } else { own };
        let token = self.keys.mint(owner, host.clock.unix_ms(), ttl_s);
        let shard = self.tokens.below(u64::from(self.shape.shards));
        let shard = u16::try_from(shard).expect("few shards");
        let mode =
            if host.faults.active { self.author.mode(&self.shape) } else { Mode::Foreground };
        let login = Login { token, mode, is_forged, is_short };
        self.clients[client].connect(host, &mut self.oracle, shard, login);
    }

    fn plan_work(&mut self, client: usize) {
        let delay_ns = self.work.between(50, self.shape.pause_ms_max) * MS;
        self.host.borrow_mut().clock.plan_in(delay_ns, Event::Work { client });
    }

    /// The app of `client` does something, and will again.
    fn work(&mut self, client: usize) {
        let host = &mut *self.host.borrow_mut();
        let is_busy = host.clock.now_ns() < self.calm_ns;
        let worker = &mut self.clients[client];
        let is_hermit = self.shape.is_hermit(client);
        if is_busy && is_hermit && worker.is_idle() {
            worker.go_away_until(host, &mut self.oracle, self.calm_ns / MS);
        }
        if is_busy && self.work.chance(30) {
            let mode = self.author.mode(&self.shape);
            worker.set_mode(host, &mut self.oracle, mode);
        }
        if self.work.chance(300) {
            let token = self.keys.mint(worker.address(), host.clock.unix_ms(), 400 * 86_400);
            worker.renew(host, &mut self.oracle, &token);
        }
        if is_busy && !is_hermit {
            if self.work.chance(10) {
                let too_large = self.author.too_large(&self.shape.devices[client].user);
                worker.app_sends_too_large(host, &mut self.oracle, too_large);
            }
            let burst = if self.work.chance(50) { 60 } else { 4 };
            let count = self.work.between(1, burst);
            let mut to = self.work.index(self.shape.devices.len());
            if self.shape.focus_ms > 0 && self.work.chance(800) {
                let turn = host.clock.now_ms() / self.shape.focus_ms;
                to = usize::try_from(turn % self.shape.devices.len() as u64).expect("few devices");
            }
            let to = (!self.work.chance(20)).then_some(to);
            let group = self.group_work.group(&self.shape, worker);
            for _ in 0..count {
                let message = self.oracle.next_message();
                let draft = match &group {
                    Some(group) => self.author.draft_to_group(&self.shape, group.clone(), message),
                    None => self.author.draft(&self.shape, client, to, message),
                };
                if !worker.app_sends(host, &mut self.oracle, draft) {
                    break; // the outbox is full
                }
            }
        }
        if is_busy {
            worker.app_asks(host, &mut self.oracle, &self.shape);
        }
        worker.confirm_all();
        worker.drive(host, &mut self.oracle);
        if self.is_over {
            return;
        }
        let delay_ns = self.work.between(50, self.shape.pause_ms_max) * MS;
        host.clock.plan_in(delay_ns, Event::Work { client });
    }

    fn start_gateway(&mut self) {
        let reshard = {
            let host = &mut *self.host.borrow_mut();
            host.tell(|| "the gateway starts".into());
            let is_active = host.faults.active;
            let random = &mut host.faults.reshard;
            let wanted = is_active && random.chance(self.shape.reshard);
            wanted.then(|| {
                let shards = random.between(1, u64::from(self.shape.shards));
                let cut_off = random.chance(400);
                Reshard {
                    storage_shards: u16::try_from(shards).expect("few"),
                    operations_max: if cut_off { random.below(300) } else { u64::MAX },
                    loses_power: random.chance(500),
                }
            })
        };
        self.oracle.registry.process_started(self.host.borrow().clock.now_ns());
        if !self.gateway.start(reshard) {
            self.plan_start();
        }
    }

    fn plan_start(&mut self) {
        let host = &mut *self.host.borrow_mut();
        let delay_ns = host.faults.crash.between(1, 3_000) * MS;
        host.clock.plan_in(delay_ns, Event::GatewayStarts);
    }

    /// A shard gave up, and its process with it. Its supervisor starts it again.
    fn fail_process(&mut self, reason: &str) {
        let is_hurt = {
            let mut host = self.host.borrow_mut();
            host.tell(|| reason.to_owned());
            host.coverage.process_failures += 1;
            host.injuries.hurt_process
        };
        self.oracle.require(is_hurt || self.oracle.has_excuses(), || reason.to_owned());
        self.end_process(false);
    }

    /// What the disk has lost may be missing.
    fn excuse(&mut self) {
        let now_ns = self.host.borrow().clock.now_ns();
        for (shard, damage) in std::mem::take(&mut self.host.borrow_mut().injuries.rotten) {
            let clients = (0..self.shape.devices.len())
                .filter(|&client| self.gateway.shape.home(client) == shard);
            self.oracle.excuse(clients.collect(), damage, now_ns);
        }
    }

    pub(super) fn drain(&mut self) {
        self.gateway.drain();
        let host = &mut *self.host.borrow_mut();
        host.faults.counts.restarts += 1;
        let process = host.process;
        host.clock.plan_in(DRAIN_MS_MAX * MS, Event::DrainDue { process });
    }

    fn check_drain(&mut self, process: u64) {
        let over = self.host.borrow().process != process;
        let in_flight = self.gateway.in_flight();
        self.oracle
            .require(over, || format!("a drain does not end; operations in flight: {in_flight:?}"));
    }

    pub(super) fn end_process(&mut self, loses_power: bool) {
        self.oracle.answers_lost = true;
        self.gateway.end(loses_power);
        self.host.borrow_mut().clock.note(&[4, u64::from(loses_power)]);
        self.plan_start();
    }

    fn become_kind(&mut self) {
        self.oracle.reads_failed = self.host.borrow().faults.counts.failed_reads > 0;
        let host = &mut *self.host.borrow_mut();
        host.faults.active = false;
        // So that all find out soon about connections that are gone.
        for client in &mut self.clients {
            client.set_mode(host, &mut self.oracle, Mode::Foreground);
        }
    }

    fn report(&self) -> Report {
        self.gateway.count_stores();
        let host = self.host.borrow();
        let mut coverage = host.coverage;
        coverage.add(&self.oracle.reached);
        coverage.gaps_full = self.oracle.gaps_told(GapReason::Full);
        coverage.gaps_expired = self.oracle.gaps_told(GapReason::Expired);
        coverage.gaps_damaged = self.oracle.gaps_told(GapReason::Damaged);
        Report {
            fingerprint: host.clock.fingerprint(),
            events: self.events,
            virtual_ms: host.clock.now_ms() - self.start_ms,
            messages: self.oracle.message_count(),
            accepted: self.oracle.accepted_count,
            refused: self.oracle.refused_count,
            gaps: self.oracle.gap_count,
            completions: host.completions,
            faults: host.faults.counts,
            coverage,
            settled: self.settled,
        }
    }
}

const EVENTS_MAX: u64 = 5_000_000;
