import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from florist.checkpoint.patterns import ModulePattern, rank_pattern
from florist.errors import InvalidAdapterError


def peft_reads(pattern: dict[str, int], module: str, default: int) -> int:
    return pattern.get(get_pattern_key(pattern.keys(), module), default)


def test_unambiguous_names_stay_as_they_are():
    ranks = {"model.layers.0.q_proj": 3, "model.layers.1.q_proj": 8, "model.layers.1.v_proj": 5}
    assert rank_pattern(ranks, default=8) == {"model.layers.0.q_proj": 3, "model.layers.1.v_proj": 5}


def test_a_name_that_ends_another_is_anchored():
    ranks = {"head": 2, "tower.head": 3, "body": 7}
    pattern = rank_pattern(ranks, default=7)
    assert pattern == {"^head": 2, "tower.head": 3}
    assert {name: peft_reads(pattern, name, 7) for name in ranks} == ranks


def test_a_module_of_the_default_rank_is_not_caught_by_a_shorter_name():
    ranks = {"head": 2, "tower.head": 7}
    pattern = rank_pattern(ranks, default=7)
    assert {name: peft_reads(pattern, name, 7) for name in ranks} == ranks


def test_a_dot_that_matches_a_letter_is_escaped():
    ranks = {"a.b": 1, "axb": 2}
    pattern = rank_pattern(ranks, default=9)
    assert pattern == {r"^a\.b": 1, "axb": 2}


def test_a_name_that_is_no_regular_expression_is_escaped():
    ranks = {"experts(0": 1, "experts(1": 2, "c++": 3}
    pattern = rank_pattern(ranks, default=9)
    assert {name: peft_reads(pattern, name, 9) for name in ranks} == ranks


names = st.lists(st.sampled_from(["a", "b", "0", "1", "x", "axb", "c+"]), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(names, st.integers(1, 4), min_size=1, max_size=12))
def test_peft_reads_back_every_rank_even_after_sorting_the_keys(ranks: dict[str, int]):
    default = max(ranks.values())
    pattern = rank_pattern(ranks, default)
    resaved = dict(sorted(pattern.items()))
    assert {name: peft_reads(resaved, name, default) for name in ranks} == ranks


@given(
    st.dictionaries(st.one_of(names, st.just(r"layers\.\d+\.q"), st.just("^a")), st.integers(1, 4), max_size=6), names
)
def test_values_resolve_as_in_peft(pattern: dict[str, int], module: str):
    assert ModulePattern.of(pattern).values([module], 99)[module] == peft_reads(pattern, module, 99)


def test_very_many_modules_share_one_key_a_rank():
    # PEFT took 21 s to look up the ranks of 882 modules by name: Python caches 512 compiled expressions.
    ranks = {f"model.layers.{layer}.experts.{e}.up": 1 + (layer * e) % 7 for layer in range(30) for e in range(20)}
    pattern = rank_pattern(ranks, default=7)
    assert len(pattern) == 6
    assert {name: peft_reads(dict(sorted(pattern.items())), name, 7) for name in ranks} == ranks


def test_a_key_that_is_no_regular_expression_is_refused():
    with pytest.raises(InvalidAdapterError, match=re.escape("'q_proj('")):
        ModulePattern.of({"q_proj(": 2})
