from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from florist.aggregation import Florist
from florist.errors import ConfigurationError, DamagedRunError, MissingInputError, OutputExistsError
from florist.federation.local_init import Warm
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower import Agreement, Journal
from florist.flower.journal import AGREED
from florist.ranks import EnergyThreshold, FixedRank
from tests.stored_runs import record, state, tree

Values = Mapping[str, Any]


def rules(**changes: object) -> Federation:
    settings = {"client_ranks": {}, "aggregator": Florist(EnergyThreshold(0.9)), "shapes": {}, "seed": 0}
    return Federation(**{**settings, **changes})


def test_it_is_begun_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "run", "florist", "seed = 1\n")
    assert not journal.begun
    journal.begin(lambda: {"loss": 2.0})
    assert journal.begun
    again = Journal(tmp_path / "deep" / "run", "florist", "seed = 2\n")
    again.begin(lambda: pytest.fail("what was measured is measured again"))
    assert journal.directory.config_file.read_text() == "seed = 2\n"
    Journal(tmp_path / "deep" / "run", "florist").begin(dict)
    assert journal.directory.config_file.read_text() == "seed = 2\n"
    facts = journal.directory.facts
    assert (facts.method, facts.initial) == ("florist", {"loss": 2.0})
    assert journal.directory.begun_file.read_text() == "seed = 1\n"
    state, records = journal.load(ServerState.initial())
    assert (state.round_number, records) == (0, [])


def test_a_measurement_that_fails_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    with pytest.raises(ZeroDivisionError):
        journal.begin(lambda: {"loss": 1 / 0})
    assert not (tmp_path / "run").exists()


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(OutputExistsError):
        Journal(tmp_path / "run", "florist").begin(dict)
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_nothing_begun_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"no run\.json"):
        Journal(tmp_path / "run", "florist").load(ServerState.initial())


def test_what_clients_agreed_on_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    assert journal.agreed is None
    journal.begin(dict)
    assert journal.agreed is None
    journal.agree(Agreement("the base", {"q": (4, 6), "a.b": (1, 2)}), rules())
    found = Journal(tmp_path / "run", "florist").agreed
    assert found is not None
    assert (found.base, found.shapes) == ("the base", {"q": (4, 6), "a.b": (1, 2)})


@pytest.mark.parametrize(
    ("spoil", "telling"),
    [
        (lambda file: file.write_text(""), "is not as it was written"),
        (lambda file: file.write_text(file.read_text().replace("7", "8")), "is not as it was written"),
        (Path.unlink, "is missing"),
        (lambda file: [file.unlink(), file.symlink_to("/dev/zero")], "cannot be read"),
    ],
)
def test_a_damaged_agreement_is_told(spoil: Callable[[Path], object], telling: str, tmp_path: Path) -> None:
    journal = begun(Journal(tmp_path / "run", "florist"), rules(seed=7))
    spoil(tmp_path / "run" / AGREED)
    before = tree(tmp_path)
    with pytest.raises(DamagedRunError, match=rf"agreed on in .*, and federation\.json {telling}"):
        _ = journal.agreed
    with pytest.raises(DamagedRunError, match=rf"agreed on in .*, and federation\.json {telling}"):
        journal.load(ServerState.initial(), rules(seed=7))
    assert tree(tmp_path) == before


def test_an_agreement_that_was_written_and_not_sealed_is_made_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    journal.begin(dict)
    (tmp_path / "run" / AGREED).write_text("{")  # as a process that is killed in between may leave it
    assert journal.agreed is None
    journal.agree(Agreement("the base", {}), rules())
    found = journal.agreed
    assert found is not None
    assert found.base == "the base"


class Nameless(FixedRank):
    """A rank rule that is shown with its address."""

    __repr__ = object.__repr__


def begun(journal: Journal, with_rules: Federation) -> Journal:
    journal.begin(dict)
    journal.agree(Agreement("the base", {}), with_rules)
    return journal


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"seed": 1}, "seed = 1: expected 0, which the run in"),
        ({"aggregator": Florist(EnergyThreshold(0.8))}, r"aggregator = .*0\.8.*: expected .*0\.9.*, which"),
        ({"aggregator": Florist(FixedRank(3))}, r"aggregator = .*FixedRank.*: expected .*EnergyThreshold.*, which"),
        ({"local_init": Warm()}, r"local_init = Warm\(\): expected Aligned\(\),"),
        ({"shared_init": False}, "shared_init = False: expected True,"),
        ({"fraction": 0.5}, r"fraction = 0\.5: expected 1\.0,"),
        ({"min_replies": 2}, "min_replies = 2: expected None,"),
        ({"seed": 1, "min_replies": 2}, "seed = 1: expected 0; min_replies = 2: expected None, which"),
    ],
)
def test_a_run_is_not_gone_on_with_by_other_rules(changes: Values, telling: str, tmp_path: Path) -> None:
    journal = begun(Journal(tmp_path / "run", "florist"), rules())
    with pytest.raises(ConfigurationError, match=telling):
        journal.load(ServerState.initial(), rules(**changes))


def test_who_takes_part_and_what_has_no_name_may_be_others(tmp_path: Path) -> None:
    journal = begun(Journal(tmp_path / "run", "florist"), rules(aggregator=Florist(Nameless(3))))
    others = rules(aggregator=Florist(Nameless(3)), client_ranks={"a": 2}, shapes={"q": (2, 3)})
    assert journal.load(ServerState.initial(), others)[1] == []


def test_a_run_that_was_stopped_before_its_clients_agreed_is_gone_on_with(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    journal.begin(dict)
    assert journal.load(ServerState.initial(), rules())[1] == []


def test_a_run_of_another_method_is_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path / "run", "florist").begin(dict)
    with pytest.raises(ConfigurationError, match=r"expected the method 'florist', .* got 'fedit'; go on with that"):
        Journal(tmp_path / "run", "fedit").load(ServerState.initial())


def test_a_run_that_lost_what_its_clients_agreed_on_or_its_pointer_is_refused(tmp_path: Path) -> None:
    journal = begun(Journal(tmp_path / "run", "florist"), rules())
    for number in (1, 2):
        journal.save(state(number), record(number))
    agreed = (tmp_path / "run" / AGREED).read_bytes()
    (tmp_path / "run" / AGREED).unlink()
    before = tree(tmp_path)
    with pytest.raises(DamagedRunError, match=r"agreed on in .*, and federation\.json is missing"):
        journal.load(ServerState.initial(), rules(seed=1))
    assert tree(tmp_path) == before
    (tmp_path / "run" / AGREED).write_bytes(agreed)
    (tmp_path / "run" / "state" / "current.json").unlink()
    before = tree(tmp_path)
    with pytest.raises(DamagedRunError, match="expected a whole run in"):
        journal.load(ServerState.initial(), rules())
    assert tree(tmp_path) == before
