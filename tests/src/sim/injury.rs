//! What a disk does to its users: operations that fail, bytes that change at rest or land
//! elsewhere, and no room.

use ringpost_ring::{Errno, File};

use super::clock::MS;
use super::disk::{BLOCK_BYTES, FileDone, FileOp, SECTOR_BYTES};
use super::ring::Host;
use super::weights::Fault;

/// What is going to go wrong, and what is wrong now.
#[derive(Debug, Default)]
pub struct Injuries {
    /// The next operation that each of these concerns fails.
    armed: Vec<Fault>,
    unreadable: Option<Unreadable>,
    /// An operation of the present process was made to fail.
    pub hurt_process: bool,
    /// Stores of which bytes were changed: storage shard, and whether a check of the oracle may
    /// expect that it shows.
    pub rotten: Vec<(u16, Damage)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Attested before: it must be told, by a gap or at the next opening.
    Told,
    /// What is damaged may be the unattested end of the log.
    Silent,
}

/// A place of a file that gives EIO.
#[derive(Debug)]
struct Unreadable {
    inode: u64,
    block: u64,
    /// So many times, or until then.
    times: u64,
    until_ns: u64,
}

impl Host {
    /// Something is going to go wrong with the next operation of a kind, or goes wrong now.
    pub fn injure(&mut self, fault: Fault) {
        match fault {
            Fault::Rot => self.rot(),
            Fault::DiskFull => {
                let until_ns = self.faults.disk.between(500, 8_000) * MS;
                self.faults.counts.disk_full += 1;
                self.disk.full_until_ns = self.clock.now_ns() + until_ns;
            }
            armed if !self.injuries.armed.contains(&armed) => self.injuries.armed.push(armed),
            _ => {}
        }
    }

    /// Carries out `op`, unless something goes wrong with it.
    pub fn carry_out(&mut self, op: &FileOp) -> Result<FileDone, Errno> {
        let hurt = if self.faults.active { self.hurt(op) } else { None };
        let result = match hurt {
            Some(result) => result,
            None => {
                self.disk.now_ns = if self.faults.active { self.clock.now_ns() } else { u64::MAX };
                self.disk.execute(op)
            }
        };
        if let Err(errno) = &result {
            self.injuries.hurt_process = true;
            self.tell(|| format!("{op:?} fails: {errno}").chars().take(160).collect());
        }
        result
    }

    fn hurt(&mut self, op: &FileOp) -> Option<Result<FileDone, Errno>> {
        match op {
            FileOp::Write { file, offset, data } => {
                if self.take(Fault::FailWrite) {
                    self.faults.counts.failed_writes += 1;
                    let sectors = data.len() / SECTOR_BYTES;
                    let kept = self.faults.disk.index(sectors + 1) * SECTOR_BYTES;
                    let data = data.slice(..kept);
                    if !data.is_empty() {
                        let part = FileOp::Write { file: *file, offset: *offset, data };
                        let _ = self.disk.execute(&part);
                    }
                    return Some(Err(Errno::IO));
                }
                let is_batch = *offset >= BLOCK_BYTES && data.iter().any(|&byte| byte != 0);
                if is_batch && self.take(Fault::Misdirect) {
                    return self.misdirect(*file, *offset, data);
                }
                None
            }
            FileOp::Sync { file, .. } if self.take(Fault::FailSync) => {
                self.faults.counts.failed_syncs += 1;
                let stays = self.faults.disk.chance(500);
                self.disk.fail_sync(*file, stays);
                Some(Err(Errno::IO))
            }
            FileOp::Read { file, offset, length_bytes } => {
                self.read_fails(*file, *offset, *length_bytes).then_some(Err(Errno::IO))
            }
            _ => None,
        }
    }

    fn take(&mut self, fault: Fault) -> bool {
        let armed = &mut self.injuries.armed;
        let position = armed.iter().position(|&kind| kind == fault);
        position.map(|position| armed.remove(position)).is_some()
    }

    /// A read that failed fails again at the same place, once, or for a while.
    fn read_fails(&mut self, file: File, offset: u64, length_bytes: u32) -> bool {
        let now_ns = self.clock.now_ns();
        let Some(inode) = self.disk.inode_of(file) else { return false };
        for (fault, lasts) in [(Fault::FailRead, false), (Fault::Unreadable, true)] {
            if self.take(fault) {
                let duration_ns = self.faults.disk.between(500, 10_000) * MS;
                let times = if lasts { u64::MAX } else { self.faults.disk.between(1, 2) };
                if lasts {
                    self.note_rotten(file, Damage::Told);
                }
                self.injuries.unreadable = Some(Unreadable {
                    inode,
                    block: offset / BLOCK_BYTES,
                    times,
                    until_ns: now_ns + duration_ns,
                });
            }
        }
        let Some(bad) = &mut self.injuries.unreadable else { return false };
        let blocks = offset / BLOCK_BYTES..(offset + u64::from(length_bytes)).div_ceil(BLOCK_BYTES);
        if bad.inode != inode || !blocks.contains(&bad.block) {
            return false;
        }
        if bad.times == 0 || bad.until_ns <= now_ns {
            self.injuries.unreadable = None;
            return false;
        }
        bad.times -= 1;
        self.faults.counts.failed_reads += 1;
        true
    }

    /// The bytes land at another block of the file, and the disk says that all is well.
    fn misdirect(
        &mut self,
        file: File,
        offset: u64,
        data: &bytes::Bytes,
    ) -> Option<Result<FileDone, Errno>> {
        let blocks = self.disk.blocks(file)?;
        let target = (1 + self.faults.disk.below(blocks.max(2) - 1)) * BLOCK_BYTES;
        if target == offset {
            return None;
        }
        self.faults.counts.misdirected_writes += 1;
        self.note_rotten(file, Damage::Silent);
        self.tell(|| format!("{} bytes meant for {offset} land at {target}", data.len()));
        let op = FileOp::Write { file, offset: target, data: data.clone() };
        Some(self.disk.execute(&op))
    }

    /// A bit changes in a segment that is long synced and attested.
    fn rot(&mut self) {
        if let Some(path) = self.disk.rot(&mut self.faults.disk) {
            self.faults.counts.flipped_bits += 1;
            self.tell(|| format!("a bit of {path} changes"));
            // A checkpoint is only a shortcut: without it nothing is missing.
            if path.ends_with(".seg") {
                self.injuries.rotten.push((shard_of(&path), Damage::Told));
            }
        }
    }

    fn note_rotten(&mut self, file: File, damage: Damage) {
        if let Some(path) = self.disk.path_of(file) {
            self.injuries.rotten.push((shard_of(&path), damage));
        }
    }
}

/// The number in the name of a store's directory.
fn shard_of(path: &str) -> u16 {
    let directory = path.split('/').find_map(|part| part.strip_prefix("shard-"));
    directory.and_then(|digits| digits.parse().ok()).expect("stores are numbered")
}
