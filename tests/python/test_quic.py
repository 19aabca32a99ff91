"""A gateway over QUIC, seen by another implementation: handshake, messages, changes of network."""

import re
import unittest
import urllib.request

from support.gateway import Gateway, Place
from support.quic import Quic
from support.raw import Raw


class QuicTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.place = Place()
        cls.addClassCleanup(cls.place.close)
        cls.gateway = Gateway("serve", "--config", cls.place.configuration(shards=4))
        cls.addClassCleanup(cls.gateway.kill)

    def connect(self, user, **options):
        """Over QUIC, and welcome."""
        client = Quic(self.gateway, self.place.path / "ca.pem", **options)
        self.addCleanup(client.close)
        client.handshake()
        client.hello(self.place.issuer.token(user, "phone"))
        client.expect("welcome")
        return client

    def connect_tcp(self, user):
        client = Raw(self.gateway, self.place.path / "ca.pem")
        self.addCleanup(client.close)
        client.hello(self.place.issuer.token(user, "phone"))
        client.expect("welcome")
        return client

    def exchange(self, sender, recipient, user, number):
        """One message, from its Send to its Ack."""
        body = f"message {number}".encode()
        send = {"send_seq": number, "user": user, "shared": body}
        sender.send_frame(send=send)
        self.assertEqual(sender.expect("accepted").send_seq, number)
        deliver = recipient.expect("deliver")
        self.assertEqual((deliver.envelope, deliver.send_seq), (body, number))
        recipient.send_frame(ack={"up_to_seq": deliver.seq})

    def counter(self, name):
        """The sum of a counter over shards and labels."""
        with urllib.request.urlopen(f"{self.gateway.admin}/metrics") as response:
            text = response.read().decode()
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        self.assertTrue(values, f"no metric {name}")
        return sum(map(float, values))

    def test_a_message_each_way_between_quic_and_tcp(self):
        alice, bob = self.connect("alice"), self.connect_tcp("bob")
        self.exchange(alice, bob, "bob", 1)
        self.exchange(bob, alice, "alice", 1)

    def test_a_nat_that_forgets(self):
        """Acceptance test 4, its first half: another port, four times, and the same connection id."""
        alice, bob = self.connect("anna"), self.connect("ben")
        for number in range(1, 5):
            port, peer_id = alice.port, alice.peer_id
            alice.rebind()
            self.exchange(alice, bob, "ben", number)
            self.exchange(bob, alice, "anna", number)
            self.assertNotEqual(alice.port, port)
            self.assertEqual(alice.peer_id, peer_id)
        self.assertEqual(alice.handshakes, 1)

    def test_changes_of_network(self):
        """Acceptance test 4, its second half: another port and another connection id, four times."""
        alice, bob = self.connect("carla"), self.connect("dora")
        ids = {alice.peer_id}
        for number in range(1, 5):
            alice.migrate()
            ids.add(alice.peer_id)
            self.exchange(alice, bob, "dora", number)
            self.exchange(bob, alice, "carla", number)
        self.assertEqual(len(ids), 5)
        self.assertEqual(alice.handshakes, 1)
        self.assertIsNone(alice.terminated)
        self.assertEqual(self.counter("ringpost_datagrams_foreign_total"), 0)

    def test_a_push_to_where_the_client_was_arrives_where_it_is(self):
        alice, bob = self.connect("erik"), self.connect("finn")
        alice.rebind()
        send = {"send_seq": 1, "user": "erik", "shared": b"lost at first"}
        bob.send_frame(send=send)
        bob.expect("accepted")
        alice.ping()
        self.assertEqual(alice.expect("deliver").envelope, b"lost at first")

    def test_keys_change_across_moves(self):
        alice, bob = self.connect("gina"), self.connect("hans")
        for number in range(1, 4):
            alice.update_keys()
            self.exchange(alice, bob, "hans", number)
            alice.migrate()
            self.exchange(bob, alice, "gina", number)
        self.assertEqual(alice.handshakes, 1)

    def test_a_session_resumes_and_early_data_is_not_offered(self):
        first = self.connect("ida")
        first.wait(lambda: first.tickets)
        (ticket,) = first.tickets
        self.assertIn(ticket.max_early_data_size, (None, 0))
        second = self.connect("ida", ticket=ticket)
        self.assertTrue(second.resumed)
        self.assertFalse(second.early_data_accepted)

    def test_another_protocol_is_refused(self):
        with self.assertRaises(ConnectionError):
            client = Quic(self.gateway, self.place.path / "ca.pem", alpn="h3")
            self.addCleanup(client.close)
            client.handshake()

    def test_one_stream_and_no_other(self):
        """Acceptance test 13, in part: what an HTTP/3 client would open is not let through."""
        alice, bob = self.connect("jan"), self.connect("kim")
        alice.open_stream(b"\x00", True)
        alice.open_stream(b"GET /", False)
        self.exchange(alice, bob, "kim", 1)
        alice.work(0.2)
        self.assertIsNone(alice.terminated)


if __name__ == "__main__":
    unittest.main()
