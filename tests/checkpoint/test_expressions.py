import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from florist.checkpoint import expressions
from florist.checkpoint.expressions import first_matches, is_plain, matching, require_expressions
from florist.errors import InvalidAdapterError

HOSTILE = "(a+)+$"
LONG = "a" * 40 + "!"


@pytest.fixture(autouse=True)
def nothing_remembered():
    expressions._matched.cache_clear()


def no_process(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.mark.parametrize(
    "key",
    ["q_proj", "layers.0.q_proj", r"layers\.0\.q", "^model.q", r"^(?:a\.b|c\-d|e)", "", "(?:a|)", "^", "ß", "c\\++"],
)
def test_names_need_no_engine(key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expressions.subprocess, "run", no_process)
    if key != "c\\++":
        assert is_plain(key)
        first_matches([key], ["layers.0.q_proj"])
    else:
        assert not is_plain(key)


alphabet = st.sampled_from(["a", "b", ".", r"\.", "|", "(?:", ")", "^", "x", "0", r"\-", "\\", "-"])
keys = st.lists(alphabet, max_size=6).map("".join)
names = st.lists(st.sampled_from(["a", "b", ".", "x", "0", "-", "|", "\\"]), min_size=1, max_size=7).map("".join)


@given(st.lists(keys, max_size=5), st.lists(names, max_size=5))
def test_plain_keys_mean_what_they_mean_to_peft(keys: list[str], names: list[str]):
    plain = [key for key in keys if is_plain(key)]
    for key in plain:
        re.compile(key)
    found = first_matches(plain, names)
    for name in names:
        expected = get_pattern_key(plain, name)
        # PEFT returns the name itself where no key matches.
        matched = any(re.match(rf"(.*\.)?({key})$", name) for key in plain)
        assert (plain[found[name]] if name in found else None) == (expected if matched else None)


def test_other_keys_mean_what_they_mean_to_peft():
    keys = ["q_proj", r".*\.1\..*", r"layers\.\d+\.v", r"(?=layers).*\.k", r"(\w)\1"]
    names = ["layers.0.q_proj", "layers.1.q_proj", "layers.1.v", "layers.22.v", "layers.2.k", "x.oo", "none"]
    require_expressions(keys, "a pattern")
    found = first_matches(keys, names)
    for name in names:
        matching_keys = [key for key in keys if re.match(rf"(.*\.)?({key})$", name)]
        assert (keys[found[name]] if name in found else None) == next(iter(matching_keys), None)
    assert matching([r"\w+\.\d", "(?i)A.*"], ["x.1", "x.1.y", "ay"], whole=True) == [["x.1"], ["ay"]]


@pytest.mark.slow
def test_an_expression_that_takes_for_ever_is_refused():
    started = time.perf_counter()
    with pytest.raises(InvalidAdapterError, match=r"matched within 1 s, got '\(\.\*.*name the modules instead"):
        first_matches(["q_proj", HOSTILE], [LONG])
    assert time.perf_counter() - started < 20
    assert first_matches([HOSTILE], ["aaa", "q.aa"]) == {"aaa": 0, "q.aa": 0}


def test_the_same_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    assert first_matches(["a+"], ["aa"]) == {"aa": 0}
    monkeypatch.setattr(expressions.subprocess, "run", no_process)
    assert first_matches(["a+"], ["aa"]) == {"aa": 0}


@pytest.mark.parametrize(
    "key",
    ["a{99999999999999999999}", "q_proj(", "(" * 5_000 + ")" * 5_000, "[" * 200_000, "(?P<a>b)(?P<a>c)", "*", "\\"],
    ids=lambda key: key[:24],
)
def test_what_python_cannot_compile_is_refused(key: str):
    with pytest.raises(InvalidAdapterError, match="expected a regular expression over module names in a pattern, got"):
        require_expressions([key], "a pattern")


def test_very_many_keys_are_looked_up():
    names = [f"model.layers.{layer}.experts.{e}.up" for layer in range(30) for e in range(100)]
    started = time.perf_counter()
    assert len(first_matches(names, names)) == len(names)
    assert time.perf_counter() - started < 5
    with pytest.raises(InvalidAdapterError, match="looked up in reasonable time"):
        first_matches(["a" * n + "." + "b" * m for n in range(99) for m in range(99)], names)


def test_a_python_that_cannot_start_another_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expressions.sys, "executable", "")
    with pytest.raises(InvalidAdapterError, match="cannot start another"):
        first_matches(["a+"], ["aa"])
