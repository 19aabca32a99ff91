"""Everything a client can do wrong: the precise error, the end of that connection, and no harm to
a well-behaved pair that writes to each other all the while."""

import ssl
import time
import unittest

from ringpost_client import Client, Received, Sent, Settings, State, frames
from support import keys
from support.gateway import Gateway, Place
from support.pair import Pair
from support.raw import Raw, framed

# Small, so that they can be filled: one sender may hold two records of a mailbox.
MAILBOX_RECORDS_MAX = 8


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.place = Place()
        cls.addClassCleanup(cls.place.close)
        limits = {"mailbox_records_max": MAILBOX_RECORDS_MAX}
        cls.gateway = Gateway("serve", "--config", cls.place.configuration(limits=limits))
        cls.addClassCleanup(cls.gateway.stop)
        cls.pair = Pair(cls.gateway, cls.place)
        cls.addClassCleanup(cls.pair.stop)
        cls.issuer = cls.place.issuer

    def tearDown(self):
        self.pair.wait_for_rounds(2)

    def raw(self):
        raw = Raw(self.gateway, self.place.path / "ca.pem")
        self.addCleanup(raw.close)
        return raw

    def welcomed(self, user="mallory", **hello):
        raw = self.raw()
        raw.hello(self.issuer.token(user, "phone"), **hello)
        raw.expect("welcome")
        return raw

    def refused(self, data, code, text):
        """The bytes end a connection with this error, before its Hello as well as after Welcome."""
        for raw in (self.raw(), self.welcomed()):
            raw.send(data)
            self.assertEqual(raw.end(), (code, text))

    def refused_when_open(self, data, code, text):
        raw = self.welcomed()
        raw.send(data)
        self.assertEqual(raw.end(), (code, text))

    def refused_token(self, token, code, text):
        raw = self.raw()
        raw.hello(token)
        self.assertEqual(raw.end(), (code, text))

    # Frames.

    def test_truncated_frame(self):
        for raw in (self.raw(), self.welcomed()):
            raw.send(bytes.fromhex("05 1a 03"))
            raw.end_sending()
            text = "the stream ended within a frame, after 3 of its bytes"
            self.assertEqual(raw.end(), ("FRAME_TRUNCATED", text))

    def test_length_of_4_gib(self):
        text = "frame of 4294967296 bytes or more is above the limit of 65536"
        self.refused(frames.varint(1 << 32), "FRAME_TOO_LONG", text)

    def test_length_one_above_the_limit(self):
        text = "frame of 65537 bytes or more is above the limit of 65536"
        self.refused(frames.varint(65_537), "FRAME_TOO_LONG", text)

    def test_length_zero(self):
        self.refused(b"\0", "FRAME_EMPTY", "frame length is 0")

    def test_length_not_minimal(self):
        text = "frame length is not a varint in its shortest form"
        self.refused(bytes.fromhex("82 00 2a 00"), "FRAME_LENGTH", text)
        self.refused(bytes.fromhex("80") * 10, "FRAME_LENGTH", text)

    def test_invalid_protobuf(self):
        for data, text in (
            ("03 1a 7f 00", "invalid protobuf: field longer than frame"),
            ("02 0f 00", "invalid protobuf: unknown wire type"),
            ("02 28 00", "invalid protobuf: frame is not a message"),
            ("05 1a 03 08 ff ff", "invalid protobuf: message does not decode"),
            ("04 2a 00 2a 00", "a frame holds exactly one field"),
        ):
            self.refused(bytes.fromhex(data), "FRAME_INVALID", text)

    def test_unknown_frame(self):
        self.refused(bytes.fromhex("02 7a 00"), "FRAME_UNKNOWN", "frame 15 is unknown")
        self.refused(bytes.fromhex("03 f2 03 00"), "FRAME_UNKNOWN", "frame 62 is unknown")

    def test_frame_before_hello(self):
        for frame in ({"ping": {}}, {"ack": {}}, {"bye": {}}, {"send": send(1, "bob")}):
            raw = self.raw()
            raw.send_frame(**frame)
            self.assertEqual(raw.end(), ("HELLO_EXPECTED", "a frame came before Hello"))

    def test_second_hello(self):
        hello = {"token": self.issuer.token("mallory", "phone"), "device": "phone", "install_id": 1}
        self.refused_when_open(framed(hello=hello), "HELLO_REPEATED", "a second Hello")

    def test_hello_without_what_it_needs(self):
        token = self.issuer.token("mallory", "phone")
        for hello, text in (
            ({"token": token, "device": "phone"}, "Hello.install_id is missing"),
            ({"device": "phone", "install_id": 1}, "token is missing"),
            (
                {"token": "x" * 8_193, "device": "phone", "install_id": 1},
                "token has 8193 bytes, at most 8192 are allowed",
            ),
            (
                {"token": token, "device": "", "install_id": 1},
                "Hello.device: device id must have 1 to 64 bytes, this one has 0",
            ),
        ):
            raw = self.raw()
            raw.send_frame(hello=hello)
            self.assertEqual(raw.end(), ("FIELD_INVALID", text))

    def test_no_alpn(self):
        for alpn in ((), ("http/1.1",)):
            with self.assertRaises(ssl.SSLError):
                Raw(self.gateway, self.place.path / "ca.pem", alpn).receive()

    # Tokens.

    def test_expired_token(self):
        expired = self.issuer.token("mallory", "phone", claims={"exp": int(time.time()) - 1})
        self.refused_token(expired, "TOKEN_EXPIRED", "token has expired")

    def test_token_of_another_key(self):
        stranger = keys.Issuer(self.place.path, "stranger")
        unknown = stranger.token("mallory", "phone")
        self.refused_token(unknown, "TOKEN_INVALID", "token is not valid: unknown key")
        forged = stranger.token("mallory", "phone", header={"kid": self.issuer.kid})
        self.refused_token(forged, "TOKEN_INVALID", "token is not valid: wrong signature")

    def test_unsigned_token(self):
        token = self.issuer.unsigned_token("mallory", "phone")
        text = "token is not valid: algorithm is not the key's"
        self.refused_token(token, "TOKEN_INVALID", text)
        # The right algorithm does not make up for the signature.
        head, claims, _ = self.issuer.token("mallory", "phone").split(".")
        text = "token is not valid: wrong signature"
        self.refused_token(f"{head}.{claims}.", "TOKEN_INVALID", text)

    def test_public_key_as_hmac_secret(self):
        text = "token is not valid: algorithm is not the key's"
        for secret in (self.issuer.public_key, self.issuer.public_pem):
            token = self.issuer.confused_token("mallory", "phone", secret)
            self.refused_token(token, "TOKEN_INVALID", text)

    def test_token_for_another_audience(self):
        token = self.issuer.token("mallory", "phone", claims={"aud": "mail"})
        self.refused_token(token, "TOKEN_INVALID", "token is not valid: wrong audience")

    def test_token_with_wrong_claims(self):
        text = "token is not valid: a claim is missing or invalid"
        for claims in ({"exp": None}, {"sub": None}, {"device": 7}, {"sub": "x" * 129}):
            token = self.issuer.token("mallory", "phone", claims=claims)
            self.refused_token(token, "TOKEN_INVALID", text)
        token = self.issuer.token("mallory", "phone", claims={"nbf": int(time.time()) + 60})
        self.refused_token(token, "TOKEN_INVALID", "token is not valid: not valid yet")
        other = self.issuer.token("mallory", "tablet")
        text = "token does not name this user and device"
        self.refused_token(other, "TOKEN_INVALID", text)
        self.refused_token("a.b.c", "TOKEN_INVALID", "token is not valid: malformed")

    def test_renewal_with_another_users_token(self):
        token = self.issuer.token("alice", "phone")
        text = "token does not name this user and device"
        self.refused_when_open(framed(token_renew={"token": token}), "TOKEN_INVALID", text)

    def test_token_that_expires_while_connected(self):
        raw = self.raw()
        raw.hello(self.issuer.token("mallory", "phone", claims={"exp": time.time() + 1.5}))
        raw.expect("welcome")
        self.assertEqual(raw.end(), ("TOKEN_EXPIRED", "token has expired"))

    # Numbers and bounds.

    def test_ack_of_what_was_never_sent(self):
        text = "ack of 9, but 0 is the highest seq sent on this connection"
        self.refused_when_open(framed(ack={"up_to_seq": 9}), "ACK", text)

    def test_send_numbered_zero(self):
        self.refused_when_open(framed(send=send(0, "bob")), "SEND_SEQ", "send_seq is 0")

    def test_send_number_that_is_forgotten(self):
        raw = self.welcomed("trent", install_id=2)
        for number in range(1_000, 1_257):
            raw.send_frame(send=send(number, "nobody"))
            self.assertEqual(raw.answer(), (number, "UNKNOWN_RECIPIENT", None))
        raw.send_frame(send=send(1_001, "nobody"))
        self.assertEqual(raw.answer(), (1_001, "UNKNOWN_RECIPIENT", None), "remembered")
        raw.send_frame(send=send(1_000, "nobody"))
        text = "send_seq 1000 is below the mark 1256 and not remembered"
        self.assertEqual(raw.end(), ("SEND_SEQ", text))

    def test_257th_unanswered_send(self):
        # One turn of a shard takes 256 of them. When it is kept off the processor just then, the disk
        # is faster, and some are answered before the last one is looked at.
        for attempt in range(20):
            recipients = [f"sink {attempt} {number}" for number in range(129)]
            for recipient in recipients:
                self.welcomed(recipient).close()
            raw = self.welcomed(f"flooder {attempt}")
            # One TLS record, so that all are there before any can be answered.
            data = b"".join(framed(send=send(1 + at, recipients[at // 2])) for at in range(257))
            self.assertLess(len(data), 16_384)
            raw.send(data)
            if (end := raw.end(answers_max=257)) is not None:
                break
        self.assertEqual(end, ("WINDOW", "more than 256 Sends are unanswered"))

    def test_envelope_too_large(self):
        text = "envelope has 61441 bytes, at most 61440 are allowed"
        data = framed(send=send(1, "bob", bytes(61_441)))
        self.refused_when_open(data, "ENVELOPE_TOO_LARGE", text)

    def test_largest_envelope(self):
        sink = self.welcomed("sink for large ones")
        raw = self.welcomed("trudy")
        raw.send_frame(send=send(1, "sink for large ones", bytes(61_440)))
        self.assertEqual(raw.answer(), (1, "ACCEPTED", None))
        self.assertEqual(len(sink.expect("deliver").envelope), 61_440)

    def test_send_without_what_it_needs(self):
        for fields, text in (
            ({"send_seq": 1, "shared": b""}, "Send.to is missing"),
            ({"send_seq": 1, "user": "bob"}, "Send.body is missing"),
            (send(1, ""), "Send.user: user id must have 1 to 128 bytes, this one has 0"),
            (send(1, "x" * 129), "Send.user: user id must have 1 to 128 bytes, this one has 129"),
        ):
            self.refused_when_open(framed(send=fields), "FIELD_INVALID", text)

    def test_unknown_recipient(self):
        raw = self.welcomed("trudy", install_id=3)
        raw.send_frame(send=send(1, "nobody"))
        self.assertEqual(raw.answer(), (1, "UNKNOWN_RECIPIENT", None))
        raw.send_frame(ping={})
        raw.expect("pong")

    def test_frame_that_is_not_served(self):
        raw = self.welcomed()
        raw.send_frame(presence_set={"request_id": 42, "hidden": True})
        error = raw.expect("error")
        self.assertEqual((error.code, error.text), (64, "not served"))
        self.assertEqual((error.request_id, error.fatal), (42, False))
        raw.send_frame(ping={})
        raw.expect("pong")

    def test_full_mailbox(self):
        self.welcomed("absent").close()
        # Two records each: the third would be more than a sender's share.
        for sender in range(MAILBOX_RECORDS_MAX // 2):
            raw = self.welcomed(f"writer {sender}")
            raw.send(b"".join(framed(send=send(number, "absent")) for number in (1, 2, 3)))
            # A rejection need not wait for the disk, and may come first.
            answers = sorted(raw.answer() for _ in range(3))
            last = "SENDER_SHARE" if sender + 1 < MAILBOX_RECORDS_MAX // 2 else "MAILBOX_FULL"
            self.assertEqual([answer[1] for answer in answers], ["ACCEPTED", "ACCEPTED", last])
        raw = self.welcomed("one too many")
        raw.send_frame(send=send(1, "absent"))
        self.assertEqual(raw.answer(), (1, "MAILBOX_FULL", 5_000))
        # Blocked until a Send says that the client knows.
        absent = self.welcomed("absent")
        seqs = [absent.expect("deliver").seq for _ in range(MAILBOX_RECORDS_MAX)]
        absent.send_frame(ack={"up_to_seq": seqs[-1]})
        absent.send_frame(ping={})
        absent.expect("pong")
        time.sleep(0.1)
        raw.send_frame(send=send(2, "absent"))
        self.assertEqual(raw.answer(), (2, "MAILBOX_FULL", 5_000))
        raw.send_frame(send=send(3, "absent", after_reject=True))
        self.assertEqual(raw.answer(), (3, "ACCEPTED", None))

    def test_a_client_gets_through_to_a_full_mailbox_in_order(self):
        self.welcomed("slow").close()
        writer, slow = self.client("writer"), self.client("slow", device="phone")
        bodies = [b"%d" % number for number in range(4)]
        for body in bodies:
            writer.send("slow", body)
        got, sent = [], []
        until = time.monotonic() + 40
        while len(got) < len(bodies) and time.monotonic() < until:
            sent += [event for event in writer.poll(0.05) if isinstance(event, Sent)]
            if sent:
                got += [event for event in slow.poll(0.05) if isinstance(event, Received)]
        self.assertEqual([event.envelope for event in got], bodies)

    def client(self, user, device="python"):
        token = self.issuer.token(user, device)
        ca_path = str(self.place.path / "ca.pem")
        settings = Settings(self.gateway.host, self.gateway.port, ca_path, device, lambda: token)
        client = Client(settings, State(str(self.place.path / f"{user}.json")))
        self.addCleanup(client.close)
        return client


class LoweredLimits(unittest.TestCase):
    """Servers that allow less than the protocol does."""

    def connect(self, **limits):
        place = Place()
        self.addCleanup(place.close)
        gateway = Gateway("serve", "--config", place.configuration(limits=limits))
        self.addCleanup(gateway.stop)
        raw = Raw(gateway, place.path / "ca.pem")
        self.addCleanup(raw.close)
        raw.hello(place.issuer.token("alice", "phone"))
        return raw, raw.expect("welcome").limits

    def test_messages_too_fast(self):
        raw, _ = self.connect(user_sends_per_second=1, user_sends_burst=2, address_exempt="[]")
        raw.send(b"".join(framed(send=send(number, "nobody")) for number in (1, 2, 3)))
        answers = sorted(raw.answer() for _ in range(3))
        codes = ["UNKNOWN_RECIPIENT", "UNKNOWN_RECIPIENT", "RATE_LIMITED"]
        self.assertEqual([code for _, code, _ in answers], codes)
        self.assertTrue(0 < answers[2][2] <= 1_000, answers)

    def test_long_frames(self):
        raw, limits = self.connect(frame_bytes_max=16_384)
        told = (limits.frame_bytes_max, limits.envelope_bytes_max)
        self.assertEqual(told, (16_384, 16_384 - 4_096))
        raw.send_frame(send=send(1, "bob", bytes(limits.envelope_bytes_max + 1)))
        self.assertEqual(raw.answer(), (1, "TOO_LARGE", None))
        raw.send_frame(send=send(2, "bob", bytes(limits.envelope_bytes_max)))
        self.assertEqual(raw.answer(), (2, "UNKNOWN_RECIPIENT", None))
        raw.send_frame(send=send(3, "bob", bytes(20_000)))
        text = "frame of 20015 bytes or more is above the limit of 16384"
        self.assertEqual(raw.end(), ("FRAME_TOO_LONG", text))


def send(number, user, envelope=b"", **fields):
    return {"send_seq": number, "user": user, "shared": envelope, **fields}


if __name__ == "__main__":
    unittest.main()
