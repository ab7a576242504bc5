"""florist.json says what an aggregation kept and lost, what went into it, and what the result counts for."""

import os
import reprlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from florist.checkpoint import SavedAdapter
from florist.checkpoint.reading import CONFIG_NAME, WEIGHTS_NAME
from florist.errors import InvalidAdapterError, InvalidUpdateError, UnreadableFileError, printable
from florist.files import strict_json
from florist.files.outputs import sha256
from florist.files.reading import read_bytes
from florist.one_shot.card import CARD_NAME, model_card
from florist.one_shot.weights import CountedIn, Weight, Weights
from florist.rounds import Certificate, SavedParameters

CERTIFICATE_NAME = "florist.json"
"""The name of the certificate, beside the files of the adapter."""

_LARGEST = 64_000_000
"""The largest certificate that is read, in bytes. A module takes about 400."""

_MOST_EXAMPLES = 10**15
"""More examples than anybody has; of a larger number, the arithmetic of weights would lose digits."""

FORMAT = 1
"""The format of the file. Before florist counted formats it wrote none, and such a file is read as format 0."""


def certificate_document(
    certificate: Certificate,
    *,
    storage_errors: Mapping[str, float],
    saved: Sequence[SavedAdapter],
    weights: Weights,
    notes: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of the file without the hashes of the result, which `sealed` adds.

    Args:
        certificate: what the written adapter keeps and loses. Its errors include the rounding of the stored numbers.
        storage_errors: the error of that rounding alone, ``||B A - B_stored A_stored||_F``, by module.
        saved: the adapters that went in.
        weights: how much each of them counts.
        notes: what people should know. A note on adapters that hold the same bytes is added.
        settings: how the adapter was made.

    Raises:
        InvalidAdapterError: the weights of an input have changed since it was opened.

    Cost: it reads every input to hash it.
    """
    hashes = [one.sha256() for one in saved]
    counted = weights.counted_in is not CountedIn.SHARES
    return document(
        certificate,
        storage_errors=storage_errors,
        num_examples=weights.total.count if counted else None,
        counted_in=weights.counted_in,
        notes=[*notes, *_same_bytes(saved, hashes)],
        settings=settings,
        inputs=[
            {
                "path": str(one.path),
                "num_examples": count if counted else None,
                "weight": share,
                "bytes": one.stored_bytes,
                "sha256": digests,
            }
            for one, digests, count, share in zip(saved, hashes, weights.counts, weights.shares, strict=True)
        ],
    )


def document(
    certificate: Certificate,
    *,
    storage_errors: Mapping[str, float],
    num_examples: int | None,
    counted_in: CountedIn,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of the file without the hashes of the result, whatever the adapter was made of.

    Args:
        certificate: what the written adapter keeps and loses, as for `certificate_document`.
        storage_errors: as for `certificate_document`.
        num_examples: what the adapter counts for; None for shares.
        counted_in: the unit of that.
        notes: what people should know.
        settings: how the adapter was made.
        inputs: what it was made of, with a path, a weight, bytes and hashes each.
    """
    return {
        "format": FORMAT,
        "florist": version("florist"),
        **settings,
        "num_examples": num_examples,
        "counted_in": counted_in.value,
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
        "inputs": list(inputs),
    }


def sealed(content: Mapping[str, Any], weights_path: Path) -> dict[str, Any]:
    """The content with the hashes of the result, by which a reader knows that the certificate belongs to it."""
    files = (weights_path, weights_path.with_name(CONFIG_NAME))
    return {**content, "sha256": {file.name: sha256(file) for file in files}}


def write_certified(
    directory: Path, content: Mapping[str, Any], config: Mapping[str, Any], saved_parameters: SavedParameters
) -> dict[str, Any]:
    """Write the certificate and the model card of an adapter that was written into a directory.

    Args:
        directory: where the adapter is.
        content: the certificate without the hashes of the adapter.
        config: the content of adapter_config.json.
        saved_parameters: the parameters that are stored whole, of which a classifier's head tells its classes.

    Returns:
        The content of the certificate file.
    """
    found = sealed(content, directory / WEIGHTS_NAME)
    # A document of a run has a null in the place of a number that is not finite.
    (directory / CERTIFICATE_NAME).write_text(strict_json.encode(found, indent=2) + "\n", encoding="utf-8")
    card = model_card(found, config, _classes(saved_parameters))
    # A path that is no text of its file system's, or a base named by half a character, has no UTF-8.
    (directory / CARD_NAME).write_text(card, encoding="utf-8", errors="backslashreplace")
    return found


def _classes(saved_parameters: SavedParameters) -> int | None:
    """The outputs of the last weight of a head."""
    heads = [tensor for _, tensor in sorted(saved_parameters.items()) if tensor.ndim == 2]
    return heads[-1].shape[0] if heads else None


def certified_weight(saved: SavedAdapter) -> Weight | None:
    """What the certificate beside an adapter says that the adapter counts for; None if there is no certificate.

    Raises:
        InvalidAdapterError: the certificate cannot be believed: it is damaged, or the adapter beside it is not the one
            that it was written for.
        InvalidUpdateError: a newer florist wrote it, in a format that this one does not know.

    Cost: if there is a certificate, it reads the weights file to hash it.
    """
    path = saved.weights_path.with_name(CERTIFICATE_NAME)
    if not os.path.lexists(path):
        return None
    try:
        content = strict_json.decode(read_bytes(path, most=_LARGEST))
        strict_json.require_shallow(content)
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {reprlib.repr(content)}")  # noqa: TRY004, TRY301  # of a file
        _require_known(path, content.get("format", 0), content.get("florist", "an unknown version"))
        _require_keys(content)
        claimed, count, unit = content["sha256"], content["num_examples"], CountedIn(content["counted_in"])
    except (InvalidAdapterError, InvalidUpdateError):
        raise
    except UnreadableFileError as error:  # which says what was expected
        raise InvalidAdapterError(f"{error}; the weight that it gave is not used") from error
    except (OSError, ValueError) as error:
        raise InvalidAdapterError(
            f"expected a certificate of florist in {path}, and reading failed: {printable(str(error), 300)}; the "
            "weight that it gave is not used"
        ) from error
    if unit is CountedIn.SHARES:
        count = 1  # of an unknown number of examples
    if type(count) is not int or not 1 <= count < _MOST_EXAMPLES:
        raise InvalidAdapterError(
            f"expected num_examples in {path} to be a whole number from 1, below {_MOST_EXAMPLES:.0e}, got "
            f"{reprlib.repr(count)}; it is not used"
        )
    if claimed != saved.sha256():
        raise InvalidAdapterError(
            f"expected {path} to carry the SHA-256 of the adapter beside it, which has changed since or is another; "
            "the weight that it gave is not used"
        )
    return Weight(count, unit)


def _require_keys(content: Mapping[str, Any]) -> None:
    lacking = [key for key in ("florist", "sha256", "num_examples", "counted_in") if key not in content]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")


def _require_known(path: Path, number: object, author: object) -> None:
    if type(number) is not int or number < 0:
        raise InvalidAdapterError(
            f"expected format in {path} to be a whole number, got {reprlib.repr(number)}; the weight that it "
            "gives is not used"
        )
    if number > FORMAT:
        raise InvalidUpdateError(
            f"expected {path} in format {FORMAT} or older, got format {reprlib.repr(number)} of florist "
            f"{printable(str(author), 60)}, which is newer than this one, {version('florist')}; update florist, or "
            "give the examples behind every adapter (--weights)"
        )


def _same_bytes(saved: Sequence[SavedAdapter], hashes: Sequence[Mapping[str, str]]) -> list[str]:
    """A note for each group of adapters whose weights files hold the same bytes."""
    groups: dict[str, list[str]] = {}
    for one, digests in zip(saved, hashes, strict=True):
        groups.setdefault(digests[one.weights_path.name], []).append(str(one.path))
    return [
        f"{', '.join(paths[:-1])} and {paths[-1]} hold the same weights, byte for byte (SHA-256 {digest[:12]}...), and "
        "each is counted: if they are one adapter, leave the others out, and raise its weight if need be"
        for digest, paths in groups.items()
        if len(paths) > 1
    ]
