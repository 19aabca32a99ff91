"""The rules of a session against a server that is written out here, frame by frame."""

import os
import tempfile
import unittest

from ringpost_client import CaughtUp, Gap, Received, Sent, State, Unsent, frames
from ringpost_client.outbox import Outbox
from ringpost_client.schema import ClientFrame, RejectCode, ServerFrame
from ringpost_client.session import Session

LIMITS = {
    "frame_bytes_max": 65_536,
    "envelope_bytes_max": 100,
    "sends_unanswered_max": 4,
    "heartbeat_foreground_ms": 30_000,
    "heartbeat_background_ms_min": 240_000,
    "heartbeat_background_ms_max": 1_500_000,
}


class SessionTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "state.json")
        self.now = 1000.0
        self.state = State(self.path)
        self.outbox = Outbox(self.state)

    def restart(self):
        """What is not in the file is forgotten."""
        self.state = State(self.path)
        self.outbox = Outbox(self.state)

    def connect(self, mailbox_id=7):
        self.session = Session(self.state, self.outbox, "phone", "token", None, self.now)
        (hello,) = self.sent()
        (self.opened,) = self.from_server(
            welcome={"mailbox_id": mailbox_id, "heartbeat_ms": 30_000, "limits": LIMITS}
        )
        return hello.hello

    def from_server(self, **frame):
        data = frames.encode(ServerFrame(**frame).SerializeToString())
        self.session.receive(data, self.now)
        return self.session.take_events()

    def sent(self):
        decoder = frames.Decoder()
        decoder.feed(self.session.output(self.now))
        messages = iter(decoder.next, None)
        return [ClientFrame.FromString(message) for message in messages]

    def sends(self):
        """(send_seq, user, message_number, after_reject) of each Send."""
        return [
            (f.send.send_seq, f.send.user, f.send.message_number, f.send.after_reject)
            for f in self.sent()
            if f.WhichOneof("frame") == "send"
        ]

    def queue(self, *users):
        for user in users:
            self.outbox.add(("user", user), b"x", 0, False)

    def reject(self, *numbers, code=RejectCode.MAILBOX_FULL):
        for number in numbers:
            self.from_server(rejected={"send_seq": number, "code": code, "retry_after_ms": 5_000})

    def test_the_window_and_the_replay(self):
        self.connect()
        self.queue("a", "b", "a", "a", "c")
        self.assertEqual([s[0] for s in self.sends()], [1, 2, 3, 4])
        (sent,) = self.from_server(accepted={"send_seq": 2})
        self.assertEqual((type(sent), sent.message_number), (Sent, 2))
        self.assertEqual([s[0] for s in self.sends()], [5])
        self.restart()
        self.connect()
        self.assertEqual([s[0] for s in self.sends()], [1, 3, 4, 5])
        self.queue("d")
        self.assertEqual(self.sends(), [])

    def test_a_rejected_message_is_retried_before_the_later_ones(self):
        self.connect()
        self.queue("a", "a", "b")
        self.sends()
        self.reject(1)
        self.queue("a")
        self.now += 10
        self.assertEqual(self.sends(), [], "2 is unanswered")
        self.reject(2)
        self.assertEqual(self.sends(), [], "too early")
        self.now += 5
        self.assertEqual(self.sends(), [(4, "a", 1, True)], "none was accepted before")
        self.from_server(accepted={"send_seq": 4})
        self.assertEqual(self.sends(), [(5, "a", 2, False), (6, "a", 4, False)])
        self.from_server(accepted={"send_seq": 5})
        self.reject(6)
        self.queue("a", "a")
        self.now += 5
        self.assertEqual(self.sends(), [(7, "a", 4, True), (8, "a", 5, False)], "two were accepted")

    def test_what_stands_behind_a_rejected_message_is_not_replayed(self):
        self.connect()
        self.queue("a", "a", "b")
        self.sends()
        self.reject(1)
        self.sends()
        self.restart()
        self.connect()
        self.assertEqual(self.sends(), [(3, "b", 3, False), (4, "a", 1, True)])
        # A retry whose answer is lost keeps its mark.
        self.restart()
        self.connect()
        self.assertEqual(self.sends()[:2], [(3, "b", 3, False), (4, "a", 1, True)])

    def test_final_and_unknown_codes(self):
        self.connect()
        self.queue("a", "b", "c")
        self.sends()
        (unsent,) = self.from_server(
            rejected={"send_seq": 1, "code": RejectCode.BLOCKED, "retry_after_ms": 1}
        )
        self.assertEqual(unsent, Unsent(1, "BLOCKED"))
        (unsent,) = self.from_server(rejected={"send_seq": 2, "code": 77})
        self.assertEqual(unsent, Unsent(2, "77"))
        events = self.from_server(rejected={"send_seq": 3, "code": 77, "retry_after_ms": 1})
        self.assertEqual(events, [])

    def test_an_envelope_above_the_limit_is_not_sent(self):
        self.connect()
        self.outbox.add(("user", "a"), b"x" * 101, 0, False)
        self.assertEqual(self.sends(), [])
        self.assertEqual(self.session.take_events()[-1], Unsent(1, "TOO_LARGE"))

    def test_the_mailbox(self):
        self.assertEqual(self.connect().acked_up_to, 0)
        first = {"seq": 10, "from_user": "a", "from_device": "p", "install_id": 1, "send_seq": 1}
        (got,) = self.from_server(deliver=first)
        self.assertIsInstance(got, Received)
        # The same message again, under another number: dropped, and acknowledged all the same.
        again = {**first, "seq": 11, "send_seq": 2, "message_number": 1}
        self.assertEqual(self.from_server(deliver=again), [])
        self.assertEqual(self.from_server(gap={"seq": 14, "reason": 1}), [Gap("", "FULL")])
        # A receipt for another installation.
        self.assertEqual(self.from_server(delivered={"seq": 15, "install_id": 1}), [])
        self.assertEqual(self.from_server(caught_up={}), [CaughtUp()])
        self.assertEqual([frame.ack.up_to_seq for frame in self.sent()], [15])
        self.restart()
        hello = self.connect()
        self.assertEqual((hello.mailbox_id, hello.acked_up_to), (7, 15))
        self.assertEqual(self.sent(), [], "acknowledged by Hello")
        self.restart()
        self.assertFalse(self.opened.new_mailbox)
        self.connect(mailbox_id=8)
        self.assertTrue(self.opened.new_mailbox)
        self.from_server(deliver={**first, "seq": 3, "send_seq": 9})
        self.assertEqual([frame.ack.up_to_seq for frame in self.sent()], [3])
        self.from_server(deliver={**first, "seq": 3, "send_seq": 10})
        self.assertEqual(self.session.ended.why, "violation")

    def test_liveness(self):
        self.connect()
        self.sent()
        self.now += 29
        self.assertEqual(self.sent(), [])
        self.now = self.session.deadline()
        self.assertEqual([f.WhichOneof("frame") for f in self.sent()], ["ping"])
        # Nothing is ever received: pings go on, whatever else is sent, then it is over.
        self.now = 1000.0 + 50
        self.queue("a")
        self.assertEqual([f.WhichOneof("frame") for f in self.sent()], ["send"])
        self.now = 1000.0 + 60
        self.assertEqual([f.WhichOneof("frame") for f in self.sent()], ["ping"])
        self.now = 1000.0 + 75
        self.sent()
        self.assertEqual(self.session.ended.why, "silence")

    def test_go_away_is_read_to_the_end(self):
        self.connect()
        self.queue("a")
        self.sent()
        self.from_server(go_away={"reason": 1, "reconnect_after_ms": 70})
        self.queue("b")
        self.assertEqual(self.sends(), [])
        (sent,) = self.from_server(accepted={"send_seq": 1})
        self.assertIsInstance(sent, Sent)
        end = self.session.end("closed")
        self.assertEqual((end.why, end.after_ms, end.then), ("DRAIN", 70, "reconnect"))


class FramesTest(unittest.TestCase):
    def test_the_examples_of_the_documentation(self):
        ping = frames.encode(ClientFrame(ping={}).SerializeToString())
        self.assertEqual(ping.hex(" "), "02 2a 00")
        ack = frames.encode(ClientFrame(ack={"up_to_seq": 300}).SerializeToString())
        self.assertEqual(ack.hex(" "), "05 1a 03 08 ac 02")
        self.assertEqual(frames.encode(bytes(200))[:2].hex(" "), "c8 01")

    def test_frames_come_in_any_pieces(self):
        messages = [b"a", b"b" * 127, b"c" * 128, b"d" * 65_536]
        stream = b"".join(map(frames.encode, messages))
        decoder, found = frames.Decoder(), []
        for at in range(0, len(stream), 7):
            decoder.feed(stream[at : at + 7])
            found += iter(decoder.next, None)
        self.assertEqual(found, messages)

    def test_broken_lengths(self):
        for broken in ("00", "80 00", "c8 81 00", "81 80 04", "ff ff ff ff 0f", "80 80 80 00"):
            decoder = frames.Decoder()
            decoder.feed(bytes.fromhex(broken))
            with self.assertRaises(frames.FrameError, msg=broken):
                decoder.next()


if __name__ == "__main__":
    unittest.main()
