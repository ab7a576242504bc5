"""Candidates for a rank without a number to choose, and the tables that compare them with fixed tau."""

from pathlib import Path

import pytest
import torch
from benchmarks.auto_rank import (
    CANDIDATES,
    LINES,
    SETTINGS,
    Benchmark,
    Outcome,
    best,
    cheapest,
    markdown,
    qualifies,
)
from benchmarks.rank_candidates import AboveEdges, Elbow, SignFlips, null_spectra, sign_patterns

from florist.aggregation.updates import accepted_updates, weighted_factors
from florist.factors import AdapterState, LoraFactor
from florist.linalg.spectrum import Spectrum
from florist.ranks import RankRule
from florist.rounds import Aggregator, ClientUpdate
from tests.builders import SHAPES, federation


def spectrum(*values: float) -> Spectrum:
    return Spectrum(torch.tensor(values).double(), 1e-9, shape=(20, 30))


@pytest.mark.parametrize("ranks", [(2, 3, 1), (4, 4, 4, 4), (16, 9, 3, 20)])
def test_the_null_spectrum_is_that_of_the_dense_sum_of_signed_updates(ranks: tuple[int, ...]) -> None:
    updates = accepted_updates(federation(ranks, counts=range(1, len(ranks) + 1)))
    signs = sign_patterns(len(ranks), 8, seed=0)
    for module, shape in SHAPES.items():
        weighted = weighted_factors(updates, module)
        null = null_spectra(weighted, signs)
        for pattern, found in zip(signs, null, strict=True):
            dense = sum(float(s) * w * f.delta_weight() for s, (w, f) in zip(pattern, weighted, strict=True))
            expected = torch.linalg.svdvals(dense)
            assert (found - expected[: len(found)]).norm() <= 1e-12 * expected.norm()
            assert expected[len(found) :].norm() <= 1e-12 * expected.norm()
            assert len(found) == min(*shape, sum(ranks))


@pytest.mark.parametrize(("clients", "count"), [(1, 0), (2, 1), (3, 3), (4, 7), (5, 8), (8, 8)])
def test_patterns_of_signs_are_unlike_and_no_pattern_is_the_sum_itself(clients: int, count: int) -> None:
    signs = sign_patterns(clients, 8, seed=3)
    assert signs.shape == (count, clients)
    assert set(signs.flatten().tolist()) <= {1.0, -1.0}
    assert len({tuple(each) for each in signs.tolist()}) == count
    assert all(-1.0 in each and each[0] == 1.0 for each in signs.tolist())
    assert torch.equal(signs, sign_patterns(clients, 8, seed=3))


def clients_of(*products: torch.Tensor) -> list[ClientUpdate]:
    eye = torch.eye(products[0].shape[1], dtype=torch.float64)
    return [
        ClientUpdate(f"client_{k}", AdapterState.of({"layer": LoraFactor(each, eye)}), 1, 1)
        for k, each in enumerate(products)
    ]


def directions(*numbers: int) -> torch.Tensor:
    return torch.eye(12, dtype=torch.float64)[:, list(numbers)] @ torch.eye(12, dtype=torch.float64)[list(numbers)]


def test_signs_keep_what_all_clients_share_and_nothing_that_one_client_has_alone() -> None:
    shared = 3 * directions(0, 1)
    own = [directions(2 + k) for k in range(8)]
    assert SignFlips()(clients_of(*(shared + each for each in own))).shared["layer"].rank == 2
    assert SignFlips()(clients_of(*own)).certificate.modules["layer"].energy_kept == 0  # of unlike clients nothing


def test_one_client_keeps_everything_and_two_keep_what_exceeds_their_difference() -> None:
    first, second = 3 * directions(0) + directions(1, 2), 3 * directions(0) - directions(1, 2)
    assert SignFlips()(clients_of(first)).shared["layer"].rank == 3
    assert SignFlips()(clients_of(first, second)).shared["layer"].rank == 1


def test_edges_stop_at_the_first_direction_below_its_own() -> None:
    rule = AboveEdges({"layer": torch.tensor([2.0, 2.0, 2.0]).double()})
    assert rule({"layer": spectrum(5.0, 1.9, 1.8)}) == {"layer": 1}
    rule = AboveEdges({"layer": torch.tensor([4.0, 2.0, 1.0]).double()})
    assert rule({"layer": spectrum(5.0, 1.9, 1.8)}) == {"layer": 1}
    assert rule({"layer": spectrum(5.0, 4.0, 3.0, 3.0)}) == {"layer": 3}


def test_the_elbow_is_where_the_energy_is_furthest_above_its_chord() -> None:
    values = (
        torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(descending=True).values
    )
    held = torch.cat([torch.zeros(1).double(), values.square().cumsum(0)])
    chord = held[-1] * torch.arange(41) / 40
    assert Elbow()({"layer": spectrum(*values.tolist())}) == {"layer": int((held - chord).argmax())}


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_an_elbow_of_equal_values_keeps_one_and_of_no_values_none(power: float) -> None:
    assert Elbow(power)({"layer": spectrum(2.0, 2.0, 2.0)}) == {"layer": 1}
    assert Elbow(power)({"layer": spectrum()}) == {"layer": 0}


def test_candidates_are_what_florist_takes() -> None:
    assert isinstance(Elbow(), RankRule)
    assert isinstance(AboveEdges({}), RankRule)
    assert all(isinstance(line.aggregator, Aggregator) for line in CANDIDATES)


def test_every_line_is_a_configuration(tmp_path: Path) -> None:
    for setting in SETTINGS.values():
        for line in LINES:
            assert Benchmark(tmp_path, None, quick=False).config(setting, 0, line.keys).has_validation


def outcome(line: str, losses: list[float], nbytes: float) -> Outcome:
    return Outcome(
        line,
        {
            seed: {"validation": loss, "test": loss + 1, "client_download_bytes": nbytes, "kept": [0.5, 0.7]}
            for seed, loss in enumerate(losses)
        },
    )


def test_a_candidate_has_to_be_near_the_best_tau_and_no_dearer() -> None:
    low, middle, high = (
        outcome("tau 0.9", [3.1, 3.3, 3.2], 1e5),
        outcome("tau 0.95", [3.009, 3.209, 3.109], 2e5),
        outcome("tau 0.99", [3.0, 3.2, 3.1], 4e5),
    )
    assert best([low, middle, high]) is high
    assert cheapest([low, middle, high]) is middle
    candidate = outcome("elbow", [3.008, 3.208, 3.108], 3e5)
    assert qualifies(candidate, high)
    assert not qualifies(candidate, middle)
    assert not qualifies(low, high)
    lines = list(markdown({CANDIDATES[2].name: candidate, **{each.line: each for each in (low, middle, high)}}))
    assert lines[2:] == [
        "| tau 0.9 | 3 | 0.50, 0.70 | 3.200 | 4.200 | 100 | | | | | |",
        "| tau 0.95 | 3 | 0.50, 0.70 | 3.109 | 4.109 | 200 | | | | | |",
        "| tau 0.99 | 3 | 0.50, 0.70 | 3.100 | 4.100 | 400 | | | | | |",
        "| elbow | 3 | 0.50, 0.70 | 3.108 | 4.108 | 300 | tau 0.99 | +0.008 ± 0.000 | +0.008 ± 0.000 | 0.75 | yes |",
        "| | | | | | | tau 0.95 | -0.001 ± 0.000 | -0.001 ± 0.000 | 1.50 | no |",
    ]
