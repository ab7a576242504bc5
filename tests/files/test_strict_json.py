import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from florist.files import strict_json


def refuse(constant: str) -> float:
    raise AssertionError(constant)


@dataclass(frozen=True)
class Line:
    loss: strict_json.Number
    reason: str | None


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(documents)
def test_finite_documents_come_back(document: object) -> None:
    assert strict_json.decode(strict_json.encode(document)) == document
    assert strict_json.encode(document, indent=2) == json.dumps(document, indent=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null_however_deep_it_lies(value: float) -> None:
    text = strict_json.encode({"a": 1.5, "b": value, "c": ({"d": [value, 2]},)})
    assert text == '{"a": 1.5, "b": null, "c": [{"d": [null, 2]}]}'
    assert json.loads(text, parse_constant=refuse)["b"] is None


def test_null_is_none_where_the_reader_does_not_say_that_it_is_a_number() -> None:
    text = strict_json.encode({"loss": math.nan, "reason": None})
    document = strict_json.decode(text)
    assert document == {"loss": None, "reason": None}
    found = TypeAdapter(Line).validate_python(document)
    assert math.isnan(found.loss)
    assert found.reason is None
    assert TypeAdapter(Line).validate_python({"loss": 2, "reason": "x"}) == Line(2.0, "x")


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        strict_json.decode("{")
