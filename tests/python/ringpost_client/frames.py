"""Frames: a length as unsigned LEB128 in its shortest form, then that many bytes."""

FRAME_BYTES_MAX = 65_536


class FrameError(Exception):
    """The server broke the framing; the connection is of no use any more."""


def varint(value):
    """The shortest LEB128 of a number that is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(message):
    """A serialized message as a frame."""
    return varint(len(message)) + message


class Decoder:
    """Cuts received bytes into messages."""

    def __init__(self):
        self._buffer = bytearray()

    def feed(self, received):
        self._buffer += received

    def next(self):
        """The next whole message, or None until more was fed.

        Raises FrameError on a length that is 0, too long, or not in its shortest form.
        """
        length = shift = at = 0
        while True:
            if at == len(self._buffer):
                return None
            byte = self._buffer[at]
            length |= (byte & 0x7F) << shift
            at += 1
            shift += 7
            if length > FRAME_BYTES_MAX or at > 3:
                raise FrameError("frame above 65,536 bytes")
            if byte < 0x80:
                break
        if byte == 0:
            raise FrameError("empty frame" if at == 1 else "length not in its shortest form")
        if len(self._buffer) < at + length:
            return None
        message = bytes(self._buffer[at : at + length])
        del self._buffer[: at + length]
        return message
