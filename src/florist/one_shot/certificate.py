"""florist.json: what an aggregation kept and lost, what went into it, and what the result counts for."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from florist.checkpoint import SavedAdapter
from florist.checkpoint.reading import CONFIG_NAME
from florist.errors import InvalidAdapterError
from florist.files.outputs import sha256
from florist.one_shot.weights import CountedIn, Weight, Weights
from florist.rounds import Certificate

CERTIFICATE_NAME = "florist.json"


def document(
    certificate: Certificate,
    *,
    storage_errors: Mapping[str, float],
    saved: Sequence[SavedAdapter],
    weights: Weights,
    notes: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of the file, but for the hashes of the result: see `sealed`.

    Args:
        certificate: of what is written; its errors include the rounding of the stored numbers.
        storage_errors: by module, that rounding alone, ``||B A - B_stored A_stored||_F``.
        saved: what went in.
        weights: of each.
        notes: for people.
        settings: how the adapter was made; put first.

    Raises:
        InvalidAdapterError: the weights of an input have changed since it was opened.

    Cost: reads every input to hash it.
    """
    return {
        "florist": version("florist"),
        **settings,
        "num_examples": weights.total.count,
        "counted_in": weights.counted_in.value,
        "total_rank": certificate.total_rank,
        "input_rank": certificate.input_rank,
        "bytes_in": certificate.bytes_in,
        "bytes_out": certificate.bytes_out,
        "relative_error": certificate.relative_error,
        "modules": {
            name: {
                "rank": module.rank,
                "input_rank": module.input_rank,
                "energy_kept": module.energy_kept,
                "norm": module.norm,
                "error": module.error,
                "relative_error": module.relative_error,
                "storage_error": storage_errors[name],
                "shape": list(module.shape),
                "absent_from": list(module.absent_from),
            }
            for name, module in certificate.modules.items()
        },
        "notes": list(notes),
        "inputs": [
            {
                "path": str(one.path),
                "num_examples": count,
                "weight": share,
                "bytes": one.stored_bytes,
                "sha256": one.sha256(),
            }
            for one, count, share in zip(saved, weights.counts, weights.shares, strict=True)
        ],
    }


def sealed(content: Mapping[str, Any], weights_path: Path) -> dict[str, Any]:
    """The same with the hashes of the result, by which a reader knows that the certificate belongs to it."""
    files = (weights_path, weights_path.with_name(CONFIG_NAME))
    return {**content, "sha256": {file.name: sha256(file) for file in files}}


def certified_weight(saved: SavedAdapter) -> Weight | None:
    """What the certificate beside an adapter says that the adapter counts for; None where there is no certificate.

    Raises:
        InvalidAdapterError: there is one that cannot be believed: it is damaged, or the adapter beside it is not the
            one that it was written for.

    Cost: reads the weights file to hash it, where there is a certificate.
    """
    path = saved.weights_path.with_name(CERTIFICATE_NAME)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        claimed, count, unit = content["sha256"], content["num_examples"], CountedIn(content["counted_in"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidAdapterError(
            f"expected a certificate of florist in {path}, got {type(error).__name__}: {error}; the weight that it "
            "gave is not used"
        ) from error
    if type(count) is not int or count < 1:
        raise InvalidAdapterError(
            f"expected num_examples in {path} to be a whole number from 1, got {count!r}; it is not used"
        )
    if claimed != saved.sha256():
        raise InvalidAdapterError(
            f"expected {path} to carry the SHA-256 of the adapter beside it, which has changed since or is another; "
            "the weight that it gave is not used"
        )
    return Weight(count, unit)
