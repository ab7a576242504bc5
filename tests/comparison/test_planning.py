from pathlib import Path

import pytest

from florist.comparison.planning import Cell, Comparison, Entry, configure, method_entry, seeds_from
from florist.errors import ConfigurationError

BASE = '[model]\nname_or_path = "org/model"\n[data]\npath = "rows"\nvalidation_fraction = 0.1\n[lora]\nranks = [4, 2]\n'


@pytest.fixture
def base(tmp_path: Path) -> Path:
    file = tmp_path / "base.toml"
    file.write_text(BASE)
    return file


def test_every_entry_is_the_base_and_its_own_overrides(base: Path) -> None:
    entries = (method_entry("fedit"), Entry("warm", ("federation.local_init=warm", "aggregation.tau=0.99")))
    common, configs = configure(base, ["federation.rounds=7"], entries)
    assert common.federation.rounds == 7
    assert configs[entries[0]].aggregation.method == "fedit"
    warm = configs[entries[1]]
    assert (warm.federation.local_init, warm.aggregation.tau, warm.federation.rounds) == ("warm", 0.99, 7)
    assert configs[entries[0]].data == warm.data == common.data


def test_what_is_set_for_all_reaches_the_methods_that_take_it(base: Path) -> None:
    entries = [method_entry(name) for name in ("florist", "flexlora", "fedit")]
    _, configs = configure(base, ["aggregation.tau=0.5", "aggregation.max_rank=3"], entries)
    assert [(config.aggregation.tau, config.aggregation.max_rank) for config in configs.values()] == [
        (0.5, 3),
        (None, 3),
        (None, None),
    ]
    with pytest.raises(ConfigurationError, match=r"b: .*method = 'fedit' takes no other key, got tau = 0\.5"):
        configure(base, [], [Entry("b", ("aggregation.method=fedit", "aggregation.tau=0.5"))])


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([method_entry("fedditt")], "fedditt: .*aggregation.method"),
        ([Entry("a", ("aggregation.tua=1",))], "a: .*did you mean aggregation.tau"),
        ([Entry("a", ("federation.seed=3",))], "a: .*federation.seed.*--seeds"),
        ([Entry("a", ("training.threads=2",))], "a: .*training.threads.*--set"),
        ([Entry("a", ("evaluation.metrics=['perplexity']",))], "a: .*evaluation.metrics"),
        ([Entry("a", ("data.validation_fraction=0.5",))], "a: .*data.validation_fraction"),
        ([Entry("a b"), Entry("a/b")], "unlike names, got 'a b' and 'a/b'"),
        ([Entry("florist"), Entry("FLoRIST")], "unlike names"),
        ([Entry(" / ")], "letters or digits"),
        ([Entry("..")], "letters or digits"),
        ([], "got none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_entries_are_refused_by_name(base: Path, entries: list[Entry], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        configure(base, [], entries)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (4, 5, 6)), ("1", (4,)), ("0,5,7", (0, 5, 7)), ("9,", (9,)), (" 2 , 1 ", (2, 1))]
)
def test_seeds_are_counted_from_the_configurations_or_listed(text: str, seeds: tuple[int, ...]) -> None:
    assert seeds_from(text, 4) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "1,1", "0,-1", "two", "1.5", ","])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected --seeds"):
        seeds_from(text, 0)


def test_cells_come_seed_by_seed() -> None:
    a, b = Entry("a"), Entry("b")
    cells = Comparison("0", (a, b), (3, 4), 1).cells
    assert cells == (Cell(a, 3), Cell(b, 3), Cell(a, 4), Cell(b, 4))


def test_a_folder_is_named_so_that_every_file_system_takes_it() -> None:
    assert Entry("florist 0.99").folder == "florist-0.99"
    assert Entry("../up: tau=1").folder == "up-tau=1"
