//! The process: its shards, its control thread in miniature, and its ends.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use ringpost_engine::control::auth::Verifier;
use ringpost_engine::limits::{AddressTable, LimitSet};
use ringpost_engine::mesh::{Mesh, Queues};
use ringpost_engine::metrics::ShardMetrics;
use ringpost_engine::shard::message::{ControlRequest, ShardEvent};
use ringpost_engine::shard::{Shard, ShardConfig, ShardParts, ShardSettings, StoreDirectory, Turn};
use ringpost_engine::transport::Acceptor;
use ringpost_engine::transport::quic::{CidNaming, QuicConfig, QuicKeys, QuicLimits};
use ringpost_ring::{Group, Listener, Ring, UdpSocket};
use ringpost_storage::limits::SEGMENT_BYTES_MIN;
use ringpost_storage::{Current, FileId, Store, StoreConfig};

use super::clock::Stream;
use super::directory::SimDirectory;
use super::oracle::Oracle;
use super::reshard::{self, Ended};
use super::ring::{Host, Rest, SimRing};
use super::shape::Shape;
use super::weights::Steering;

/// A wish for another number of storage shards.
#[derive(Clone, Copy, Debug)]
pub struct Reshard {
    pub storage_shards: u16,
    /// Disk operations until the process ends.
    pub operations_max: u64,
    /// Its machine goes down with it.
    pub loses_power: bool,
}

/// The gateway between two crashes.
pub struct Gateway {
    host: Rc<RefCell<Host>>,
    verifier: Arc<Verifier>,
    random: Stream,
    /// A process gives out ids that no other one has.
    quic_random: Stream,
    /// `None`: no QUIC.
    quic: Option<QuicConfig>,
    /// Shards that see a flood of handshakes.
    floods: BTreeSet<u16>,
    /// Its storage shards are those of `CURRENT`.
    pub shape: Shape,
    /// Public keys, device lists, rosters.
    records: SimDirectory,
    shards: Vec<Shard<SimRing>>,
    group: Option<Group>,
    queues: Option<Queues>,
    events: Arc<Mutex<Vec<ShardEvent>>>,
    finished: Vec<bool>,
    quiet_count: u16,
    /// Told to drain.
    pub draining: bool,
    /// Why a shard gave up: its process ends.
    pub failure: Option<String>,
    turns: u64,
}

impl Gateway {
    pub fn new(host: Rc<RefCell<Host>>, verifier: Arc<Verifier>, seed: u64, shape: Shape) -> Self {
        let random = Stream::new(seed, "gateway");
        let current =
            Current { generation: 1, storage_shards: shape.storage_shards, store_id: STORE_ID };
        host.borrow_mut().current = current.encode().to_vec();
        Self {
            host,
            verifier,
            random,
            quic_random: Stream::new(seed, "quic gateway"),
            quic: None,
            floods: BTreeSet::new(),
            shape,
            records: SimDirectory::new(seed),
            shards: Vec::new(),
            group: None,
            queues: None,
            events: Arc::default(),
            finished: Vec::new(),
            quiet_count: 0,
            draining: false,
            failure: None,
            turns: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        !self.shards.is_empty()
    }

    /// `reshard`: the configuration names another number of storage shards by now. False: the
    /// process ended before it served.
    pub fn start(&mut self, reshard: Option<Reshard>) -> bool {
        assert!(!self.is_up(), "one process at a time");
        if reshard.is_some_and(|reshard| !self.reshard(reshard)) {
            return false;
        }
        let shards = self.shape.shards;
        let group = Group::new(shards).expect("two descriptors");
        let queues = Queues::new(group.clone());
        let addresses = AddressTable::new(ADDRESSES_MAX, 1);
        {
            let mut host = self.host.borrow_mut();
            host.begin_process();
            host.coverage.process_starts += 1;
        }
        self.begin_quic();
        self.records.begin_process();
        self.events.lock().expect("one thread").clear();
        (self.finished, self.quiet_count) = (vec![false; usize::from(shards)], 0);
        (self.draining, self.failure) = (false, None);
        for shard in 0..shards {
            let seed = self.random.next_u64();
            self.shards.push(self.shard(shard, seed, &queues, &addresses));
            let mut host = self.host.borrow_mut();
            let at_ns = host.clock.now_ns();
            host.request_turn(shard, at_ns);
        }
        (self.group, self.queues) = (Some(group), Some(queues));
        true
    }

    fn current(&self) -> Current {
        let host = self.host.borrow();
        Current::decode(&host.current).expect("it is replaced whole or not at all")
    }

    /// Rewrites the stores, unless they are as wanted. False: the process has ended over it.
    fn reshard(&mut self, reshard: Reshard) -> bool {
        let Reshard { storage_shards, operations_max, loses_power } = reshard;
        let current = self.current();
        if current.storage_shards == storage_shards {
            return true;
        }
        let config = self.store_config(0);
        let ended = reshard::reshard(&self.host, current, storage_shards, &config, operations_max);
        let host = &mut *self.host.borrow_mut();
        host.tell(|| format!("re-sharding of {current:?} into {storage_shards}: {ended:?}"));
        match ended {
            Ended::Done(_) => host.coverage.reshardings += 1,
            Ended::CutOff => host.faults.counts.reshardings_cut_off += 1,
            Ended::Failed(reason) => {
                // A disk that is full, which re-sharding meets below the ring.
                host.injuries.hurt_process |= host.disk.is_full();
                self.failure = Some(reason);
            }
        }
        let current = Current::decode(&host.current).expect("replaced whole or not at all");
        self.shape.storage_shards = current.storage_shards;
        let is_done = current.storage_shards == storage_shards && operations_max == u64::MAX;
        if !is_done {
            host.end_process(loses_power);
        }
        is_done
    }

    fn begin_quic(&mut self) {
        let host = &mut *self.host.borrow_mut();
        let weights = &host.faults.weights;
        self.floods.clear();
        if weights.quic == 0 {
            return;
        }
        let naming = match weights.steering {
            Steering::Plain => CidNaming::Plain,
            Steering::Keyed | Steering::Hash => CidNaming::Keyed,
        };
        let usual = QuicLimits::default();
        let retry_pending = usual.retry_pending.min(weights.retry_pending);
        let limits = QuicLimits { retry_pending, ..usual };
        let keys = QuicKeys::from_secret(&QUIC_SECRET);
        let seed = std::array::from_fn(|_| self.quic_random.next_u64().to_le_bytes()[0]);
        let config = QuicConfig::plain(keys, naming, limits).with_seed(seed);
        let is_steered = weights.steering != Steering::Hash;
        host.steering = is_steered.then(|| config.program(self.shape.shards));
        self.quic = Some(config);
    }

    /// As the production code does: while any shard sees a flood, first packets go by the hash.
    fn handle_flood(&mut self, shard: u16, is_on: bool) {
        let was_on = !self.floods.is_empty();
        if is_on {
            self.floods.insert(shard)
        } else {
            self.floods.remove(&shard)
        };
        let is_on = !self.floods.is_empty();
        let Some(quic) = self.quic.as_ref().filter(|_| was_on != is_on) else { return };
        let shards = self.shape.shards;
        let Some(flooded) = quic.flood_program(shards) else { return };
        let program = if is_on { flooded } else { quic.program(shards) };
        {
            let host = &mut *self.host.borrow_mut();
            host.coverage.floods += u64::from(is_on);
            if host.steering.is_none() {
                return;
            }
            host.steering = Some(program.clone());
        }
        for shard in 0..shards {
            self.ask(shard, ControlRequest::Steered(program.clone()));
        }
    }

    fn shard(
        &self,
        shard: u16,
        random_seed: u64,
        queues: &Queues,
        addresses: &Arc<AddressTable>,
    ) -> Shard<SimRing> {
        let owns_slots = shard < self.shape.storage_shards;
        let store = owns_slots.then(|| (self.store_config(shard), self.directory(shard)));
        let events = Arc::clone(&self.events);
        let config = ShardConfig {
            shard,
            storage_shards: self.shape.storage_shards,
            confirm_clock: false,
            random_seed,
            proxy_trusted: None,
        };
        let parts = ShardParts {
            ring: SimRing::new(Rc::clone(&self.host), shard),
            listener: Some(Listener(i32::from(shard))),
            datagrams: self.quic.as_ref().map(|_| UdpSocket(i32::from(shard))),
            mesh: Mesh::new(shard, queues.clone()),
            settings: self.settings(),
            addresses: Arc::clone(addresses),
            directory: self.shape.has_directory.then(|| self.records.port(shard)),
            store,
            events: Box::new(move |event| events.lock().expect("one thread").push(event)),
        };
        Shard::new(config, parts)
    }

    fn settings(&self) -> ShardSettings {
        let limits = LimitSet {
            connections_max: 64,
            mailbox_records_max: self.shape.mailbox_records_max,
            mailbox_bytes_max: self.shape.mailbox_bytes_max,
            ..self.shape.limits.clone()
        };
        ShardSettings {
            acceptor: Acceptor::Plain,
            quic: self.quic.clone(),
            verifier: Arc::clone(&self.verifier),
            limits: Arc::new(limits),
            reconnect_jitter_ms: 1_000,
            audits: true,
        }
    }

    fn directory(&self, shard: u16) -> StoreDirectory {
        let path = reshard::store_path(self.current().generation, shard);
        let (host, directory) = (Rc::clone(&self.host), path.clone());
        let list = move || {
            let listed = host.borrow().disk.list(&directory);
            let named =
                listed.iter().filter_map(|(name, size)| Some((FileId::parse(name)?, *size)));
            Ok(named.collect())
        };
        StoreDirectory { path, list: Box::new(list) }
    }

    /// Small, so that segments, their reclaim and the reads from disk come within seconds.
    fn store_config(&self, shard: u16) -> StoreConfig {
        StoreConfig {
            segment_bytes: SEGMENT_BYTES_MIN,
            cache_bytes: self.shape.cache_bytes,
            batch_bytes_max: self.shape.batch_bytes_max,
            fill_chunk_bytes: 32 << 10,
            checkpoint_log_bytes: self.shape.checkpoint_log_bytes,
            checkpoint_chunk_bytes: 4 << 10,
            checkpoint_bytes_per_second: 256 << 10,
            expiry_scan_interval_ms: self.shape.expiry_scan_ms,
            mailbox_records_max: self.shape.mailbox_records_max,
            mailbox_bytes_max: self.shape.mailbox_bytes_max,
            ..StoreConfig::new(shard, STORE_ID)
        }
    }

    /// Gives a shard its turn and plans the next one.
    pub fn turn(&mut self, shard: u16, oracle: &mut Oracle) {
        let index = usize::from(shard);
        if !self.is_up() || self.finished[index] {
            return;
        }
        let group = self.group.as_ref().expect("made with the shards");
        group.disarm(shard);
        let turn = self.shards[index].turn();
        let in_flight = self.shards[index].ring().in_flight();
        let queued = self.shards[index].ring().has_queued();
        match turn {
            Turn::Continue => {}
            Turn::Finished => {
                self.finished[index] = true;
                oracle.require(in_flight <= CLOSES_MAX, || {
                    format!("shard {shard} finished with {in_flight} operations in flight")
                });
            }
            Turn::Failed => {
                self.failure.get_or_insert_with(|| format!("the store of shard {shard} failed"));
            }
        }
        {
            let mut host = self.host.borrow_mut();
            let cost_ns = host.faults.turn_cost_ns();
            let now_ns = host.clock.now_ns();
            host.clock.note(&[2, u64::from(shard), in_flight as u64]);
            match host.kernel(shard).rest {
                Rest::Until(at_ns) if !queued => {
                    // What the shard armed before it entered holds until its next turn.
                    group.arm(shard);
                    if at_ns < u64::MAX {
                        host.request_turn(shard, at_ns.max(now_ns + cost_ns));
                    }
                }
                _ => host.request_turn(shard, now_ns + cost_ns),
            }
            if let Some(at_ns) = host.kernel(shard).shows_at_ns() {
                host.request_turn(shard, at_ns.max(now_ns + cost_ns));
            }
        }
        self.records.drive(&mut self.host.borrow_mut());
        self.handle_events(oracle);
        self.turns += 1;
        if self.turns.is_multiple_of(TURNS_PER_CHECK) {
            self.check_bounds(oracle);
            self.watch_stores(oracle);
        }
    }

    /// Shows all open stores to the oracle.
    pub fn watch_stores(&self, oracle: &mut Oracle) {
        for store in self.shards.iter().filter_map(Shard::store) {
            oracle.watch_store(store);
        }
    }

    fn handle_events(&mut self, oracle: &mut Oracle) {
        let events = std::mem::take(&mut *self.events.lock().expect("one thread"));
        for event in events {
            match event {
                ShardEvent::Ready { .. } | ShardEvent::Reopened { .. } => {
                    oracle.opened();
                    self.watch_stores(oracle);
                }
                ShardEvent::Finished { .. }
                | ShardEvent::UnknownKey { .. }
                | ShardEvent::Audit(_) => {}
                ShardEvent::Flood { shard, is_on } => self.handle_flood(shard, is_on),
                ShardEvent::Reopening { shard, reason } => {
                    oracle.answers_lost = true;
                    let mut host = self.host.borrow_mut();
                    host.coverage.stores_reopened += 1;
                    host.tell(|| format!("shard {shard} reopens: {reason}"));
                }
                ShardEvent::Quiet { .. } => {
                    self.quiet_count += 1;
                    if self.quiet_count == self.shape.shards {
                        for shard in 0..self.shape.shards {
                            self.ask(shard, ControlRequest::Stop);
                        }
                    }
                }
                ShardEvent::Failed { shard, reason } => {
                    self.failure = Some(format!("shard {shard} failed: {reason}"));
                }
            }
        }
    }

    /// No mailbox holds more than its bound: messages, and beside them a gap of each reason and a
    /// receipt for each sender, of its own messages and of those to each group.
    fn check_bounds(&self, oracle: &mut Oracle) {
        let receipts_of_peer = RECEIPTS_PER_PEER * (1 + self.shape.groups.len());
        let beside = GAP_REASONS + receipts_of_peer * self.shape.devices.len();
        let most = self.shape.mailbox_records_max as usize + beside;
        for store in self.shards.iter().filter_map(Shard::store) {
            for device in store.devices() {
                let held = store.len(device.mailbox);
                oracle.require(held <= most, || {
                    format!("the mailbox of {:?} holds {held} entries", device.address)
                });
            }
        }
    }

    fn ask(&self, shard: u16, request: ControlRequest) {
        let queues = self.queues.as_ref().expect("made with the shards");
        assert!(queues.push_control(shard, request), "control asks little");
        let mut host = self.host.borrow_mut();
        let at_ns = host.clock.now_ns();
        host.request_turn(shard, at_ns);
    }

    /// What was asked of the directory becomes durable.
    pub fn directory_commits(&mut self, process: u64, oracle: &mut Oracle) {
        let host = &mut *self.host.borrow_mut();
        if host.process == process && !self.shards.is_empty() {
            self.records.commit(host, oracle);
        }
    }

    /// The answers to that come.
    pub fn directory_answers(&mut self, process: u64) {
        let host = &mut *self.host.borrow_mut();
        let Some(queues) = &self.queues else { return };
        if host.process == process {
            self.records.answer(host, queues);
        }
    }

    pub fn drain(&mut self) {
        self.draining = true;
        for shard in 0..self.shape.shards {
            self.ask(shard, ControlRequest::Drain { within_ms: 2_000, jitter_ms: 1_000 });
        }
    }

    /// Every shard has finished after a drain.
    pub fn is_finished(&self) -> bool {
        self.is_up() && self.finished.iter().all(|&finished| finished)
    }

    /// Asks for the counters of every shard; they come during its next turn.
    pub fn request_metrics(&self) -> Arc<Mutex<Vec<ShardMetrics>>> {
        let answers = Arc::new(Mutex::new(Vec::new()));
        for shard in 0..self.shape.shards {
            let answers = Arc::clone(&answers);
            let reply = move |metrics| answers.lock().expect("one thread").push(metrics);
            self.ask(shard, ControlRequest::Metrics(Box::new(reply)));
        }
        answers
    }

    /// Records that wait for somebody, in all stores; `None` while one of them is not open.
    pub fn queued_records(&self) -> Option<u64> {
        let open: Vec<_> = self.shards.iter().filter_map(Shard::store).collect();
        let all_open = self.is_up() && open.len() == usize::from(self.shape.storage_shards);
        all_open.then(|| open.iter().map(|store| store.stats().entries).sum())
    }

    /// Operations in flight per shard.
    pub fn in_flight(&self) -> Vec<usize> {
        self.shards.iter().map(|shard| shard.ring().in_flight()).collect()
    }

    /// Adds what the stores of this process did.
    pub fn count_stores(&self) {
        let coverage = &mut self.host.borrow_mut().coverage;
        for stats in self.shards.iter().filter_map(Shard::store).map(Store::stats) {
            coverage.batches_written += stats.batches_written;
            coverage.segments_reclaimed += stats.reclaimed_segments;
            coverage.bytes_copied_by_reclaim += stats.reclaim_copied_bytes;
            coverage.reads_from_disk += stats.reads_from_disk;
            coverage.damaged_records += stats.damaged_records;
            coverage.checkpoints_written += stats.checkpoints_written;
            coverage.checkpoints_failed += stats.checkpoints_failed;
            coverage.expired_records += stats.expired_records;
        }
    }

    /// The process is gone.
    pub fn end(&mut self, loses_power: bool) {
        self.count_stores();
        self.host.borrow_mut().end_process(loses_power);
        self.shards.clear();
        (self.group, self.queues) = (None, None);
    }
}

const STORE_ID: u64 = 0x0051_3057;
/// Fewer than a world may have clients.
const ADDRESSES_MAX: u32 = 6;
/// A finished shard only closes files, and nothing waits for that: at most all its segments, its
/// directory, and the accept's own cancel.
const CLOSES_MAX: usize = 64;
const TURNS_PER_CHECK: u64 = 64;
const GAP_REASONS: usize = 3;
/// A sender whose disk lost its first commit begins a new installation.
const RECEIPTS_PER_PEER: usize = 2;
const QUIC_SECRET: [u8; 32] = *b"the secret of a simulated world.";
