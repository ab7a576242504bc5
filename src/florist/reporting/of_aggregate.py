"""The page of an aggregate: adapters that were combined once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florist.errors import DamagedRunError
from florist.files import strict_json
from florist.files.reading import read_text
from florist.one_shot.certificate import CERTIFICATE_NAME
from florist.reporting.content import Block, Code, Page, Section, Table, Text, filled
from florist.reporting.curves import against_tau
from florist.reporting.numbers import MISSING, nbytes, number
from florist.reporting.of_run import adapter_spectra
from florist.reporting.reproducing import loading
from florist.reporting.spectra import errors_by_layer, rank_against_tau, ranks_by_layer, singular_values

_KNOWN = {"florist", "format", "modules", "inputs", "notes", "sha256"}


def page_of_aggregate(path: Path) -> Page:
    """Make the page of an aggregate from its certificate and its factors.

    Args:
        path: its directory.

    Raises:
        DamagedRunError: the certificate cannot be read.
    """
    content = _read(path / CERTIFICATE_NAME)
    modules: Mapping[str, Mapping[str, Any]] = content.get("modules", {})
    values = adapter_spectra(path)
    found = [
        *singular_values(values, "the aggregate"),
        ranks_by_layer({name: module["rank"] for name, module in modules.items()}, "Of the aggregate."),
        errors_by_layer({name: module["relative_error"] for name, module in modules.items()}),
        rank_against_tau(values, "the aggregate") if values else None,
    ]
    update: list[Block] = [figure for figure in found if figure is not None]
    sections = [
        Section("result", "What was combined, and did it work", [*_summary(content), *_notes(content)]),
        Section("cost", "What it cost", _tuned(path)),
        Section("update", "Where the update lives", update),
        Section("clients", "Who contributed", _inputs(content)),
        loading(path),
        Section("reproduce", "How to reproduce it", _reproduce(path, content)),
    ]
    summary = (
        f"{len(content.get('inputs', ()))} adapters of total rank {content.get('input_rank', MISSING)} became one "
        f"of total rank {content.get('total_rank', MISSING)}, at a relative error of "
        f"{number(content.get('relative_error'), 3)}."
    )
    return Page(f"Aggregate {path.name}", summary, filled(sections))


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = strict_json.decode(read_text(file))
        lacking = [
            name for name, module in content["modules"].items() if not {"rank", "relative_error"} <= module.keys()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedRunError(
            f"expected a certificate of florist in {file}, and {_wrong(error)}; aggregate again"
        ) from error
    if lacking:
        raise DamagedRunError(
            f"expected a rank and an error for every module in {file}, and {lacking[0]} lacks one; aggregate again"
        )
    return content


def _wrong(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]}"
    if isinstance(error, TypeError | AttributeError):
        return "what it holds is of another form"
    return f"reading it failed: {error}"


def _summary(content: Mapping[str, Any]) -> list[Block]:
    lines = [
        ["adapters in", str(len(content.get("inputs", ())))],
        ["total rank in", str(content.get("input_rank", MISSING))],
        ["total rank out", str(content.get("total_rank", MISSING))],
        ["bytes in", nbytes(content.get("bytes_in"))],
        ["bytes out", nbytes(content.get("bytes_out"))],
        ["relative error", number(content.get("relative_error"), 4)],
    ]
    return [Table("The aggregate", ["", "value"], lines)]


def _notes(content: Mapping[str, Any]) -> list[Block]:
    return [Text(str(note)) for note in content.get("notes", ())]


def _inputs(content: Mapping[str, Any]) -> list[Block]:
    lines = [
        [
            str(one.get("path", MISSING)),
            f"{one['num_examples']:,}" if isinstance(one.get("num_examples"), int) else MISSING,
            number(one.get("weight"), 3),
            nbytes(one.get("bytes")),
        ]
        for one in content.get("inputs", ())
        if isinstance(one, dict)
    ]
    return [Table("The adapters that went in", ["adapter", "examples", "weight", "bytes"], lines)] if lines else []


def _tuned(path: Path) -> list[Block]:
    """What `florist tune` measured, where it wrote this aggregate."""
    file = path / "tune.json"
    if not file.is_file():
        return []
    try:
        points = strict_json.decode(read_text(file))["points"]
        metrics = list(points[0]["metrics"])
        figures = [
            against_tau(
                f"tau-{metric.replace('_', '-')}"[:40],
                f"{metric.replace('_', ' ')} against tau",
                metric.replace("_", " "),
                [
                    {"series": "validation examples", "tau": point["tau"], "value": point["metrics"][metric]}
                    for point in points
                    if metric in point["metrics"]
                ],
                "As `florist tune` measured it on validation examples.",
            )
            for metric in metrics
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []  # it is not what the page is about
    return [figure for figure in figures if figure is not None]


def _reproduce(path: Path, content: Mapping[str, Any]) -> list[Block]:
    settings = {
        name: value for name, value in content.items() if name not in _KNOWN and not isinstance(value, dict | list)
    }
    lines = [
        ["florist", str(content.get("florist", MISSING))],
        *([name, str(value)] for name, value in settings.items()),
    ]
    digests = [[name, str(digest)] for name, digest in dict(content.get("sha256") or {}).items()]
    blocks: list[Block] = [Table("Settings and figures of the certificate", ["", "value"], lines)]
    if digests:
        blocks.append(Table("SHA-256 of the result", ["file", "digest"], digests))
    text = read_text(path / CERTIFICATE_NAME)
    return [*blocks, Code("The whole certificate", text, folded=True)]
