import math
from pathlib import Path

import pytest
import tomli_w

from florist.aggregation.robust import MAKERS, GeometricMedian
from florist.config import Config, read_config
from florist.config.methods import METHODS
from florist.config.robust import ROBUST_NAMES, guard_keys, guard_of, robust_rule
from florist.config.sections import GuardSection
from florist.errors import ConfigurationError
from florist.federation.guard import Action, Guard

FILE = """
[model]
name_or_path = "m"
[data]
path = "d"
[lora]
ranks = 4
"""


def read(tmp_path: Path, *overrides: str, file: str = "") -> Config:
    (tmp_path / "c.toml").write_text(FILE + file)
    return read_config(tmp_path / "c.toml", overrides)


def test_the_guard_is_on_and_no_rule_is_by_default(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert guard_of(config.guard) == Guard() == Guard(10.0, None, None, None, 10.0, Action.REFUSE)
    assert robust_rule(config.aggregation) is None


def test_false_turns_a_check_off(tmp_path: Path) -> None:
    keys = ("norm_factor", "component_factor", "largest_norm", "smallest_cosine", "examples_factor")
    config = read(tmp_path, *(f"guard.{key}=false" for key in keys))
    assert guard_of(config.guard) == Guard.off() == Guard(None, None, None, None, None)


def test_a_cosine_of_zero_is_a_bound(tmp_path: Path) -> None:
    found = guard_of(read(tmp_path, "guard.smallest_cosine=0", "guard.largest_norm=3", "guard.action=clip").guard)
    assert found == Guard(largest_norm=3.0, smallest_cosine=0.0, action=Action.CLIP)


@pytest.mark.parametrize(
    "guard",
    [
        Guard(),
        Guard.off(),
        Guard(largest_norm=3, smallest_cosine=0.0, action=Action.CLIP),
        Guard(norm_factor=4, component_factor=3.0, examples_factor=2.5),
    ],
)
def test_a_guard_as_an_object_is_that_of_its_keys(guard: Guard, tmp_path: Path) -> None:
    keys = guard_keys(guard)
    assert guard_of(GuardSection.model_validate(keys)) == guard
    assert guard_of(read(tmp_path, file=f"[guard]\n{tomli_w.dumps(keys)}").guard) == guard


@pytest.mark.parametrize(
    "override",
    [
        "guard.norm_factor=1",
        "guard.norm_factor=true",
        "guard.component_factor=1.0",
        "guard.largest_norm=0",
        "guard.smallest_cosine=1",
        "guard.smallest_cosine=-2",
        "guard.examples_factor=0.5",
        "guard.action=ignore",
        "aggregation.robust=median",
        "aggregation.hostile=0.25",
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigurationError, match=override.partition("=")[0].partition(".")[2]):
        read(tmp_path, override)


@pytest.mark.parametrize("hostile", [0.5, -0.1, 1])
def test_no_rule_withstands_a_half(tmp_path: Path, hostile: float) -> None:
    with pytest.raises(ConfigurationError, match="hostile"):
        read(tmp_path, "aggregation.robust=multi-krum", f"aggregation.hostile={hostile}")


@pytest.mark.parametrize("bound", [0.5, 1, -3, math.inf, math.nan])
def test_a_guard_from_code_has_bounds_that_mean_something(bound: float) -> None:
    with pytest.raises(ConfigurationError, match="norm_factor"):
        Guard(norm_factor=bound)


def test_every_rule_goes_with_every_method_and_says_what_it_withstands(tmp_path: Path) -> None:
    assert set(ROBUST_NAMES) == set(MAKERS)
    for method in METHODS:
        for name in ROBUST_NAMES:
            section = read(tmp_path, f"aggregation.method={method}", f"aggregation.robust={name}").aggregation
            assert section.hostile == 0.25
            assert robust_rule(section) == MAKERS[name](0.25)
    kept = read(tmp_path, "aggregation.method=fedit", file='[aggregation]\nrobust="geometric-median"\nhostile=0.4')
    assert robust_rule(kept.aggregation) == GeometricMedian(0.4)
