//! What carries a connection, and the operations on it.
//!
//! Everything above this file arms, sends, cancels and closes through it, and hears of the outcome in
//! the same places, without knowing what lies below: a socket of the ring, a QUIC stream of this
//! shard, or one of another shard.
//!
//! A stream needs no last completion: what is cancelled ends at once. A chunk that was on its way then
//! still arrives, as from a socket.

use bytes::Bytes;
use ringpost_ring::{Op, OpId, Ring, Socket};

use super::Shard;
use super::conn::ConnKey;
use super::inbound::Data;
use super::relay::Order;
use super::token::Token;
use crate::transport::quic::StreamKey;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A socket of this shard's ring.
    Tcp(Socket),
    /// The stream of a QUIC connection, of this shard or of another one.
    Quic(StreamKey),
    /// A stream whose QUIC connection has ended.
    Gone,
}

/// An operation on a link that has not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    Op(OpId),
    Stream {
        /// It stays armed after a completion.
        multishot: bool,
    },
}

/// What a stream has completed without anybody else's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkDone {
    Shutdown(ConnKey),
    /// A send that was cancelled.
    SendCancelled(ConnKey),
}

impl<R: Ring> Shard<R> {
    /// Whether the link takes an operation now. If not, the connection is looked at again when it
    /// does.
    pub(super) fn link_has_room(&mut self, key: ConnKey) -> bool {
        match self.conns.get(key).map(|conn| conn.link) {
            Some(Link::Quic(stream)) if stream.shard != self.id => {
                self.has_room_for_order(key, stream)
            }
            _ => true,
        }
    }

    /// Arms the receive; there is room. With `multishot` it stays armed until it is cancelled or ends
    /// by itself.
    pub(super) fn link_recv(&mut self, key: ConnKey, multishot: bool) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        match conn.link {
            Link::Tcp(socket) => {
                let op = Op::Recv { socket, multishot };
                conn.recv = Some(Pending::Op(self.ring.submit(Token::Recv(key).pack(), op)));
            }
            Link::Quic(stream) => {
                conn.recv = Some(Pending::Stream { multishot });
                if stream.shard != self.id {
                    self.push_order(stream, key, Order::Receive);
                } else if let Some(edge) = &mut self.edge {
                    edge.receive(stream);
                }
            }
            Link::Gone => {}
        }
    }

    /// Sends `data`; no other send is in flight, and there is room.
    pub(super) fn link_send(&mut self, key: ConnKey, data: Vec<Bytes>) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        match conn.link {
            Link::Tcp(socket) => {
                let op = Op::Send { socket, data };
                conn.send = Some(Pending::Op(self.ring.submit(Token::Send(key).pack(), op)));
            }
            Link::Quic(stream) => {
                conn.send = Some(Pending::Stream { multishot: false });
                self.metrics.sent_bytes += data.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
                if stream.shard != self.id {
                    self.push_order(stream, key, Order::Send(data));
                } else if let Some(edge) = &mut self.edge {
                    edge.send(stream, data);
                }
            }
            Link::Gone => {}
        }
    }

    /// Ends our direction behind what was sent.
    pub(super) fn link_end_write(&mut self, key: ConnKey) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        match conn.link {
            Link::Tcp(socket) => {
                self.ring.submit(Token::Shutdown(key).pack(), Op::ShutdownWrite { socket });
            }
            // The stream ends when it is closed, and nothing needs to be read until then.
            Link::Quic(_) | Link::Gone => {
                conn.recv = None;
                conn.peer_closed = true;
                self.links_done.push_back(LinkDone::Shutdown(key));
            }
        }
    }

    /// Asks that the receive ends early. Its own last completion still comes, or it is armed anew in
    /// this turn.
    pub(super) fn link_cancel_recv(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match conn.recv {
            Some(Pending::Op(target)) => {
                self.ring.submit(Token::Unowned.pack(), Op::Cancel { target });
            }
            Some(Pending::Stream { .. }) => {
                conn.recv = None;
                self.rearm.push(key);
            }
            None => {}
        }
    }

    /// Asks that the send ends early; its completion still comes.
    pub(super) fn link_cancel_send(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        match conn.send {
            Some(Pending::Op(target)) => {
                self.ring.submit(Token::Unowned.pack(), Op::Cancel { target });
            }
            Some(Pending::Stream { .. }) => self.links_done.push_back(LinkDone::SendCancelled(key)),
            None => {}
        }
    }

    /// Gives up what carried the connection `key`. Nothing on it is in flight. `flushes`: what was sent
    /// still goes out.
    pub(super) fn link_close(&mut self, link: Link, key: ConnKey, flushes: bool) {
        match link {
            Link::Tcp(socket) => {
                self.ring.submit(Token::Unowned.pack(), Op::CloseSocket { socket });
            }
            Link::Quic(stream) if stream.shard != self.id => self.order_close(stream, key, flushes),
            Link::Quic(stream) => {
                if let Some(edge) = &mut self.edge {
                    edge.give_up(stream, flushes);
                }
            }
            Link::Gone => {}
        }
    }

    /// What streams have completed since the last turn.
    pub(super) fn drive_links(&mut self) {
        for _ in 0..self.links_done.len() {
            match self.links_done.pop_front() {
                Some(LinkDone::Shutdown(key)) => self.handle_shutdown(key),
                Some(LinkDone::SendCancelled(key)) => self.link_send_cancelled(key),
                None => break,
            }
        }
    }

    /// A chunk has arrived on a stream. Gives whether the next one is wanted.
    pub(super) fn link_received(&mut self, key: ConnKey, data: &Bytes) -> bool {
        if !self.takes_completion(key) {
            return false;
        }
        self.take_data(key, Data::Copied(data));
        self.finish_close(key);
        self.wants_more(key)
    }

    /// The client sends nothing more on its stream.
    pub(super) fn link_ended(&mut self, key: ConnKey) -> bool {
        if self.takes_completion(key) {
            self.end_recv(key);
            self.handle_end(key);
            self.finish_close(key);
        }
        false
    }

    /// A stream has taken the whole send.
    pub(super) fn link_sent(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.send.is_none() {
            return; // given up meanwhile
        }
        self.end_send(key);
        self.go_on_sending(key);
        self.finish_close(key);
    }

    /// The QUIC connection is gone: nothing more comes, and nothing can be sent.
    pub(super) fn link_gone(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.link = Link::Gone;
        self.end_recv(key);
        self.end_send(key);
        self.abort(key);
        self.finish_close(key);
    }

    fn link_send_cancelled(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        if conn.send.is_some() {
            self.end_send(key);
            self.abort(key);
            self.finish_close(key);
        }
    }

    /// A receive on a stream completes; a single one is armed again in one place. False: the
    /// connection is gone.
    fn takes_completion(&mut self, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get_mut(key) else { return false };
        if conn.recv == Some(Pending::Stream { multishot: false }) {
            conn.recv = None;
        }
        self.rearm.push(key);
        true
    }

    fn end_recv(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.recv = None;
        }
    }

    fn wants_more(&self, key: ConnKey) -> bool {
        let armed = self.conns.get(key).and_then(|conn| conn.recv);
        armed == Some(Pending::Stream { multishot: true })
    }
}
