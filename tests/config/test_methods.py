"""The one table of methods: what it says is so, and whoever knows methods by name has it from there."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import florist
from florist.aggregation import FlexLora, RaFlora
from florist.config import Config, read_config, to_toml
from florist.config.method_keys import one_shot_methods, require_one_shot
from florist.config.methods import (
    DEFAULT_TAU,
    FOR_ALL_METHODS,
    LOCAL_INITS,
    METHODS,
    Method,
    make_aggregator,
    rank_rule,
)
from florist.config.sections import AggregationSection
from florist.errors import ConfigurationError
from florist.federation.local_init import LocalInit
from florist.ranks import ByteBudget, Capped, EnergyThreshold, FixedRank, GlobalEnergyThreshold, RankRule
from florist.rounds import Aggregator, Trained
from tests.aggregation.test_methods import ALL

MINIMAL = '[model]\nname_or_path = "org/model"\n[data]\npath = "rows"\n[lora]\nranks = [8, 4]\n'
VALUES: dict[str, Any] = {
    "tau": 0.8,
    "scope": "per-module",
    "budget": 1_000_000,
    "rank": 3,
    "max_rank": 5,
    "noise_edge": True,
}

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def read(folder: Path, aggregation: str = "", *layers: Sequence[str]) -> Config:
    file = folder / "config.toml"
    file.write_text(f"{MINIMAL}[aggregation]\n{aggregation}\n")
    return read_config(file, *layers)


# --- the entries


@every_method
def test_a_record_makes_an_aggregator_that_is_a_public_name(method: Method) -> None:
    aggregator = make_aggregator(AggregationSection(method=method.name), 8)
    assert isinstance(aggregator, Aggregator)
    assert type(aggregator).__name__ in florist.__all__
    assert type(aggregator).__name__ in florist.aggregation.__all__


def test_every_method_is_a_row_of_the_table_that_all_methods_are_tested_by() -> None:
    made = {name: type(make_aggregator(AggregationSection(method=name), 8)) for name in METHODS}
    assert {name: type(case.aggregator) for name, case in ALL.items()} == made


@every_method
def test_what_saved_adapters_hold_decides_who_combines_them(method: Method) -> None:
    # They hold both halves, trained by their own sites.
    work = make_aggregator(AggregationSection(method=method.name), 8).work
    assert (method.not_one_shot is None) == (work.trained == Trained.FACTORS)
    assert (method.name in one_shot_methods()) == (method.not_one_shot is None)


def test_every_key_is_taken_by_a_method_and_every_key_that_is_taken_is_one() -> None:
    assert {key for method in METHODS.values() for key in method.keys} == AggregationSection.model_fields.keys() - {
        "method",
        *FOR_ALL_METHODS,
    }


@pytest.mark.parametrize("name", LOCAL_INITS)
def test_a_local_init_is_named_like_its_class(name: str) -> None:
    start = LOCAL_INITS[name]()
    assert isinstance(start, LocalInit)
    assert type(start).__name__ == name.capitalize()


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({}, EnergyThreshold(DEFAULT_TAU)),
        ({"tau": 0.8}, EnergyThreshold(0.8)),
        ({"scope": "global"}, GlobalEnergyThreshold(DEFAULT_TAU)),
        ({"budget": "20MB"}, ByteBudget(20_000_000, 2)),
        ({"rank": 3}, FixedRank(3)),
        ({"max_rank": 5}, Capped(EnergyThreshold(DEFAULT_TAU), 5)),
        ({"budget": "1MB", "max_rank": 5}, Capped(ByteBudget(1_000_000, 2), 5)),
    ],
)
def test_the_keys_of_a_rule_are_the_rule(keys: dict[str, Any], rule: RankRule) -> None:
    assert rank_rule(AggregationSection(**keys), itemsize=2) == rule


def test_a_method_without_a_rule_has_none() -> None:
    with pytest.raises(ConfigurationError, match="expected one of tau, budget, rank, noise_edge, which"):
        rank_rule(AggregationSection(method="fedit"))


@pytest.mark.parametrize(("max_rank", "kept"), [(None, 8), (3, 3), (20, 8)])
def test_no_more_is_sent_than_the_largest_client_takes_and_than_max_rank(max_rank: int | None, kept: int) -> None:
    for name, make in (("flexlora", FlexLora), ("raflora", RaFlora)):
        assert make_aggregator(AggregationSection(method=name, max_rank=max_rank), 8) == make(kept)


@pytest.mark.parametrize("module", ["florist.config", "florist.config.methods"])
def test_the_table_is_read_before_torch_and_pydantic(module: str) -> None:
    script = f"import sys, {module}; print({{'torch', 'pydantic'}} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "set()\n"
    )


@pytest.mark.parametrize("arguments", [["aggregate", "--help"], ["aggregate", "a", "-o", "out", "--method", "full"]])
def test_commands_know_the_methods_before_torch(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\nfrom florist.cli import main\n"
        f"sys.argv = ['florist', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.splitlines()[-1] == "False"


# --- what a method does not take


FOREIGN = [
    (method, key) for method in METHODS.values() for key in AggregationSection.model_fields
    if key not in {"method", *FOR_ALL_METHODS, *method.keys}
]  # fmt: skip


@pytest.mark.parametrize(("method", "key"), FOREIGN, ids=lambda value: getattr(value, "name", value))
def test_a_key_that_the_method_does_not_take_is_refused_by_name(tmp_path: Path, method: Method, key: str) -> None:
    value = VALUES[key]
    with pytest.raises(ConfigurationError) as error:
        read(tmp_path, f"method = {method.name!r}\n{key} = {'true' if value is True else repr(value)}")
    takes = " and ".join(method.keys) or "no other key"
    assert f"aggregation: method = {method.name!r} takes {takes}, got {key} = {value!r}: remove {key}" in str(
        error.value
    )
    taker = next(other.name for other in METHODS.values() if key in other.keys)
    assert f"or choose method = '{taker}'" in str(error.value)
    with pytest.raises(ConfigurationError, match=r"leave that out(, or use --method florist)?|expected one of"):
        require_one_shot(method.name, [key])


def test_a_refusal_names_every_key_and_every_method_that_takes_them() -> None:
    with pytest.raises(
        ValueError, match=r"got scope = 'global' and max_rank = 4: remove scope and max_rank, or choose"
    ):
        AggregationSection(method="fedit", scope="global", max_rank=4)
    takers = [method.name for method in METHODS.values() if "max_rank" in method.keys]
    with pytest.raises(
        ValueError, match="remove max_rank" + "".join(f", or choose method = '{name}'" for name in takers)
    ):
        AggregationSection(method="fedit", max_rank=4)


@pytest.mark.parametrize(("key", "value"), [(key, VALUES[key]) for method in METHODS.values() for key in method.keys])
def test_a_key_that_a_method_takes_is_taken(key: str, value: object) -> None:
    takers = [method.name for method in METHODS.values() if key in method.keys]
    assert all(getattr(AggregationSection(method=name, **{key: value}), key) == value for name in takers)


@every_method
def test_what_a_method_does_not_take_stays_unset(method: Method) -> None:
    section = AggregationSection(method=method.name)
    assert section.model_dump(exclude={"method"}, exclude_none=True).keys() <= set(method.keys)
    assert section.tau == (DEFAULT_TAU if "tau" in method.keys else None)


@every_method
def test_what_is_written_of_a_method_is_read_back(tmp_path: Path, method: Method) -> None:
    config = read(tmp_path, f"method = {method.name!r}")
    (tmp_path / "written.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "written.toml") == config


@pytest.mark.parametrize(
    ("communication", "telling"),
    [
        ("upload_tau = 0.8", r"upload_tau = 0\.8 cuts what clients upload, and for Linear rounds that is B alone"),
        ('upload_budget = "1MB"', "upload_budget = 1000000 cuts what clients upload"),
    ],
)
def test_b_alone_is_not_cut(tmp_path: Path, communication: str, telling: str) -> None:
    text = f"method = 'linear'\n[communication]\n{communication}"
    with pytest.raises(ConfigurationError, match=telling):
        read(tmp_path, text)
    assert read(tmp_path, "method = 'linear'\n[communication]\nupload = 'int8'\nfeedback = true")


def test_a_preset_and_an_override_of_the_method_leave_linear_rounds_what_they_can_use(tmp_path: Path) -> None:
    preset = read(tmp_path, "method = 'linear'\n[communication]\npreset = 'compact'").communication
    assert (preset.upload, preset.upload_tau, preset.feedback) == ("int4", None, True)
    text = "[communication]\nupload = 'int8'\nupload_tau = 0.8\nfeedback = true"
    found = read(tmp_path, text, ["aggregation.method=linear"]).communication
    assert (found.upload, found.upload_tau, found.feedback) == ("int8", None, True)


# --- overrides


@every_method
@pytest.mark.parametrize("file", ["", "tau = 0.8", 'scope = "global"', "budget = 1000\nmax_rank = 4", "rank = 2"])
def test_another_method_drops_the_keys_that_it_does_not_take(tmp_path: Path, method: Method, file: str) -> None:
    plain = "communication.preset=plain"  # another preset would bring a tau of its own
    before = read(tmp_path, file, [plain]).aggregation
    after = read(tmp_path, file, [plain, f"aggregation.method={method.name}"]).aggregation
    assert after.method == method.name
    for key in AggregationSection.model_fields.keys() - {"method", *FOR_ALL_METHODS}:
        assert getattr(after, key) == (getattr(before, key) if key in method.keys else None)


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregation.method=fedit", "aggregation.tau=0.5"],
        ["aggregation.tau=0.5", "aggregation.method=fedit"],
    ],
)
def test_what_one_command_contradicts_is_refused(tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"method = 'fedit' takes no other key, got tau = 0\.5"):
        read(tmp_path, "tau = 0.9", overrides)


def test_a_key_for_a_method_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"method = 'fedit' takes no other key, got tau = 0\.5"):
        read(tmp_path, 'method = "fedit"', ["aggregation.tau=0.5"])


def test_a_later_layer_may_choose_a_method_without_the_keys_of_an_earlier(tmp_path: Path) -> None:
    # florist compare --set aggregation.tau=0.5 --methods all
    found = read(tmp_path, "", ["aggregation.tau=0.5"], ["aggregation.method=fedit"]).aggregation
    assert found == AggregationSection(method="fedit")


@pytest.mark.parametrize(
    ("file", "override", "kept"),
    [
        ("tau = 0.8", "budget=1000", {"budget": 1000}),
        ("tau = 0.8", "rank=4", {"rank": 4}),
        ('scope = "global"\ntau = 0.8', "rank=4", {"rank": 4}),
        ("budget = 1000", "tau=0.8", {"tau": 0.8}),
        ("rank = 4", "tau=0.8", {"tau": 0.8}),
        ('scope = "global"\ntau = 0.8', "tau=0.7", {"tau": 0.7, "scope": "global"}),
        ("rank = 4\nmax_rank = 9", "budget=1000", {"budget": 1000, "max_rank": 9}),
    ],
)
def test_another_answer_to_how_much_to_keep_replaces_the_one_before(
    tmp_path: Path, file: str, override: str, kept: dict[str, Any]
) -> None:
    assert read(tmp_path, file, [f"aggregation.{override}"]).aggregation == AggregationSection(**kept)


def test_two_answers_in_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tau = 0\.5 and rank = 3 contradict each other"):
        read(tmp_path, "", ["aggregation.tau=0.5", "aggregation.rank=3"])
    with pytest.raises(ConfigurationError, match="scope = 'global' goes with tau, not with rank"):
        read(tmp_path, "tau = 0.5", ["aggregation.scope=global", "aggregation.rank=3"])


@pytest.mark.parametrize("method", ["3", "[1]", "fedditt", "{a = 1}"])
def test_what_is_no_method_is_refused_and_drops_nothing(tmp_path: Path, method: str) -> None:
    with pytest.raises(ConfigurationError, match=r"aggregation\.method: Input should be"):
        read(tmp_path, "tau = 0.5", [f"aggregation.method={method}"])
