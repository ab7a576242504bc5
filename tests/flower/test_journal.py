from pathlib import Path

import pytest

from florist.errors import ConfigurationError, DamagedRunError, MissingInputError, OutputExistsError
from florist.federation.state import ServerState
from florist.flower import Agreement, Journal
from florist.flower.journal import AGREED


def test_it_is_begun_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "run", "florist", "seed = 1\n")
    assert not journal.begun
    journal.begin(lambda: {"loss": 2.0})
    assert journal.begun
    journal.begin(lambda: pytest.fail("what was measured is measured again"))
    facts = journal.directory.facts
    assert (facts.method, facts.initial) == ("florist", {"loss": 2.0})
    assert journal.directory.config_file.read_text() == "seed = 1\n"
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
    journal.agree(Agreement("the base", {"q": (4, 6), "a.b": (1, 2)}))
    found = Journal(tmp_path / "run", "florist").agreed
    assert found is not None
    assert (found.base, found.shapes) == ("the base", {"q": (4, 6), "a.b": (1, 2)})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"base": 3, "shapes": {}}', '{"base": "x", "shapes": {"q": [1]}}'])
def test_a_damaged_agreement_is_told(content: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "florist")
    journal.begin(dict)
    (tmp_path / "run" / AGREED).write_text(content)
    with pytest.raises(DamagedRunError, match=r"expected what clients agreed on in .*federation\.json"):
        _ = journal.agreed


def test_a_run_of_another_method_is_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path / "run", "florist").begin(dict)
    with pytest.raises(ConfigurationError, match=r"expected the method 'florist', .* got 'fedit'; go on with that"):
        Journal(tmp_path / "run", "fedit").load(ServerState.initial())
