"""Private rounds whose clients add the noise: that of honest ones is what was accounted, and the server adds none."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from florist.aggregation import LinearRounds
from florist.errors import ConfigurationError
from florist.federation.contributions import NOBODY, Lost
from florist.federation.private_draws import noise_source
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Masks, Noise
from florist.federation.recording import LocalWork, round_record
from florist.federation.rules import Federation
from florist.privacy.accounting import Accountant
from florist.privacy.clipping import BELOW, AdaptiveClip, Change
from florist.ranks import NoiseEdge
from tests.federation.private_federations import RANKS, all_trained, begun, federation, trained

pytest.importorskip("dp_accounting")

MASKS = Masks(bits=32, threshold=3)
SHAPES = {"q": (300, 200), "v": (200, 200)}


def noise(multiplier: float = 2.0, honest_fraction: float = 1.0, adaptive: AdaptiveClip | None = None) -> Noise:
    return Noise(Accountant(multiplier, 1e-3, 5, 5), adaptive=adaptive, honest_fraction=honest_fraction)


def by_clients(masks: Masks = MASKS, clip: float = 0.5, **noises: object) -> PrivateRounds:
    return PrivateRounds(masks, clip=clip, noise=noise(**noises))


def summed(private: PrivateRounds, rules: Federation, lost: Lost = NOBODY) -> tuple[Mapping[str, Change], Change, int]:
    """What each client puts in of a change of nothing, the decoded sum, and how many are in it."""
    state = begun()
    bounding = private.bounding(rules, state.saved_parameters)
    nothing = Change(
        {name: torch.zeros(rows, 1) for name, (rows, _) in rules.shapes.items()},
        {name: torch.zeros_like(tensor) for name, tensor in state.saved_parameters.items()},
    )
    given = {
        name: bounding.contribution(nothing, 10, noise_source(rules, 1, name, secret=private.secret))
        for name in rules.client_ranks
    }
    found = private.masked_sums(rules, state.saved_parameters)(1, given, lost)
    return {name: each.change for name, each in given.items()}, found.total, len(found.sent_bytes)


def flat(change: Change) -> torch.Tensor:
    return torch.cat([change.B[name].double().reshape(-1) for name in sorted(SHAPES)])


@pytest.mark.parametrize("secret", [False, True], ids=["of the seed", "of the system"])
def test_the_noise_of_the_threshold_is_what_was_accounted_and_that_of_all_is_more(secret: bool) -> None:
    rules, private = federation(shapes=SHAPES), replace(by_clients(), secret=secret)
    _, fewest, left = summed(private, rules, Lost(frozenset({"a"}), frozenset({"b"})))
    assert left == 3
    # 2,000 numbers: relative to the deviation, the error is about 0.016. Columns that one client trains have it, too.
    assert float(flat(fewest).std()) == pytest.approx(2.0 * 0.5, rel=0.07)
    for column in fewest.B["q"].T:
        assert float(column.std()) == pytest.approx(1.0, rel=0.2)
    _, every, left = summed(private, rules)
    assert left == 5
    assert float(flat(every).std()) == pytest.approx(2.0 * 0.5 * (5 / 3) ** 0.5, rel=0.07)
    assert abs(float(flat(every).mean())) < 4 * 1.3 / 2000**0.5


def test_what_is_left_for_others_that_tell_their_noise_is_what_was_accounted() -> None:
    # Of five clients one may not be honest; two are lost, and it stays: two honest ones are in the sum.
    rules, private = federation(shapes=SHAPES), by_clients(honest_fraction=0.8)
    given, total, left = summed(private, rules, Lost(after_shares=frozenset({"b", "d"})))
    assert left == 3
    unknown = flat(total) - flat(given["a"])
    assert float(unknown.std()) == pytest.approx(2.0 * 0.5, rel=0.07)
    assert float(flat(total).std()) == pytest.approx(2.0 * 0.5 * 1.5**0.5, rel=0.07)


@pytest.mark.parametrize("lost", [NOBODY, Lost(after_keys=frozenset({"a"}))], ids=["all", "four"])
def test_the_server_adds_no_noise_to_the_sum(lost: Lost) -> None:
    rules, state, private = federation(shapes=SHAPES), begun(), by_clients()
    given, _, _ = summed(private, rules)
    updates = [trained(rules, state, name, size=0.0) for name in RANKS]
    closed = private.closed(rules, state, updates, lost)
    left = sorted(RANKS.keys() - lost.before_the_sum)
    expected = sum(given[name].saved_parameters["head.weight"] for name in left) / 5
    moved = closed.state.saved_parameters["head.weight"].double() - state.saved_parameters["head.weight"].double()
    assert float((moved - expected).abs().max()) < 1e-6
    assert float(expected.abs().max()) > 0.05
    assert closed.privacy is not None
    # The noise in the mean is that of those who are in it.
    assert closed.privacy.deviation == pytest.approx(2.0 * 0.5 / 5 * (len(left) / 3) ** 0.5)
    assert (closed.privacy.noise, closed.privacy.honest_fraction) == ("clients", 1.0)
    assert closed.privacy.epsilon == noise().accountant.epsilon(1)


def test_the_sum_is_still_that_of_the_clients_and_noise_is_of_each_round_and_client() -> None:
    rules, state = federation(), begun()
    updates = all_trained(rules, state, size=1.0)
    masks = replace(MASKS, bits=64)
    quiet = by_clients(masks, multiplier=1e-11).closed(rules, state, updates).state
    server = replace(noise(1e-12), honest_fraction=None)
    plain = PrivateRounds(masks, clip=0.5, noise=server).closed(rules, state, updates).state
    for name, factor in plain.global_adapter.items():
        assert torch.allclose(quiet.global_adapter[name].delta_weight(), factor.delta_weight(), atol=1e-6)
    loud = by_clients()
    once, again = (loud.closed(rules, state, updates).state for _ in range(2))
    assert torch.equal(once.saved_parameters["head.weight"], again.saved_parameters["head.weight"])
    sources = [noise_source(rules, number, name, secret=False) for number in (1, 2) for name in ("a", "b")]
    assert len({float(torch.rand(1, generator=source("noise"))) for source in sources}) == 4


@pytest.mark.parametrize("size", [0.0, 1e4, float("inf")], ids=["nothing", "long", "infinite"])
def test_no_client_moves_the_noisy_mean_by_more_than_the_clip_over_the_denominator(size: float) -> None:
    # The noise is that of the seed in both: what is left of the difference is the client.
    rules, state, private = federation(), begun(), by_clients(clip=0.3)
    others = [update for update in all_trained(rules, state) if update.client_id != "a"]
    still, honest = trained(rules, state, "a", size=0.0), trained(rules, state, "a", size=min(size, 1e4))
    if size == float("inf"):
        honest = replace(honest, saved_parameters={"head.weight": torch.full((3, 4), size)})
    sums: list[torch.Tensor] = []
    for mine in (honest, still):
        after = private.closed(rules, state, [*others, mine]).state
        parts = [after.global_adapter[name].delta_weight().double() for name in sorted(rules.shapes)]
        sums.append(torch.cat([part.reshape(-1) for part in (*parts, after.saved_parameters["head.weight"].double())]))
    moved = float((sums[0] - sums[1]).norm())
    assert moved <= 0.3 / 5 * (1 + 1e-4)
    assert moved > 0.25 / 5 or size != 1e4


def test_below_the_threshold_nothing_is_read_and_the_record_has_no_deviation() -> None:
    rules, state = federation(), begun()
    closed = by_clients().closed(rules, state, all_trained(rules, state), Lost(after_shares=frozenset("abc")))
    assert closed.privacy is not None
    assert closed.failed is not None
    assert closed.privacy.deviation is None
    assert closed.privacy.noise == "clients"


def test_the_bits_of_a_clip_that_follows_have_noise_of_clients_alone() -> None:
    rules = federation(shapes=SHAPES)
    rule = AdaptiveClip(count_noise=30.0)
    private = by_clients(adaptive=rule)
    given, total, _ = summed(private, rules)
    told = {float(each.saved_parameters[BELOW]) for each in given.values()}
    assert len(told) == 5
    assert all(number != 0.5 for number in told)
    assert float(total.saved_parameters[BELOW]) == pytest.approx(sum(told), abs=1e-4)
    closed = private.closed(rules, begun(), [trained(rules, begun(), name, size=0.0) for name in RANKS])
    assert closed.privacy is not None
    assert closed.privacy.next_clip == pytest.approx(rule.next_clip(0.5, 2.5 + sum(told), 5), rel=1e-5)


def test_the_edge_of_the_noise_is_that_of_all_shares_in_the_sum() -> None:
    rules, state = federation(dict.fromkeys(RANKS, 4), shapes={f"layer_{k}": (120, 100) for k in range(12)}), begun()
    still = [trained(rules, state, name, size=0.0) for name in RANKS]
    private = replace(by_clients(), aggregator_at=lambda at: LinearRounds(NoiseEdge(at, 4, 1.1)))
    found = private.closed(rules, state, still)
    assert found.broadcast is not None
    assert found.broadcast.certificate.total_rank == 0  # all of it is noise, of five clients and not of three
    below = private.closed(rules, state, still, Lost(after_keys=frozenset("ab")))
    assert below.broadcast is not None
    assert below.broadcast.certificate.total_rank == 0


@pytest.mark.parametrize(
    ("private", "telling"),
    [
        (lambda: by_clients(honest_fraction=0.4), r"privacy\.honest_fraction = 0\.4: expected more than 3 clients"),
        (lambda: by_clients(replace(MASKS, bits=8)), r"privacy\.bits = 8"),
        (lambda: by_clients(honest_fraction=0.0), "expected an honest fraction above 0"),
        (lambda: by_clients(honest_fraction=1.1), "at most 1, got 1.1"),
        (lambda: PrivateRounds(clip=0.5, noise=noise()), "expected masks with noise that clients add"),
    ],
    ids=["too few honest", "too few bits", "none", "more than all", "no masks"],
)
def test_noise_of_clients_that_hides_nothing_is_refused(private: object, telling: str) -> None:
    with pytest.raises(ConfigurationError, match=telling):
        private().require_possible(federation(), begun().saved_parameters)  # type: ignore[operator]


@pytest.mark.parametrize("honest_fraction", [None, 1.0], ids=["server", "clients"])
def test_a_record_says_who_added_the_noise(honest_fraction: float | None) -> None:
    rules, state = federation(), begun()
    private = PrivateRounds(MASKS, clip=0.5, noise=replace(noise(), honest_fraction=honest_fraction))
    closed = private.closed(rules, state, all_trained(rules, state))
    record = round_record(closed, dict.fromkeys(RANKS, LocalWork(1, 1.0, 0.1)), {}, {})
    assert record.privacy is not None
    assert record.privacy.noise == ("server" if honest_fraction is None else "clients")
    assert record.privacy.honest_fraction == honest_fraction
