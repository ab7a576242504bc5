import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from florist.aggregation.products import parameter_gram, product_gram
from florist.aggregation.robust import (
    MAKERS,
    GeometricMedian,
    MultiKrum,
    NormClippedMean,
    RobustRule,
    bounded_weights,
    most_hostile,
    reweighted,
)
from florist.aggregation.robust.multi_krum import krum_scores
from florist.aggregation.updates import client_weights
from florist.errors import ConfigurationError
from florist.factors import AdapterState
from florist.rounds import NO_ADAPTER, ClientUpdate
from tests.builders import adapter, federation

RULES = [pytest.param(make(0.25), id=name) for name, make in MAKERS.items()]


def points(count: int, seed: int, size: int = 30) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shares(count: int, seed: int) -> tuple[float, ...]:
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return tuple((drawn / drawn.sum()).tolist())


def combined(x: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    return torch.tensor(coefficients, dtype=torch.float64) @ x


def dense_geometric_median(x: torch.Tensor, w: Sequence[float]) -> torch.Tensor:
    """The oracle: Weiszfeld on dense vectors, without smoothing that matters."""
    weights, z = torch.tensor(w, dtype=torch.float64), combined(x, w)
    for _ in range(20_000):
        beta = weights / (x - z).norm(dim=1).clamp(min=1e-14)
        z = beta @ x / beta.sum()
    return z


@pytest.mark.parametrize("rule", RULES)
@given(count=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_weights_are_none_negative_and_sum_to_one_at_most(rule: RobustRule, count: int, seed: int) -> None:
    x = points(count, seed)
    found = rule(x @ x.T, shares(count, seed))
    assert len(found) == count
    assert min(found) >= 0
    assert math.fsum(found) <= 1 + 1e-12
    if not isinstance(rule, NormClippedMean):
        assert math.isclose(math.fsum(found), 1, rel_tol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@given(count=st.integers(2, 10), seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_the_order_of_the_clients_does_not_matter(rule: RobustRule, count: int, seed: int) -> None:
    x, w = points(count, seed), shares(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    there, shuffled = rule(x @ x.T, w), rule(x[order] @ x[order].T, [w[k] for k in order])
    assert [there[k] for k in order] == pytest.approx(shuffled, abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weights", [(0.2,) * 5, (0.22, 0.21, 0.2, 0.19, 0.18)])
def test_of_equal_updates_the_rule_is_the_mean(rule: RobustRule, weights: tuple[float, ...]) -> None:
    x = points(1, 0).expand(5, -1)
    found = rule(x @ x.T, weights)
    torch.testing.assert_close(combined(x, found), x[0], rtol=1e-12, atol=1e-12)
    if not isinstance(rule, MultiKrum):
        assert found == pytest.approx(weights, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_clients_and_zero_updates_are_no_trouble(rule: RobustRule, count: int) -> None:
    w = shares(count, count)
    assert math.isclose(math.fsum(rule(torch.zeros(count, count, dtype=torch.float64), w)), 1, rel_tol=1e-9)
    x = points(count, 1)
    x[0] = 0
    assert all(map(math.isfinite, rule(x @ x.T, w)))


@given(count=st.integers(3, 9), seed=st.integers(0, 300))
@settings(max_examples=10)
def test_the_geometric_median_is_that_of_dense_vectors(count: int, seed: int) -> None:
    x, w = points(count, seed), shares(count, seed)
    own = bounded_weights(w, most_hostile(0.25, count))
    found = combined(x, GeometricMedian()(x @ x.T, w))
    assert float((found - dense_geometric_median(x, own)).norm()) < 1e-4 * float(x.norm(dim=1).median())


@pytest.mark.parametrize("length", [1e13, 1e40, 1e76, 1e150])
@pytest.mark.parametrize(("count", "hostile"), [(3, 1), (8, 2), (11, 5)])
def test_the_geometric_median_stays_near_the_majority_however_long_the_others_are(
    count: int, hostile: int, length: float
) -> None:
    honest, others = points(count - hostile, 1) + 3, points(hostile, 2)
    near = combined(torch.cat([honest, 1e6 * others]), GeometricMedian(0.45)(*_inner(honest, 1e6 * others)))
    x = torch.cat([honest, length * others])
    found = combined(x, GeometricMedian(0.45)(*_inner(honest, length * others)))
    torch.testing.assert_close(found, near, rtol=1e-4, atol=1e-4)
    x = length * torch.cat([honest, others])  # where all are as long, it is that of their directions
    of_all = combined(x / length, GeometricMedian()(*_inner(length * honest, length * others)))
    expected = combined(x / length, GeometricMedian()(*_inner(honest, others)))
    torch.testing.assert_close(of_all, expected, rtol=1e-6, atol=1e-6)


def _inner(honest: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, tuple[float, ...]]:
    x = torch.cat([honest, others])
    return x @ x.T, (1 / len(x),) * len(x)


def test_the_scores_of_krum_are_those_of_dense_distances() -> None:
    x = points(7, 3)
    for hostile, neighbours in ((1, 4), (2, 3), (3, 3)):
        found = krum_scores(x @ x.T, hostile)
        for k in range(7):
            distances = sorted(float((x[k] - x[j]).square().sum()) for j in range(7) if j != k)
            assert math.isclose(float(found[k]), sum(distances[:neighbours]), rel_tol=1e-9)


def test_no_score_of_krum_is_negative() -> None:
    # What rounding makes of no distance at all, between updates of norm 1e9, is more than honest updates are apart.
    x = 1e8 * points(1, 4).expand(9, -1) + 1e-9 * points(9, 5)
    assert float(krum_scores(x @ x.T, 3).min()) >= 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [10.0, 1e6, 1e15])
@pytest.mark.parametrize("count", [3, 4, 5, 8, 11])
@pytest.mark.parametrize("claim", [1, 10**9])
def test_fewer_than_half_cannot_move_the_result_far(rule: RobustRule, size: float, count: int, claim: int) -> None:
    # Whatever a quarter of the clients send, and whatever number of examples they claim.
    hostile = most_hostile(0.25, count)
    x = points(count, seed=count)
    direction = points(1, seed=99)
    x[:hostile] = size * direction
    counts = [claim] * hostile + [1] * (count - hostile)
    w = tuple(each / sum(counts) for each in counts)
    honest = float(x[hostile:].norm(dim=1).max())
    assert float(combined(x, rule(x @ x.T, w)).norm()) <= 8 * honest


def test_the_mean_has_no_such_bound() -> None:
    x = points(8, 0)
    x[0] *= 1e6
    assert float(combined(x, shares(8, 0)).norm()) > 1e3 * float(x[1:].norm(dim=1).max())


@pytest.mark.parametrize("hostile", [-0.1, 0.5, 2.0, math.nan])
def test_a_half_is_withstood_by_no_rule(hostile: float) -> None:
    for make in MAKERS.values():
        with pytest.raises(ConfigurationError, match="fraction of hostile clients"):
            make(hostile)


@given(count=st.integers(1, 30), seed=st.integers(0, 1000), power=st.floats(0, 20))
@settings(max_examples=100)
def test_bounded_weights_leave_no_small_group_a_half(count: int, seed: int, power: float) -> None:
    claims = [share**power for share in shares(count, seed)]
    weights = [claim / math.fsum(claims) for claim in claims]
    hostile = most_hostile(0.25, count)
    found = bounded_weights(weights, hostile)
    assert math.isclose(math.fsum(found), 1, rel_tol=1e-9)
    assert math.fsum(sorted(found)[count - hostile :]) <= (hostile / count + 0.5) / 2 + 1e-9
    assert sorted(range(count), key=weights.__getitem__) == sorted(
        range(count), key=lambda k: (round(found[k], 15), weights[k])
    )


def standing(**changes: object) -> ClientUpdate:
    return ClientUpdate(**{"client_id": "b", "adapter": NO_ADAPTER, "num_examples": 1, "round_number": 1, **changes})


def test_updates_whose_weights_stay_are_the_same_objects() -> None:
    updates = federation([2, 2, 2], counts=[3, 4, 5])
    found = reweighted(updates, client_weights(updates), standing())
    assert all(one is other for one, other in zip(found, updates, strict=True))


def test_what_the_coefficients_lack_of_one_stays_with_the_model_before() -> None:
    updates = federation([2, 2, 2])
    found = reweighted(updates, [0.5, 0.0, 0.2], standing(client_id="client_0"))
    weights = dict(zip((one.client_id for one in found), client_weights(found), strict=True))
    assert weights == pytest.approx({"client_0": 0.5, "client_2": 0.2, "client_0'": 0.3}, rel=1e-15)


def test_the_inner_products_of_factors_will_do() -> None:
    updates = federation([4, 2, 7, 3])
    far = updates[0].adapter.map(lambda factor: factor.scaled(1e6))
    updates[0] = ClientUpdate("client_0", AdapterState.of(dict(far)), 1, 1)
    for make in MAKERS.values():
        assert make(0.25)(product_gram([one.adapter for one in updates]), [0.25] * 4)[0] < 1e-4
    assert adapter(2, 0)  # heads alone: an update may have no factors
    alone = [{"head": torch.full((2,), float(10**k))} for k in range(3)]
    assert NormClippedMean()(parameter_gram(alone), [1 / 3] * 3)[2] == pytest.approx(1 / 30)
