//! Requests of other shards that arrive while the store is being opened, at start or after a
//! failure.
//!
//! Sends and connections wait for a bounded time, in bounded numbers and bytes; then Sends are
//! refused and connections sent away. Receipts wait as long as it takes, because nobody could give
//! them up: the credits of their senders bound them.

use std::collections::VecDeque;

use ringpost_protocol::message::{RejectCode, SendBody};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;

use super::Shard;
use super::deposit::rejected;
use super::fanout::{GroupPart, PartOutcome, PartReply};
use super::message::{Arrival, ReceiptRequest, StoreRequest};
use crate::limits::{
    STORAGE_FAILED_RETRY_MS, STORE_WAIT_MS_MAX, STORE_WAITING_BYTES_MAX, STORE_WAITING_REQUESTS_MAX,
};

/// In the order of their arrival.
pub(super) struct Backlog {
    requests: VecDeque<Request>,
    /// Sends and connections among them.
    impatient: usize,
    sends: usize,
    /// Of the envelopes.
    bytes: usize,
    /// From then on Sends and connections do not wait any more.
    until_ms: u64,
}

pub(super) enum Request {
    Store(Box<StoreRequest>),
    Part(Box<GroupPart>),
    Move { from: u16, arrival: Box<Arrival> },
    Receipt { from: u16, receipt: Box<ReceiptRequest> },
}

impl Backlog {
    pub(super) fn new(now_ms: u64) -> Self {
        let mut backlog =
            Self { requests: VecDeque::new(), impatient: 0, sends: 0, bytes: 0, until_ms: 0 };
        backlog.begin(now_ms);
        backlog
    }

    /// The store has stopped being open.
    pub(super) fn begin(&mut self, now_ms: u64) {
        self.until_ms = now_ms + STORE_WAIT_MS_MAX;
    }

    /// Keeps a request if there is room and time for it; `Err` gives it back.
    pub(super) fn hold(&mut self, request: Request, now_ms: u64) -> Result<(), Request> {
        let bytes = request.bytes();
        if request.is_impatient() {
            let full = self.impatient >= STORE_WAITING_REQUESTS_MAX
                || self.bytes + bytes > STORE_WAITING_BYTES_MAX;
            if full || now_ms >= self.until_ms {
                return Err(request);
            }
        }
        self.impatient += usize::from(request.is_impatient());
        self.sends += usize::from(matches!(request, Request::Store(_) | Request::Part(_)));
        self.bytes += bytes;
        self.requests.push_back(request);
        Ok(())
    }

    /// Takes everything: the store is open.
    pub(super) fn take(&mut self) -> VecDeque<Request> {
        (self.impatient, self.sends, self.bytes) = (0, 0, 0);
        std::mem::take(&mut self.requests)
    }

    /// Takes what has waited too long: all Sends and connections, or nothing. All at once, so that
    /// no Send is kept that a refused one came before.
    pub(super) fn take_expired(&mut self, now_ms: u64) -> VecDeque<Request> {
        if now_ms < self.deadline_ms() {
            return VecDeque::new();
        }
        let all = self.take();
        let (expired, patient) = all.into_iter().partition(Request::is_impatient);
        self.requests = patient;
        expired
    }

    pub(super) fn deadline_ms(&self) -> u64 {
        if self.impatient == 0 { u64::MAX } else { self.until_ms }
    }

    /// Sends that wait.
    pub(super) fn sends(&self) -> usize {
        self.sends
    }
}

impl Request {
    /// Whether somebody waits for the answer who can try again.
    fn is_impatient(&self) -> bool {
        !matches!(self, Self::Receipt { .. })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Store(request) => match &request.body {
                SendBody::Shared(envelope) => envelope.len(),
                SendBody::PerDevice(envelopes) => {
                    envelopes.iter().map(|(_, envelope)| envelope.len()).sum()
                }
            },
            Self::Part(part) => part.send.envelope.len(),
            Self::Move { .. } | Self::Receipt { .. } => 0,
        }
    }
}

impl<R: Ring> Shard<R> {
    /// Keeps a request until the store is open. One that cannot wait is turned away.
    pub(super) fn hold(&mut self, request: Request) {
        let now_ms = self.time.now_ms;
        let home = self.home.as_mut().expect("requests go to home shards");
        if let Err(request) = home.backlog.hold(request, now_ms) {
            self.turn_away(request);
        }
    }

    /// The store is open.
    pub(super) fn handle_backlog(&mut self) {
        let home = self.home.as_mut().expect("its store was opened");
        let mut requests = home.backlog.take();
        if is_active(Mutant::HeldPartsReordered) {
            requests.make_contiguous().sort_by_key(|request| match request {
                Request::Part(part) => u32::MAX - part.fanout,
                _ => 0,
            });
        }
        for request in requests {
            match request {
                Request::Store(request) => self.handle_store(*request),
                Request::Part(part) => self.handle_part(part),
                Request::Move { from, arrival } => self.take_over(from, *arrival),
                Request::Receipt { from, receipt } => self.handle_receipt(from, receipt),
            }
        }
    }

    pub(super) fn expire_backlog(&mut self) {
        let home = self.home.as_mut().expect("checked by the caller");
        for request in home.backlog.take_expired(self.time.now_ms) {
            self.turn_away(request);
        }
    }

    fn turn_away(&mut self, request: Request) {
        match request {
            Request::Store(request) => {
                let refusal = rejected(RejectCode::StorageFailed, Some(STORAGE_FAILED_RETRY_MS));
                self.refuse(&request, refusal);
            }
            // Other parts may be stored, and no gap can be left here: its client replays all of it.
            Request::Part(part) => {
                let reply = PartReply { fanout: part.fanout, outcome: PartOutcome::Unknown };
                self.reply_part(part.home, reply);
            }
            // It is sent away there.
            Request::Move { from, arrival } => self.take_over(from, *arrival),
            Request::Receipt { .. } => unreachable!("receipts wait as long as it takes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ringpost_protocol::id::{DeviceAddress, DeviceId, InstallId, SendSeq, UserId};

    use super::*;
    use crate::shard::message::DeviceIndex;

    fn address() -> DeviceAddress {
        let (user, device) = (UserId::new("eve").unwrap(), DeviceId::new("d").unwrap());
        DeviceAddress { user, device }
    }

    fn send(send_seq: u64, bytes: usize) -> Request {
        let body = SendBody::Shared(Bytes::from(vec![0; bytes]));
        Request::Store(Box::new(StoreRequest { body, ..StoreRequest::sample(send_seq, "bob") }))
    }

    fn receipt() -> Request {
        let receipt = ReceiptRequest {
            reply_to: DeviceIndex(0),
            sender: address(),
            install_id: InstallId(1),
            peer: address(),
            group: None,
            up_to_send_seq: SendSeq(1),
        };
        Request::Receipt { from: 1, receipt: Box::new(receipt) }
    }

    fn send_seqs(requests: impl IntoIterator<Item = Request>) -> Vec<u64> {
        let sends = requests.into_iter().map(|request| match request {
            Request::Store(request) => request.origin.send_seq.0,
            _ => 0,
        });
        sends.collect()
    }

    #[test]
    fn everything_waits_in_order_until_the_store_is_open() {
        let mut backlog = Backlog::new(1_000);
        for request in [send(1, 10), receipt(), send(2, 10)] {
            assert!(backlog.hold(request, 1_000).is_ok());
        }
        assert_eq!((backlog.sends(), backlog.deadline_ms()), (2, 1_000 + STORE_WAIT_MS_MAX));
        assert_eq!(send_seqs(backlog.take()), [1, 0, 2]);
        assert_eq!((backlog.sends(), backlog.deadline_ms()), (0, u64::MAX));
    }

    #[test]
    fn sends_wait_for_a_bounded_time_all_together_and_receipts_for_ever() {
        let mut backlog = Backlog::new(0);
        let last_ms = STORE_WAIT_MS_MAX - 1;
        for (request, now_ms) in [(send(1, 10), 0), (receipt(), 0), (send(2, 10), last_ms)] {
            assert!(backlog.hold(request, now_ms).is_ok());
        }
        assert!(backlog.take_expired(last_ms).is_empty());
        assert_eq!(send_seqs(backlog.take_expired(STORE_WAIT_MS_MAX)), [1, 2]);
        assert!(backlog.hold(send(3, 10), STORE_WAIT_MS_MAX).is_err(), "the time is over");
        assert!(backlog.hold(receipt(), STORE_WAIT_MS_MAX).is_ok());
        assert_eq!(backlog.deadline_ms(), u64::MAX);
        assert!(backlog.take_expired(u64::MAX - 1).is_empty());
        assert_eq!(send_seqs(backlog.take()), [0, 0]);
        backlog.begin(10_000);
        assert!(backlog.hold(send(4, 10), 10_000).is_ok(), "the next failure, the next time");
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_bytes() {
        let mut backlog = Backlog::new(0);
        for send_seq in 0..STORE_WAITING_REQUESTS_MAX as u64 {
            assert!(backlog.hold(send(send_seq, 0), 0).is_ok());
        }
        assert!(backlog.hold(send(9, 0), 0).is_err());
        assert!(backlog.hold(receipt(), 0).is_ok());

        let mut backlog = Backlog::new(0);
        assert!(backlog.hold(send(1, STORE_WAITING_BYTES_MAX - 1), 0).is_ok());
        assert!(backlog.hold(send(2, 2), 0).is_err());
        assert!(backlog.hold(send(3, 1), 0).is_ok());
        backlog.take();
        assert!(backlog.hold(send(4, STORE_WAITING_BYTES_MAX), 0).is_ok());
    }
}
