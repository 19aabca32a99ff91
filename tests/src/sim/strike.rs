//! What strikes now and then: planned by its mean time, in microseconds, so that any moment can be
//! hit.

use std::net::Ipv4Addr;

use super::clock::MS;
use super::quic::Rebind;
use super::weights::Fault;
use super::world::{Event, World};

impl World {
    /// Plans the first of every kind that this world has.
    pub(super) fn plan_faults(&mut self) {
        let kinds: Vec<Fault> =
            self.host.borrow().faults.weights.mean_ms.iter().map(|&(fault, _)| fault).collect();
        for fault in kinds {
            self.plan_fault(fault);
        }
    }

    fn plan_fault(&mut self, fault: Fault) {
        let host = &mut *self.host.borrow_mut();
        let mean_ms = host.faults.weights.mean_ms(fault).expect("only planned when it has one");
        let delay_ns = host.faults.crash.between(1, 2_000 * mean_ms) * 1_000;
        host.clock.plan_in(delay_ns, Event::Fault(fault));
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        if !self.host.borrow().faults.active {
            return;
        }
        self.host.borrow().tell(|| format!("fault: {fault:?}"));
        if let Fault::SlowSync | Fault::FailWrite | Fault::FailSync = fault {
            self.plan_bursts();
        }
        match fault {
            Fault::Connection => self.strike_connection(),
            Fault::Partition | Fault::Absence | Fault::SlowReader | Fault::ClientCrash => {
                self.strike_client(fault);
            }
            Fault::PowerFailure | Fault::Kill | Fault::Restart => self.strike_process(fault),
            Fault::Rebind => self.rebind(),
            Fault::Stranger => self.send_strange_datagrams(),
            Fault::Rogue => self.send_rogue(),
            Fault::FalseAck => {
                let host = &mut *self.host.borrow_mut();
                let client = host.faults.misbehaviour.index(self.clients.len());
                self.clients[client].acknowledge_unsent(host);
            }
            Fault::Overflow => {
                let host = &mut *self.host.borrow_mut();
                let shard = host.faults.disk.below(u64::from(self.shape.shards));
                host.overflow(u16::try_from(shard).expect("few shards"));
            }
            Fault::SlowSync => {
                let host = &mut *self.host.borrow_mut();
                host.slow_sync_ns = host.faults.disk.between(500, 5_000) * MS;
            }
            Fault::SlowReads => self.slow_reads(),
            Fault::ClockStep => self.step_clock(),
            Fault::FailWrite
            | Fault::FailSync
            | Fault::FailRead
            | Fault::Unreadable
            | Fault::Misdirect
            | Fault::Rot
            | Fault::DiskFull => self.host.borrow_mut().injure(fault),
        }
        self.plan_fault(fault);
    }

    /// Soon many messages go to one user at once: what happens to the disk then, happens under load.
    fn plan_bursts(&mut self) {
        if !self.bursts.chance(600) {
            return;
        }
        let to = self.bursts.index(self.clients.len());
        let group = self.group_work.burst(&self.shape);
        // At once, or so that some are under way all the time.
        let (rounds, within_ns) =
            if self.bursts.chance(500) { (1, 20 * MS) } else { (6, 600 * MS) };
        for client in (0..self.clients.len()).flat_map(|client| [client].repeat(rounds)) {
            let delay_ns = self.bursts.below(within_ns);
            self.host.borrow_mut().clock.plan_in(delay_ns, Event::Burst { client, to, group });
        }
    }

    pub(super) fn burst(&mut self, client: usize, to: usize, group: Option<usize>) {
        let host = &mut *self.host.borrow_mut();
        if host.clock.now_ns() >= self.calm_ns {
            return;
        }
        let worker = &mut self.clients[client];
        let group = match group {
            Some(group) => Some((self.shape.groups[group].clone(), 0)),
            None => self.group_work.group(&self.shape, worker),
        };
        for _ in 0..self.bursts.between(1, 12) {
            let message = self.oracle.next_message();
            let draft = match &group {
                Some(group) => self.author.draft_to_group(&self.shape, group.clone(), message),
                None => self.author.draft(&self.shape, client, Some(to), message),
            };
            if !worker.app_sends(host, &mut self.oracle, draft) {
                break; // the outbox is full
            }
        }
        worker.drive(host, &mut self.oracle);
    }

    /// Some clients give up before what they wait for is read, and ask again on a new connection.
    fn slow_reads(&mut self) {
        let host = &mut *self.host.borrow_mut();
        let lasts_ns = host.faults.slow_read.between(1_000, 8_000) * MS;
        host.slow_reads_until_ns = host.clock.now_ns() + lasts_ns;
        for client in 0..self.clients.len() {
            if host.faults.slow_read.chance(500) {
                let after_ns = host.faults.slow_read.below(lasts_ns);
                host.clock.plan_in(after_ns, Event::GivesUp { client });
            }
        }
    }

    /// A client leaves without a word, and is soon back.
    pub(super) fn give_up(&mut self, client: usize) {
        let host = &mut *self.host.borrow_mut();
        if host.faults.active && self.clients[client].conn.is_some() {
            self.clients[client].leave(host, &mut self.oracle, false);
        }
    }

    fn strike_process(&mut self, fault: Fault) {
        if !self.gateway.is_up() {
            return;
        }
        if fault == Fault::Restart {
            if !self.gateway.draining {
                self.drain();
            }
            return;
        }
        let loses_power = fault == Fault::PowerFailure;
        {
            let counts = &mut self.host.borrow_mut().faults.counts;
            counts.power_failures += u64::from(loses_power);
            counts.kills += u64::from(!loses_power);
        }
        self.end_process(loses_power);
    }

    fn strike_client(&mut self, fault: Fault) {
        let host = &mut *self.host.borrow_mut();
        let index = host.faults.connection.index(self.clients.len());
        let client = &mut self.clients[index];
        match fault {
            Fault::Partition => host.partition(index),
            Fault::Absence => client.go_away(host, &mut self.oracle),
            Fault::SlowReader => client.stop_reading(host),
            _ => {
                host.faults.counts.client_crashes += 1;
                client.crash(host, &mut self.oracle);
            }
        }
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

    /// Somebody sends what is no frame, or half of one, and stays for a while.
    fn send_rogue(&mut self) {
        let host = &mut *self.host.borrow_mut();
        host.faults.counts.rogues += 1;
        let random = &mut host.faults.connection;
        let shard = random.below(u64::from(self.shape.shards));
        let count = random.index(3_000);
        let mut bytes: Vec<u8> = (0..count).map(|_| random.next_u64().to_le_bytes()[0]).collect();
        if random.chance(500) {
            bytes.splice(0..0, [0x80, 0x08, 0x0a]); // begins as a frame of 1,024 bytes may
        }
        let stays_ns = random.between(1, 15_000) * MS;
        let link = host.connect(ROGUE, u16::try_from(shard).expect("few shards"));
        host.client_write(link, &bytes);
        host.clock.plan_in(stays_ns, Event::RogueLeaves { link });
    }

    /// A client moves, once or several times in quick succession.
    fn rebind(&mut self) {
        let host = &mut *self.host.borrow_mut();
        let client = host.faults.rebind.index(self.clients.len());
        let Some(link) = self.clients[client].conn.as_ref().map(|conn| conn.link) else { return };
        let moves = if host.faults.rebind.chance(200) { 8 } else { 1 };
        for n in 0..moves {
            let kind = host.faults.rebind.index(4);
            let rebind = [Rebind::Port, Rebind::Port, Rebind::Network, Rebind::Home][kind];
            host.clock.plan_in(n * FLAP_NS, Event::Rebinds { link, rebind });
        }
    }

    /// Nobody expects them, and nothing comes of them.
    fn send_strange_datagrams(&mut self) {
        let host = &mut *self.host.borrow_mut();
        host.faults.counts.strangers += 1;
        for _ in 0..host.faults.rebind.between(1, 20) {
            let random = &mut host.faults.rebind;
            let port = u16::try_from(random.between(1_024, 65_000)).expect("a port");
            let from = (Ipv4Addr::new(203, 0, 113, 9), port).into();
            let mut data = if random.chance(300) {
                host.quic.overheard.clone()
            } else {
                let length = [0, 1, 8, 9, 14, 1_200][random.index(6)];
                (0..length).map(|_| random.next_u64().to_le_bytes()[0]).collect()
            };
            if random.chance(300) && !data.is_empty() {
                let at = random.index(data.len());
                data[at] ^= 1 << random.below(8);
            }
            host.datagram_up(NOBODY, from, 0, &data);
        }
    }

    fn step_clock(&mut self) {
        let host = &mut *self.host.borrow_mut();
        host.faults.counts.clock_steps += 1;
        let random = &mut host.faults.clock;
        let unit_ms = [1_000, 60_000, 3_600_000, 86_400_000, 365 * 86_400_000][random.index(5)];
        let step_ms = i64::try_from(random.between(1, 3 * unit_ms)).expect("years fit");
        let step_ms = if random.chance(500) { step_ms } else { -step_ms };
        host.clock.step_unix(step_ms);
        self.oracle.clock_was_set = true;
        host.tell(|| format!("the wall clock is set by {step_ms} ms"));
    }
}

/// No client of ours.
const ROGUE: usize = usize::MAX;
const NOBODY: usize = usize::MAX;
const FLAP_NS: u64 = 50 * MS;
