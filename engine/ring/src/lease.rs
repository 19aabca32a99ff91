//! A receive pool: one provided-buffer ring per shard, shared by all its connections, so that an
//! idle connection owns no buffer. A shard that serves QUIC has a second one for datagrams, where the
//! kernel writes a head of fixed size before the payload ([`crate::datagram`] reads it).
//!
//! A buffer is either the kernel's (in the ring, it may be written at any time) or lent (the shard
//! reads it). `lent` tells which, and the two never overlap: that is what makes `bytes` sound.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::{Lease, Pool, datagram};

/// Memory of the pool. Must outlive every operation that may select a buffer from it.
pub(crate) struct ReceivePool {
    /// `count` descriptors that the kernel reads; page aligned. The tail that we publish lies in
    /// the spare word of the first one.
    descriptors: Block,
    buffers: Block,
    /// What its leases are marked with.
    pool: Pool,
    count: u16,
    /// With the head.
    buffer_bytes: u32,
    /// Bytes before the payload.
    head_bytes: u32,
    /// Descriptors written so far, modulo 2^16.
    tail: u16,
    /// Per buffer: on loan to the shard, and of how many bytes after the head.
    lent: Vec<Option<u32>>,
    lent_count: u64,
}

impl ReceivePool {
    /// `count` buffers for [`crate::Op::Recv`], all of them the kernel's. `count` is a power of two
    /// up to 32768.
    pub(crate) fn new(count: u16, buffer_bytes: u32) -> Self {
        assert!(buffer_bytes.is_power_of_two(), "buffers must not straddle cache lines");
        Self::with_head(Pool::Stream, count, buffer_bytes, 0)
    }

    /// `count` buffers for [`crate::Op::RecvDatagrams`]; as above.
    pub(crate) fn for_datagrams(count: u16) -> Self {
        Self::with_head(Pool::Datagram, count, datagram::BUFFER_BYTES, datagram::HEAD_BYTES)
    }

    fn with_head(pool: Pool, count: u16, buffer_bytes: u32, head_bytes: u32) -> Self {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel masks indices by count");
        assert!(head_bytes < buffer_bytes, "room for a payload");
        let mut pool = Self {
            pool,
            descriptors: Block::zeroed(usize::from(count) * size_of::<BufRingEntry>()),
            buffers: Block::zeroed(usize::from(count) * buffer_bytes as usize),
            count,
            buffer_bytes,
            head_bytes,
            tail: 0,
            lent: vec![None; usize::from(count)],
            lent_count: 0,
        };
        for index in 0..count {
            pool.give(index);
        }
        pool
    }

    /// Address of the descriptors, for `IORING_REGISTER_PBUF_RING`.
    pub(crate) fn descriptors_address(&self) -> u64 {
        self.descriptors.start.as_ptr().expose_provenance() as u64
    }

    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    pub(crate) fn lent_count(&self) -> u64 {
        self.lent_count
    }

    /// The kernel has filled buffer `buffer_index` with `length_bytes` after the head and taken it
    /// off the ring.
    pub(crate) fn lend(&mut self, buffer_index: u16, length_bytes: u32) -> Lease {
        let room_bytes = self.buffer_bytes - self.head_bytes;
        assert!(length_bytes <= room_bytes, "the kernel wrote past a receive buffer");
        let slot = &mut self.lent[usize::from(buffer_index)];
        assert!(slot.is_none(), "the kernel filled a buffer that was on loan");
        *slot = Some(length_bytes);
        self.lent_count += 1;
        Lease { pool: self.pool, buffer_index, length_bytes }
    }

    /// The payload.
    pub(crate) fn bytes(&self, lease: &Lease) -> &[u8] {
        &self.whole(lease)[self.head_bytes as usize..]
    }

    /// What the kernel wrote before the payload.
    pub(crate) fn head(&self, lease: &Lease) -> &[u8] {
        &self.whole(lease)[..self.head_bytes as usize]
    }

    fn whole(&self, lease: &Lease) -> &[u8] {
        assert_eq!(lease.pool, self.pool, "a lease of another pool");
        let lent = self.lent[usize::from(lease.buffer_index)];
        assert_eq!(lent, Some(lease.length_bytes), "a lease that is not on loan");
        let offset = usize::from(lease.buffer_index) * self.buffer_bytes as usize;
        // SAFETY: offset + head + length <= count * buffer_bytes (asserted in `lend`); the memory
        // was zeroed at allocation, so it is initialised; the buffer is on loan, so it is not in the
        // ring and the kernel does not write it until `release`, which needs `&mut self`.
        unsafe {
            let start = self.buffers.start.as_ptr().add(offset);
            std::slice::from_raw_parts(start, (self.head_bytes + lease.length_bytes) as usize)
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a lease is given back exactly once")]
    pub(crate) fn release(&mut self, lease: Lease) {
        assert_eq!(lease.pool, self.pool, "a lease of another pool");
        let lent = self.lent[usize::from(lease.buffer_index)].take();
        assert_eq!(lent, Some(lease.length_bytes), "a lease released twice");
        self.lent_count -= 1;
        self.give(lease.buffer_index);
    }

    /// Puts a buffer back into the ring, as its newest entry.
    fn give(&mut self, index: u16) {
        let entries = self.descriptors.start.as_ptr().cast::<BufRingEntry>();
        let position = usize::from(self.tail & (self.count - 1));
        let offset = usize::from(index) * self.buffer_bytes as usize;
        // SAFETY: position < count, so the entry lies in the block, which is zeroed and aligned to
        // a page. At most `count` buffers are in the ring, so the kernel has consumed the entry
        // that this one overwrites. The setters leave the tail word of the first entry alone.
        unsafe {
            let entry = &mut *entries.add(position);
            entry.set_addr(self.buffers.start.as_ptr().add(offset).expose_provenance() as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(index);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail word is the aligned u16 in the first entry; the kernel only reads it.
        // Release: it must not see the new tail before the entry.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

/// Zeroed, page-aligned memory. Fresh pages, so untouched buffers cost nothing.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

impl Block {
    fn zeroed(bytes: usize) -> Self {
        assert!(bytes > 0);
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a pool below 4 GiB");
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

const PAGE_BYTES: usize = 4096;
