//! The process: its shards, its control thread in miniature, and its ends.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use ringpost_engine::control::auth::Verifier;
use ringpost_engine::mesh::{Mesh, Queues};
use ringpost_engine::metrics::ShardMetrics;
use ringpost_engine::shard::message::{ControlRequest, ShardEvent};
use ringpost_engine::shard::{Shard, ShardConfig, ShardParts, StoreDirectory, Turn};
use ringpost_engine::transport::Acceptor;
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::message::Limits;
use ringpost_ring::{Group, Listener, Ring};
use ringpost_storage::limits::SEGMENT_BYTES_MIN;
use ringpost_storage::{FileId, StoreConfig};

use super::clock::Stream;
use super::oracle::Oracle;
use super::ring::{Host, Rest, SimRing};

/// Shards of the simulated gateway; each owns slots.
pub const SHARDS: u16 = 2;

/// The gateway between two crashes.
pub struct Gateway {
    host: Rc<RefCell<Host>>,
    verifier: Arc<Verifier>,
    random: Stream,
    shards: Vec<Shard<SimRing>>,
    group: Option<Group>,
    queues: Option<Queues>,
    events: Arc<Mutex<Vec<ShardEvent>>>,
    finished: Vec<bool>,
    quiet_count: u16,
    /// Told to drain.
    pub draining: bool,
    mailbox_records_max: u32,
}

impl Gateway {
    /// `tight`: mailboxes that fill up.
    pub fn new(host: Rc<RefCell<Host>>, verifier: Arc<Verifier>, seed: u64, tight: bool) -> Self {
        let random = Stream::new(seed, "gateway");
        let mailbox_records_max = if tight { 24 } else { 100_000 };
        Self {
            host,
            verifier,
            random,
            shards: Vec::new(),
            group: None,
            queues: None,
            events: Arc::default(),
            finished: Vec::new(),
            quiet_count: 0,
            draining: false,
            mailbox_records_max,
        }
    }

    pub fn is_up(&self) -> bool {
        !self.shards.is_empty()
    }

    pub fn start(&mut self) {
        assert!(!self.is_up(), "one process at a time");
        let group = Group::new(SHARDS).expect("two descriptors");
        let queues = Queues::new(group.clone());
        self.host.borrow_mut().begin_process();
        self.events.lock().expect("one thread").clear();
        (self.finished, self.quiet_count) = (vec![false; usize::from(SHARDS)], 0);
        self.draining = false;
        for shard in 0..SHARDS {
            let seed = self.random.next_u64();
            self.shards.push(self.shard(shard, seed, &queues));
            let mut host = self.host.borrow_mut();
            let at_ns = host.clock.now_ns();
            host.request_turn(shard, at_ns);
        }
        (self.group, self.queues) = (Some(group), Some(queues));
    }

    fn shard(&self, shard: u16, random_seed: u64, queues: &Queues) -> Shard<SimRing> {
        let path = format!("/store-{shard}");
        let (host, directory) = (Rc::clone(&self.host), path.clone());
        let list = move || {
            let listed = host.borrow().disk.list(&directory);
            let named =
                listed.iter().filter_map(|(name, size)| Some((FileId::parse(name)?, *size)));
            Ok(named.collect())
        };
        let directory = StoreDirectory { path, list: Box::new(list) };
        let store = StoreConfig {
            segment_bytes: SEGMENT_BYTES_MIN,
            cache_bytes: 64 << 10,
            batch_bytes_max: 32 << 10,
            fill_chunk_bytes: 32 << 10,
            mailbox_records_max: self.mailbox_records_max,
            mailbox_bytes_max: 1 << 30,
            ..StoreConfig::new(shard, STORE_ID)
        };
        let events = Arc::clone(&self.events);
        let config = ShardConfig {
            shard,
            storage_shards: SHARDS,
            connections_max: 64,
            frame_bytes_max: FRAME_BYTES_MAX,
            wire_limits: Limits::of_protocol(),
            reconnect_jitter_ms: 1_000,
            confirm_clock: false,
            random_seed,
        };
        let parts = ShardParts {
            ring: SimRing::new(Rc::clone(&self.host), shard),
            listener: Some(Listener(i32::from(shard))),
            mesh: Mesh::new(shard, queues.clone()),
            acceptor: Acceptor::Plain,
            verifier: Arc::clone(&self.verifier),
            store: Some((store, directory)),
            events: Box::new(move |event| events.lock().expect("one thread").push(event)),
        };
        Shard::new(config, parts)
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
            Turn::Failed => oracle.violated(format!("the store of shard {shard} failed")),
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
        }
        self.handle_events(oracle);
    }

    fn handle_events(&mut self, oracle: &mut Oracle) {
        let events = std::mem::take(&mut *self.events.lock().expect("one thread"));
        for event in events {
            match event {
                ShardEvent::Ready { .. }
                | ShardEvent::Reopened { .. }
                | ShardEvent::Finished { .. } => {}
                ShardEvent::Reopening { shard, reason } => {
                    self.host.borrow().tell(|| format!("shard {shard} reopens: {reason}"));
                }
                ShardEvent::Quiet { .. } => {
                    self.quiet_count += 1;
                    if self.quiet_count == SHARDS {
                        for shard in 0..SHARDS {
                            self.ask(shard, ControlRequest::Stop);
                        }
                    }
                }
                ShardEvent::Failed { shard, reason } => {
                    oracle.violated(format!("shard {shard} failed: {reason}"));
                }
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

    pub fn drain(&mut self) {
        self.draining = true;
        for shard in 0..SHARDS {
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
        for shard in 0..SHARDS {
            let answers = Arc::clone(&answers);
            let reply = move |metrics| answers.lock().expect("one thread").push(metrics);
            self.ask(shard, ControlRequest::Metrics(Box::new(reply)));
        }
        answers
    }

    /// Operations in flight per shard.
    pub fn in_flight(&self) -> Vec<usize> {
        self.shards.iter().map(|shard| shard.ring().in_flight()).collect()
    }

    /// The process is gone.
    pub fn end(&mut self, loses_power: bool) {
        self.host.borrow_mut().end_process(loses_power);
        self.shards.clear();
        (self.group, self.queues) = (None, None);
    }
}

const STORE_ID: u64 = 0x0051_3057;
/// A finished shard only closes files, and nothing waits for that: at most all its segments, its
/// directory, and the accept's own cancel.
const CLOSES_MAX: usize = 64;
