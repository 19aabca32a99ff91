//! What carries a connection, and the operations on it.
//!
//! Everything above this file arms, sends, cancels and closes through it, and hears of the outcome in
//! `handle_recv`, `handle_sent` and `handle_shutdown`, without knowing what lies below.

use bytes::Bytes;
use ringpost_ring::{Op, OpId, Ring, Socket};

use super::Shard;
use super::conn::ConnKey;
use super::token::Token;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A socket of this shard's ring.
    Tcp(Socket),
}

impl<R: Ring> Shard<R> {
    /// Arms the receive. With `multishot` it stays armed until it is cancelled or ends by itself.
    pub(super) fn link_recv(&mut self, key: ConnKey, multishot: bool) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        match conn.link {
            Link::Tcp(socket) => {
                let op = Op::Recv { socket, multishot };
                conn.recv = Some(self.ring.submit(Token::Recv(key).pack(), op));
            }
        }
    }

    /// Sends `data`; no other send is in flight.
    pub(super) fn link_send(&mut self, key: ConnKey, data: Vec<Bytes>) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        match conn.link {
            Link::Tcp(socket) => {
                let op = Op::Send { socket, data };
                conn.send = Some(self.ring.submit(Token::Send(key).pack(), op));
            }
        }
    }

    /// Ends our direction behind what was sent.
    pub(super) fn link_end_write(&mut self, key: ConnKey) {
        let conn = self.conns.get(key).expect("checked by the caller");
        match conn.link {
            Link::Tcp(socket) => {
                self.ring.submit(Token::Shutdown(key).pack(), Op::ShutdownWrite { socket });
            }
        }
    }

    /// Asks that a receive or a send ends early. Its own last completion still comes.
    pub(super) fn link_cancel(&mut self, target: OpId) {
        self.ring.submit(Token::Unowned.pack(), Op::Cancel { target });
    }

    /// Gives up what carried a connection. Nothing on it is in flight.
    pub(super) fn link_close(&mut self, link: Link) {
        match link {
            Link::Tcp(socket) => {
                self.ring.submit(Token::Unowned.pack(), Op::CloseSocket { socket });
            }
        }
    }
}
