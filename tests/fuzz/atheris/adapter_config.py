"""Any bytes as adapter_config.json, beside sound weights.

An adapter is opened, and its factors are read; all else than a readable `FloristError` is a finding.

    python tests/fuzz/atheris/adapter_config.py -max_total_time=600 [CORPUS_DIRECTORY]

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
FILE = FOLDER / "adapter_config.json"
EXTRAS = {
    "rank_pattern": {"q": 2},
    "target_parameters": ["layers.0.q"],
    "trainable_token_indices": [1],
    "init_lora_weights": "gaussian",
    "use_rslora": True,
}


def try_bytes(content: bytes) -> None:
    """Open an adapter with this config."""
    from florist.checkpoint import encode, open_adapter
    from florist.errors import FloristError
    from tests.fuzz.oracle import require_readable

    unlinked(FILE).write_bytes(content)
    try:
        saved = open_adapter(FOLDER)
        encode(saved.adapter, layout=saved.layout, base_model=saved.base_model, auto_mapping=saved.auto_mapping)
    except FloristError as error:
        require_readable(str(error))


if __name__ == "__main__":
    (FOLDER / "adapter_model.safetensors").write_bytes(WEIGHTS)
    seeds = [json.dumps(CONFIG).encode(), json.dumps(CONFIG | EXTRAS).encode()]
    run(try_bytes, lambda: seeds, sys.argv, ["florist.checkpoint"])
