import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from florist.flower.client_texts import LONGEST, Name, last_line, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("all is well", "all is well"),
        ("bad\nround 2: a is dropped: forged", "bad round 2: a is dropped: forged"),
        ("\r\n a \t\v\f b \u2028 c \x85", "a b c"),
        ("\x1b[2K\x07\x00", "\\x1b[2K\\x07\\x00"),
        ("left \u202eright\u2066", "left \\u202eright\\u2066"),
        ("half \ud800 a pair", "half \\ud800 a pair"),
        ("größer als 30 \N{DEGREE SIGN}, 模型", "größer als 30 \N{DEGREE SIGN}, 模型"),
        ("", ""),
    ],
)
def test_a_text_is_shown_on_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


@pytest.mark.parametrize("text", ["x" * (LONGEST + 1), "x" * 10**6, " " * 10**6, "\n" * 10**6, "\x1b" * 300])
def test_a_long_text_is_cut(text: str) -> None:
    assert len(one_line(text)) <= LONGEST
    assert one_line(text).endswith("...")


@given(st.text())
def test_what_is_shown_is_printable_and_no_longer_than_a_name(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert len(shown) <= LONGEST
    assert one_line(shown) == shown


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("Traceback\n  File\nValueError: x\n\n", "ValueError: x"),
        ("Traceback\n  File\nValueError: \x1b[31mx", "ValueError: \\x1b[31mx"),
        ("", "no reason given"),
        (None, "no reason given"),
        (" \n ", "no reason given"),
    ],
)
def test_of_a_traceback_the_last_line_is_told(reason: str | None, line: str) -> None:
    assert last_line(reason) == line


@pytest.mark.parametrize("name", ["", "x" * (LONGEST + 1), "a\nb", "\x1b[1m", "\u202e"])
def test_a_name_that_could_forge_a_line_is_none(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)
