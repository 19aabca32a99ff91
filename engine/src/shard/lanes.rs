//! What a shard may ask of another one, and who waits for room to ask.

use std::collections::VecDeque;

use ringpost_protocol::id::UserId;
use ringpost_ring::Ring;

use super::Shard;
use super::conn::ConnKey;
use super::group::GroupRequest;
use super::message::{DeviceIndex, MeshMessage, ReceiptRequest};
use super::relay::Order;
use crate::limits::{GROUP_REQUESTS_MAX, RECEIPTS_UNANSWERED_MAX};
use crate::metrics::Bound;
use crate::transport::quic::StreamKey;

/// Who goes on when a shard has room again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// It has a Send to a user.
    Send(ConnKey),
    /// It has requests, the first of which is a Send.
    Group(UserId),
    /// It is on its way home.
    Move(ConnKey),
    /// It has something for its stream there.
    Link(ConnKey),
    /// The connection is gone, and its stream there shall be closed.
    Close { stream: StreamKey, conn: ConnKey, flushes: bool },
    /// A stream here has news for its connection there.
    Stream(StreamKey),
}

/// What goes to one destination shard.
#[derive(Default)]
pub(super) struct Lane {
    /// A connection stands here at most once for its Send or its move, once for its link, and a
    /// stream once.
    conns: VecDeque<Waiter>,
    /// Connections with a Send to a group there. What they wait for is not what the others do.
    group_sends: VecDeque<ConnKey>,
    /// Devices whose receipts must be stored; each stands in at most one lane.
    receipts: VecDeque<DeviceIndex>,
    /// Receipts on the mesh. They wait as long as the destination's store is not open, so they leave
    /// credits to the Sends, which do not.
    receipts_unanswered: u32,
    /// Requests to groups there. They wait for credits themselves.
    groups_unanswered: u32,
    /// Datagrams on the mesh that belong to QUIC connections there.
    pub(super) foreign_unanswered: u32,
}

impl Lane {
    /// Requests to groups there that are not answered.
    pub(super) fn group_requests(&self) -> u64 {
        u64::from(self.groups_unanswered)
    }
}

#[cfg(test)]
impl Lane {
    /// Who waits for credits, receipts aside.
    pub(super) fn len(&self) -> usize {
        self.conns.len() + self.group_sends.len()
    }
}
impl<R: Ring> Shard<R> {
    /// Whether a request to `shard` can be made now. Also for a store here that is not open: what comes
    /// for it is kept in the backlog, which has bounds of its own.
    pub(super) fn has_room(&self, shard: u16) -> bool {
        if shard == self.id {
            let home = self.home.as_ref().expect("requests go to home shards");
            !home.is_full()
        } else {
            self.mesh.credits(shard) > 0
        }
    }

    /// Whether a receipt can be stored at `shard` now. None is made for a store here that is not open:
    /// the acknowledgement goes on when it is.
    pub(super) fn has_room_for_receipt(&self, shard: u16) -> bool {
        let is_here = shard == self.id;
        let is_closed = is_here && self.home.as_ref().is_none_or(|home| !home.state.is_open());
        !is_closed
            && self.has_room(shard)
            && self.lanes[usize::from(shard)].receipts_unanswered < RECEIPTS_UNANSWERED_MAX
    }

    /// Whether a request to a group of `shard` can be made now; `unanswered_max`: of its kind.
    pub(super) fn has_room_for_group(&self, shard: u16, unanswered_max: u32) -> bool {
        (shard == self.id || self.mesh.credits(shard) > 0)
            && self.lanes[usize::from(shard)].groups_unanswered < unanswered_max
    }

    /// A request to a group; there is room.
    pub(super) fn push_group(&mut self, shard: u16, request: GroupRequest) {
        self.lanes[usize::from(shard)].groups_unanswered += 1;
        if shard == self.id {
            return self.handle_group(request);
        }
        let reserved = self.mesh.reserve(shard);
        assert!(reserved.is_ok(), "room was checked");
        self.push_mesh(shard, MeshMessage::Group(request));
    }

    pub(super) fn group_answered(&mut self, shard: u16) {
        self.lanes[usize::from(shard)].groups_unanswered -= 1;
    }

    pub(super) fn wait_for_room(&mut self, shard: u16, waiter: Waiter) {
        self.count_wait(shard);
        self.lanes[usize::from(shard)].conns.push_back(waiter);
    }

    pub(super) fn wait_with_group_send(&mut self, shard: u16, key: ConnKey) {
        let lane = &mut self.lanes[usize::from(shard)];
        lane.group_sends.push_back(key);
        if lane.groups_unanswered >= GROUP_REQUESTS_MAX {
            self.metrics.bound_hits.add(Bound::GroupRequests);
        } else {
            self.metrics.mesh_credit_waits += 1;
        }
    }

    pub(super) fn wait_with_receipt(&mut self, shard: u16, device: DeviceIndex) {
        self.count_wait(shard);
        self.lanes[usize::from(shard)].receipts.push_back(device);
    }

    fn count_wait(&mut self, shard: u16) {
        if shard == self.id {
            self.metrics.bound_hits.add(Bound::UnsyncedRecords);
        } else {
            self.metrics.mesh_credit_waits += 1;
        }
    }

    /// Sends a receipt over the mesh; there is room.
    pub(super) fn push_receipt(&mut self, shard: u16, receipt: ReceiptRequest) {
        let reserved = self.mesh.reserve(shard);
        assert!(reserved.is_ok(), "room was checked");
        self.lanes[usize::from(shard)].receipts_unanswered += 1;
        self.push_mesh(shard, MeshMessage::Receipt(Box::new(receipt)));
    }

    pub(super) fn receipt_replied(&mut self, shard: u16) {
        self.mesh.replied(shard);
        self.lanes[usize::from(shard)].receipts_unanswered -= 1;
    }

    /// Lets waiters go on, first come first served, while there is room. Receipts first: they make
    /// room in mailboxes.
    pub(super) fn serve_waiters(&mut self) {
        for shard in 0..self.mesh.shards() {
            let index = usize::from(shard);
            // Whoever must wait again goes to the end, and is not looked at twice in a turn.
            for _ in 0..self.lanes[index].receipts.len() {
                if !self.has_room_for_receipt(shard) {
                    break;
                }
                let Some(device) = self.lanes[index].receipts.pop_front() else { break };
                self.resume_ack(device);
            }
            for _ in 0..self.lanes[index].group_sends.len() {
                if !self.has_room_for_group(shard, GROUP_REQUESTS_MAX) {
                    break;
                }
                let Some(key) = self.lanes[index].group_sends.pop_front() else { break };
                self.resume_send(key);
            }
            // Links take their credits at the end of the turn, so no more of them are woken than can.
            let mut links = self.mesh.credits(shard);
            for _ in 0..self.lanes[index].conns.len() {
                if !self.has_room(shard) || links == 0 {
                    break;
                }
                match self.lanes[index].conns.pop_front() {
                    Some(Waiter::Send(key)) => self.resume_send(key),
                    Some(Waiter::Group(group)) => self.resume_group(&group),
                    Some(Waiter::Move(key)) => self.go_home(key),
                    Some(Waiter::Link(key)) => {
                        links -= 1;
                        self.resume_link(key);
                    }
                    Some(Waiter::Close { stream, conn, flushes }) => {
                        self.push_order(stream, conn, Order::Close { flushes });
                    }
                    Some(Waiter::Stream(key)) => self.resume_stream(key),
                    None => break,
                }
            }
        }
    }
}
