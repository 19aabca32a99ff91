"""TLS 1.3 over TCP with ALPN `ringpost/1`, by the standard `ssl` module, not blocking."""

import select
import socket
import ssl
import time

ALPN = "ringpost/1"
CONNECT_SECONDS_MAX = 10.0


class Transport:
    """One connection; `exchange` moves bytes in both directions."""

    def __init__(self, address, server_name, ca_path):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(ca_path)
        context.set_alpn_protocols([ALPN])
        tcp = socket.create_connection(address, CONNECT_SECONDS_MAX)
        try:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._tls = context.wrap_socket(tcp, server_hostname=server_name)
        except BaseException:
            tcp.close()
            raise
        if self._tls.selected_alpn_protocol() != ALPN:
            self._tls.close()
            raise ConnectionError("the server does not speak ringpost/1")
        self._tls.setblocking(False)
        self._out = bytearray()

    def send(self, data):
        """Sends what the network takes now, the rest by and by. Raises OSError when it broke."""
        self._out += data
        self._write()

    def exchange(self, until):
        """Sends and receives until something came or the time is reached.

        Returns what came, and whether the stream has ended. Raises OSError when it broke.
        """
        while True:
            wants_write = self._write()
            received, ended = self._read()
            remaining = until - time.monotonic()
            if received or ended or remaining <= 0:
                return received, ended
            writers = [self._tls] if wants_write else []
            select.select([self._tls], writers, [], remaining)

    def close(self):
        self._tls.close()

    def _write(self):
        while self._out:
            try:
                sent = self._tls.send(self._out)
            except ssl.SSLWantWriteError:
                return True
            except ssl.SSLWantReadError:
                return False
            del self._out[:sent]
        return False

    def _read(self):
        received = bytearray()
        while len(received) < 1 << 20:
            try:
                part = self._tls.recv(65_536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return bytes(received), False
            except ssl.SSLEOFError:
                part = b""
            if not part:
                return bytes(received), True
            received += part
        return bytes(received), False
