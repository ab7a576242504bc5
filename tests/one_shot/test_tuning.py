import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation import Florist
from florist.checkpoint import AdapterLayout, ExpertLayout, encode
from florist.errors import ConfigurationError, InvalidAdapterError
from florist.factors import AdapterState
from florist.one_shot.tuning import Goal, Point, bisect, evaluations, pick_efficient, pick_optimal, sweep
from florist.ranks import EnergyThreshold
from tests.builders import SHAPES, adapter, dense_sum, federation, relative_error

TAUS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
ACCURACY = Goal("accuracy", lower_is_better=False)
LOSS = Goal("loss", lower_is_better=True)


def whole(ranks: Sequence[int] = (3, 5, 2), seed: int = 0, dtype: torch.dtype = torch.float64) -> AdapterState:
    return Florist(EnergyThreshold(1.0))(federation(ranks, seed=seed, dtype=dtype)).shared


def curve(metric: str, *values: float, taus: Sequence[float] | None = None) -> list[Point]:
    """Points of a hand-made curve; unlike ranks, so that each counts."""
    taus = taus or [(k + 1) / len(values) for k in range(len(values))]
    return [
        Point(tau, {"x": k}, k, 0.0, {metric: value}) for k, (tau, value) in enumerate(zip(taus, values, strict=True))
    ]


class Recorder:
    """Measures nothing but how often it is asked, and keeps the cuts."""

    def __init__(self, measure: Callable[[AdapterState], float] = lambda _: 0.0) -> None:
        self.cuts: list[AdapterState] = []
        self._measure = measure

    def __call__(self, cut: AdapterState) -> Mapping[str, float]:
        self.cuts.append(cut)
        return {"accuracy": self._measure(cut)}


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), ranks=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_cuts_are_the_best_approximations_of_the_dense_sum(seed: int, ranks: list[int]) -> None:
    updates = federation(ranks, seed=seed)
    recorder = Recorder()
    points = sweep(Florist(EnergyThreshold(1.0))(updates).shared, TAUS, recorder)
    cuts = {tuple(factor.rank for factor in cut.values()): cut for cut in recorder.cuts}
    for point in points:
        cut, lost, energy = cuts[tuple(point.ranks.values())], 0.0, 0.0
        for name in SHAPES:
            dense = dense_sum(updates, name)
            U, S, Vh = torch.linalg.svd(dense)
            p = point.ranks[name]
            assert relative_error(cut[name].delta_weight(), (U[:, :p] * S[:p]) @ Vh[:p]) < 1e-10
            if point.tau < 1:  # the smallest such rank
                squares = S.square()
                assert squares[:p].sum() >= point.tau * squares.sum() * (1 - 1e-12)
                assert squares[: p - 1].sum() < point.tau * squares.sum() * (1 + 1e-12)
            lost, energy = lost + float(S[p:].square().sum()), energy + float(S.square().sum())
        assert point.relative_error == pytest.approx((lost / energy) ** 0.5, abs=1e-9)
        assert point.nbytes == encode(cut).nbytes
        assert point.total_rank == cut.total_rank


def test_bytes_are_those_of_what_is_written() -> None:
    # A module that nobody trained is stored at rank 1, and the experts of a parameter at the largest rank among them.
    held = dict(whole(dtype=torch.float32))
    held["layers.0.v_proj"] = held["layers.0.v_proj"].leading(0)
    first, second = held.pop("layers.0.q_proj"), held["layers.1.up"]
    experts = {"mlp.experts[0]": first, "mlp.experts[1]": first.scaled(0.5).leading(2)}
    layout = AdapterLayout(
        {name: ExpertLayout("mlp.experts", "mlp.experts", k, 2, ("up",)) for k, name in enumerate(experts)},
        target_parameters=("experts.up",),
    )
    recorder = Recorder()
    points = sweep(AdapterState.of({**held, **experts}), [0.3, 0.9, 1.0], recorder, layout=layout)
    assert [point.nbytes for point in points] == [encode(cut, layout=layout).nbytes for cut in recorder.cuts]
    assert points[-1].ranks["layers.0.v_proj"] == 0
    assert points[-1].total_rank == first.rank + 2 + second.rank


def test_one_decomposition_serves_every_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = federation([3, 5, 2], dtype=torch.float32)
    anew = {tau: Florist(EnergyThreshold(tau))(updates) for tau in TAUS}
    held = whole(dtype=torch.float32)

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a sweep decomposes nothing")

    for name in ("svd", "svdvals", "eigh", "eigvalsh", "qr"):
        monkeypatch.setattr(torch.linalg, name, refuse)
    recorder = Recorder()
    points = sweep(held, TAUS, recorder)
    for point in points:
        assert point.ranks == {name: factor.rank for name, factor in anew[point.tau].shared.items()}
        assert point.relative_error == pytest.approx(anew[point.tau].certificate.relative_error, abs=1e-5)
    with pytest.raises(pytest.fail.Exception):  # the guard guards
        Florist(EnergyThreshold(0.9))(updates)


def test_points_ascend_and_equal_cuts_are_measured_once() -> None:
    recorder, told = Recorder(), list[Point]()
    points = sweep(whole([1]), [1.0, 0.2, 0.9, 0.2], recorder, on_point=told.append)
    assert [point.tau for point in points] == [0.2, 0.9, 1.0]
    assert told == points
    assert len(recorder.cuts) == evaluations(points) == 1  # a rank of 1 cannot be cut


def test_a_sweep_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(InvalidAdapterError, match="decompose it first"):
        sweep(adapter(4, 0), TAUS, Recorder())
    with pytest.raises(ConfigurationError, match="at least one threshold"):
        sweep(whole(), [], Recorder())
    recorder = Recorder()
    with pytest.raises(ConfigurationError, match="0 < tau <= 1"):
        sweep(whole(), [0.5, 1.5], recorder)
    assert recorder.cuts == []


def test_the_optimal_point_is_the_best_and_of_equals_the_lowest() -> None:
    assert pick_optimal(curve("accuracy", 0.5, 0.8, 0.7, 0.8), ACCURACY).tau == 0.5
    assert pick_optimal(curve("loss", 2.0, 1.5, 1.0, 1.2), LOSS).tau == 0.75
    assert pick_optimal(curve("loss", math.nan, 3.0, 3.0, math.inf), LOSS).tau == 0.5
    with pytest.raises(ConfigurationError, match="expected a number for 'loss'"):
        pick_optimal(curve("loss", math.nan, math.nan), LOSS)
    with pytest.raises(ConfigurationError, match="'loss' among those measured"):
        pick_optimal(curve("accuracy", 0.5), LOSS)


@pytest.mark.parametrize(
    ("values", "goal", "tau"),
    [
        ((0.5, 0.8, 0.8, 0.8), ACCURACY, 0.5),
        ((0.5, 0.7, 0.8, 0.8), Goal("accuracy", lower_is_better=False, margin=0.1), 0.5),
        # Not monotone: the lowest that matches, though a higher one does not.
        ((0.5, 0.9, 0.6, 0.8), ACCURACY, 0.5),
        ((0.9, 0.5, 0.6, 0.8), ACCURACY, 0.25),
        ((0.5, 0.6, 0.7, 0.8), ACCURACY, 1.0),
        ((0.5, 0.6, 0.7, 0.8), Goal("accuracy", lower_is_better=False, baseline=0.6), 0.5),
        ((0.5, 0.6, 0.7, 0.8), Goal("accuracy", lower_is_better=False, baseline=0.9), None),
        ((0.5, 0.6, 0.7, 0.8), Goal("accuracy", lower_is_better=False, baseline=0.9, margin=0.1), 1.0),
        ((2.0, 1.5, 1.0, 1.2), LOSS, 0.75),
        ((2.0, 1.5, 1.0, 1.2), Goal("loss", lower_is_better=True, baseline=1.4, margin=0.1), 0.5),
        ((2.0, 1.5, 1.0, 1.2), Goal("loss", lower_is_better=True, baseline=0.9), None),
        ((math.nan, 1.5, 1.0, 1.2), Goal("loss", lower_is_better=True, baseline=9.0), 0.5),
    ],
)
def test_the_efficient_point_is_the_lowest_that_matches(
    values: tuple[float, ...], goal: Goal, tau: float | None
) -> None:
    found = pick_efficient(curve(goal.metric, *values), goal)
    assert (found.tau if found else None) == tau


def test_without_a_baseline_tau_1_is_needed() -> None:
    points = curve("accuracy", 0.5, 0.6, taus=[0.5, 0.9])
    with pytest.raises(ConfigurationError, match="expected tau = 1 among the thresholds"):
        pick_efficient(points, ACCURACY)
    with pytest.raises(ConfigurationError, match="expected tau = 1 among the thresholds"):
        bisect(whole(), [0.5, 0.9], Recorder(), ACCURACY)


@pytest.mark.parametrize(
    "wrong", [{"margin": -0.1}, {"margin": math.nan}, {"margin": math.inf}, {"baseline": math.nan}]
)
def test_a_goal_that_nothing_can_reach_or_miss_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"expected a .*{next(iter(wrong))}"):
        Goal("loss", lower_is_better=True, **wrong)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    taus=st.lists(st.floats(0.05, 1), min_size=1, max_size=30),
    steps=st.lists(st.integers(0, 3), min_size=10, max_size=10),
    baseline=st.none() | st.integers(-1, 35),
    lower_is_better=st.booleans(),
)
def test_bisecting_finds_what_the_sweep_finds(
    taus: list[float], steps: list[int], baseline: int | None, lower_is_better: bool
) -> None:
    # Any function that does not fall with the rank, with plateaus.
    heights = [sum(steps[:k]) for k in range(len(steps) + 1)]
    sign = -1 if lower_is_better else 1

    def measure(cut: AdapterState) -> float:
        return float(sign * heights[min(cut.total_rank // 3, 10)])

    goal = Goal("accuracy", lower_is_better, None if baseline is None else float(sign * baseline))
    held, taus = whole(), [*taus, 1.0]
    recorder = Recorder(measure)
    few, all_ = bisect(held, taus, recorder, goal), sweep(held, taus, Recorder(measure))
    assert pick_efficient(few, goal) == pick_efficient(all_, goal)
    assert len(recorder.cuts) == evaluations(few) <= 1 + math.ceil(math.log2(len(set(taus))))
    assert [point.tau for point in few] == sorted(point.tau for point in few)
    if baseline is not None and pick_efficient(all_, goal) is None:
        assert len(recorder.cuts) == 1
