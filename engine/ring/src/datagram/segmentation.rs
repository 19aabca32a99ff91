//! Whether the kernel cuts trains of datagrams up.

use crate::UdpSocket;

/// What is known of the kernel's cutting up trains, for each socket. One refusal says little: the
/// train may be too long for its path. Several in a row are a device that cannot, and then the next
/// trains go out as single datagrams without being tried; one is tried again after a while, because
/// the route may lead elsewhere.
#[derive(Default)]
pub(crate) struct Segmentation {
    sockets: Vec<(UdpSocket, Refusals)>,
}

#[derive(Clone, Copy, Default)]
struct Refusals {
    in_a_row: u32,
    /// Trains that are not tried.
    untried: u32,
}

impl Segmentation {
    /// Whether a train on `socket` is tried as one.
    pub(super) fn tries(&mut self, socket: UdpSocket) -> bool {
        let refusals = self.refusals(socket);
        let tries = refusals.untried == 0;
        refusals.untried = refusals.untried.saturating_sub(1);
        tries
    }

    pub(super) fn refused(&mut self, socket: UdpSocket) {
        let refusals = self.refusals(socket);
        refusals.in_a_row += 1;
        if refusals.in_a_row >= REFUSALS_MAX {
            // The next refusal is enough.
            *refusals = Refusals { in_a_row: REFUSALS_MAX - 1, untried: TRAINS_UNTRIED };
        }
    }

    pub(super) fn taken(&mut self, socket: UdpSocket) {
        self.refusals(socket).in_a_row = 0;
    }

    /// A ring has few sockets for datagrams.
    fn refusals(&mut self, socket: UdpSocket) -> &mut Refusals {
        let known = self.sockets.iter().position(|(known, _)| *known == socket);
        let at = known.unwrap_or_else(|| {
            self.sockets.push((socket, Refusals::default()));
            self.sockets.len() - 1
        });
        &mut self.sockets[at].1
    }
}

/// Refusals in a row after which trains are not tried, and how many then are not.
const REFUSALS_MAX: u32 = 4;
const TRAINS_UNTRIED: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: UdpSocket = UdpSocket(3);

    /// A device that cannot cut trains up is not asked each time; one that can again is found.
    #[test]
    fn refusals_in_a_row_are_remembered_for_a_while() {
        let mut memory = Segmentation::default();
        for _ in 0..3 {
            // A train that is taken shows that those before were the exception.
            for _ in 1..REFUSALS_MAX {
                assert!(memory.tries(SOCKET));
                memory.refused(SOCKET);
            }
            assert!(memory.tries(SOCKET));
            memory.taken(SOCKET);
        }
        for _ in 0..REFUSALS_MAX {
            assert!(memory.tries(SOCKET));
            memory.refused(SOCKET);
        }
        for _ in 0..2 {
            assert!((0..TRAINS_UNTRIED).all(|_| !memory.tries(SOCKET)));
            assert!(memory.tries(SOCKET), "one is tried again");
            memory.refused(SOCKET); // which is enough to know
        }
        assert!(!memory.tries(SOCKET));
        assert!(memory.tries(UdpSocket(4)), "another socket knows nothing of that");
    }
}
