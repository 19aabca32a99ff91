//! Datagrams as the kernel takes and gives them: message headers with control messages.
//!
//! A receive puts everything into one buffer of the datagram pool: a head of fixed size (what was
//! written where, the sender, the control messages), then the payload. A send has its header, vector,
//! name and control messages in a [`SendBlock`], which stays in place until the final completion.

mod segmentation;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ptr;

use bytes::Bytes;
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode};

pub(crate) use segmentation::Segmentation;

use crate::lease::ReceivePool;
use crate::net::RawAddress;
use crate::{DatagramSend, Datagrams, Errno, Outcome, UdpSocket};

/// Rare things that happened to datagrams.
#[derive(Clone, Copy, Default)]
pub(crate) struct DatagramCounts {
    pub(crate) truncated: u64,
    pub(crate) segmentations_refused: u64,
    pub(crate) trains_split: u64,
}

/// What a multishot receive asks for; only the two sizes in it count.
pub(crate) fn receive_header() -> Box<libc::msghdr> {
    let mut header = empty_header();
    header.msg_namelen = NAME_ROOM_BYTES;
    header.msg_controllen = CONTROL_ROOM_BYTES as _;
    Box::new(header)
}

pub(crate) fn receive_entry(socket: UdpSocket, header: &libc::msghdr) -> Entry {
    opcode::RecvMsgMulti::new(Fd(socket.0), header, DATAGRAM_GROUP).build()
}

/// Takes over what a completion of a receive gave. The kernel's buffer goes to the shard, or back if
/// there is nothing in it.
pub(crate) fn received(
    result: i32,
    flags: u32,
    pool: &mut ReceivePool,
    counts: &mut DatagramCounts,
) -> Result<Outcome, Errno> {
    let length_bytes = u32::try_from(result).unwrap_or(0).saturating_sub(HEAD_BYTES);
    let lease = cqueue::buffer_select(flags).map(|index| pool.lend(index, length_bytes));
    if result < 0 {
        if let Some(lease) = lease {
            pool.release(lease);
        }
        return Err(Errno(-result));
    }
    let lease = lease.expect("datagrams arrive in a buffer of the pool");
    let Some(arrival) = Arrival::parse(pool.head(&lease)) else {
        // What a socket without a peer gives after a shutdown, which nobody asks for.
        pool.release(lease);
        return Err(Errno::NOTCONN);
    };
    counts.truncated += u64::from(arrival.truncated);
    let Arrival { from, local, ecn, joined_bytes, .. } = arrival;
    let segment_bytes = joined_bytes.unwrap_or(length_bytes).max(1);
    Ok(Outcome::Datagrams(Datagrams { lease, from, local, ecn, segment_bytes }))
}

/// What the head of a buffer says.
#[derive(Debug, PartialEq, Eq)]
struct Arrival {
    from: SocketAddr,
    local: Option<IpAddr>,
    ecn: u8,
    /// Of each datagram of a train that the kernel joined.
    joined_bytes: Option<u32>,
    truncated: bool,
}

impl Arrival {
    /// `head`: struct io_uring_recvmsg_out, the room for the name, the room for control messages.
    /// `None`: no sender is named.
    fn parse(head: &[u8]) -> Option<Self> {
        let (fixed, rest) = head.split_at_checked(OUT_BYTES as usize)?;
        let (name, control) = rest.split_at_checked(NAME_ROOM_BYTES as usize)?;
        let name = &name[..name.len().min(word(fixed, 0)? as usize)];
        let control = &control[..control.len().min(word(fixed, 4)? as usize)];
        let truncated = word(fixed, 12)? & libc::MSG_TRUNC.cast_unsigned() != 0;
        let (from, local, ecn) = (parse_name(name)?, None, 0);
        let mut arrival = Self { from, local, ecn, joined_bytes: None, truncated };
        for message in (ControlMessages { rest: control }) {
            arrival.take(&message);
        }
        Some(arrival)
    }

    fn take(&mut self, message: &ControlMessage<'_>) {
        let data = message.data;
        match (message.level, message.kind) {
            (libc::IPPROTO_IP, libc::IP_TOS) => self.ecn = data.first().map_or(0, |tos| tos & 3),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                self.ecn = word(data, 0).map_or(0, |class| class.to_le_bytes()[0] & 3);
            }
            // struct in_pktinfo: interface, address of this host, destination in the header.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let octets = data.get(4..8).and_then(|octets| octets.first_chunk::<4>());
                self.local = octets.map(|octets| Ipv4Addr::from(*octets).into());
            }
            // struct in6_pktinfo: address, interface.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                self.local = data.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
            }
            (libc::SOL_UDP, libc::UDP_GRO) => self.joined_bytes = word(data, 0),
            _ => {}
        }
    }
}

struct ControlMessage<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

/// The kernel's layout: a length of machine width that counts the head, two words, the data, and
/// padding to machine width.
struct ControlMessages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for ControlMessages<'a> {
    type Item = ControlMessage<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from_ne_bytes(*self.rest.first_chunk()?);
        let message = self.rest.get(..length)?;
        let (head, data) = message.split_at_checked(CONTROL_HEAD_BYTES)?;
        let level = word(head, MACHINE_BYTES)?.cast_signed();
        let kind = word(head, MACHINE_BYTES + 4)?.cast_signed();
        self.rest = self.rest.get(length.next_multiple_of(MACHINE_BYTES)..).unwrap_or(&[]);
        Some(ControlMessage { level, kind, data })
    }
}

/// A struct sockaddr_in or sockaddr_in6.
fn parse_name(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*name.first_chunk()?);
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match i32::from(family) {
        libc::AF_INET => {
            let octets = *name.get(4..)?.first_chunk::<4>()?;
            Some((Ipv4Addr::from(octets), port).into())
        }
        libc::AF_INET6 => {
            let octets = *name.get(8..)?.first_chunk::<16>()?;
            let (flow, scope) = (word(name, 4)?, word(name, 24)?);
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, flow, scope).into())
        }
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A send, and what describes it to `sendmsg`. Boxed: the kernel has the addresses of its parts.
pub(crate) struct SendBlock {
    header: libc::msghdr,
    part: libc::iovec,
    name: RawAddress,
    control: Control,
    socket: UdpSocket,
    to: SocketAddr,
    from: Option<IpAddr>,
    ecn: u8,
    data: Bytes,
    /// Bytes of one call: all, unless the kernel refused to cut the train up.
    call_bytes: usize,
    /// Of each datagram, if `data` is a train.
    segment_bytes: Option<u16>,
    sent_bytes: usize,
}

impl SendBlock {
    pub(crate) fn new(
        socket: UdpSocket,
        send: DatagramSend,
        segmentation: &mut Segmentation,
        counts: &mut DatagramCounts,
    ) -> Self {
        let DatagramSend { to, from, ecn, segment_bytes, data } = send;
        assert!(segment_bytes != Some(0), "a datagram of a train has bytes");
        // A train of one is none: some kernels would refuse it.
        let segment_bytes = segment_bytes.filter(|bytes| usize::from(*bytes) < data.len());
        let call_bytes = match segment_bytes {
            Some(bytes) if !segmentation.tries(socket) => {
                counts.trains_split += 1;
                usize::from(bytes)
            }
            _ => data.len(),
        };
        Self {
            header: empty_header(),
            part: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            name: to.into(),
            control: Control::empty(),
            socket,
            to,
            from,
            ecn,
            call_bytes,
            data,
            segment_bytes,
            sent_bytes: 0,
        }
    }

    /// Lets go of the data; the rest is written over by the next send.
    pub(crate) fn clear(&mut self) {
        self.data = Bytes::new();
    }

    pub(crate) fn entry(&mut self) -> Entry {
        self.control.clear();
        if let Some(from) = self.from {
            self.control.push_source(from);
        }
        if self.ecn != 0 {
            self.control.push_ecn(self.to.ip(), self.ecn & 3);
        }
        let rest = &self.data[self.sent_bytes..];
        let call = &rest[..rest.len().min(self.call_bytes)];
        if let Some(bytes) = self.segment_bytes.filter(|bytes| usize::from(*bytes) < call.len()) {
            self.control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &bytes.to_ne_bytes());
        }
        self.part = libc::iovec { iov_base: call.as_ptr().cast_mut().cast(), iov_len: call.len() };
        let (name, name_bytes) = self.name.as_raw();
        self.header.msg_name = name.cast_mut().cast();
        self.header.msg_namelen = name_bytes;
        self.header.msg_iov = &raw mut self.part;
        self.header.msg_iovlen = 1;
        // Without a message the kernel must not look for one.
        let used_bytes = self.control.used_bytes;
        self.header.msg_control =
            if used_bytes > 0 { (&raw mut self.control.bytes).cast() } else { ptr::null_mut() };
        self.header.msg_controllen = used_bytes as _;
        opcode::SendMsg::new(Fd(self.socket.0), &raw const self.header)
            .flags(libc::MSG_NOSIGNAL.cast_unsigned())
            .build()
    }

    /// `None`: go on sending.
    pub(crate) fn advance(
        &mut self,
        result: i32,
        segmentation: &mut Segmentation,
        counts: &mut DatagramCounts,
    ) -> Option<Result<Outcome, Errno>> {
        let whole = self.call_bytes == self.data.len();
        if result >= 0 {
            if whole && self.segment_bytes.is_some() {
                segmentation.taken(self.socket);
            }
            self.sent_bytes += self.call_bytes;
            return (self.sent_bytes >= self.data.len()).then_some(Ok(Outcome::Done));
        }
        let errno = Errno(-result);
        match (errno, self.segment_bytes) {
            (Errno::INTR, _) => None,
            (Errno::INVAL | Errno::IO, Some(bytes)) if whole => {
                counts.segmentations_refused += 1;
                segmentation.refused(self.socket);
                self.call_bytes = usize::from(bytes);
                None
            }
            _ => Some(Err(errno)),
        }
    }
}

/// Control messages of a send, in the layout of [`ControlMessages`].
#[repr(C, align(8))]
struct Control {
    bytes: [u8; SEND_CONTROL_ROOM_BYTES],
    used_bytes: usize,
}

impl Control {
    fn empty() -> Self {
        Self { bytes: [0; SEND_CONTROL_ROOM_BYTES], used_bytes: 0 }
    }

    fn clear(&mut self) {
        self.used_bytes = 0;
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let length = CONTROL_HEAD_BYTES + data.len();
        let place = &mut self.bytes[self.used_bytes..];
        place[..MACHINE_BYTES].copy_from_slice(&length.to_ne_bytes());
        place[MACHINE_BYTES..][..4].copy_from_slice(&level.to_ne_bytes());
        place[MACHINE_BYTES + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        place[CONTROL_HEAD_BYTES..length].copy_from_slice(data);
        self.used_bytes += length.next_multiple_of(MACHINE_BYTES);
    }

    /// The interface stays zero: the routing table's choice.
    fn push_source(&mut self, from: IpAddr) {
        match from {
            IpAddr::V4(address) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&address.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            // Also a mapped one, which the kernel unwraps.
            IpAddr::V6(address) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&address.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// The protocol on the wire decides, not the family of the socket.
    fn push_ecn(&mut self, to: IpAddr, ecn: u8) {
        let ecn = i32::from(ecn).to_ne_bytes();
        if to.to_canonical().is_ipv4() {
            self.push(libc::IPPROTO_IP, libc::IP_TOS, &ecn);
        } else {
            self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &ecn);
        }
    }
}

pub(crate) fn empty_header() -> libc::msghdr {
    libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

/// The provided-buffer group of the datagram pool.
pub(crate) const DATAGRAM_GROUP: u16 = 1;

/// One buffer: whole pages, so that a short datagram touches only the first one. Anything that IP
/// without jumbograms carries fits, and the kernel joins no more than that.
pub(crate) const BUFFER_BYTES: u32 = 17 * 4096;

/// Bytes before the payload.
pub(crate) const HEAD_BYTES: u32 = OUT_BYTES + NAME_ROOM_BYTES + CONTROL_ROOM_BYTES;

const _: () = assert!(BUFFER_BYTES - HEAD_BYTES > u16::MAX as u32);

/// struct io_uring_recvmsg_out: four words, the lengths of name, control and payload, and flags.
const OUT_BYTES: u32 = 16;

/// A sockaddr_in6 has 28; this keeps what follows aligned.
const NAME_ROOM_BYTES: u32 = 32;

/// Address, congestion bits and segment size need 88 on IPv6, in both directions.
const CONTROL_ROOM_BYTES: u32 = 128;
const SEND_CONTROL_ROOM_BYTES: usize = CONTROL_ROOM_BYTES as usize;

const MACHINE_BYTES: usize = size_of::<usize>();
const CONTROL_HEAD_BYTES: usize = MACHINE_BYTES + 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn send(segment_bytes: Option<u16>, data: &'static [u8]) -> SendBlock {
        send_on(&mut Segmentation::default(), segment_bytes, data)
    }

    fn send_on(
        segmentation: &mut Segmentation,
        segment_bytes: Option<u16>,
        data: &'static [u8],
    ) -> SendBlock {
        let to = "192.0.2.7:443".parse().unwrap();
        let (from, data) = (Some("192.0.2.1".parse().unwrap()), Bytes::from_static(data));
        let send = DatagramSend { to, from, ecn: 2, segment_bytes, data };
        SendBlock::new(UdpSocket(3), send, segmentation, &mut DatagramCounts::default())
    }

    fn head_with(name: &[u8], control: &Control) -> Vec<u8> {
        let mut head = Vec::new();
        for word in [name.len(), control.used_bytes, 0, 0] {
            head.extend_from_slice(&u32::try_from(word).unwrap().to_ne_bytes());
        }
        head.extend_from_slice(name);
        head.resize((OUT_BYTES + NAME_ROOM_BYTES) as usize, 0);
        head.extend_from_slice(&control.bytes[..control.used_bytes]);
        head.resize(HEAD_BYTES as usize, 0xff);
        head
    }

    fn name_v4() -> Vec<u8> {
        let mut name = u16::try_from(libc::AF_INET).unwrap().to_ne_bytes().to_vec();
        name.extend_from_slice(&[0x1c, 0x23, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
        name
    }

    #[test]
    fn a_head_is_read() {
        let mut control = Control::empty();
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes());
        control.push(libc::SOL_SOCKET, 99, b"odd");
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[0b1010_0110]);
        control.push_source(Ipv4Addr::new(10, 0, 0, 1).into());
        let arrival = Arrival::parse(&head_with(&name_v4(), &control)).unwrap();
        let expected = Arrival {
            from: "10.0.0.9:7203".parse().unwrap(),
            local: Some("10.0.0.1".parse().unwrap()),
            ecn: 2,
            joined_bytes: Some(1200),
            truncated: false,
        };
        assert_eq!(arrival, expected);
    }

    #[test]
    fn no_head_is_read_beyond_its_end() {
        let mut control = Control::empty();
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes());
        let head = head_with(&name_v4(), &control);
        for length in 0..head.len() {
            let _ = Arrival::parse(&head[..length]);
        }
        let mut lying = head.clone();
        lying[..8].fill(0xff);
        lying[(OUT_BYTES + NAME_ROOM_BYTES) as usize..].fill(0xff);
        assert_eq!(Arrival::parse(&lying).unwrap().joined_bytes, None);
        assert_eq!(Arrival::parse(&head_with(&[], &control)), None, "no sender");
    }

    #[test]
    fn a_refused_train_goes_one_by_one() {
        let (mut counts, mut memory) = (DatagramCounts::default(), Segmentation::default());
        let mut block = send(Some(4), b"aaaabbbbcc");
        block.entry();
        assert_eq!((block.part.iov_len, block.control.used_bytes), (10, 32 + 24 + 24));
        assert!(block.advance(-libc::EINVAL, &mut memory, &mut counts).is_none());
        assert_eq!(counts.segmentations_refused, 1);
        for length in [4, 4, 2] {
            block.entry();
            assert_eq!((block.part.iov_len, block.control.used_bytes), (length, 32 + 24));
            assert!(block.sent_bytes < 10);
            let done = block.advance(i32::try_from(length).unwrap(), &mut memory, &mut counts);
            assert_eq!(done.is_some(), length == 2);
        }
        assert_eq!(counts.segmentations_refused, 1);
    }

    #[test]
    fn other_errors_and_single_datagrams_are_not_repeated() {
        let (mut counts, mut memory) = (DatagramCounts::default(), Segmentation::default());
        let mut train = send(Some(4), b"aaaabbbbcc");
        let refused = train.advance(-libc::EMSGSIZE, &mut memory, &mut counts).unwrap();
        assert_eq!(refused.unwrap_err(), Errno::MSGSIZE);
        let mut single = send(Some(10), b"aaaabbbbcc");
        assert!(single.advance(-libc::EINVAL, &mut memory, &mut counts).unwrap().is_err());
        assert_eq!(counts.segmentations_refused, 0);
        // A second refusal, of a datagram alone, ends it.
        let mut train = send(Some(4), b"aaaabbbbcc");
        assert!(train.advance(-libc::EIO, &mut memory, &mut counts).is_none());
        assert!(train.advance(-libc::EIO, &mut memory, &mut counts).unwrap().is_err());
    }

    #[test]
    fn a_train_that_is_not_tried_goes_one_by_one_at_once() {
        let (mut counts, mut memory) = (DatagramCounts::default(), Segmentation::default());
        for _ in 0..10 {
            let mut train = send_on(&mut memory, Some(4), b"aaaabbbbcc");
            if train.call_bytes == 10 {
                assert!(train.advance(-libc::EIO, &mut memory, &mut counts).is_none());
            }
        }
        let refused = counts.segmentations_refused;
        let mut train = send_on(&mut memory, Some(4), b"aaaabbbbcc");
        for length in [4, 4, 2] {
            train.entry();
            assert_eq!((train.part.iov_len, train.control.used_bytes), (length, 32 + 24));
            let done = train.advance(i32::try_from(length).unwrap(), &mut memory, &mut counts);
            assert_eq!(done.is_some(), length == 2);
        }
        assert_eq!(counts.segmentations_refused, refused);
    }
}
