"""The client against a gateway: exchange, resume, receipts, replacement, restarts."""

import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

from ringpost_client import (
    CaughtUp,
    Client,
    Delivered,
    Disconnected,
    Opened,
    Received,
    Sent,
    Settings,
    State,
    Unsent,
)
from support.gateway import Gateway, binary


class DevelopmentGateway(unittest.TestCase):
    """Tokens from `ringpost token`, certificate from the development gateway."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="ringpost-python-")
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name)
        self.data = self.path / "data"
        self.gateway = self.start("127.0.0.1:0")
        self.addCleanup(lambda: self.gateway.kill())

    def start(self, listen):
        arguments = ("--data", self.data, "--listen", listen, "--admin-listen", "127.0.0.1:0")
        return Gateway(*arguments)

    def token(self, user, device):
        command = [binary(), "token", "--user", user, "--device", device, "--data", self.data]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def client(self, user, device="python"):
        settings = Settings(
            self.gateway.host,
            self.gateway.port,
            str(self.data / "ca.pem"),
            device,
            lambda: self.token(user, device),
        )
        client = Client(settings, State(str(self.path / f"{user}-{device}.json")))
        self.addCleanup(client.cut)
        return client

    def wait(self, client, *wanted):
        """Polls until an event of each wanted kind came; returns all events."""
        events = []
        missing = set(wanted)
        until = time.monotonic() + 20
        while missing:
            self.assertLess(time.monotonic(), until, f"no {missing} in {events}")
            got = client.poll(1.0)
            events += got
            missing -= {type(event) for event in got}
        return events

    def only(self, events, kind):
        return [event for event in events if isinstance(event, kind)]

    def test_exchange(self):
        alice, bob = self.client("alice"), self.client("bob")
        self.wait(bob, CaughtUp)
        self.wait(alice, CaughtUp)
        number = alice.send("bob", b"hello")
        (sent,) = self.only(self.wait(alice, Sent), Sent)
        self.assertEqual((sent.message_number, sent.skipped), (number, ()))
        (got,) = self.only(self.wait(bob, Received), Received)
        self.assertEqual((got.from_user, got.from_device), ("alice", "python"))
        self.assertEqual((got.envelope, got.sent_at_ms), (b"hello", sent.server_time_ms))
        (receipt,) = self.only(self.wait(alice, Delivered), Delivered)
        self.assertEqual((receipt.peer_user, receipt.peer_device), ("bob", "python"))
        self.assertEqual(receipt.up_to_send_seq, sent.send_seq)

    def test_unknown_recipient(self):
        alice = self.client("alice")
        number = alice.send("nobody", b"hello")
        (unsent,) = self.only(self.wait(alice, Unsent), Unsent)
        self.assertEqual((unsent.message_number, unsent.code), (number, "UNKNOWN_RECIPIENT"))

    def test_cuts_lose_and_double_nothing(self):
        alice, bob = self.client("alice"), self.client("bob")
        self.wait(bob, CaughtUp)
        bob.cut()
        bodies = [f"{number}".encode() for number in range(120)]
        got, sent = [], []
        for at, body in enumerate(bodies):
            alice.send("bob", body)
            if at % 20 == 10:
                # What waited has gone out, and no answer is read.
                sent += self.only(self.wait(alice, Opened) + alice.poll(0), Sent)
                alice.cut()
            if at % 30 == 15:
                got += self.only(self.wait(bob, CaughtUp), Received)
                bob.cut()
        until = time.monotonic() + 30
        while len(got) < len(bodies) or len(sent) < len(bodies):
            self.assertLess(time.monotonic(), until, f"{len(got)} came, {len(sent)} answered")
            sent += self.only(alice.poll(0.05), Sent)
            got += self.only(bob.poll(0.05), Received)
        self.assertEqual([event.envelope for event in got], bodies)
        self.assertEqual(len({event.message_number for event in sent}), len(bodies))

    def test_a_crash_of_the_gateway(self):
        alice, bob = self.client("alice"), self.client("bob")
        self.wait(bob, CaughtUp)
        bob.close()
        for number in range(50):
            alice.send("bob", f"{number}".encode())
        self.wait(alice, Sent)
        address = f"{self.gateway.host}:{self.gateway.port}"
        self.gateway.kill()
        self.gateway = self.start(address)
        bob = self.client("bob")
        got = []
        until = time.monotonic() + 30
        while len(got) < 50:
            self.assertLess(time.monotonic(), until, f"{len(got)} of 50")
            alice.poll(0.05)
            got += self.only(bob.poll(0.05), Received)
        self.assertEqual([event.envelope for event in got], [b"%d" % n for n in range(50)])

    def test_a_restart_of_the_client(self):
        alice, bob = self.client("alice"), self.client("bob")
        self.wait(bob, CaughtUp)
        alice.send("bob", b"one")
        self.wait(alice, Sent)
        (first,) = self.only(self.wait(bob, Received), Received)
        # The app has not come back for more: the message is shown again, from the file.
        bob.cut()
        bob = self.client("bob")
        self.assertEqual(bob.poll(0), [first])
        opened = self.only(self.wait(bob, CaughtUp), Opened)
        self.assertEqual([event.new_mailbox for event in opened], [False])
        self.assertEqual(self.only(bob.poll(0.2), Received), [])

    def test_a_newer_connection_replaces_the_older(self):
        first = self.client("alice")
        self.wait(first, CaughtUp)
        second = self.client("alice")
        self.wait(second, CaughtUp)
        (end,) = self.only(self.wait(first, Disconnected), Disconnected)
        self.assertEqual((end.why, end.then), ("REPLACED", "stop"))
        self.assertTrue(first.stopped)

    def test_a_drain_tells_when_to_come_back(self):
        alice = self.client("alice")
        self.wait(alice, CaughtUp)
        address = f"{self.gateway.host}:{self.gateway.port}"
        self.gateway.terminate()
        (end,) = self.only(self.wait(alice, Disconnected), Disconnected)
        self.assertEqual((end.why, end.then), ("DRAIN", "reconnect"))
        self.assertLessEqual(end.after_ms, 5000)
        self.assertEqual(self.gateway.stop(), 0)
        self.gateway = self.start(address)
        self.wait(alice, CaughtUp)

    def test_from_a_terminal(self):
        self.wait(self.client("bob"), CaughtUp)
        for user, more in (("alice", ["--to", "bob", "--text", "from a shell"]), ("bob", [])):
            command = [sys.executable, "-m", "ringpost_client", *more, "--device", "python"]
            command += ["--server", f"{self.gateway.host}:{self.gateway.port}"]
            command += ["--ca", self.data / "ca.pem", "--token", self.token(user, "python")]
            command += ["--state", self.path / f"{user}-python.json"]
            done = subprocess.run(
                command, cwd=pathlib.Path(__file__).parent, check=True, capture_output=True
            )
        self.assertEqual(done.stdout, b"alice: from a shell\n")


if __name__ == "__main__":
    unittest.main()
