"""``run.json``: what a run needs to know of itself beside its configuration."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from florist.federation.damage import errors_as_damage, said_by
from florist.federation.kept_rounds import KeepRounds
from florist.federation.run_format import FACTS, FORMAT, facts_content
from florist.files import strict_json
from florist.files.strict_json import Number


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
    with errors_as_damage(run):
        try:
            return _FACTS.validate_python(facts_content(run))
        except ValidationError as error:
            raise ValueError(f"{FACTS} is not as florist wrote it: {said_by(error)}") from error
