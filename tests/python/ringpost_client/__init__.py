"""A Ringpost client in plain Python, as an example of one in another language.

It was written from `protocol/proto/ringpost.proto` and `protocol/PROTOCOL.md` alone and serves the
tests: one process, one thread, a small state file, no speed. In the order of a message's way:

- `schema`: message classes, made from the .proto when the package is imported;
- `frames`: a stream of bytes cut into frames;
- `state`: what must survive a restart, in one JSON file;
- `outbox`: which Send goes when: numbers, replay, retry after a rejection;
- `session`: the rules of one connection, without any IO;
- `transport`: TLS 1.3 over TCP;
- `client`: connects, resumes, reconnects; what an app would use.

`python3 -m ringpost_client --help` sends and receives from a terminal.
"""

from .client import Client, Settings
from .session import (
    CaughtUp,
    Delivered,
    Disconnected,
    Gap,
    Opened,
    Received,
    Refused,
    Sent,
    Unsent,
)
from .state import State

__all__ = [
    "CaughtUp",
    "Client",
    "Delivered",
    "Disconnected",
    "Gap",
    "Opened",
    "Received",
    "Refused",
    "Sent",
    "Settings",
    "State",
    "Unsent",
]
