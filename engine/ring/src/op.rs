//! The op table: who owns what until the kernel is done with it.
//!
//! Everything that the kernel may read or write on behalf of an operation (buffers, vectors, paths,
//! addresses) lives in its slot or behind a box in it, from `start` until the final completion, no
//! matter what the caller or a cancel does meanwhile. Pointers are taken only after the value has
//! its final place.
//!
//! `user_data` of an operation, so that a completion finds its slot and a stale one is caught:
//! - bits 0..24: slot index
//! - bits 24..55: generation (wraps at 2^31)
//! - bits 56..64: kind
//!
//! A slot is 32 bytes: every idle connection has one for its armed receive.

mod file;

use std::ffi::CString;
use std::ptr;

use bytes::Bytes;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{cqueue, opcode};

use crate::datagram::{self, DatagramCounts, Segmentation};
use crate::lease::ReceivePool;
use crate::net::RawAddress;
use crate::{Completion, Errno, File, Op, OpId, Outcome, Socket};
use file::{FileRead, FileWrite};

/// What the ring does next with a completion.
pub(crate) enum Step {
    /// For the shard.
    Deliver(Completion),
    /// The operation goes on: a read or write that was cut short.
    Again(Entry),
}

pub(crate) struct OpTable {
    slots: Vec<Slot>,
    /// Empty slots, the last one used first.
    vacant: Vec<u32>,
    /// Send memory to use again, at most [`SEND_BLOCKS_MAX`].
    #[expect(clippy::vec_box, reason = "the kernel has their address; they move between slots")]
    send_blocks: Vec<Box<SendBlock>>,
    /// The same for datagrams.
    #[expect(clippy::vec_box, reason = "as above")]
    datagram_blocks: Vec<Box<datagram::SendBlock>>,
    datagram_counts: DatagramCounts,
    segmentation: Segmentation,
}

/// The receive pools of a ring.
pub(crate) struct Pools {
    pub(crate) stream: ReceivePool,
    /// Absent from a ring that serves no datagrams.
    pub(crate) datagram: Option<ReceivePool>,
}

struct Slot {
    token: u64,
    generation: u32,
    state: State,
}

/// What an operation in flight owns. Nothing larger than a word and a tag: see the module text.
enum State {
    Vacant,
    Accept,
    Recv,
    Send(Box<SendBlock>),
    Cancel,
    Shutdown,
    Close,
    Open(Box<CString>),
    Read(Box<FileRead>),
    Write(Box<FileWrite>),
    Sync,
    Unlink(Box<CString>),
    Connect(Box<Dial>),
    RecvDatagrams(Box<libc::msghdr>),
    SendDatagrams(Box<datagram::SendBlock>),
}

/// Chunks of a send and the two structures that describe them to `sendmsg`.
struct SendBlock {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
    data: Vec<Bytes>,
}

struct Dial {
    socket: Socket,
    remote: RawAddress,
}

impl OpTable {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            send_blocks: Vec::new(),
            datagram_blocks: Vec::new(),
            datagram_counts: DatagramCounts::default(),
            segmentation: Segmentation::default(),
        }
    }

    pub(crate) fn datagram_counts(&self) -> DatagramCounts {
        self.datagram_counts
    }

    /// Operations that have a slot.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// Takes ownership of what `op` names and gives the entry for the kernel. Not for `Connect`
    /// (see [`OpTable::start_connect`]) and `Wake`, which has no slot.
    pub(crate) fn start(&mut self, token: u64, op: Op) -> (OpId, Entry) {
        match op {
            Op::Accept { listener } => {
                // Close-on-exec, but blocking: on a non-blocking socket the ring would answer
                // EAGAIN instead of waiting.
                let entry = opcode::AcceptMulti::new(Fd(listener.0)).flags(libc::SOCK_CLOEXEC);
                self.start_with(token, State::Accept, |_| entry.build())
            }
            Op::Recv { socket, multishot } => {
                self.start_with(token, State::Recv, |_| recv_entry(socket, multishot))
            }
            Op::Send { socket, data } => {
                let mut block = self.send_blocks.pop().unwrap_or_else(SendBlock::empty);
                block.data = data;
                self.start_with(token, State::Send(block), |state| {
                    let State::Send(block) = state else { unreachable!() };
                    block.entry(socket)
                })
            }
            Op::Cancel { target } => {
                let user_data = self.user_data(target);
                let entry = opcode::AsyncCancel::new(user_data).build();
                self.start_with(token, State::Cancel, |_| entry)
            }
            Op::Shutdown { socket } => {
                let entry = opcode::Shutdown::new(Fd(socket.0), libc::SHUT_RDWR).build();
                self.start_with(token, State::Shutdown, |_| entry)
            }
            Op::ShutdownWrite { socket } => {
                let entry = opcode::Shutdown::new(Fd(socket.0), libc::SHUT_WR).build();
                self.start_with(token, State::Shutdown, |_| entry)
            }
            Op::CloseSocket { socket: Socket(fd) } | Op::CloseFile { file: File(fd) } => {
                self.start_with(token, State::Close, |_| opcode::Close::new(Fd(fd)).build())
            }
            Op::RecvDatagrams { socket } => {
                let header = datagram::receive_header();
                self.start_with(token, State::RecvDatagrams(header), |state| {
                    let State::RecvDatagrams(header) = state else { unreachable!() };
                    datagram::receive_entry(socket, header)
                })
            }
            Op::SendDatagrams { socket, send } => {
                let (memory, counts) = (&mut self.segmentation, &mut self.datagram_counts);
                let block = datagram::SendBlock::new(socket, *send, memory, counts);
                let block = match self.datagram_blocks.pop() {
                    Some(mut used) => {
                        *used = block;
                        used
                    }
                    None => Box::new(block),
                };
                self.start_with(token, State::SendDatagrams(block), |state| {
                    let State::SendDatagrams(block) = state else { unreachable!() };
                    block.entry()
                })
            }
            Op::Connect { .. } | Op::Wake { .. } => unreachable!("started by the ring itself"),
            file_op => self.start_file(token, file_op),
        }
    }

    fn start_file(&mut self, token: u64, op: Op) -> (OpId, Entry) {
        match op {
            Op::Open { path, mode } => {
                self.start_with(token, State::Open(Box::new(path)), |state| {
                    let State::Open(path) = state else { unreachable!() };
                    file::open_entry(path, mode)
                })
            }
            Op::Unlink { path } => self.start_with(token, State::Unlink(Box::new(path)), |state| {
                let State::Unlink(path) = state else { unreachable!() };
                opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build()
            }),
            Op::Read { file, offset, length_bytes } => {
                let read = Box::new(FileRead::new(file, offset, length_bytes as usize));
                self.start_with(token, State::Read(read), |state| {
                    let State::Read(read) = state else { unreachable!() };
                    read.entry()
                })
            }
            Op::Write { file, offset, data } => {
                let write = Box::new(FileWrite::new(file, offset, data));
                self.start_with(token, State::Write(write), |state| {
                    let State::Write(write) = state else { unreachable!() };
                    write.entry()
                })
            }
            Op::SyncData { file } => self.start_with(token, State::Sync, |_| {
                opcode::Fsync::new(Fd(file.0)).flags(FsyncFlags::DATASYNC).build()
            }),
            Op::SyncAll { file } => {
                self.start_with(token, State::Sync, |_| opcode::Fsync::new(Fd(file.0)).build())
            }
            other => unreachable!("not a file operation: {other:?}"),
        }
    }

    /// Connects `socket`, which the table closes if that fails.
    pub(crate) fn start_connect(
        &mut self,
        token: u64,
        socket: Socket,
        remote: RawAddress,
    ) -> (OpId, Entry) {
        let dial = Box::new(Dial { socket, remote });
        self.start_with(token, State::Connect(dial), |state| {
            let State::Connect(dial) = state else { unreachable!() };
            let (address, address_bytes) = dial.remote.as_raw();
            opcode::Connect::new(Fd(dial.socket.0), address, address_bytes).build()
        })
    }

    /// An id for an operation that never reaches the kernel: it completes at once.
    pub(crate) fn unstarted(&mut self) -> OpId {
        let id = self.insert(0, State::Close);
        self.remove(id.slot);
        id
    }

    /// Whether the operation still owns its slot.
    pub(crate) fn is_live(&self, id: OpId) -> bool {
        self.slots.get(id.slot as usize).is_some_and(|slot| {
            slot.generation == id.generation && !matches!(slot.state, State::Vacant)
        })
    }

    /// Handles one completion of the kernel. `user_data` must be of an operation (not a signal).
    pub(crate) fn complete(
        &mut self,
        user_data: u64,
        result: i32,
        flags: u32,
        pools: &mut Pools,
    ) -> Step {
        let slot_index = user_data & SLOT_MASK;
        let slot = usize::try_from(slot_index).ok().and_then(|index| self.slots.get_mut(index));
        let slot = slot.expect("a completion names a slot of the table");
        let generation = (user_data >> GENERATION_SHIFT) & u64::from(GENERATION_MASK);
        assert_eq!(u64::from(slot.generation), generation, "completion of an ended operation");
        assert_eq!(slot.state.kind(), user_data >> KIND_SHIFT, "completion of another kind");

        let more = cqueue::more(flags);
        let outcome = match &mut slot.state {
            State::Accept if result >= 0 => Ok(Outcome::Accepted(Socket(result))),
            State::Recv => received(result, flags, &mut pools.stream),
            State::RecvDatagrams(_) => {
                let pool = pools.datagram.as_mut().expect("asked at submit");
                datagram::received(result, flags, pool, &mut self.datagram_counts)
            }
            State::SendDatagrams(block) => {
                let (memory, counts) = (&mut self.segmentation, &mut self.datagram_counts);
                match block.advance(result, memory, counts) {
                    None => return Step::Again(block.entry().user_data(user_data)),
                    Some(outcome) => outcome,
                }
            }
            State::Open(_) if result >= 0 => Ok(Outcome::Opened(File(result))),
            State::Read(read) => match read.advance(result) {
                None => return Step::Again(read.entry().user_data(user_data)),
                Some(outcome) => outcome,
            },
            State::Write(write) => match write.advance(result) {
                None => return Step::Again(write.entry().user_data(user_data)),
                Some(outcome) => outcome,
            },
            State::Connect(dial) if result >= 0 => Ok(Outcome::Connected(dial.socket)),
            State::Connect(dial) => {
                crate::net::close(dial.socket.0);
                Err(Errno(-result))
            }
            State::Send(block) if result >= 0 => {
                let data = std::mem::take(&mut block.data);
                Ok(Outcome::Sent { sent_bytes: result.unsigned_abs() as usize, data })
            }
            _ if result >= 0 => Ok(Outcome::Done),
            _ => Err(Errno(-result)),
        };
        let token = slot.token;
        let op =
            OpId { slot: u32::try_from(slot_index).expect("24 bits"), generation: slot.generation };
        if !more {
            self.remove(op.slot);
        }
        Step::Deliver(Completion { token, op, more, result: outcome })
    }

    fn start_with(
        &mut self,
        token: u64,
        state: State,
        entry: impl FnOnce(&mut State) -> Entry,
    ) -> (OpId, Entry) {
        let id = self.insert(token, state);
        let user_data = self.user_data(id);
        let entry = entry(&mut self.slots[id.slot as usize].state);
        (id, entry.user_data(user_data))
    }

    fn insert(&mut self, token: u64, state: State) -> OpId {
        if let Some(slot) = self.vacant.pop() {
            let entry = &mut self.slots[slot as usize];
            entry.token = token;
            entry.state = state;
            return OpId { slot, generation: entry.generation };
        }
        let slot = u32::try_from(self.slots.len()).expect("bounded below");
        assert!(u64::from(slot) <= SLOT_MASK, "more than 2^24 operations in flight on one ring");
        self.slots.push(Slot { token, generation: 0, state });
        OpId { slot, generation: 0 }
    }

    fn remove(&mut self, slot_index: u32) {
        let slot = &mut self.slots[slot_index as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        match std::mem::replace(&mut slot.state, State::Vacant) {
            State::Send(mut block) if self.send_blocks.len() < SEND_BLOCKS_MAX => {
                block.data = Vec::new();
                block.parts.clear();
                self.send_blocks.push(block);
            }
            State::SendDatagrams(mut block) if self.datagram_blocks.len() < SEND_BLOCKS_MAX => {
                block.clear();
                self.datagram_blocks.push(block);
            }
            _ => {}
        }
        self.vacant.push(slot_index);
    }

    fn user_data(&self, id: OpId) -> u64 {
        let kind = self.slots[id.slot as usize].state.kind();
        kind << KIND_SHIFT | u64::from(id.generation) << GENERATION_SHIFT | u64::from(id.slot)
    }
}

impl State {
    fn kind(&self) -> u64 {
        match self {
            Self::Vacant => 0,
            Self::Accept => 1,
            Self::Recv => RECV_KIND,
            Self::Send(_) => 3,
            Self::Cancel => 4,
            Self::Shutdown => 5,
            Self::Close => 6,
            Self::Open(_) => 7,
            Self::Read(_) => 8,
            Self::Write(_) => 9,
            Self::Sync => 10,
            Self::Unlink(_) => 11,
            Self::Connect(_) => 12,
            Self::RecvDatagrams(_) => RECV_DATAGRAMS_KIND,
            Self::SendDatagrams(_) => 14,
        }
    }
}

impl SendBlock {
    fn empty() -> Box<Self> {
        let header = datagram::empty_header();
        Box::new(Self { header, parts: Vec::new(), data: Vec::new() })
    }

    fn entry(&mut self, socket: Socket) -> Entry {
        if let [chunk] = &self.data[..] {
            let length_bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            return opcode::Send::new(Fd(socket.0), chunk.as_ptr(), length_bytes)
                .flags(libc::MSG_NOSIGNAL)
                .build();
        }
        self.parts.extend(self.data.iter().take(SEND_PARTS_MAX).map(|chunk| libc::iovec {
            iov_base: chunk.as_ptr().cast_mut().cast(),
            iov_len: chunk.len(),
        }));
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = self.parts.len() as _;
        opcode::SendMsg::new(Fd(socket.0), &raw const self.header)
            .flags(libc::MSG_NOSIGNAL.cast_unsigned())
            .build()
    }
}

fn recv_entry(socket: Socket, multishot: bool) -> Entry {
    if multishot {
        return opcode::RecvMulti::new(Fd(socket.0), RECEIVE_GROUP).build();
    }
    opcode::Recv::new(Fd(socket.0), ptr::null_mut(), 0)
        .buf_group(RECEIVE_GROUP)
        .build()
        .flags(Flags::BUFFER_SELECT)
}

/// A buffer that the kernel took goes either to the shard or straight back: also at an error or at
/// the end of the stream.
fn received(result: i32, flags: u32, pool: &mut ReceivePool) -> Result<Outcome, Errno> {
    let length_bytes = u32::try_from(result).unwrap_or(0);
    let lease = cqueue::buffer_select(flags).map(|index| pool.lend(index, length_bytes));
    if length_bytes > 0 {
        let lease = lease.expect("data arrives in a buffer of the pool");
        return Ok(Outcome::Received(Some(lease)));
    }
    if let Some(lease) = lease {
        pool.release(lease);
    }
    if result < 0 { Err(Errno(-result)) } else { Ok(Outcome::Received(None)) }
}

/// The provided-buffer group of the stream pool; see [`datagram::DATAGRAM_GROUP`] for the other.
pub(crate) const RECEIVE_GROUP: u16 = 0;

/// Kinds that the ring tells apart.
pub(crate) const RECV_KIND: u64 = 2;
pub(crate) const RECV_DATAGRAMS_KIND: u64 = 13;

/// Kinds from here on are signals of the ring: they have no slot.
pub(crate) const SIGNAL_KIND_MIN: u64 = 128;
pub(crate) const KIND_SHIFT: u32 = 56;

const SLOT_MASK: u64 = (1 << 24) - 1;
const GENERATION_SHIFT: u32 = 24;
const GENERATION_MASK: u32 = (1 << 31) - 1;

/// `IOV_MAX`: the kernel refuses more chunks. The rest makes the send short.
const SEND_PARTS_MAX: usize = 1024;

const SEND_BLOCKS_MAX: usize = 256;

const _: () = assert!(size_of::<Slot>() <= 32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UdpSocket;

    fn pools() -> Pools {
        Pools { stream: ReceivePool::new(2, 64), datagram: Some(ReceivePool::for_datagrams(2)) }
    }

    #[test]
    fn a_slot_is_reused_under_a_new_generation() {
        let mut table = OpTable::new();
        let (first, entry) = table.start(7, Op::Shutdown { socket: Socket(0) });
        let step = table.complete(entry.get_user_data(), 0, 0, &mut pools());
        assert!(matches!(step, Step::Deliver(Completion { token: 7, more: false, .. })));
        assert!(!table.is_live(first));
        let (second, _) = table.start(8, Op::Shutdown { socket: Socket(0) });
        assert_eq!((second.slot, second.generation), (first.slot, first.generation + 1));
        assert!(table.is_live(second) && !table.is_live(first));
    }

    #[test]
    #[should_panic(expected = "completion of an ended operation")]
    fn a_stale_completion_is_a_bug() {
        let mut table = OpTable::new();
        let (_, entry) = table.start(7, Op::Shutdown { socket: Socket(0) });
        table.complete(entry.get_user_data(), 0, 0, &mut pools());
        table.complete(entry.get_user_data(), 0, 0, &mut pools());
    }

    #[test]
    fn a_short_write_goes_on_and_an_empty_one_fails() {
        let mut table = OpTable::new();
        let data = Bytes::from_static(b"0123456789");
        let (_, entry) = table.start(1, Op::Write { file: File(0), offset: 5, data });
        let user_data = entry.get_user_data();
        assert!(matches!(table.complete(user_data, 4, 0, &mut pools()), Step::Again(_)));
        assert_eq!(table.in_flight(), 1);
        let Step::Deliver(done) = table.complete(user_data, 0, 0, &mut pools()) else { panic!() };
        assert_eq!(done.result.err(), Some(Errno::IO));
        assert_eq!(table.in_flight(), 0);
    }

    #[test]
    fn a_buffer_that_comes_with_an_error_goes_back() {
        let mut table = OpTable::new();
        let mut pools = pools();
        let (_, entry) = table.start(1, Op::Recv { socket: Socket(0), multishot: true });
        let with_buffer = 1; // IORING_CQE_F_BUFFER, index 0
        let step = table.complete(entry.get_user_data(), -104, with_buffer, &mut pools);
        let Step::Deliver(completion) = step else { panic!() };
        assert_eq!(completion.result.err(), Some(Errno::CONNRESET));
        assert_eq!(pools.stream.lent_count(), 0);
    }

    #[test]
    fn a_datagram_buffer_that_comes_with_an_error_goes_back() {
        let mut table = OpTable::new();
        let mut pools = pools();
        let (_, entry) = table.start(1, Op::RecvDatagrams { socket: UdpSocket(0) });
        let step = table.complete(entry.get_user_data(), -libc::ENOMEM, 1, &mut pools);
        let Step::Deliver(completion) = step else { panic!() };
        assert_eq!(completion.result.err(), Some(Errno::NOMEM));
        assert_eq!(pools.datagram.unwrap().lent_count(), 0);
    }
}
