"""Two well-behaved clients that write to each other all the time, in a thread of their own."""

import threading
import time

from ringpost_client import CaughtUp, Client, Disconnected, Received, Settings, State

PATIENCE_SECONDS = 20


class Pair:
    """Alice writes, bob answers, and so on; whatever is lost, late or out of order is a fault."""

    def __init__(self, gateway, place):
        self.rounds = 0
        self.faults = []
        self._stopping = False
        tokens = {user: place.issuer.token(user, "python") for user in ("alice", "bob")}
        self._clients = {}
        for user, token in tokens.items():
            settings = Settings(
                gateway.host,
                gateway.port,
                str(place.path / "ca.pem"),
                "python",
                lambda token=token: token,
                "localhost",
            )
            self._clients[user] = Client(settings, State(str(place.path / f"pair-{user}.json")))
        self._came = {user: [] for user in self._clients}
        for user in self._clients:
            self._wait(user, CaughtUp)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for_rounds(self, count):
        """Raises AssertionError when something has gone wrong."""
        wanted = self.rounds + count
        until = time.monotonic() + PATIENCE_SECONDS
        while self.rounds < wanted and not self.faults and time.monotonic() < until:
            time.sleep(0.005)
        if self.faults or self.rounds < wanted:
            raise AssertionError(f"{self.rounds} of {wanted} rounds, {self.faults}")

    def stop(self):
        self._stopping = True
        self._thread.join()
        for client in self._clients.values():
            client.close()

    def _run(self):
        try:
            while not self._stopping:
                self._say("alice", "bob")
                self._say("bob", "alice")
                self.rounds += 1
        except Exception as error:  # told to whoever waits for the next round
            self.faults.append(repr(error))

    def _say(self, sender, recipient):
        body = f"{sender} {self.rounds}".encode()
        self._clients[sender].send(recipient, body)
        got = self._wait(recipient, Received)
        if got.envelope != body:
            raise AssertionError(f"{got.envelope} instead of {body}")

    def _wait(self, user, kind):
        """The next event of a kind; meanwhile both acknowledge and take answers."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            for index, event in enumerate(self._came[user]):
                if isinstance(event, kind):
                    return self._came[user].pop(index)
            for other, client in self._clients.items():
                events = client.poll(0.005)
                for event in events:
                    if isinstance(event, Disconnected):
                        raise AssertionError(f"{other}: {event}")
                self._came[other] += [e for e in events if isinstance(e, (CaughtUp, Received))]
        raise AssertionError(f"{user} waits in vain")
