#!/usr/bin/env python3
"""Lists what waits in each mailbox of a Ringpost data directory, as JSON.

Written from storage/FORMAT.md alone, with the standard library alone: a check of that page, and a
start for a reader in another language. Reads everything, changes nothing, ignores checkpoints.

usage: reader.py DATA_DIR
exit codes: 0 read, 1 read but something durable is missing, 2 cannot be read
"""

import json
import re
import struct
import sys
from pathlib import Path

BLOCK = 4096
VERSION = 2
MESSAGE, ACK, RECEIPT, GAP, DEVICE, CLOCK = 1, 2, 3, 4, 5, 7
KIND_NAMES = {MESSAGE: "message", RECEIPT: "receipt", GAP: "gap"}


class Unreadable(Exception):
    """The directory cannot be read with this program."""


def crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283


def u16(data, offset):
    return struct.unpack_from("<H", data, offset)[0]


def u32(data, offset):
    return struct.unpack_from("<I", data, offset)[0]


def u64(data, offset):
    return struct.unpack_from("<Q", data, offset)[0]


def texts(data, offset, count):
    """The texts, and the offset behind them."""
    lengths = data[offset : offset + count]
    offset += count
    found = []
    for length in lengths:
        if length > 128 or offset + length > len(data):
            raise Unreadable("a text that is too long")
        found.append(data[offset : offset + length].decode())
        offset += length
    return found, offset


def read_current(data_dir):
    current = (data_dir / "CURRENT").read_bytes()
    if len(current) != 32 or current[:8] != b"RPCURRNT":
        raise Unreadable("CURRENT is damaged")
    if u16(current, 8) != VERSION:
        raise Unreadable("CURRENT is of another format version")
    if u32(current, 28) != crc32c(current[:28]):
        raise Unreadable("CURRENT is damaged")
    return {"storage_shards": u16(current, 10), "generation": u64(current, 12), "store_id": u64(current, 20)}


class Segment:
    def __init__(self, path, store_id, shard):
        self.number = int(path.stem, 16)
        self.data = path.read_bytes()
        self.store_id, self.shard = store_id, shard
        self.open_count = self.first_batch = None
        self.read_header(path)

    def read_header(self, path):
        head = self.data[:40]
        intact = len(head) == 40 and head[:8] == b"RINGPOST" and u32(head, 8) == crc32c(head[12:40])
        if intact:
            if u16(head, 12) != VERSION:
                raise Unreadable(f"{path} is of another format version")
            if (u16(head, 14), u64(head, 16)) != (self.shard, self.store_id):
                raise Unreadable(f"{path} belongs to another store")
            intact = u32(head, 24) == self.number and 1 <= u64(head, 32) <= 1 << 56
        if intact:
            self.open_count, self.first_batch = u32(head, 28), u64(head, 32)
        elif self.is_batch_head(BLOCK):
            self.open_count, self.first_batch = u32(self.data, BLOCK + 48), u64(self.data, BLOCK + 16)

    def is_batch_head(self, at):
        data = self.data
        if at + 56 > len(data) or data[at : at + 4] != b"RPB1":
            return False
        number = u64(data, at + 16)
        return (
            56 <= u32(data, at + 8) <= 16_851_200
            and number > 0
            and u64(data, at + 24) == number - 1
            and u64(data, at + 32) == self.store_id
            and u32(data, at + 40) == self.number
            and u32(data, at + 44) == at
            and u16(data, at + 52) == self.shard
        )

    def is_blank(self):
        """Nothing but zeros behind the header."""
        return not any(self.data[BLOCK:])

    def batches(self):
        """(offset, number, length) of every good batch."""
        at = BLOCK
        while at < len(self.data):
            length = u32(self.data, at + 8) if self.is_batch_head(at) else None
            if length and at + length <= len(self.data):
                if u32(self.data, at + 4) == crc32c(self.data[at + 8 : at + length]):
                    yield at, u64(self.data, at + 16), length
                    at += (length + BLOCK - 1) // BLOCK * BLOCK
                    continue
            at += BLOCK


class Shard:
    """The queues of one store: mailbox -> seq -> entry."""

    def __init__(self, directory, store_id, shard):
        self.shard = shard
        self.queues, self.acked, self.devices = {}, {}, {}
        self.clock_ms = None
        self.missing = []
        name = re.compile(r"^[0-9a-f]{8}\.seg$")
        paths = sorted(path for path in directory.iterdir() if name.match(path.name))
        self.read([Segment(path, store_id, shard) for path in paths])

    def read(self, segments):
        expected, held_more = None, False
        for index, segment in enumerate(segments):
            first = segment.first_batch
            if first is not None:
                if expected is None and held_more:
                    expected = max(first - 1, 1)
                expected = self.expect(expected, first)
            held_more = held_more or not segment.is_blank()
            later = (after.first_batch for after in segments[index + 1 :])
            limit = next((number for number in later if number is not None), 1 << 64)
            for offset, number, length in segment.batches():
                if number < limit and (expected is None or number >= expected):
                    if expected is None and offset > BLOCK:
                        expected = max(number - 1, 1)
                    self.expect(expected, number)
                    self.apply_batch(segment, offset, length)
                    expected = number + 1

    def expect(self, expected, number):
        """Notes the numbers that are missing before `number`."""
        if expected is None or expected >= number:
            return number if expected is None else expected
        self.missing.append([expected, number - 1])
        return number

    def apply_batch(self, segment, offset, length):
        at, end = offset + 56, offset + length
        self.batch_open_count = u32(segment.data, offset + 48)
        while at < end:
            if end - at < 12:
                raise Unreadable(f"no record at {at} of segment {segment.number}")
            record_length = u32(segment.data, at + 4)
            padded = (record_length + 7) // 8 * 8
            if record_length < 12 or at + padded > end:
                raise Unreadable(f"no record at {at} of segment {segment.number}")
            record = segment.data[at : at + record_length]
            place = {"segment": f"{segment.number:08x}.seg", "offset": at, "length_bytes": padded}
            self.apply(record, place)
            at += padded

    def check_seqs(self, *seqs):
        if max(seqs) >> 40 > self.batch_open_count:
            raise Unreadable("a seq of a later open than its batch")

    def apply(self, record, place):
        kind, version = record[0], record[1]
        if version != 1 or kind not in (MESSAGE, ACK, RECEIPT, GAP, DEVICE, CLOCK):
            raise Unreadable(f"a record of kind {kind}, version {version}")
        if kind == MESSAGE:
            self.check_seqs(u64(record, 12))
            for index in range(u16(record, 64)):
                self.put(u64(record, 66 + 8 * index), u64(record, 12), kind, place)
        elif kind == ACK:
            mailbox, up_to = u64(record, 12), u64(record, 20)
            self.check_seqs(up_to)
            self.acked[mailbox] = max(self.acked.get(mailbox, 0), up_to)
            queue = self.queues.get(mailbox, {})
            for seq in [seq for seq in queue if seq <= up_to]:
                del queue[seq]
        elif kind == RECEIPT:
            self.check_seqs(u64(record, 20))
            self.replace(u64(record, 12), u64(record, 20), kind, u64(record, 28), place)
        elif kind == GAP:
            mailbox = u64(record, 12)
            self.check_seqs(u64(record, 20), u64(record, 28))
            self.queues.get(mailbox, {}).pop(u64(record, 28), None)
            self.replace(mailbox, u64(record, 20), kind, record[36], place)
        elif kind == DEVICE:
            (user, device), _ = texts(record, 28, 2)
            self.devices[user, device] = u64(record, 12)
        else:
            self.clock_ms = max(self.clock_ms or 0, u64(record, 12))

    def put(self, mailbox, seq, kind, place, same=None):
        if seq > self.acked.get(mailbox, 0):
            entry = {"seq": str(seq), "kind": KIND_NAMES[kind], **place}
            self.queues.setdefault(mailbox, {})[seq] = (kind, same, entry)

    def replace(self, mailbox, seq, kind, same, place):
        """`same`: what a later one has in common with the one whose place it takes."""
        queue = self.queues.get(mailbox, {})
        for old, (old_kind, old_same, _) in list(queue.items()):
            if (old_kind, old_same) == (kind, same):
                if old > seq:
                    return
                del queue[old]
        self.put(mailbox, seq, kind, place, same)

    def summary(self):
        mailboxes = {}
        for mailbox, queue in sorted(self.queues.items()):
            if queue:
                mailboxes[f"{mailbox:016x}"] = [queue[seq][2] for seq in sorted(queue)]
        return {
            "shard": self.shard,
            "mailboxes": mailboxes,
            "devices": len(self.devices),
            "expiry_clock_ms": self.clock_ms,
            "missing_batches": self.missing,
        }


def read(data_dir):
    current = read_current(data_dir)
    generation = data_dir / "store" / f"gen-{current['generation']}"
    shards = []
    for shard in range(current["storage_shards"]):
        store = Shard(generation / f"shard-{shard:03}", current["store_id"], shard)
        shards.append(store.summary())
    return {**current, "store_id": f"{current['store_id']:016x}", "shards": shards}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        found = read(Path(sys.argv[1]))
    except (Unreadable, OSError, UnicodeDecodeError, struct.error) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    json.dump(found, sys.stdout, indent=1)
    print()
    sys.exit(1 if any(shard["missing_batches"] for shard in found["shards"]) else 0)


if __name__ == "__main__":
    main()
