//! One world: a gateway, its clients, what goes wrong, and the order of it all.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::client::Client;
use super::clock::{MS, Stream};
use super::counts::FaultCounts;
use super::gateway::{Gateway, SHARDS};
use super::keys::{Keys, devices};
use super::net::LinkId;
use super::oracle::{Oracle, Violation};
use super::ring::{Host, Ready};
use super::trace::Trace;

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
    ClientTimer { client: usize, ticket: u64 },
    ClientWritten { client: usize, life: u64 },
    Work { client: usize },
    Fault(Fault),
    GatewayStarts,
    DrainDue { process: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Connection,
    ClientCrash,
    PowerFailure,
    Kill,
    Restart,
}

/// How a world differs from the usual one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The mutant: `fdatasync` makes nothing durable.
    pub lie_about_sync: bool,
    /// Mailboxes fill up whatever else happens. So a Send whose outcome a crash has lost is refused
    /// when it is replayed, though it was stored, and is retried under a new number.
    pub tight_mailboxes: bool,
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
    pub faults: FaultCounts,
}

pub struct World {
    host: Rc<RefCell<Host>>,
    gateway: Gateway,
    clients: Vec<Client>,
    oracle: Oracle,
    keys: Keys,
    work: Stream,
    tokens: Stream,
    /// Until then messages are sent and things go wrong.
    calm_ns: u64,
    events: u64,
    start_ms: u64,
}

impl World {
    pub fn new(seed: u64, keys: &Keys, options: Options, trace: Trace) -> Self {
        let mut host = Host::new(seed, SHARDS);
        host.disk.lie_about_sync = options.lie_about_sync;
        host.trace = trace;
        let mut work = Stream::new(seed, "work");
        let calm_ns = host.clock.now_ns() + work.between(10, 60) * 1_000 * MS;
        let start_ms = host.clock.now_ms();
        let tight = options.tight_mailboxes || host.faults.weights.tight_mailboxes;
        let host = Rc::new(RefCell::new(host));
        let devices = devices();
        let clients = devices
            .iter()
            .enumerate()
            .map(|(index, address)| Client::new(index, address.clone(), seed))
            .collect();
        Self {
            gateway: Gateway::new(Rc::clone(&host), Arc::clone(&keys.verifier), seed, tight),
            host,
            clients,
            oracle: Oracle::new(devices),
            keys: keys.clone(),
            work,
            tokens: Stream::new(seed, "tokens"),
            calm_ns,
            events: 0,
            start_ms,
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
        let settle_ns = world.calm_ns + SETTLE_MS_MAX * MS;
        if !world.run_until(settle_ns, Self::is_settled)? {
            return Err(Violation(world.why_unsettled()));
        }
        world.end()?;
        world.oracle.verdict()?;
        Ok(world.report())
    }

    fn begin(&mut self) {
        self.gateway.start();
        for client in 0..self.clients.len() {
            self.clients[client].drive(&mut self.host.borrow_mut(), &mut self.oracle);
            self.plan_work(client);
        }
        let weights = self.host.borrow().faults.weights.clone();
        let faults = [
            (Fault::Connection, weights.cut_ms),
            (Fault::ClientCrash, weights.client_crash_ms),
            (Fault::PowerFailure, weights.power_failure_ms),
            (Fault::Kill, weights.kill_ms),
            (Fault::Restart, weights.restart_ms),
        ];
        for (fault, _) in faults.into_iter().filter(|(_, mean_ms)| mean_ms.is_some()) {
            self.plan_fault(fault);
        }
    }

    /// Runs until `is_over`, or until `end_ns`; gives whether it was over.
    fn run_until(
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
            Event::Fault(fault) => self.strike(fault),
            Event::GatewayStarts => {
                if !self.gateway.is_up() {
                    self.host.borrow().tell(|| "the gateway starts".into());
                    self.gateway.start();
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
        if self.gateway.is_finished() {
            self.end_process(false);
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
            Event::ToClient { link, data } => {
                if host.handle_to_client(link, data.len()) {
                    let client = host.link(link).client;
                    host.clock.note(&[3, client as u64, data.len() as u64]);
                    self.clients[client].handle_data(host, &mut self.oracle, link, &data);
                }
            }
            Event::FinToClient { link } | Event::RstToClient { link } => {
                let reset = matches!(event, Event::RstToClient { .. });
                if host.handle_end_to_client(link, reset) {
                    let client = host.link(link).client;
                    self.clients[client].handle_end(host, &mut self.oracle, link);
                }
            }
            Event::ClientWritten { client, life } => {
                self.clients[client].handle_written(host, &mut self.oracle, life);
            }
            other => unreachable!("handled above: {other:?}"),
        }
    }

    fn connect(&mut self, client: usize) {
        let host = &mut *self.host.borrow_mut();
        // Now and then one that ends while it is used.
        let ttl_s = if host.faults.active && self.tokens.chance(100) { 10 } else { 3_600 };
        let token = self.keys.mint(self.clients[client].address(), host.clock.unix_ms(), ttl_s);
        let shard = if self.tokens.chance(500) { 0 } else { 1 };
        self.clients[client].connect(host, &mut self.oracle, shard, token);
    }

    fn plan_work(&mut self, client: usize) {
        let delay_ns = self.work.between(50, 3_000) * MS;
        self.host.borrow_mut().clock.plan_in(delay_ns, Event::Work { client });
    }

    fn work(&mut self, client: usize) {
        let now_ns = self.host.borrow().clock.now_ns();
        let burst = if self.work.chance(50) { 60 } else { 4 };
        let count = if now_ns < self.calm_ns { self.work.between(1, burst) } else { 0 };
        let to = self.work.index(self.clients.len());
        let host = &mut *self.host.borrow_mut();
        self.clients[client].app_sends(host, &mut self.oracle, to, count);
        let delay_ns = self.work.between(50, 3_000) * MS;
        host.clock.plan_in(delay_ns, Event::Work { client });
    }

    fn plan_fault(&mut self, fault: Fault) {
        let host = &mut *self.host.borrow_mut();
        let weights = &host.faults.weights;
        let mean_ms = match fault {
            Fault::Connection => weights.cut_ms,
            Fault::ClientCrash => weights.client_crash_ms,
            Fault::PowerFailure => weights.power_failure_ms,
            Fault::Kill => weights.kill_ms,
            Fault::Restart => weights.restart_ms,
        };
        let mean_ms = mean_ms.expect("only planned when it has a mean");
        // In microseconds, so that any moment can be hit.
        let delay_ns = host.faults.crash.between(1, 2_000 * mean_ms) * 1_000;
        host.clock.plan_in(delay_ns, Event::Fault(fault));
    }

    fn strike(&mut self, fault: Fault) {
        if !self.host.borrow().faults.active {
            return;
        }
        self.host.borrow().tell(|| format!("fault: {fault:?}"));
        match fault {
            Fault::Connection => self.strike_connection(),
            Fault::ClientCrash => {
                let host = &mut *self.host.borrow_mut();
                host.faults.counts.client_crashes += 1;
                let client = host.faults.crash.index(self.clients.len());
                self.clients[client].crash(host, &mut self.oracle);
            }
            Fault::PowerFailure | Fault::Kill if self.gateway.is_up() => {
                let loses_power = fault == Fault::PowerFailure;
                {
                    let counts = &mut self.host.borrow_mut().faults.counts;
                    counts.power_failures += u64::from(loses_power);
                    counts.kills += u64::from(!loses_power);
                }
                self.end_process(loses_power);
            }
            Fault::Restart if self.gateway.is_up() && !self.gateway.draining => self.drain(),
            Fault::PowerFailure | Fault::Kill | Fault::Restart => {}
        }
        self.plan_fault(fault);
    }

    fn drain(&mut self) {
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

    fn strike_connection(&mut self) {
        let host = &mut *self.host.borrow_mut();
        host.faults.counts.cuts += 1;
        let client = host.faults.connection.index(self.clients.len());
        let kind = host.faults.connection.below(5);
        let client = &mut self.clients[client];
        let Some(link) = client.conn.as_ref().map(|conn| conn.link) else { return };
        match kind {
            0 => host.cut(link),
            1 => client.leave(host, &mut self.oracle, true),
            2 | 3 => client.leave(host, &mut self.oracle, false),
            _ => client.close(host, &mut self.oracle),
        }
    }

    fn end_process(&mut self, loses_power: bool) {
        self.gateway.end(loses_power);
        let host = &mut *self.host.borrow_mut();
        host.clock.note(&[4, u64::from(loses_power)]);
        let delay_ns = host.faults.crash.between(1, 3_000) * MS;
        host.clock.plan_in(delay_ns, Event::GatewayStarts);
    }

    fn become_kind(&mut self) {
        self.host.borrow_mut().faults.active = false;
    }

    fn is_settled(&self) -> bool {
        self.gateway.is_up()
            && !self.gateway.draining
            && self.clients.iter().all(Client::is_idle)
            && self.oracle.missing().is_empty()
    }

    fn why_unsettled(&self) -> String {
        let clients: Vec<String> = self.clients.iter().map(Client::state).collect();
        let mut missing = self.oracle.missing();
        missing.truncate(8);
        format!(
            "not settled after {SETTLE_MS_MAX} ms without faults: {}; {}",
            missing.join(", "),
            clients.join("; ")
        )
    }

    /// Everybody leaves; nothing may be left behind.
    fn end(&mut self) -> Result<(), Violation> {
        self.pass(5_000)?; // the last acknowledgements become durable
        for client in &mut self.clients {
            client.retire(&mut self.host.borrow_mut());
        }
        self.pass(120_000)?; // connections left without a word time out
        let answers = self.gateway.request_metrics();
        self.pass(1_000)?;
        let sockets = self.host.borrow().open_sockets();
        let in_flight = self.gateway.in_flight();
        let metrics = std::mem::take(&mut *answers.lock().expect("one thread"));
        let oracle = &mut self.oracle;
        oracle.require(metrics.len() == usize::from(SHARDS), || "a shard is stuck".into());
        oracle.require(sockets == 0, || format!("{sockets} sockets are left open"));
        oracle.require(in_flight.iter().all(|&count| count == 1), || {
            format!("operations in flight besides the accept: {in_flight:?}")
        });
        for metrics in metrics {
            let left = [
                ("connections", metrics.connections.get()),
                ("leases", metrics.ring_leases_out.get()),
                ("queued records", metrics.queued_records.get()),
                ("unanswered mesh requests", metrics.mesh_unanswered.get()),
                ("mesh messages", metrics.mesh_depth.get()),
                ("read faults", metrics.read_faults.get()),
            ];
            for (what, count) in left {
                oracle.require(count == 0, || format!("{count} {what} are left"));
            }
        }
        oracle.verdict()?;
        self.drain();
        let process = self.host.borrow().process;
        let now_ns = self.host.borrow().clock.now_ns();
        self.run_until(now_ns + DRAIN_MS_MAX * MS + MS, |world| {
            world.host.borrow().process != process
        })?;
        let files = self.host.borrow().disk.open_files();
        self.oracle.require(files == 0, || format!("{files} files are left open"));
        Ok(())
    }

    fn pass(&mut self, duration_ms: u64) -> Result<(), Violation> {
        let end_ns = self.host.borrow().clock.now_ns() + duration_ms * MS;
        self.run_until(end_ns, |_| false).map(|_| ())
    }

    fn report(&self) -> Report {
        let host = self.host.borrow();
        Report {
            fingerprint: host.clock.fingerprint(),
            events: self.events,
            virtual_ms: host.clock.now_ms() - self.start_ms,
            messages: self.oracle.message_count(),
            accepted: self.oracle.accepted_count,
            refused: self.oracle.refused_count,
            gaps: self.oracle.gap_count,
            faults: host.faults.counts,
        }
    }
}

/// Virtual time in which everything must be delivered once nothing goes wrong any more.
const SETTLE_MS_MAX: u64 = 300_000;
const DRAIN_MS_MAX: u64 = 60_000;
const EVENTS_MAX: u64 = 5_000_000;
