"""What must survive a restart of the client, in one JSON file that is replaced as a whole.

Rewriting everything each time suits a test; an app keeps the same things in its database.
"""

import base64
import dataclasses
import json
import os
import secrets


@dataclasses.dataclass
class Outgoing:
    """A message that has no final answer yet."""

    # "user" or "group", and the id.
    recipient: tuple
    body: bytes
    # Names the message for good, over all its tries.
    message_number: int
    ttl_ms: int = 0
    urgent: bool = False
    # Number of the present try; 0 while it waits for one.
    send_seq: int = 0
    # The present try ends the block that a rejection set up.
    after_reject: bool = False
    # The present try was answered by a retryable Rejected.
    rejected: bool = False


class State:
    """The durable state of one installation; `save` before the network may see its effects."""

    def __init__(self, path):
        self.path = path
        self.install_id = secrets.randbits(64) or 1
        self.mailbox_id = 0
        # Highest mailbox seq that is committed here.
        self.committed_seq = 0
        self.send_seq_last = 0
        self.message_number_last = 0
        # In the order in which the app gave them.
        self.outbox = []
        # (from_user, from_device, install_id, group) -> highest message number taken.
        self.taken = {}
        # Received, committed, and not yet confirmed by the app.
        self.inbox = []
        if os.path.exists(path):
            self._load()
        else:
            self.save()

    def save(self):
        """Durable when it returns."""
        document = {
            "install_id": self.install_id,
            "mailbox_id": self.mailbox_id,
            "committed_seq": self.committed_seq,
            "send_seq_last": self.send_seq_last,
            "message_number_last": self.message_number_last,
            "outbox": [dataclasses.asdict(message) for message in self.outbox],
            "taken": [[*sender, number] for sender, number in self.taken.items()],
            "inbox": self.inbox,
        }
        part = f"{self.path}.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(document, file, default=_bytes_to_json)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path)
        directory = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _load(self):
        with open(self.path, encoding="utf-8") as file:
            document = json.load(file, object_hook=_bytes_from_json)
        self.install_id = document["install_id"]
        self.mailbox_id = document["mailbox_id"]
        self.committed_seq = document["committed_seq"]
        self.send_seq_last = document["send_seq_last"]
        self.message_number_last = document["message_number_last"]
        self.taken = {tuple(sender): number for *sender, number in document["taken"]}
        self.inbox = document["inbox"]
        for message in document["outbox"]:
            message["recipient"] = tuple(message["recipient"])
            self.outbox.append(Outgoing(**message))


def _bytes_to_json(value):
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(type(value))


def _bytes_from_json(value):
    return base64.b64decode(value["base64"]) if value.keys() == {"base64"} else value
