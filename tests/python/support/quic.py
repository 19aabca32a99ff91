"""A client of another make over QUIC: aioquic without its event loop, on sockets that may change."""

import selectors
import socket
import time

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    StreamDataReceived,
)
from ringpost_client import frames
from ringpost_client.schema import ServerFrame

from .raw import PATIENCE_SECONDS, framed

STREAM = 0


class Quic:
    """One connection. What is sent goes through its one stream, frame by frame."""

    def __init__(self, gateway, ca_path, *, alpn="ringpost/1", ticket=None):
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=[alpn], server_name="localhost", session_ticket=ticket
        )
        configuration.load_verify_locations(str(ca_path))
        self.tickets = []
        self.handshakes = 0
        self.early_data_accepted = self.resumed = False
        self.terminated = None
        self._connection = QuicConnection(
            configuration=configuration, session_ticket_handler=self.tickets.append
        )
        self._decoder = frames.Decoder()
        self._selector = selectors.DefaultSelector()
        self._socket = None
        self.rebind()
        self._connection.connect((gateway.host, gateway.port), time.monotonic())

    def rebind(self):
        """Goes on from another port, as behind a NAT that has forgotten it: the same ids."""
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self._selector.register(self._socket, selectors.EVENT_READ)

    def migrate(self):
        """Goes on from another port with another connection id, as after a change of network."""
        self.rebind()
        self._connection.change_connection_id()

    @property
    def port(self):
        return self._socket.getsockname()[1]

    @property
    def peer_id(self):
        """The gateway's connection id in use."""
        return self._connection._peer_cid.cid

    def handshake(self):
        """Raises ConnectionError when the gateway refuses."""
        self.wait(lambda: self.handshakes or self.terminated)
        if not self.handshakes:
            raise ConnectionError(f"{self.terminated.error_code:#x} {self.terminated.reason_phrase}")

    def update_keys(self):
        self._connection.request_key_update()

    def ping(self):
        self._connection.send_ping(0)

    def open_stream(self, data, unidirectional):
        """Another stream, which is not allowed: nothing of it is sent."""
        stream = self._connection.get_next_available_stream_id(unidirectional)
        self._connection.send_stream_data(stream, data)

    def send(self, data):
        self._connection.send_stream_data(STREAM, data)

    def send_frame(self, **frame):
        self.send(framed(**frame))

    def hello(self, token, device="phone", **fields):
        fields = {"install_id": 1, **fields}
        self.send_frame(hello={"token": token, "device": device, **fields})

    def receive(self):
        """The next frame."""
        message = None

        def arrived():
            nonlocal message
            message = self._decoder.next()
            return message is not None

        self.wait(arrived)
        return ServerFrame.FromString(message)

    def expect(self, kind):
        """Reads up to the next frame of a kind."""
        while True:
            frame = self.receive()
            if frame.WhichOneof("frame") == kind:
                return getattr(frame, kind)

    def close(self):
        self._connection.close()
        self._transmit()
        self._selector.close()
        self._socket.close()

    def wait(self, done, seconds=PATIENCE_SECONDS):
        """Works until `done`."""
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() >= until:
                raise TimeoutError(f"nothing for {seconds} s, terminated: {self.terminated}")
            self._step(until)

    def work(self, seconds):
        """Works so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._step(until)

    def _step(self, until):
        self._transmit()
        timer = self._connection.get_timer()
        until = until if timer is None else min(until, timer)
        if self._selector.select(max(0.0, until - time.monotonic())):
            self._receive()
        if timer is not None and time.monotonic() >= timer:
            self._connection.handle_timer(time.monotonic())
        while (event := self._connection.next_event()) is not None:
            self._handle(event)
        self._transmit()

    def _transmit(self):
        for data, address in self._connection.datagrams_to_send(time.monotonic()):
            self._socket.sendto(data, address)

    def _receive(self):
        while True:
            try:
                data, address = self._socket.recvfrom(65_536)
            except BlockingIOError:
                return
            self._connection.receive_datagram(data, address, time.monotonic())

    def _handle(self, event):
        match event:
            case HandshakeCompleted():
                self.handshakes += 1
                self.early_data_accepted = event.early_data_accepted
                self.resumed = event.session_resumed
            case StreamDataReceived():
                self._decoder.feed(event.data)
            case ConnectionTerminated():
                self.terminated = event
