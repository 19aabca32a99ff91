"""Which Send goes when.

Per recipient, first come first served. A message waits for a number, is under way, and is either
gone for good (Accepted, or Rejected with a final code) or rejected for now. While a recipient has a
rejected message, later ones to it get no number; once everything to it is answered and the time to
retry has come, the rejected ones wait again, in order, the first marked `after_reject`. As many of
them go out at once as were accepted since the rejection before, and one more for each accepted: a
mailbox that is full would refuse the others all over again.
"""

import random

from .schema import RejectCode
from .state import Outgoing

RETRYABLE = {
    RejectCode.MAILBOX_FULL,
    RejectCode.SENDER_SHARE,
    RejectCode.RATE_LIMITED,
    RejectCode.STORAGE_FULL,
    RejectCode.STORAGE_FAILED,
    RejectCode.OVERLOADED,
}
FINAL = {
    RejectCode.UNKNOWN_RECIPIENT,
    RejectCode.TOO_LARGE,
    RejectCode.UNSUPPORTED,
    RejectCode.BLOCKED,
    RejectCode.NOT_A_MEMBER,
    RejectCode.STALE_ROSTER,
}
RETRY_SECONDS_MIN = 0.5
RETRY_SECONDS_MAX = 60.0


class Outbox:
    """The outbox of a State, seen from one connection after the other."""

    def __init__(self, state):
        self._state = state
        self._window = 0
        # To be sent again on this connection before anything new.
        self._replay = []
        # send_seq -> message that this connection owes an answer for.
        self._under_way = {}
        # Recipient -> when its rejected messages are due; retries so far.
        self._retry_at = {}
        self._retries = {}
        # Recipient that rejected -> how many may be under way to it; accepted since.
        self._room = {}
        self._accepted = {}

    def add(self, recipient, body, ttl_ms, urgent):
        """Takes a message from the app; durable with the next `State.save`."""
        self._state.message_number_last += 1
        number = self._state.message_number_last
        self._state.outbox.append(Outgoing(recipient, body, number, ttl_ms, urgent))
        return number

    def open(self, window):
        """A Welcome came: everything numbered and unanswered goes out again, in order.

        Not so what stands behind a rejected message to the same recipient: the server has rejected
        that too, or never saw it.
        """
        self._window = window
        self._under_way = {}
        self._retry_at = {}
        self._replay = []
        rejected = set()
        for message in self._state.outbox:
            if message.send_seq == 0:
                continue
            message.rejected |= message.recipient in rejected
            if message.rejected:
                rejected.add(message.recipient)
            else:
                self._replay.append(message)
        for recipient in rejected:
            self._room.setdefault(recipient, 1)
        self._replay.sort(key=lambda message: message.send_seq)

    def accept(self, send_seq):
        """The message that was accepted; None when nothing is known about the number."""
        message = self._under_way.pop(send_seq, None)
        if message is not None:
            recipient = message.recipient
            self._state.outbox.remove(message)
            self._retries.pop(recipient, None)
            if recipient in self._room:
                self._room[recipient] += 1
                self._accepted[recipient] = self._accepted.get(recipient, 0) + 1
                if all(other.recipient != recipient for other in self._state.outbox):
                    del self._room[recipient]
                    self._accepted.pop(recipient, None)
        return message

    def reject(self, send_seq, code, retry_after_ms, now):
        """The rejected message, and whether that is final; None for an unknown number."""
        message = self._under_way.pop(send_seq, None)
        if message is None:
            return None, False
        known = code in RETRYABLE or code in FINAL
        final = code in FINAL if known else retry_after_ms is None
        if final:
            self._state.outbox.remove(message)
        else:
            message.rejected = True
            self._room[message.recipient] = max(1, self._accepted.get(message.recipient, 0))
            self._retry_at[message.recipient] = now + self._delay(message, retry_after_ms)
        return message, final

    def due(self, now):
        """The messages to send now. Gives them numbers: save the state before the bytes go."""
        out = []
        while self._replay and len(self._under_way) < self._window:
            self._send(self._replay.pop(0), out)
        if self._replay:
            return out
        blocked = {message.recipient for message in self._state.outbox if message.rejected}
        busy = {message.recipient for message in self._under_way.values()}
        for recipient in blocked - busy:
            if now >= self._retry_at.get(recipient, now):
                self._wait_again(recipient)
                blocked.discard(recipient)
        for message in self._state.outbox:
            if len(self._under_way) >= self._window:
                break
            if message.send_seq == 0 and message.recipient not in blocked:
                if self._is_crowded(message.recipient):
                    continue
                self._state.send_seq_last += 1
                message.send_seq = self._state.send_seq_last
                self._send(message, out)
        return out

    def retry_at(self):
        """When `due` has something new to say by itself, or None."""
        return min(self._retry_at.values(), default=None)

    def _is_crowded(self, recipient):
        under_way = sum(other.recipient == recipient for other in self._under_way.values())
        return under_way >= self._room.get(recipient, self._window)

    def _send(self, message, out):
        self._under_way[message.send_seq] = message
        out.append(message)

    def _wait_again(self, recipient):
        self._retry_at.pop(recipient, None)
        self._accepted[recipient] = 0
        first = True
        for message in self._state.outbox:
            if message.recipient == recipient and message.rejected:
                message.rejected = False
                message.send_seq = 0
                message.after_reject = first
                first = False

    def _delay(self, message, retry_after_ms):
        if retry_after_ms is not None:
            return retry_after_ms / 1000
        retries = self._retries.get(message.recipient, 0)
        self._retries[message.recipient] = retries + 1
        return backoff(retries, RETRY_SECONDS_MIN, RETRY_SECONDS_MAX)


def backoff(tries, seconds_min, seconds_max):
    """Exponential with full jitter."""
    return min(seconds_max, seconds_min * 2**tries) * random.random()
