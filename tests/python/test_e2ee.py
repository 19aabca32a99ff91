"""Our X3DH and ratchet against the packages `x3dh` and `doubleratchet`: both directions, with and
without one-time prekeys, out of order, with losses."""

import json
import random
import subprocess
import unittest
from pathlib import Path

from support.olm import Device

ROOT = Path(__file__).resolve().parents[2]


def built_example():
    """Cargo knows where it puts things."""
    command = ["cargo", "build", "--locked", "-p", "ringpost-client", "--example", "e2ee_peer",
               "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "e2ee_peer":
            return message["executable"]
    raise AssertionError("cargo built no e2ee_peer")


class Refused(Exception):
    pass


class Alice:
    """Our implementation."""

    def __init__(self, executable):
        self.process = subprocess.Popen(
            [executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, op, **fields):
        request = {name: value.hex() if isinstance(value, bytes) else value
                   for name, value in fields.items()}
        self.process.stdin.write(json.dumps({"op": op} | request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "fault" in answer:
            raise Refused(answer["fault"])
        return bytes.fromhex(answer["ok"])

    def encrypt(self, plaintext):
        return self.ask("encrypt", plaintext=plaintext)

    def decrypt(self, envelope):
        return self.ask("decrypt", envelope=envelope)

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


class Interop(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.executable = built_example()

    def meet(self, begins, one_time):
        alice, bob = Alice(self.executable), Device()
        self.addCleanup(alice.close)
        alice.ask("peer", identity=bob.identity)
        if begins == "ours":
            alice.ask("begin", bundle=bob.bundle(one_time))
        else:
            bob.begin(alice.ask("bundle", one_time=one_time))
        return alice, bob

    def each(self, check):
        for begins in ("ours", "theirs"):
            for one_time in (True, False):
                with self.subTest(begins=begins, one_time=one_time):
                    alice, bob = self.meet(begins, one_time)
                    check(*((alice, bob) if begins == "ours" else (bob, alice)))

    def pass_on(self, sender, receiver, plaintext):
        envelope = sender.encrypt(plaintext)
        if isinstance(receiver, Device):
            receiver.sees(envelope)
        self.assertEqual(receiver.decrypt(envelope), plaintext)

    def test_a_conversation(self):
        def check(first, second):
            for length in (0, 1, 15, 16, 17, 1000, 50_000):
                for _ in range(3):
                    self.pass_on(first, second, random.randbytes(length))
                for _ in range(2):
                    self.pass_on(second, first, random.randbytes(length))

        self.each(check)

    def test_first_messages_out_of_order(self):
        def check(first, second):
            sent = [(n, first.encrypt(b"%d" % n)) for n in range(6)]
            if isinstance(second, Device):
                for _, envelope in sent:
                    second.sees(envelope)
            for n, envelope in reversed(sent):
                self.assertEqual(second.decrypt(envelope), b"%d" % n)
            self.pass_on(second, first, b"answer")
            self.pass_on(first, second, b"and on")

        self.each(check)

    def test_messages_out_of_order_and_lost(self):
        def check(first, second):
            chance = random.Random(5)
            self.pass_on(first, second, b"hello")
            self.pass_on(second, first, b"hello")
            under_way, opened = [], 0
            for number in range(300):
                sender, receiver = chance.choice([(first, second), (second, first)])
                envelope = sender.encrypt(b"%d" % number)
                if isinstance(receiver, Device):
                    receiver.sees(envelope)
                if chance.random() < 0.85:
                    under_way.append((number, receiver, envelope))
                # Olm keeps the keys of five chains, so nothing is under way for longer than that.
                due = [entry for entry in under_way if number - entry[0] >= 8]
                while due or len(under_way) > chance.randrange(2, 9):
                    entry = due.pop() if due else chance.choice(under_way)
                    under_way.remove(entry)
                    number_sent, receiver, envelope = entry
                    self.assertEqual(receiver.decrypt(envelope), b"%d" % number_sent)
                    opened += 1
            self.assertGreater(opened, 200)

        self.each(check)

    def test_what_they_made_and_was_changed_or_repeated_is_refused(self):
        for one_time in (True, False):
            alice, bob = self.meet("theirs", one_time)
            first = bob.encrypt(b"hello")
            for at in (1, 40, 70, 80, len(first) - 20, len(first) - 1):
                changed = bytearray(first)
                changed[at] ^= 1
                with self.assertRaises(Refused):
                    alice.decrypt(bytes(changed))
            self.assertEqual(alice.decrypt(first), b"hello")
            with self.assertRaisesRegex(Refused, "read before"):
                alice.decrypt(first)
            alice.ask("peer", identity=bob.identity)
            with self.assertRaisesRegex(Refused, "copy of a first message"):
                alice.decrypt(first)

    def test_their_message_opens_after_a_rotation(self):
        alice, bob = self.meet("theirs", True)
        first = bob.encrypt(b"hello")
        alice.ask("rotate")
        self.assertEqual(alice.decrypt(first), b"hello")


if __name__ == "__main__":
    unittest.main()
