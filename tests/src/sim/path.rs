//! The way between a client and the gateway: how long a packet takes, and which never come.

use super::clock::MS;
use super::net::LinkId;
use super::ring::Host;
use super::world::Event;

/// Of one client, whatever connection it uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    /// Until then nothing gets through to the gateway ...
    up_ns: u64,
    /// ... and nothing from it. What is sent meanwhile is sent again later, but for resets.
    down_ns: u64,
    /// The client does not read what comes over QUIC.
    pub is_blind: bool,
}

impl Host {
    /// Cuts `client` off, in one direction or both.
    pub fn partition(&mut self, client: usize) {
        self.faults.counts.partitions += 1;
        let random = &mut self.faults.partition;
        let duration_ns = random.between(500, 40_000) * MS;
        let direction = random.below(4);
        let until_ns = self.clock.now_ns() + duration_ns;
        let path = &mut self.paths[client];
        if direction != 0 {
            path.up_ns = path.up_ns.max(until_ns);
        }
        if direction != 1 {
            path.down_ns = path.down_ns.max(until_ns);
        }
        self.tell(|| format!("client {client} is cut off for {} ms", duration_ns / MS));
    }

    /// When what is sent now arrives: never before what was sent earlier.
    pub fn arrival_ns(&mut self, id: LinkId, up: bool) -> u64 {
        let delay_ns = self.faults.network_delay_ns();
        let at_ns = self.clock.now_ns() + delay_ns * self.link(id).slowness;
        let at_ns = at_ns.max(self.heals_ns(id, up) + delay_ns);
        let link = self.link(id);
        let pipe = if up { &mut link.up } else { &mut link.down };
        pipe.last_ns = pipe.last_ns.max(at_ns);
        pipe.last_ns
    }

    /// A reset is sent once, and may never arrive. Unlike data it overtakes what was sent before.
    pub fn send_reset(&mut self, id: LinkId, up: bool) {
        let delay_ns = self.faults.network_delay_ns();
        if self.heals_ns(id, up) > self.clock.now_ns() || self.faults.loses_reset() {
            return;
        }
        let event =
            if up { Event::RstToServer { link: id } } else { Event::RstToClient { link: id } };
        self.clock.plan_in(delay_ns, event);
    }

    /// Whether nothing gets through now in this direction.
    pub fn is_cut(&self, client: usize, up: bool) -> bool {
        let path = self.paths.get(client).copied().unwrap_or_default();
        let until_ns = if up { path.up_ns } else { path.down_ns };
        self.faults.active && until_ns > self.clock.now_ns()
    }

    /// Until when this direction is cut; in the past: it is not.
    fn heals_ns(&mut self, id: LinkId, up: bool) -> u64 {
        if !self.faults.active {
            return 0;
        }
        let client = self.link(id).client;
        let path = self.paths.get(client).copied().unwrap_or_default();
        if up { path.up_ns } else { path.down_ns }
    }
}
