"""Settings on their way through Flower's command lines."""

import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("the example runs on Linux", allow_module_level=True)

from examples.flower.loopback.flower import free_port, key_values, read_key_values

NAMES = st.from_regex(r"[a-z][a-z-]{0,9}(\.[a-z]{1,9})?", fullmatch=True)
# What Flower's own way of cutting these lines lets through.
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=20).filter(
    lambda text: text.isprintable() and "'" not in text
)
VALUES = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXTS)


@given(settings=st.dictionaries(NAMES, VALUES, max_size=5))
def test_what_is_written_is_read(settings: dict[str, bool | int | float | str]) -> None:
    read = read_key_values(key_values(settings))
    assert read == settings
    assert [type(value) for value in read.values()] == [type(value) for value in settings.values()]


def test_flower_reads_the_same() -> None:
    config = pytest.importorskip("flwr.common.config", reason="flwr comes with the flower extra")

    @given(settings=st.dictionaries(NAMES.filter(lambda name: "." not in name), VALUES, max_size=5))
    def check(settings: dict[str, bool | int | float | str]) -> None:
        assert config.parse_config_args([key_values(settings)]) == settings

    check()


@pytest.mark.parametrize("text", ["it's", 'say "no"', "path\\to", "a b"])
def test_texts_that_need_care(text: str) -> None:
    assert read_key_values(key_values({"name": text})) == {"name": text}


@pytest.mark.parametrize("text", ['it\'s "no"', "two\nlines", "it's a \\"])
def test_texts_that_flower_would_cut_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Flower cannot take"):
        key_values({"name": text})


@pytest.mark.parametrize(("text", "message"), [("rounds", "expected name=value"), ("name=word", "quotation marks")])
def test_what_is_no_setting_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_key_values(text)


def test_ports_are_free_and_unlike() -> None:
    taken: set[int] = set(range(20_000, 31_990))
    for _ in range(3):
        port = free_port(taken)
        assert 31_990 <= port < 32_000
        taken.add(port)
    assert len(taken) == 11_993


def test_a_port_with_a_listener_is_not_free() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="every one is taken"):
        free_port(set(range(20_000, 32_000)) - {port})
