"""Any bytes as what a run says of its rounds: ``state/current.json``, and a line of ``rounds.jsonl``.

    python tests/fuzz/atheris/records.py -max_total_time=600 [CORPUS_DIRECTORY]

The first byte of an input says where the others go: into current.json as they are, or as its content under a hash that
fits, or into a line that current.json has the hash of. The records are then read as a report and a resumption read
them; all else than a readable `FloristError` is a finding, and so is a record that cannot be written again.

It takes the options of libFuzzer. Without atheris (pip install atheris), which has packages for Linux, it says so and
ends with status 0. A finding is written as crash-... into the current directory; give that file to reproduce it.
"""

import hashlib
import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from functools import reduce
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))  # a program finds what lies beside it, and no more

from tests.fuzz.atheris.running import run

RUN = Path(tempfile.mkdtemp()) / "run"
CURRENT, LINES = RUN / "state" / "current.json", RUN / "rounds.jsonl"
SOUND: dict[Path, bytes] = {}
"""What the two files hold in the run as it was made."""


def sealed(content: bytes) -> bytes:
    """A current.json that says this, with the hash of it where it is a document."""
    from florist.files import strict_json

    with suppress(ValueError, RecursionError):
        encoded = strict_json.encode(strict_json.decode(content))
        digest = hashlib.sha256(encoded.encode()).hexdigest()
        return b'{"sha256": "%s", "last": %s}' % (digest.encode(), encoded.encode())
    return content


def write(kind: int, content: bytes) -> None:
    """Put the bytes where the kind says, into a run that is sound apart from them."""
    from florist.federation.last_round import NO_LINES, chained

    sound, lines, current = SOUND[CURRENT], SOUND[LINES], content
    if kind == 1:
        current = sealed(content)
    if kind == 2:
        first, rest = content.split(b"\n")[0] + b"\n", lines.splitlines(keepends=True)[1:]
        earlier, last = [first, *rest[:-1]], json.loads(sound)["last"]
        last |= {"line_begins": sum(map(len, earlier)), "lines_before": reduce(chained, earlier, NO_LINES)}
        current, lines = sealed(json.dumps(last).encode()), first + b"".join(rest)
    CURRENT.write_bytes(current)
    LINES.write_bytes(lines)


def try_bytes(given: bytes) -> None:
    """Read the records of a run that has these bytes in it."""
    from florist.errors import FloristError
    from florist.federation.history import RunDirectory
    from florist.files import strict_json
    from tests.fuzz.oracle import require_readable

    if not given:
        return
    write(given[0] % 3, given[1:])
    try:
        opened = RunDirectory.open(RUN)
        for record in opened.records():
            strict_json.encode(asdict(record))
        opened.require_whole()
    except FloristError as error:
        require_readable(str(error))


def seeds() -> list[bytes]:
    """A sound input of every kind, from a run that nobody played."""
    from tests.reporting.made import a_run

    a_run(RUN, clients=2, modules=2, final=False)
    SOUND.update({file: file.read_bytes() for file in (CURRENT, LINES)})
    said = json.dumps(json.loads(SOUND[CURRENT])["last"]).encode()
    return [b"\x00" + SOUND[CURRENT], b"\x01" + said, b"\x02" + SOUND[LINES].splitlines()[0]]


if __name__ == "__main__":
    run(try_bytes, seeds, sys.argv, ["florist.federation.history"])
