"""Any bytes as adapter_model.safetensors, beside a sound adapter_config.json.

An adapter is opened, and its factors are read; all else than a readable `FloristError` is a finding.

    python tests/fuzz/atheris/safetensors_header.py -max_total_time=600 [CORPUS_DIRECTORY]

It takes the options of libFuzzer. Without atheris (pip install atheris), which has packages for Linux, it says so and
ends with status 0. A finding is written as crash-... into the current directory; give that file to reproduce it.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))  # a program finds what lies beside it, and no more

from tests.fuzz.atheris.running import run, unlinked
from tests.fuzz.tiny_adapter import CONFIG, WEIGHTS

FOLDER = Path(tempfile.mkdtemp())
FILE = FOLDER / "adapter_model.safetensors"
HEADER = int.from_bytes(WEIGHTS[:8], "little")


def try_bytes(content: bytes) -> None:
    """Open the bytes, as they are and as the header of an otherwise sound file."""
    from florist.checkpoint import open_adapter
    from florist.errors import FloristError
    from tests.fuzz.oracle import require_readable

    for whole in (content, len(content).to_bytes(8, "little") + content + WEIGHTS[8 + HEADER :]):
        unlinked(FILE).write_bytes(whole)
        try:
            for factor in open_adapter(FOLDER).adapter.values():
                factor.energy()
        except FloristError as error:
            require_readable(str(error))


if __name__ == "__main__":
    (FOLDER / "adapter_config.json").write_text(json.dumps(CONFIG))
    run(try_bytes, lambda: [WEIGHTS, WEIGHTS[8 : 8 + HEADER]], sys.argv, ["florist.checkpoint", "florist.factors"])
