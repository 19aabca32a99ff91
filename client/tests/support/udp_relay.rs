//! A UDP path that can be disturbed: delay, loss, reordering, a network that goes away, a NAT that
//! changes the port. Needs no privilege and nothing but the standard library.

use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// What happens to datagrams, in both directions alike.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) delay: Duration,
    /// Each datagram takes up to so much longer, so that they overtake each other.
    pub(crate) jitter: Duration,
    /// Lost, of a thousand.
    pub(crate) loss_permille: u64,
}

/// Datagrams since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) to_server: u64,
    pub(crate) to_client: u64,
    /// Lost by chance, or because the way is blocked.
    pub(crate) dropped: u64,
}

/// Between any number of clients and one server. Each client has a port of its own towards the
/// server, as behind a NAT. Ends when dropped.
pub(crate) struct UdpRelay {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    front: UdpSocket,
    server: SocketAddr,
    state: Mutex<State>,
    /// Something is in the queue.
    queued: Condvar,
    is_stopped: AtomicBool,
}

struct State {
    conditions: Conditions,
    is_blocked: bool,
    flows: HashMap<SocketAddr, Flow>,
    late: BinaryHeap<Late>,
    number: u64,
    random: u64,
    counts: Counts,
}

/// One client.
struct Flow {
    back: Arc<UdpSocket>,
    /// Its network is gone.
    is_cut: bool,
}

/// A datagram that waits; the earliest is the greatest.
struct Late {
    at: Instant,
    number: u64,
    data: Vec<u8>,
    way: Way,
}

enum Way {
    ToServer(Arc<UdpSocket>),
    ToClient(SocketAddr),
}

impl UdpRelay {
    /// On a free port of 127.0.0.1.
    pub(crate) fn start(server: SocketAddr) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), server).expect("a port is free")
    }

    pub(crate) fn start_at(address: SocketAddr, server: SocketAddr) -> io::Result<Self> {
        let front = UdpSocket::bind(address)?;
        front.set_read_timeout(Some(LOOK))?;
        let address = front.local_addr()?;
        let state = State {
            conditions: Conditions::default(),
            is_blocked: false,
            flows: HashMap::new(),
            late: BinaryHeap::new(),
            number: 0,
            random: 1,
            counts: Counts::default(),
        };
        let shared = Arc::new(Shared {
            front,
            server,
            state: Mutex::new(state),
            queued: Condvar::new(),
            is_stopped: AtomicBool::new(false),
        });
        let (incoming, late) = (Arc::clone(&shared), Arc::clone(&shared));
        thread::spawn(move || incoming.run_front());
        thread::spawn(move || late.run_late());
        Ok(Self { shared, address })
    }

    /// Where clients send to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, conditions: Conditions) {
        self.shared.lock().conditions = conditions;
    }

    /// Nothing passes, either way, until told otherwise.
    pub(crate) fn block(&self, is_blocked: bool) {
        self.shared.lock().is_blocked = is_blocked;
    }

    /// The addresses that clients have had so far are cut off for good, both ways; new ones pass.
    pub(crate) fn cut_known(&self) {
        self.shared.lock().flows.values_mut().for_each(|flow| flow.is_cut = true);
    }

    /// Clients' datagrams come from another port, and from `source`, without the clients knowing;
    /// what the server sends to the old one is lost.
    pub(crate) fn rebind(&self, source: Ipv4Addr) {
        let mut state = self.shared.lock();
        for (&client, flow) in &mut state.flows {
            flow.back = self.shared.open_back(client, source).expect("a port is free");
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.shared.lock().counts
    }
}

impl Drop for UdpRelay {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        self.shared.queued.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    fn run_front(self: Arc<Self>) {
        let mut data = [0; DATAGRAM_BYTES_MAX];
        while !self.is_stopped() {
            let Ok((length, client)) = self.front.recv_from(&mut data) else { continue };
            let mut state = self.lock();
            let flow = state.flows.entry(client).or_insert_with(|| Flow {
                back: self.open_back(client, Ipv4Addr::LOCALHOST).expect("a port is free"),
                is_cut: false,
            });
            let (is_cut, way) = (flow.is_cut, Way::ToServer(Arc::clone(&flow.back)));
            self.pass(&mut state, is_cut, &data[..length], way);
        }
    }

    /// A port for one client, and a thread that listens there until the client has another one.
    fn open_back(
        self: &Arc<Self>,
        client: SocketAddr,
        source: Ipv4Addr,
    ) -> io::Result<Arc<UdpSocket>> {
        let back = Arc::new(UdpSocket::bind((source, 0))?);
        back.connect(self.server)?;
        back.set_read_timeout(Some(LOOK))?;
        let (shared, listening) = (Arc::clone(self), Arc::clone(&back));
        thread::spawn(move || shared.run_back(client, &listening));
        Ok(back)
    }

    fn run_back(&self, client: SocketAddr, back: &Arc<UdpSocket>) {
        let mut data = [0; DATAGRAM_BYTES_MAX];
        while !self.is_stopped() {
            let received = back.recv(&mut data);
            let mut state = self.lock();
            let Some(flow) = state.flows.get(&client) else { continue };
            if !Arc::ptr_eq(&flow.back, back) {
                return;
            }
            let is_cut = flow.is_cut;
            if let Ok(length) = received {
                self.pass(&mut state, is_cut, &data[..length], Way::ToClient(client));
            }
        }
    }

    fn pass(&self, state: &mut State, is_cut: bool, data: &[u8], way: Way) {
        let conditions = state.conditions;
        let is_lost = state.random() % 1_000 < conditions.loss_permille;
        if is_cut || state.is_blocked || is_lost {
            state.counts.dropped += 1;
            return;
        }
        match way {
            Way::ToServer(_) => state.counts.to_server += 1,
            Way::ToClient(_) => state.counts.to_client += 1,
        }
        let jitter_us = u64::try_from(conditions.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(state.random() % jitter_us.saturating_add(1));
        let wait = conditions.delay + jitter;
        if wait.is_zero() {
            self.send(data, &way);
            return;
        }
        state.number += 1;
        let number = state.number;
        state.late.push(Late { at: Instant::now() + wait, number, data: data.to_vec(), way });
        self.queued.notify_all();
    }

    fn run_late(&self) {
        let mut state = self.lock();
        while !self.is_stopped() {
            let wait = match state.late.peek() {
                Some(late) => late.at.saturating_duration_since(Instant::now()),
                None => LOOK,
            };
            if wait.is_zero() {
                if let Some(late) = state.late.pop() {
                    self.send(&late.data, &late.way);
                }
            } else {
                state = self.queued.wait_timeout(state, wait).expect("no thread panics").0;
            }
        }
    }

    fn send(&self, data: &[u8], way: &Way) {
        // A full buffer or a closed port loses it, as on any network.
        let _ = match way {
            Way::ToServer(back) => back.send(data),
            Way::ToClient(client) => self.front.send_to(data, client),
        };
    }
}

impl State {
    /// xorshift64: the same every time.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Late {}

const DATAGRAM_BYTES_MAX: usize = 65_536;
/// How long a thread sleeps before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
