from pathlib import Path

from florist.cli.summaries import absences, span
from florist.errors import some_of


def test_a_span_is_least_median_and_most() -> None:
    assert span([9, 2, 5]) == "2/5/9"
    assert span([4, 4]) == "4"


def test_long_lists_end_in_a_number() -> None:
    assert some_of(["a", "b"]) == "a, b"
    assert some_of(list("abcdefg"), most=2) == "a, b and 5 more"


def test_modules_that_the_same_adapters_lack_share_a_line() -> None:
    lines = absences({"q": (Path("x"),), "k": (Path("x"),), "v": (Path("x"), Path("y"))})
    assert lines == [
        "absent from x, where it counts as a zero update: q, k",
        "absent from x, y, where it counts as a zero update: v",
    ]
