"""``run.json`` as far as it says which format the directory of a run has.

Nothing here imports torch: a run can be followed without it.
"""

from pathlib import Path
from typing import Any

from florist.errors import OtherVersionError
from florist.federation.damage import errors_as_damage
from florist.files import strict_json
from florist.files.reading import read_bytes

FACTS = "run.json"
"""What a run needs to know of itself (`run_facts`)."""
FORMAT = 4
"""Of a run directory. The first one, which had no number, kept every round; the second had no hashes, and the third had
none of the configuration that a run goes on with."""
_MOST_BYTES = 1 << 26


def facts_content(run: Path) -> Any:
    """The document in ``run.json``.

    Raises:
        DamagedRunError: it cannot be read.
    """
    with errors_as_damage(run):
        content = read_bytes(run / FACTS, _MOST_BYTES)
        try:
            return strict_json.decode(content)
        except ValueError as error:
            raise ValueError(f"{FACTS} is not JSON: {error}") from error


def require_format(run: Path) -> None:
    """Check that the directory of a run has the format that this version reads.

    Raises:
        OtherVersionError: it has another one.
        DamagedRunError: run.json cannot be read.
    """
    document = facts_content(run)
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
