"""What reads messages, under a fuzzer that follows branches: atheris mutates bytes towards what was not run before.

    python tests/fuzz/atheris/messages.py [CORPUS] -max_total_time=300 -rss_limit_mb=4096

atheris (3.0, wheels for Linux and Python 3.11 to 3.13) is no dependency of florist: install it into an environment of
its own. The first byte of an input says what reads the rest: the bytes of packed tensors, the description in the header
of a packed adapter, or a whole reply, introduction or instruction as Flower's protobuf. Without a CORPUS the fuzzer
starts from sound messages, which it writes to a temporary folder. What is raised and is no `FloristError`, or a message
that is not readable, stops it, and the input is written to ``crash-...``.
"""

# ruff: noqa: T201, E402  # a program, which instruments what it imports
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

try:
    import atheris
except ImportError:
    print("atheris is not installed: nothing is fuzzed; see the first lines of this file")
    sys.exit(0)

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from google.protobuf.message import DecodeError

with atheris.instrument_imports(include=["florist.flower", "florist.compression"]):
    from florist.compression.codecs import codec_named
    from florist.compression.packed import PackedAdapter
    from florist.errors import FloristError
    from florist.flower import protocol
    from florist.flower.arrays import (
        adapter_to_arrays,
        arrays_to_adapter,
        arrays_to_packed,
        packed_to_arrays,
        unpacked,
    )
    from florist.flower.limits import Limits

from tests.builders import SHAPES, adapter
from tests.fuzz.hostile_messages import seal
from tests.fuzz.oracle import require_readable
from tests.fuzz.test_messages import no_rows, parsers

LIMITS = Limits.of_reply(SHAPES, 8, {"head": torch.ones(3)})


def _content(data: bytes) -> RecordDict | None:
    """A message as it comes from the network, with the digest that fits; None where Flower itself refuses it."""
    try:
        content = recorddict_from_proto(Proto.FromString(data))
        seal(content)
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return content


def _message(read: Callable[[RecordDict], object]) -> Callable[[bytes], object]:
    def one(data: bytes) -> object:
        content = _content(data)
        if content is None:
            return None
        LIMITS.require(content)
        return read(content)

    return one


def _record(data: bytes, name: str) -> ArrayRecord:
    return ArrayRecord({name: Array("uint8", (len(data),), "safetensors", data)})


def _tensors(data: bytes) -> object:
    record = _record(data, "tensors")
    LIMITS.require(RecordDict({"adapter": record}))
    return arrays_to_adapter(record, no_rows)


def _packed(data: bytes) -> object:
    record = _record(data, "0")
    LIMITS.require(RecordDict({"packed": record}))
    # As a server does: shapes and ranks are compared with what is known before anything is decoded by them.
    found = arrays_to_packed(record)
    sound = all(each.shape == SHAPES.get(name) and each.rank <= 8 for name, each in found[0].factors.items())
    return unpacked(found[0], no_rows) if sound else None


READERS = (_tensors, _packed, *(_message(read) for _, read in parsers()))


def one_input(data: bytes) -> None:
    """Read one input; whatever is raised and is no readable refusal is a finding."""
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except FloristError as refusal:
        require_readable(str(refusal))


def seeds(folder: Path) -> None:
    """Sound inputs of every kind."""
    held = adapter(2, 1, dtype=torch.float32)
    sound = [adapter_to_arrays(held)["tensors"].data]
    sound += [packed_to_arrays([PackedAdapter.of(held, codec_named("int4"))])["0"].data]
    sound += [recorddict_to_proto(content).SerializeToString() for content, _ in parsers()]
    for number, data in enumerate(sound):
        (folder / f"seed-{number}").write_bytes(bytes([number]) + data)


def main() -> None:
    """Fuzz with the arguments of libFuzzer."""
    arguments = list(sys.argv)
    if not any(Path(each).exists() for each in arguments[1:]):
        folder = Path(tempfile.mkdtemp(prefix="florist-messages-"))
        seeds(folder)
        arguments.append(str(folder))
    print(f"protocol {protocol.PROTOCOL}, {len(READERS)} readers", flush=True)
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
