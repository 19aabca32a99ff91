//! The QUIC streams of one edge shard, and what each of them owes to the connection that it carries.
//!
//! ```text
//! Here --Hello of a user who lives elsewhere--> Moving --first order--> There
//! ```
//!
//! A stream is read only while its connection wants data, one chunk after the other; what is not read
//! stays in the receive window, which the client cannot exceed.

use bytes::Bytes;
use hashbrown::HashMap;

use super::conn::ConnKey;
use crate::transport::quic::StreamKey;

/// Whose stream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A connection of this shard.
    Here(ConnKey),
    /// One on its way home, which has not spoken yet.
    Moving,
    /// One at its home, another shard.
    There { home: u16, conn: ConnKey },
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) owner: Owner,
    /// Its connection takes another chunk.
    pub(super) wants: bool,
    /// Something may be there to be read.
    pub(super) is_readable: bool,
    /// A chunk is on its way to another shard and not answered.
    pub(super) chunk_under_way: bool,
    /// The end follows what has been read.
    pub(super) ends: bool,
    /// The rest of the one send, which waits for the client's window.
    pub(super) sending: Vec<Bytes>,
    /// The send is done, and its connection does not know yet.
    pub(super) owes_sent: bool,
    /// The QUIC connection is gone, and its connection does not know yet.
    pub(super) is_gone: bool,
    /// Stands in the lane of its home, for a credit.
    pub(super) waits: bool,
    /// Stands in the queue of streams to drive.
    pub(super) is_ready: bool,
}

/// The streams of a shard. One whose QUIC connection is gone stays until its home knows.
#[derive(Debug, Default)]
pub(super) struct StreamTable {
    /// Never walked: its order is not the same in two runs.
    streams: HashMap<StreamKey, Stream>,
}

impl Stream {
    pub(super) fn new(conn: ConnKey) -> Self {
        Self {
            owner: Owner::Here(conn),
            wants: false,
            // The client has opened it by sending something.
            is_readable: true,
            chunk_under_way: false,
            ends: false,
            sending: Vec::new(),
            owes_sent: false,
            is_gone: false,
            waits: false,
            is_ready: false,
        }
    }

    /// Whether the next chunk may be read. One at a time leaves for another shard.
    pub(super) fn may_read(&self) -> bool {
        (self.is_readable || self.ends) && self.wants && !self.chunk_under_way && !self.is_gone
    }

    /// Whether its connection must hear something.
    pub(super) fn has_news(&self) -> bool {
        self.owes_sent || self.is_gone || self.may_read()
    }

    /// A chunk goes to its home.
    pub(super) fn chunk_left(&mut self) {
        (self.chunk_under_way, self.wants) = (true, false);
    }

    /// Its home has taken the chunk, and says whether it takes another one.
    pub(super) fn taken(&mut self, wants: bool) {
        self.chunk_under_way = false;
        self.wants = wants;
    }

    /// Its connection speaks from there: it has arrived.
    pub(super) fn claimed(&mut self, home: u16, conn: ConnKey) {
        self.owner = Owner::There { home, conn };
    }

    /// Its connection leaves for its home.
    pub(super) fn leaves(&mut self) {
        self.owner = Owner::Moving;
        self.wants = false;
    }
}

impl StreamTable {
    pub(super) fn insert(&mut self, key: StreamKey, stream: Stream) {
        let before = self.streams.insert(key, stream);
        assert!(before.is_none(), "a stream is opened once");
    }

    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.streams.get_mut(&key)
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Option<Stream> {
        self.streams.remove(&key)
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }
}
