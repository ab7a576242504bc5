import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florist.files import strict_json


def refuse(constant: str) -> float:
    raise AssertionError(constant)


documents = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
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
    found = strict_json.decode(text)
    assert found["a"] == 1.5
    assert math.isnan(found["b"])
    assert math.isnan(found["c"][0]["d"][0])


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        strict_json.decode("{")
