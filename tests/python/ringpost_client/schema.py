"""Message classes and enums of the wire schema.

`protoc` (Debian: protobuf-compiler) turns the .proto into a descriptor, from which the protobuf
runtime makes classes. An app would generate code when it is built; here nothing can be out of date,
and any version of `protoc` suits any version of the runtime.
"""

import pathlib
import subprocess

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = pathlib.Path(__file__).resolve().parents[3] / "protocol/proto/ringpost.proto"


def _load():
    compiled = subprocess.run(
        ["protoc", f"-I{PROTO.parent}", "--descriptor_set_out=/dev/stdout", PROTO.name],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    for file in files:
        pool.Add(file)
    return pool, message_factory.GetMessageClassesForFiles([file.name for file in files], pool)


_pool, _classes = _load()

ClientFrame = _classes["ringpost.v1.ClientFrame"]
ServerFrame = _classes["ringpost.v1.ServerFrame"]


class Enum:
    """An enum of the schema: `Enum.NAME` is a number, `name(number)` its name.

    Names lose the enum's own name in front: REJECT_CODE_OVERLOADED is OVERLOADED.
    """

    def __init__(self, name, prefix):
        values = _pool.FindEnumTypeByName(f"ringpost.v1.{name}").values
        self._names = {value.number: value.name.removeprefix(prefix) for value in values}
        for number, short in self._names.items():
            setattr(self, short, number)

    def name(self, number):
        return self._names.get(number, str(number))


ErrorCode = Enum("ErrorCode", "ERROR_CODE_")
GapReason = Enum("GapReason", "GAP_REASON_")
GoAwayReason = Enum("GoAwayReason", "GO_AWAY_REASON_")
ModeKind = Enum("ModeKind", "MODE_KIND_")
RejectCode = Enum("RejectCode", "REJECT_CODE_")
SkipReason = Enum("SkipReason", "SKIP_REASON_")
