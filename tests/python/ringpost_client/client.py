"""What an app uses: give it messages, poll it for events; it connects, resumes and reconnects."""

import dataclasses
import time
from typing import Callable

from .outbox import Outbox, backoff
from .session import MAILBOX_EVENTS, Disconnected, Opened, Session
from .transport import Transport

RECONNECT_SECONDS_MIN = 0.5
RECONNECT_SECONDS_MAX = 60.0


@dataclasses.dataclass
class Settings:
    """Where and as whom to connect."""

    host: str
    port: int
    ca_path: str
    device: str
    # Gives a valid token; called for each connection.
    token: Callable[[], str]
    # Name in the server's certificate; the host when it is empty.
    server_name: str = ""
    # (ModeKind, interval_ms) to start with, or None for foreground.
    mode: tuple = None


class Client:
    """One device. Not for several threads."""

    def __init__(self, settings, state):
        self._settings = settings
        self._state = state
        self._outbox = Outbox(state)
        self._transport = None
        self._session = None
        self._connect_at = 0.0
        self._failures = 0
        self._address = (settings.host, settings.port)
        # Committed before this process began, and how much of the inbox the app was shown.
        self._shown = 0
        self.stopped = False

    def send(self, user, body, *, ttl_ms=0, urgent=False):
        """Takes a message to a user durably and returns its number."""
        return self._add(("user", user), body, ttl_ms, urgent)

    def send_to_group(self, group, body, *, ttl_ms=0, urgent=False):
        """Takes a message to a group durably and returns its number."""
        return self._add(("group", group), body, ttl_ms, urgent)

    def poll(self, seconds):
        """Works until there are events or the time is over; returns the events in order.

        Messages, gaps and receipts that a call returned count as dealt with when `poll` is called
        again; until then a restart shows them once more.
        """
        self._confirm()
        if len(self._state.inbox) > self._shown:
            return self._from_inbox()
        until = time.monotonic() + seconds
        while True:
            events = self._step(until)
            if events or self.stopped or time.monotonic() >= until:
                self._shown = len(self._state.inbox)
                return events

    def set_mode(self, kind, interval_ms=0):
        self._settings.mode = (kind, interval_ms)
        if self._session is not None:
            self._session.set_mode(kind, interval_ms, time.monotonic())

    def renew(self, token):
        """Prolongs the present session."""
        if self._session is not None:
            self._session.renew(token)

    def cut(self):
        """Drops the connection without a word, as a network would; `poll` connects again."""
        if self._transport is not None:
            self._transport.close()
        self._transport = self._session = None

    def close(self):
        """Leaves: what came is acknowledged, then Bye."""
        self._confirm()
        if self._session is not None:
            self._session.leave()
            try:
                self._transport.send(self._session.output(time.monotonic()))
                self._transport.exchange(time.monotonic() + 1.0)
            except OSError:
                pass
        self.cut()
        self.stopped = True

    def _add(self, recipient, body, ttl_ms, urgent):
        number = self._outbox.add(recipient, bytes(body), ttl_ms, urgent)
        self._state.save()
        return number

    def _confirm(self):
        if self._shown:
            del self._state.inbox[: self._shown]
            self._shown = 0
            self._state.save()

    def _from_inbox(self):
        self._shown = len(self._state.inbox)
        fields = [dict(record) for record in self._state.inbox]
        return [MAILBOX_EVENTS[record.pop("kind")](**record) for record in fields]

    def _step(self, until):
        if self._session is None:
            wait = min(until, self._connect_at) - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            if time.monotonic() < self._connect_at:
                return []
            return self._connect()
        try:
            self._transport.send(self._session.output(time.monotonic()))
            if self._session.ended is None:
                received, over = self._transport.exchange(min(until, self._session.deadline()))
                now = time.monotonic()
                self._session.receive(received, now)
                self._transport.send(self._session.output(now))
                if over:
                    self._session.end("the server closed")
        except OSError as error:
            self._session.end(str(error))
        events = self._session.take_events()
        if self._session.ended is not None:
            events += self._disconnect(self._session.ended)
        if any(isinstance(event, Opened) for event in events):
            self._failures = 0
        return events

    def _connect(self):
        settings = self._settings
        try:
            name = settings.server_name or self._address[0]
            self._transport = Transport(self._address, name, settings.ca_path)
        except OSError as error:
            return self._disconnect(Disconnected("lost", str(error), "reconnect"))
        self._session = Session(
            self._state,
            self._outbox,
            settings.device,
            settings.token(),
            settings.mode,
            time.monotonic(),
        )
        return []

    def _disconnect(self, ended):
        """Closes, and decides whether and when to come back."""
        self.cut()
        self._address = (self._settings.host, self._settings.port)
        if ended.other_address:
            host, _, port = ended.other_address.rpartition(":")
            self._address = (host.strip("[]"), int(port))
        self.stopped = ended.then == "stop"
        if ended.after_ms is not None:
            delay = ended.after_ms / 1000
        else:
            delay = backoff(self._failures, RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX)
            self._failures += 1
        self._connect_at = time.monotonic() + delay
        return [ended]
