"""``run.json``: what a run needs to know of itself beside its configuration, and the format of its directory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from florist.errors import OtherVersionError
from florist.federation.damage import damage_told
from florist.federation.kept_rounds import KeepRounds
from florist.files import strict_json
from florist.files.reading import read_bytes
from florist.files.strict_json import Number

FORMAT = 3
"""Of a run directory. The first one, which had no number, kept every round; the second had no hashes."""
FILE = "run.json"
_MOST_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run needs to know of itself beside its configuration.

    Attributes:
        florist: the version that began it.
        method: the name of the aggregation method.
        threads: how many torch threads it uses. A resumed run uses as many, since sums in another order round
            differently.
        initial: the metrics before the first round.
        given: what code gave, by name, in words that differ where the objects do; None where a configuration file
            says all of it.
        keep_rounds: what stays on disk of the rounds before the last.
        environment: versions and machine, by what they are of; empty in runs that did not record it.
    """

    florist: str
    method: str
    threads: int
    initial: Mapping[str, Number]
    given: Mapping[str, str] | None = None
    keep_rounds: KeepRounds = KeepRounds.LAST
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


_FACTS = TypeAdapter(RunFacts)


def facts_document(facts: RunFacts) -> str:
    """The content of ``run.json``."""
    return strict_json.encode({"format": FORMAT, **asdict(facts)}, indent=2) + "\n"


def read_facts(run: Path) -> RunFacts:
    """The facts of the run in a directory.

    Raises:
        DamagedRunError: run.json cannot be read.
    """
    with damage_told(run):
        return _FACTS.validate_python(_document(run))


def require_format(run: Path) -> None:
    """Check that the directory of a run has the format that this version reads.

    Raises:
        OtherVersionError: it has another one.
        DamagedRunError: run.json cannot be read.
    """
    document = _document(run)
    found = document.get("format", 1) if isinstance(document, dict) else None
    if type(found) is not int or found == FORMAT:
        return  # what is no number is damage, which is said by who reads the rest
    by = f"florist {document.get('florist', 'of an unknown version')}"
    if found > FORMAT:
        raise OtherVersionError(
            f"{run}: expected a run of format {FORMAT}, got format {found} of {by}; install that version or a later "
            "one to go on with it"
        )
    # The version may be that of this florist, since the format has changed between two releases.
    numbered = "format" in document
    adapter = run / "adapter"
    raise OtherVersionError(
        f"{run}: expected a run of format {FORMAT}, got {f'format {found}, which' if numbered else 'one that'} an "
        f"earlier {by} wrote{'' if numbered else ', before runs had a format number'}"
        f"{f'; its adapter in {adapter} can still be used' if adapter.is_dir() else ''}; begin another run, or go on "
        "with the version or commit that began this one"
    )


def _document(run: Path) -> Any:
    with damage_told(run):
        return strict_json.decode(read_bytes(run / FILE, _MOST_BYTES))
