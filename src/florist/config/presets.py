"""Set-ups by name for ``florist init --preset``: those of the FLoRIST paper, and the demonstration."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from florist.config.paths import in_folder
from florist.config.reading import DEMONSTRATION

_EQUAL, _UNLIKE = [16] * 8, [64, 32, 16, 16, 8, 8, 4, 4]
_MODELS = {
    "tinyllama": ("TinyLlama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    "llama-7b": ("LLaMA-7B", "huggyllama/llama-7b"),
    "llama-3.2-1b": ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
}


@dataclass(frozen=True, slots=True)
class SetUp:
    """A configuration that has a name.

    Attributes:
        about: what it is, in a line.
        tables: the keys that are set, by section.
        notes: what is to be known of keys, by ``section.key``.
    """

    about: str
    tables: Mapping[str, Mapping[str, Any]]
    notes: Mapping[str, str] = field(default_factory=dict[str, str])


def set_ups() -> dict[str, SetUp]:
    """Return all set-ups by their names."""
    return {"demonstration": _demonstration(), **dict(_of_the_paper())}


def _demonstration() -> SetUp:
    tables = tomllib.loads(DEMONSTRATION.read_text(encoding="utf-8"))
    return SetUp(
        "a small Llama and string tasks that come with florist, on four unlike clients",
        in_folder(tables, DEMONSTRATION.parent),
        {"model.name_or_path": "It lies where florist is installed.", "data.path": "The same place."},
    )


def _of_the_paper() -> Iterator[tuple[str, SetUp]]:
    for model, (title, hub_id) in _MODELS.items():
        for ranks, which in ((_EQUAL, "equal"), (_UNLIKE, "unlike")):
            yield (
                f"{model}-dolly-{which}",
                SetUp(
                    f"{title} on Dolly in eight clients of {which} rank (arXiv:2506.09199)",
                    {
                        "model": {"name_or_path": hub_id, "dtype": "bfloat16"},
                        "data": {"path": "data", "train": "client_*.json", "test_fraction": 0.1},
                        "lora": {"ranks": ranks, "target_modules": ["q_proj", "v_proj"]},
                        "training": {"learning_rate": 3e-4, "batch_size": 8, "epochs": 1.0},
                        "federation": {"rounds": 3},
                        "aggregation": {"method": "florist", "tau": 0.9},
                        "communication": {"preset": "paper"},
                    },
                    {
                        "model.name_or_path": f"The paper says {title}; this is a checkpoint of that name at the hub.",
                        "data.path": "It needs client_0.json to client_7.json with instruction, context and response, "
                        "as databricks-dolly-15k has them, in the eight clients of the paper's repository.",
                        "training.learning_rate": "This rate, the batch size, epochs and rounds are florist's choice, "
                        "not the paper's.",
                        "aggregation.tau": "The paper picks tau by results (FLoRIST-O and -E): florist tune RUN does.",
                    },
                ),
            )
