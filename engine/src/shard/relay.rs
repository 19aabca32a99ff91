//! QUIC over the mesh: a connection at its home, its stream at the edge.
//!
//! What a connection does with its link goes to the edge as an *order*, what happens to the stream
//! comes back as *news*. Both are requests with a credit, answered in the same call by exactly one
//! reply, so neither side ever waits for the other, and a stream that is slow, gone or not yet arrived
//! holds no credit. Per connection there is at most one chunk of data on the mesh, and one send: the
//! next chunk is read when the home has taken the last one and wants more.
//!
//! Either side may be gone when a message arrives. The edge answers an order for a stream that it does
//! not know with `Gone`, which ends the connection; news for a connection that is not there any more is
//! dropped, because the order that closes the stream has been given, or waits for its credit.

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;

use super::Shard;
use super::conn::ConnKey;
use super::edge::{Edge, Input};
use super::lanes::Waiter;
use super::message::MeshMessage;
use crate::transport::quic::StreamKey;

/// What the home of a connection wants of its stream.
pub struct StreamOrder {
    pub stream: StreamKey,
    /// At the home; the edge learns it by the first order.
    pub conn: ConnKey,
    pub order: Order,
}

pub enum Order {
    /// The next chunk.
    Receive,
    Send(Vec<Bytes>),
    /// Nobody needs it any more. With `flushes` what was sent still goes out.
    Close {
        flushes: bool,
    },
}

/// The edge's answer to an order.
pub struct OrderReply {
    pub conn: ConnKey,
    pub done: OrderDone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderDone {
    /// What comes of it will be news.
    Taken,
    /// The stream has taken the whole send.
    Sent,
    /// There is no such stream any more.
    Gone,
}

/// What has happened to the stream of a connection that is at home.
pub struct StreamNews {
    pub conn: ConnKey,
    pub stream: StreamKey,
    pub news: News,
}

pub enum News {
    /// At most `STREAM_CHUNK_BYTES_MAX`.
    Received(Bytes),
    /// The client sends nothing more.
    Ended,
    /// The stream has taken the whole send.
    Sent,
    /// The QUIC connection is gone, and nothing follows.
    Gone,
}

/// The home's answer to news.
pub struct NewsReply {
    pub stream: StreamKey,
    /// After a chunk: whether the next one is wanted.
    pub wants: Option<bool>,
}

impl<R: Ring> Shard<R> {
    /// Gives an order; there is a credit.
    pub(super) fn push_order(&mut self, stream: StreamKey, conn: ConnKey, order: Order) {
        let reserved = self.mesh.reserve(stream.shard);
        assert!(reserved.is_ok(), "room was checked");
        let order = StreamOrder { stream, conn, order };
        self.push_mesh(stream.shard, MeshMessage::StreamOrder(Box::new(order)));
    }

    /// Gives up a stream of another shard, as soon as there is a credit.
    pub(super) fn order_close(&mut self, stream: StreamKey, conn: ConnKey, flushes: bool) {
        if self.has_room(stream.shard) {
            self.push_order(stream, conn, Order::Close { flushes });
        } else {
            self.wait_for_room(stream.shard, Waiter::Close { stream, conn, flushes });
        }
    }

    /// At the edge: an order of `home`, answered at once.
    pub(super) fn handle_order(&mut self, home: u16, order: StreamOrder) {
        let StreamOrder { stream, conn, order } = order;
        let done = match &mut self.edge {
            Some(edge) => edge.carry_out(home, stream, conn, order),
            None => OrderDone::Gone,
        };
        self.push_mesh(home, MeshMessage::StreamOrderReply(OrderReply { conn, done }));
        self.drive_stream(stream);
    }

    /// At home: what became of an order.
    pub(super) fn handle_order_reply(&mut self, edge: u16, reply: OrderReply) {
        self.mesh.replied(edge);
        match reply.done {
            OrderDone::Taken => {}
            OrderDone::Sent => self.link_sent(reply.conn),
            OrderDone::Gone => self.link_gone(reply.conn),
        }
    }

    /// At home: news of `edge`, answered at once.
    pub(super) fn handle_news(&mut self, edge: u16, news: StreamNews) {
        let StreamNews { conn, stream, news } = news;
        let wants = match news {
            News::Received(_) if is_active(Mutant::StreamChunkLost) => Some(true),
            News::Received(data) => Some(self.link_received(conn, &data)),
            News::Ended => Some(self.link_ended(conn)),
            News::Sent => {
                self.link_sent(conn);
                None
            }
            News::Gone => {
                self.link_gone(conn);
                None
            }
        };
        self.push_mesh(edge, MeshMessage::StreamNewsReply(NewsReply { stream, wants }));
    }

    /// At the edge: news was taken.
    pub(super) fn handle_news_reply(&mut self, home: u16, reply: NewsReply) {
        self.mesh.replied(home);
        let NewsReply { stream: key, wants } = reply;
        let Some(edge) = &mut self.edge else { return };
        if let Some(stream) = edge.streams.get_mut(key)
            && let Some(wants) = wants
        {
            stream.taken(wants);
            self.drive_stream(key);
        }
    }

    /// At the edge: tells the home of `key` what has happened, as far as there are credits.
    pub(super) fn tell_home(&mut self, key: StreamKey, home: u16, conn: ConnKey) {
        loop {
            let Some(edge) = &mut self.edge else { return };
            let Some(stream) = edge.streams.get_mut(key) else { return };
            if !stream.has_news() {
                return;
            }
            if self.mesh.credits(home) == 0 {
                if !std::mem::replace(&mut stream.waits, true) {
                    self.wait_for_room(home, Waiter::Stream(key));
                }
                return;
            }
            let Some(news) = edge.next_news(key) else { return };
            let reserved = self.mesh.reserve(home);
            assert!(reserved.is_ok(), "checked above");
            let news = StreamNews { conn, stream: key, news };
            self.push_mesh(home, MeshMessage::StreamNews(Box::new(news)));
        }
    }

    /// At the edge: there may be a credit for news.
    pub(super) fn resume_stream(&mut self, key: StreamKey) {
        let Some(edge) = &mut self.edge else { return };
        if let Some(stream) = edge.streams.get_mut(key) {
            stream.waits = false;
            self.drive_stream(key);
        }
    }

    /// At home: whether an order for this connection's stream can be given now. If not, the
    /// connection goes on when it can.
    pub(super) fn has_room_for_order(&mut self, key: ConnKey, stream: StreamKey) -> bool {
        if self.has_room(stream.shard) {
            return true;
        }
        let Some(conn) = self.conns.get_mut(key) else { return false };
        if !std::mem::replace(&mut conn.awaits_credit, true) {
            self.wait_for_room(stream.shard, Waiter::Link(key));
        }
        false
    }

    /// At home: there may be a credit for an order.
    pub(super) fn resume_link(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.awaits_credit = false;
        self.rearm.push(key);
        self.mark_dirty(key);
    }
}

impl Edge {
    fn carry_out(&mut self, home: u16, key: StreamKey, conn: ConnKey, order: Order) -> OrderDone {
        let Some(stream) = self.streams.get_mut(key) else { return OrderDone::Gone };
        if stream.is_gone {
            // It waits for a credit to say so, which this answer does now.
            self.streams.remove(key);
            return OrderDone::Gone;
        }
        stream.claimed(home, conn);
        match order {
            Order::Receive => stream.wants = true,
            Order::Send(data) => {
                if self.begin_send(key, data) {
                    return OrderDone::Sent;
                }
            }
            Order::Close { flushes } => self.give_up(key, flushes),
        }
        OrderDone::Taken
    }

    /// The next thing that the home of a stream must hear.
    fn next_news(&mut self, key: StreamKey) -> Option<News> {
        let stream = self.streams.get_mut(key)?;
        if std::mem::take(&mut stream.owes_sent) {
            return Some(News::Sent);
        }
        if stream.is_gone {
            self.streams.remove(key);
            return Some(News::Gone);
        }
        if !stream.may_read() {
            return None;
        }
        let news = match self.read(key) {
            Input::Received(data) => News::Received(data),
            Input::Ended => News::Ended,
            Input::Nothing => return None,
        };
        self.streams.get_mut(key)?.chunk_left();
        Some(news)
    }
}

#[cfg(test)]
mod tests;
