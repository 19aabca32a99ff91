"""One connection's rules, without IO: bytes and the time in, events and bytes out.

Call `receive` with what came and `output` afterwards, and whenever `deadline` has passed; then
`take_events`. When `ended` is set, send what `output` gave last and close.
"""

import dataclasses

from google.protobuf.message import DecodeError

from . import frames
from .schema import (
    ClientFrame,
    ErrorCode,
    GapReason,
    GoAwayReason,
    ModeKind,
    RejectCode,
    ServerFrame,
    SkipReason,
)

WELCOME_SECONDS_MAX = 20.0
GO_AWAY_SECONDS_MAX = 15.0


@dataclasses.dataclass(frozen=True)
class Opened:
    """A session began; `new_mailbox`: nothing that an older mailbox held will come any more."""

    new_mailbox: bool
    heartbeat_ms: int
    limits: object


@dataclasses.dataclass(frozen=True)
class Received:
    """A message from somebody."""

    from_user: str
    from_device: str
    group: str
    message_number: int
    sent_at_ms: int
    urgent: bool
    envelope: bytes


@dataclasses.dataclass(frozen=True)
class Gap:
    """Messages are missing here."""

    group: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Delivered:
    """A device has all that was sent to that user or group under numbers up to this one."""

    peer_user: str
    peer_device: str
    group: str
    up_to_send_seq: int


@dataclasses.dataclass(frozen=True)
class CaughtUp:
    """What had waited has been received."""


@dataclasses.dataclass(frozen=True)
class Sent:
    """The server has stored a message; `skipped` devices do not get it: (user, device, why)."""

    message_number: int
    send_seq: int
    server_time_ms: int
    skipped: tuple


@dataclasses.dataclass(frozen=True)
class Unsent:
    """A message was rejected for good."""

    message_number: int
    code: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """One request was refused; the connection goes on."""

    code: str
    text: str
    request_id: int


@dataclasses.dataclass(frozen=True)
class Disconnected:
    """The connection is over.

    `then` is what to do: "reconnect", "new token" first, or "stop" (never by itself).
    `after_ms` is how long to wait before; None: back off.
    """

    why: str
    text: str
    then: str
    after_ms: int = None
    other_address: str = ""


# What to do after a fatal Error; anything else is a defect of this client, or REPLACED.
AFTER_ERROR = {
    ErrorCode.TOKEN_INVALID: "new token",
    ErrorCode.TOKEN_EXPIRED: "new token",
    ErrorCode.HELLO_TIMEOUT: "reconnect",
    ErrorCode.HEARTBEAT_TIMEOUT: "reconnect",
    ErrorCode.FRAME_TRUNCATED: "reconnect",
}

# Events that are committed with a mailbox seq, and so kept until the app has taken them.
MAILBOX_EVENTS = {kind.__name__: kind for kind in (Received, Gap, Delivered)}


class Session:
    """One connection, from Hello to its end."""

    def __init__(self, state, outbox, device, token, mode, now):
        self._state = state
        self._outbox = outbox
        self._decoder = frames.Decoder()
        self._out = bytearray()
        self._dirty = False
        self._events = []
        self._welcome = None
        self._heartbeat_s = None
        # Highest mailbox seq received, and acknowledged, on this connection.
        self._seq_received = state.committed_seq
        self._seq_acked = state.committed_seq
        self._received_at = self._sent_at = self._pinged_at = self._began_at = now
        # Set by GoAway, with the time until when to read on.
        self._leaving = None
        self.ended = None
        hello = ClientFrame()
        hello.hello.token = token
        hello.hello.device = device
        hello.hello.install_id = state.install_id
        hello.hello.mailbox_id = state.mailbox_id
        hello.hello.acked_up_to = state.committed_seq
        if mode is not None:
            hello.hello.mode.kind, hello.hello.mode.interval_ms = mode
        self._push(hello)

    def receive(self, data, now):
        """Takes bytes of the stream."""
        self._decoder.feed(data)
        try:
            while self.ended is None and (message := self._decoder.next()) is not None:
                self._received_at = now
                frame = ServerFrame.FromString(message)
                handler = getattr(self, f"_on_{frame.WhichOneof('frame')}", None)
                if handler is not None:
                    self._expect(handler)
                    handler(getattr(frame, frame.WhichOneof("frame")), now)
        except (frames.FrameError, DecodeError, _Violation) as error:
            self.ended = Disconnected("violation", str(error), "reconnect")

    def take_events(self):
        """What has happened, in order; what the mailbox brought is durable after `output`."""
        events, self._events = self._events, []
        return events

    def end(self, why):
        """The stream has ended; gives the reason, which may stand in a frame that came before."""
        if self.ended is None:
            lost = Disconnected("lost", why, "reconnect")
            self.ended = self._leaving[0] if self._leaving else lost
        return self.ended

    def output(self, now):
        """Saves the state when it changed, and returns the bytes to send now."""
        if self.ended is None:
            self._check_silence(now)
        if self._welcome is not None and self.ended is None and self._leaving is None:
            for message in self._outbox.due(now):
                self._dirty = True
                if len(message.body) > self._welcome.limits.envelope_bytes_max:
                    self._reject(message.send_seq, RejectCode.TOO_LARGE, None, now)
                else:
                    self._push(_send_frame(message))
        if self._dirty:
            self._state.save()
            self._dirty = False
        if self._welcome is not None and self._seq_received > self._seq_acked:
            self._seq_acked = self._seq_received
            self._push(ClientFrame(ack={"up_to_seq": self._seq_acked}))
        if self._welcome is not None and self.ended is None and now >= self._ping_at():
            self._ping(now)
        out = bytes(self._out)
        self._out.clear()
        if out:
            self._sent_at = now
        return out

    def deadline(self):
        """When to call `output` although nothing came."""
        if self._welcome is None:
            return self._began_at + WELCOME_SECONDS_MAX
        times = [self._ping_at(), self._received_at + 2.5 * self._heartbeat_s]
        if self._leaving is not None:
            times.append(self._leaving[1])
        elif self._outbox.retry_at() is not None:
            times.append(self._outbox.retry_at())
        return min(times)

    def set_mode(self, kind, interval_ms, now):
        """Foreground or background; before Welcome only the Hello may say it."""
        if self._welcome is not None:
            self._push(ClientFrame(mode={"kind": kind, "interval_ms": interval_ms}))
            self._heartbeat_s = self._interval_ms(kind, interval_ms) / 1000
            # So much silence was right under a longer interval: ask, and count from now.
            self._received_at = now
            self._ping(now)

    def renew(self, token):
        """Prolongs the session with a newer token."""
        if self._welcome is not None:
            self._push(ClientFrame(token_renew={"token": token}))

    def leave(self):
        """Says goodbye; the server closes."""
        if self._welcome is not None and self.ended is None:
            self._push(ClientFrame(bye={}))
            self.ended = Disconnected("left", "", "stop")

    def _expect(self, handler):
        first = handler in (self._on_welcome, self._on_error, self._on_go_away)
        if self._welcome is None and not first:
            raise _Violation("a frame before Welcome")

    def _on_welcome(self, welcome, now):
        if self._welcome is not None:
            raise _Violation("a second Welcome")
        self._welcome = welcome
        self._heartbeat_s = welcome.heartbeat_ms / 1000
        new = welcome.mailbox_id != self._state.mailbox_id
        if new:
            self._state.mailbox_id = welcome.mailbox_id
            self._state.committed_seq = self._seq_received = self._seq_acked = 0
            self._dirty = True
        self._outbox.open(welcome.limits.sends_unanswered_max)
        self._events.append(Opened(new, welcome.heartbeat_ms, welcome.limits))

    def _on_accepted(self, accepted, now):
        message = self._outbox.accept(accepted.send_seq)
        if message is None:
            return
        self._dirty = True
        skipped = tuple(
            (device.user, device.device, SkipReason.name(device.reason))
            for device in accepted.skipped_devices
        )
        sent = (message.message_number, accepted.send_seq, accepted.server_time_ms, skipped)
        self._events.append(Sent(*sent))

    def _on_rejected(self, rejected, now):
        known_time = rejected.HasField("retry_after_ms")
        retry_after_ms = rejected.retry_after_ms if known_time else None
        self._reject(rejected.send_seq, rejected.code, retry_after_ms, now)

    def _reject(self, send_seq, code, retry_after_ms, now):
        message, final = self._outbox.reject(send_seq, code, retry_after_ms, now)
        self._dirty |= message is not None
        if final:
            self._events.append(Unsent(message.message_number, RejectCode.name(code)))

    def _on_deliver(self, deliver, now):
        number = deliver.message_number or deliver.send_seq
        sender = (deliver.from_user, deliver.from_device, deliver.install_id, deliver.group)
        event = None
        if number > self._state.taken.get(sender, 0):
            self._state.taken[sender] = number
            event = Received(
                deliver.from_user,
                deliver.from_device,
                deliver.group,
                number,
                deliver.sent_at_ms,
                deliver.urgent,
                deliver.envelope,
            )
        self._commit(deliver.seq, event)

    def _on_gap(self, gap, now):
        self._commit(gap.seq, Gap(gap.group, GapReason.name(gap.reason)))

    def _on_delivered(self, receipt, now):
        event = None
        if receipt.install_id == self._state.install_id:
            event = Delivered(
                receipt.peer_user, receipt.peer_device, receipt.group, receipt.up_to_send_seq
            )
        self._commit(receipt.seq, event)

    def _on_caught_up(self, caught_up, now):
        self._events.append(CaughtUp())

    def _on_go_away(self, go_away, now):
        reason = GoAwayReason.name(go_away.reason)
        told = (go_away.reconnect_after_ms, go_away.other_address)
        end = Disconnected(reason, "", "reconnect", *told)
        self._leaving = (end, now + GO_AWAY_SECONDS_MAX)

    def _on_error(self, error, now):
        code = ErrorCode.name(error.code)
        if not error.fatal:
            self._events.append(Refused(code, error.text, error.request_id))
            return
        self.ended = Disconnected(code, error.text, AFTER_ERROR.get(error.code, "stop"))

    def _commit(self, seq, event):
        """Takes what stands at `seq` in the mailbox, in one step with the cursor."""
        if seq <= self._seq_received:
            raise _Violation(f"seq {seq} after {self._seq_received}")
        self._seq_received = self._state.committed_seq = seq
        self._dirty = True
        if event is not None:
            record = {"kind": type(event).__name__, **dataclasses.asdict(event)}
            self._state.inbox.append(record)
            self._events.append(event)

    def _check_silence(self, now):
        if self._welcome is None:
            if now - self._began_at >= WELCOME_SECONDS_MAX:
                self.ended = Disconnected("silence", "no Welcome", "reconnect")
        elif self._leaving is not None and now >= self._leaving[1]:
            self.ended = self._leaving[0]
        elif now - self._received_at >= 2.5 * self._heartbeat_s:
            self.ended = Disconnected("silence", "no frame for 2.5 heartbeats", "reconnect")

    def _ping_at(self):
        """One interval after either direction fell silent."""
        silent = min(self._sent_at, self._received_at)
        return max(silent, self._pinged_at) + self._heartbeat_s

    def _ping(self, now):
        self._pinged_at = now
        self._push(ClientFrame(ping={}))

    def _interval_ms(self, kind, interval_ms):
        limits = self._welcome.limits
        if kind != ModeKind.BACKGROUND:
            return limits.heartbeat_foreground_ms
        shortest = limits.heartbeat_background_ms_min
        return min(max(interval_ms, shortest), limits.heartbeat_background_ms_max)

    def _push(self, frame):
        self._out += frames.encode(frame.SerializeToString())


class _Violation(Exception):
    """The server broke a rule."""


def _send_frame(message):
    frame = ClientFrame()
    send = frame.send
    send.send_seq = message.send_seq
    kind, name = message.recipient
    setattr(send, kind, name)
    send.ttl_ms = message.ttl_ms
    send.urgent = message.urgent
    send.after_reject = message.after_reject
    send.message_number = message.message_number
    send.shared = message.body
    return frame
