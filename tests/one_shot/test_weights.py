"""An aggregate counts as much as what went into it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from florist.errors import InvalidUpdateError
from florist.one_shot import CountedIn, aggregate, open_inputs
from florist.one_shot.certificate import FORMAT
from florist.one_shot.weights import given as given_weights
from florist.ranks import EnergyThreshold
from tests.builders import SHAPES, relative_error

from .sites import Site, products, weighted

LOSSLESS = EnergyThreshold(1.0)
SITES = st.builds(
    Site,
    rank=st.integers(1, 5),
    alpha=st.integers(1, 16),
    examples=st.integers(1, 9),
    modules=st.sets(st.sampled_from(list(SHAPES)), min_size=1).map(lambda names: tuple(sorted(names))),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)


def merge(out: Path, *adapters: Path, num_examples: list[int | Fraction] | None = None) -> Path:
    aggregate(adapters, rank_rule=LOSSLESS, num_examples=num_examples).write(out)
    return out


@given(groups=st.lists(st.lists(SITES, min_size=1, max_size=3), min_size=1, max_size=3), weighed=st.booleans())
@settings(max_examples=6)
def test_an_aggregate_of_aggregates_is_the_aggregate_of_all(groups: list[list[Site]], weighed: bool) -> None:
    with TemporaryDirectory() as folder:
        edges: list[Path] = []
        leaves: dict[Path, int] = {}
        for number, group in enumerate(groups):
            paths = [site.save(Path(folder, f"site-{number}-{k}")) for k, site in enumerate(group)]
            counts = [site.examples if weighed else 1 for site in group]
            leaves |= dict(zip(paths, counts, strict=True))
            edges.append(merge(Path(folder, f"edge-{number}"), *paths, num_examples=counts if weighed else None))
        found = products(merge(Path(folder, "nested"), *edges))
        flat = products(merge(Path(folder, "flat"), *leaves, num_examples=list(leaves.values())))
        expected = weighted(leaves)
        for name in SHAPES:
            # Terms may cancel: what float32 rounds off is measured against them.
            scale = max(1.0, *(float(products(path)[name].norm()) for path in leaves))
            for result in (found, flat):
                assert float((result[name] - expected[name]).norm()) < 2e-6 * scale


def test_three_levels_keep_count(tmp_path: Path) -> None:
    a, b, c = (Site(3, 6, seed=seed).save(tmp_path / str(seed)) for seed in range(3))
    region = merge(tmp_path / "region", merge(tmp_path / "edge", a, b, num_examples=[30, 10]))
    assert json.loads((region / "florist.json").read_text())["num_examples"] == 40
    top = merge(tmp_path / "top", region, merge(tmp_path / "other", c, num_examples=[60]))
    assert open_inputs([top]).weights.counts == (100,)
    expected = weighted({a: 30, b: 10, c: 60})
    assert all(relative_error(products(top)[name], expected[name]) < 1e-6 for name in SHAPES)


def test_adapters_that_nobody_weighed_count_once_each_and_their_aggregates_as_often(tmp_path: Path) -> None:
    a, b, c = (Site(2, 2, seed=seed).save(tmp_path / str(seed)) for seed in range(3))
    inputs = open_inputs([merge(tmp_path / "edge", a, b), c])
    assert (inputs.weights.counts, inputs.weights.counted_in) == ((2, 1), CountedIn.ADAPTERS)


@pytest.mark.parametrize(
    "weighed", [[Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)], [3, 1, 1]], ids=["shares", "examples"]
)
def test_unlike_units_are_refused_until_all_are_weighed(tmp_path: Path, weighed: list[int | Fraction]) -> None:
    a, b, c, d = (Site(2, 2, seed=seed).save(tmp_path / str(seed)) for seed in range(4))
    edge = merge(tmp_path / "edge", a, b, c, num_examples=weighed)
    unit = "5 examples" if weighed == [3, 1, 1] else "weighted by shares of an unknown number of examples"
    with pytest.raises(InvalidUpdateError, match=rf"edge: {unit}; .*3: 1 adapter that nobody .*\(--weights\)"):
        open_inputs([edge, d])
    assert open_inputs([edge, d], num_examples=[5, 1]).weights.counts == (5, 1)


def test_shares_of_unknown_size_are_not_compared_even_with_each_other(tmp_path: Path) -> None:
    half = [Fraction(1, 2), Fraction(1, 2)]
    sites = [Site(2, 2, seed=seed).save(tmp_path / str(seed)) for seed in range(4)]
    one, two = (
        merge(tmp_path / "one", *sites[:2], num_examples=half),
        merge(tmp_path / "two", *sites[2:], num_examples=half),
    )
    with pytest.raises(
        InvalidUpdateError,
        match=r"got weights that cannot be compared \(.*two: weighted by shares of an unknown number.*--weights",
    ):
        open_inputs([one, two])
    alone = merge(tmp_path / "alone", one)  # nothing to compare with, and still no number of examples
    assert open_inputs([alone]).weights.counted_in is CountedIn.SHARES
    weighed = open_inputs([alone, two], num_examples=[30, 10])
    assert (weighed.weights.counts, weighed.weights.counted_in) == ((30, 10), CountedIn.EXAMPLES)


def test_shares_invent_no_examples(tmp_path: Path) -> None:
    sites = [Site(2, 2, seed=seed).save(tmp_path / str(seed)) for seed in range(2)]
    edge = merge(tmp_path / "edge", *sites, num_examples=[Fraction("0.6"), Fraction("0.4")])
    certificates = [json.loads((path / "florist.json").read_text()) for path in (edge, merge(tmp_path / "top", edge))]
    for certificate in certificates:
        assert (certificate["num_examples"], certificate["counted_in"]) == (None, "shares")
        assert {entry["num_examples"] for entry in certificate["inputs"]} == {None}
    assert [entry["weight"] for entry in certificates[0]["inputs"]] == [0.6, 0.4]


@pytest.mark.parametrize("weight", [0, -2, Fraction(0)])
def test_a_weight_that_is_not_positive_is_refused_with_the_adapter(tmp_path: Path, weight: int | Fraction) -> None:
    sites = [Site(2, 2, seed=seed).save(tmp_path / f"site{seed}") for seed in range(2)]
    message = rf"got {weight} for .*site1; leave that adapter out, or give it a positive weight"
    with pytest.raises(InvalidUpdateError, match=message):
        open_inputs(sites, num_examples=[1, weight])


def test_fractions_become_whole_numbers_without_rounding() -> None:
    third = given_weights([Fraction(1, 3), Fraction("0.5"), Fraction(1, 6)])
    assert (third.counts, third.counted_in) == ((2, 3, 1), CountedIn.SHARES)
    whole = given_weights([Fraction(3), 1])
    assert (whole.counts, whole.counted_in) == ((3, 1), CountedIn.EXAMPLES)
    assert whole.shares == (0.75, 0.25)


def edit(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    file = directory / "florist.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (
        lambda d: d.joinpath("adapter_model.safetensors").write_bytes(
            save({k: 2 * t for k, t in load_file(d / "adapter_model.safetensors").items()})
        ),
        "has changed since or is another",
    ),
    "alpha": (
        lambda d: (d / "adapter_config.json").write_text((d / "adapter_config.json").read_text() + "\n"),
        "has changed since or is another",
    ),
    "no hash": (
        lambda d: edit(d, lambda c: c.pop("sha256")),
        "expected a certificate of florist in .*, and reading failed: it lacks sha256; the",
    ),
    "no json": (
        lambda d: (d / "florist.json").write_text("{"),
        "expected a certificate of florist in .*, and reading failed: Expecting",
    ),
    "a list": (lambda d: (d / "florist.json").write_text("[]"), "expected a certificate of florist in"),
    "count": (lambda d: edit(d, lambda c: c.update(num_examples=-4)), "a whole number from 1, .*got -4"),
    "no count": (lambda d: edit(d, lambda c: c.update(num_examples=None)), "a whole number from 1, .*got None"),
    "format": (lambda d: edit(d, lambda c: c.update(format="1")), "expected format in .* a whole number, got '1'"),
    "huge count": (lambda d: edit(d, lambda c: c.update(num_examples=10**400)), "a whole number from 1, below 1e"),
    "nesting": (lambda d: (d / "florist.json").write_text("[" * 50_000), "expected a certificate .*nested too deeply"),
    "nested author": (
        lambda d: (d / "florist.json").write_text('{"format": 99, "florist": ' + "[" * 900 + "]" * 900 + "}"),
        "expected a certificate of florist in",
    ),
    "a FIFO": (lambda d: ((d / "florist.json").unlink(), os.mkfifo(d / "florist.json")), "found a FIFO"),
    "a device": (lambda d: ((d / "florist.json").unlink(), (d / "florist.json").symlink_to("/dev/zero")), "a device"),
    "a directory": (lambda d: ((d / "florist.json").unlink(), (d / "florist.json").mkdir()), "found a directory"),
    "too large": (lambda d: os.truncate(d / "florist.json", 10**9), "at most 64000000 bytes"),
    "unit": (lambda d: edit(d, lambda c: c.update(counted_in="pounds")), "expected a certificate .*pounds"),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT)
def test_a_certificate_that_cannot_be_believed_is_noted_and_not_used(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    a, b, c = (Site(2, 2, seed=seed).save(tmp_path / str(seed)) for seed in range(3))
    edge = merge(tmp_path / "edge", a, b)
    assert open_inputs([edge, c]).weights.counts == (2, 1)
    spoil(edge)
    inputs = open_inputs([edge, c])
    assert inputs.weights.counts == (1, 1)
    (note,) = inputs.notes
    assert re.search(reason, note)
    document = aggregate([edge, c], rank_rule=LOSSLESS).write(tmp_path / "out")
    assert note in document["notes"]


def test_a_certificate_says_its_format(tmp_path: Path) -> None:
    edge = merge(tmp_path / "edge", Site(2, 2).save(tmp_path / "a"), num_examples=[7])
    content = json.loads((edge / "florist.json").read_text())
    assert next(iter(content)) == "format"
    assert content["format"] == FORMAT


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, (7, CountedIn.EXAMPLES)), ({"num_examples": 5, "counted_in": "shares"}, (1, CountedIn.SHARES))],
    ids=["examples", "shares"],
)
def test_a_certificate_of_a_florist_that_wrote_no_format_is_read(
    tmp_path: Path, changes: dict[str, object], expected: tuple[int, CountedIn]
) -> None:
    edge = merge(tmp_path / "edge", Site(2, 2).save(tmp_path / "a"), num_examples=[7])
    edit(edge, lambda content: (content.pop("format"), content.update(changes)))
    weights = open_inputs([edge]).weights
    assert (weights.counts[0], weights.counted_in) == expected


def test_a_newer_certificate_is_refused_where_its_weight_is_wanted(tmp_path: Path) -> None:
    a, b = (Site(2, 2, seed=seed).save(tmp_path / str(seed)) for seed in range(2))
    edge = merge(tmp_path / "edge", a, num_examples=[7])
    edit(edge, lambda content: content.update(format=FORMAT + 1, florist="99.0"))
    message = rf"edge/florist\.json in format {FORMAT} or older, got format {FORMAT + 1} of florist 99\.0.*--weights"
    with pytest.raises(InvalidUpdateError, match=message):
        open_inputs([edge, b])
    assert open_inputs([edge, b], num_examples=[7, 1]).weights.counts == (7, 1)


def test_adapters_of_the_same_bytes_are_noted(tmp_path: Path) -> None:
    a, b = (Site(2, 2, seed=seed).save(tmp_path / name) for seed, name in enumerate("ab"))
    copied = Path(shutil.copytree(a, tmp_path / "copied"))
    document = aggregate([a, b], rank_rule=LOSSLESS).write(tmp_path / "out")
    assert not any("byte for byte" in note for note in document["notes"])
    document = aggregate([a, b, copied], rank_rule=LOSSLESS).write(tmp_path / "twice")
    (note,) = (note for note in document["notes"] if "byte for byte" in note)
    digest = document["inputs"][0]["sha256"]["adapter_model.safetensors"]
    assert note.startswith(f"{a} and {copied} hold the same weights, byte for byte (SHA-256 {digest[:12]}")
    assert "each is counted" in note


def test_certificates_are_not_consulted_where_weights_are_given(tmp_path: Path) -> None:
    a, b = (Site(2, 2, seed=seed).save(tmp_path / str(seed)) for seed in range(2))
    (a / "florist.json").write_text("{")
    assert open_inputs([a, b], num_examples=[1, 1]).notes == ()
