"""A connection that sends whatever a test says, and reads frames one by one."""

import socket
import ssl
import time

from ringpost_client import frames
from ringpost_client.schema import ClientFrame, ErrorCode, RejectCode, ServerFrame

PATIENCE_SECONDS = 15


class Raw:
    """TLS is right, what goes through it need not be."""

    def __init__(self, gateway, ca_path, alpn=("ringpost/1",)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca_path)
        context.set_alpn_protocols(list(alpn))
        tcp = socket.create_connection((gateway.host, gateway.port), PATIENCE_SECONDS)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = context.wrap_socket(tcp, server_hostname="localhost")
        self._decoder = frames.Decoder()

    def send(self, data):
        self._tls.sendall(data)

    def send_frame(self, **frame):
        self.send(framed(**frame))

    def hello(self, token, device="phone", **fields):
        fields = {"install_id": 1, **fields}
        self.send_frame(hello={"token": token, "device": device, **fields})

    def end_sending(self):
        """FIN, and nothing of TLS before it; the other direction stays open."""
        socket.socket.shutdown(self._tls, socket.SHUT_WR)

    def receive(self):
        """The next frame, or None at the end of the stream."""
        while (message := self._decoder.next()) is None:
            part = self._tls.recv(65_536)
            if not part:
                return None
            self._decoder.feed(part)
        return ServerFrame.FromString(message)

    def expect(self, kind):
        """Reads up to the next frame of a kind."""
        until = time.monotonic() + PATIENCE_SECONDS
        seen = []
        while time.monotonic() < until:
            frame = self.receive()
            if frame is None:
                break
            if frame.WhichOneof("frame") == kind:
                return getattr(frame, kind)
            seen.append(str(frame))
        raise AssertionError(f"no {kind}, but {seen}")

    def answer(self):
        """The next answer to a Send: its number, and "ACCEPTED" or why it was rejected."""
        while True:
            frame = self.receive()
            kind = frame.WhichOneof("frame")
            if kind == "accepted":
                return frame.accepted.send_seq, "ACCEPTED", None
            if kind == "rejected":
                rejected = frame.rejected
                known_time = rejected.HasField("retry_after_ms")
                after_ms = rejected.retry_after_ms if known_time else None
                return rejected.send_seq, RejectCode.name(rejected.code), after_ms

    def end(self, answers_max=None):
        """Reads to the end of the stream: code and text of the fatal Error that stands there; None
        when so many Sends were answered before."""
        last, answers = None, 0
        while (frame := self.receive()) is not None:
            last = frame
            answers += frame.WhichOneof("frame") in ("accepted", "rejected")
            if answers == answers_max:
                return None
        if last is None or last.WhichOneof("frame") != "error" or not last.error.fatal:
            raise AssertionError(f"the last frame is no fatal Error: {last}")
        return ErrorCode.name(last.error.code), last.error.text

    def close(self):
        self._tls.close()


def framed(**frame):
    """A ClientFrame with its length."""
    return frames.encode(ClientFrame(**frame).SerializeToString())
