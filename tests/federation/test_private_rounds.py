"""Private rounds from what clients trained to the broadcast: what is summed, bounded, hidden and written down."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from florist.aggregation import LinearRounds
from florist.errors import ConfigurationError
from florist.factors import AdapterState, LoraFactor
from florist.federation.contributions import Lost
from florist.federation.local_init import FRESH_ROW_NORM
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Masks, Noise
from florist.federation.recording import LocalWork, round_record
from florist.federation.records import RoundRecord
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.privacy.accounting import Accountant, Sampling
from florist.privacy.clipping import AdaptiveClip
from florist.ranks import NoiseEdge
from florist.rounds import Aggregator, ClientUpdate
from tests.federation.private_federations import FFA, RANKS, SHAPES, WHOLE, all_trained, begun, federation, trained

MASKS = Masks(bits=64)


def noise(multiplier: float, *, clients: int = 5, asked: int | None = None, **others: object) -> Noise:
    sampling = others.pop("sampling", Sampling.FIXED)
    assert isinstance(sampling, Sampling)
    return Noise(Accountant(multiplier, 1e-3, clients, asked or clients, sampling), **others)


@pytest.fixture
def accounted() -> None:
    """Of tests that need the accountant, which is in an extra."""
    pytest.importorskip("dp_accounting")


def recorded(private: PrivateRounds, rules: Federation, state: ServerState, **others: object) -> RoundRecord:
    closed = private.closed(rules, state, all_trained(rules, state), **others)
    return round_record(closed, dict.fromkeys(rules.client_ranks, LocalWork(100, 1.5, 0.1)), {}, {})


def products(state: ServerState) -> Mapping[str, torch.Tensor]:
    return {name: factor.delta_weight().double() for name, factor in state.global_adapter.items()}


def require_alike(found: ServerState, expected: ServerState, tolerance: float = 1e-5) -> None:
    assert found.global_adapter.keys() == expected.global_adapter.keys()
    for name, product in products(expected).items():
        assert float((products(found)[name] - product).norm()) <= tolerance * float(product.norm()), name
    for name, tensor in expected.saved_parameters.items():
        assert torch.allclose(found.saved_parameters[name], tensor, atol=tolerance), name


# --- masks


@pytest.mark.parametrize("masks", [MASKS, None], ids=["masked", "in the clear"])
def test_the_sum_of_unlike_ranks_and_heads_is_that_of_plain_rounds(masks: Masks | None) -> None:
    rules, plain, private = federation(), begun(), begun()
    for seed in range(3):
        plain = rules.close_round(plain, all_trained(rules, plain, seed=seed)).state
        closed = PrivateRounds(masks).closed(rules, private, all_trained(rules, private, seed=seed))
        private = closed.state
        require_alike(private, plain)
        assert private.holds == plain.holds
        assert closed.deliveries.keys() == RANKS.keys()


def test_ffa_of_one_rank_is_that_of_plain_rounds() -> None:
    rules = federation(dict.fromkeys(RANKS, 3), FFA)
    plain = private = begun()
    for seed in range(3):
        plain = rules.close_round(plain, all_trained(rules, plain, seed=seed)).state
        private = PrivateRounds(MASKS).closed(rules, private, all_trained(rules, private, seed=seed)).state
        require_alike(private, plain)


@pytest.mark.parametrize(
    "lost",
    [
        Lost(after_keys=frozenset({"a"})),
        Lost(after_shares=frozenset({"a"})),
        Lost(after_words=frozenset({"a", "b"})),
        Lost(frozenset({"d"}), frozenset({"e"})),
    ],
    ids=["keys", "shares", "words", "two"],
)
def test_a_round_survives_the_loss_of_clients(lost: Lost) -> None:
    rules, state = federation(), begun()
    updates = all_trained(rules, state)
    closed = PrivateRounds(MASKS).closed(rules, state, updates, lost)
    left = [update for update in updates if update.client_id not in lost.before_the_sum]
    require_alike(closed.state, rules.close_round(state, left).state)
    assert closed.ranks == {update.client_id: RANKS[update.client_id] for update in left}
    assert {drop.client_id for drop in closed.dropped} == lost.before_the_sum


@pytest.mark.parametrize(
    "lost",
    [
        Lost(after_keys=frozenset({"a", "b", "c"})),
        Lost(after_shares=frozenset({"a", "b", "c"})),
        Lost(after_words=frozenset({"a", "b", "c"})),
    ],
    ids=["keys", "shares", "words"],
)
def test_below_the_threshold_the_model_stays_and_the_record_says_how_many_were_missing(lost: Lost) -> None:
    rules, state = federation(), begun()
    record = recorded(PrivateRounds(MASKS), rules, state, lost=lost)
    assert not record.aggregated
    assert record.clients == ()
    assert record.privacy is not None
    assert record.privacy.threshold == 3
    assert record.privacy.failed is not None
    assert "expected 3" in record.privacy.failed
    assert record.privacy.failed in record.text
    after = PrivateRounds(MASKS).closed(rules, state, all_trained(rules, state), lost).state
    assert after == replace(state, round_number=1) or not after.global_adapter


def test_the_record_of_a_private_round_does_not_tell_what_clients_have() -> None:
    record = recorded(PrivateRounds(MASKS), federation(), begun())
    assert [client.client_id for client in record.clients] == sorted(RANKS)
    for client in record.clients:
        assert client.num_examples is None
        assert client.update_norm is None
        assert client.loss != client.loss  # NaN, which is null in the file
        assert client.upload_bytes > 0
        assert client.download_bytes > 100
    assert record.cosines == ()


def test_a_change_that_does_not_fit_stays_out() -> None:
    rules, state = federation(), begun()
    updates = all_trained(rules, state)
    large = trained(rules, state, "c", size=50.0)
    broken = replace(large, saved_parameters={"head.weight": torch.full((3, 4), float("nan"))})
    for bad in (large, broken):
        closed = PrivateRounds(MASKS).closed(rules, state, [bad if u.client_id == "c" else u for u in updates])
        require_alike(closed.state, rules.close_round(state, [u for u in updates if u.client_id != "c"]).state)
        (drop,) = closed.dropped
        assert drop.client_id == "c"
        assert "privacy.largest" in drop.reason


def test_a_weight_is_bounded() -> None:
    rules, state = federation(), begun()
    updates = all_trained(rules, state)
    closed = PrivateRounds(replace(MASKS, max_examples=20)).closed(rules, state, updates)
    bounded = [replace(update, num_examples=min(20, update.num_examples)) for update in updates]
    require_alike(closed.state, rules.close_round(state, bounded).state)


@pytest.mark.parametrize(
    ("masks", "telling"),
    [
        (Masks(threshold=2), r"privacy\.threshold = 2: expected 3 to 5"),
        (Masks(threshold=6), r"privacy\.threshold = 6"),
        (Masks(smallest_group=6), r"privacy: expected at least 6 clients a round"),
        (Masks(bits=3), r"does not fit into 3"),
    ],
)
def test_masks_that_protect_nothing_are_refused(masks: Masks, telling: str) -> None:
    with pytest.raises(ConfigurationError, match=telling):
        PrivateRounds(masks).require_possible(federation(), begun().saved_parameters)


@pytest.mark.parametrize(("threshold", "meant"), [(None, 3), (0.6, 3), (0.61, 4), (1.0, 5), (5, 5)])
def test_a_threshold_is_a_number_or_a_fraction(threshold: float | None, meant: int) -> None:
    assert Masks(threshold=threshold).threshold_of(federation()) == meant


def test_so_few_bits_that_rounding_takes_the_clip_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"privacy\.bits = 6: expected more"):
        PrivateRounds(Masks(bits=6), clip=1.0).require_possible(federation(), begun().saved_parameters)


# --- the clip bounds what one client can do


def adversary(rules: Federation, state: ServerState, client_id: str, kind: str) -> ClientUpdate:
    """An update that tries to move the sum by more than the clip."""
    honest = trained(rules, state, client_id, examples=10**6)
    if kind == "long":
        return trained(rules, state, client_id, size=1e4, examples=10**6)
    if kind == "infinite":
        return replace(honest, saved_parameters={"head.weight": torch.full((3, 4), float("inf"))})
    head = honest.saved_parameters["head.weight"]
    if kind == "head alone":
        saved, held = {"head.weight": head + 1e6}, honest.adapter.map(lambda f: LoraFactor(0 * f.B, f.A))
        return replace(honest, adapter=held, saved_parameters=saved)
    one = {name: torch.zeros_like(factor.B) for name, factor in honest.adapter.items()}
    one["q"][3, 0] = 1e9  # a single number
    held = AdapterState.of({name: LoraFactor(one[name], factor.A) for name, factor in honest.adapter.items()})
    return replace(honest, adapter=held)


@pytest.mark.parametrize("kind", ["long", "infinite", "head alone", "one number"])
@pytest.mark.parametrize("masks", [None, Masks(bits=32), Masks(bits=14)], ids=["clear", "32 bits", "14 bits"])
@pytest.mark.parametrize("aggregator", [WHOLE, pytest.param(FFA, marks=pytest.mark.slow)], ids=["linear", "ffa"])
def test_no_client_moves_the_mean_by_more_than_the_clip_over_the_denominator(
    aggregator: Aggregator, masks: Masks | None, kind: str, monkeypatch: pytest.MonkeyPatch, accounted: None
) -> None:
    rules, state = federation(aggregator=aggregator), begun()
    if aggregator is FFA:  # which trains on from what was sent
        state = rules.close_round(state, all_trained(rules, state)).state
    silent = replace(noise(1.0), accountant=noise(1e-12).accountant)
    private = PrivateRounds(masks, clip=0.3, noise=silent)
    quiet = adversary(rules, state, "a", kind)
    others = [update for update in all_trained(rules, state) if update.client_id != "a"]
    still = trained(rules, state, "a", size=0.0)
    found = [private.closed(rules, state, [*others, mine]).state for mine in (quiet, still)]
    start, end = (means(rules, state, after) for after in found)
    moved = sum(float((start[name] - end[name]).square().sum()) for name in start) ** 0.5
    assert moved <= 0.3 / 5 * (1 + 1e-4)
    if kind != "infinite":
        assert moved > 0.25 / 5 if masks is None or masks.bits > 14 else moved > 0


def means(rules: Federation, before: ServerState, after: ServerState) -> Mapping[str, torch.Tensor]:
    """The numbers of the broadcast's mean, in units of the product, and those of the head."""
    found: dict[str, torch.Tensor] = {}
    rows = rules.rows(before, max(rules.client_ranks, key=lambda name: rules.client_ranks[name]))
    for name in rules.shapes:
        if after.continued:
            B = after.continued[name].B.double() - before.continued[name].padded(rules.max_rank).B.double()
            found[name] = FRESH_ROW_NORM * B
        else:
            A = rows(name)[: rules.max_rank].double()
            # Rows beyond the inputs are zero, and nothing can be sent along them.
            moved = after.global_adapter[name].delta_weight().double()
            found[name] = moved @ A.T / FRESH_ROW_NORM
    for name, tensor in after.saved_parameters.items():
        found[name] = tensor.double() - before.saved_parameters[name].double()
    return found


# --- the noise is what was accounted


@pytest.mark.parametrize("masks", [None, Masks(bits=32)], ids=["clear", "masked"])
@pytest.mark.parametrize("aggregator", [WHOLE, FFA], ids=["linear", "ffa"])
def test_the_noise_of_the_broadcast_has_the_variance_that_was_accounted(
    aggregator: Aggregator, masks: Masks | None, accounted: None
) -> None:
    # Some clients are lost: the noise and the denominator are those of all that were asked.
    lost = Lost(after_keys=frozenset({"a"}))
    rules = federation(aggregator=aggregator, shapes={"q": (300, 200), "v": (200, 200)})
    state = begun()
    if aggregator is FFA:
        state = rules.close_round(state, all_trained(rules, state)).state
    updates = all_trained(rules, state)
    loud = PrivateRounds(masks, clip=0.5, noise=noise(2.0)).closed(rules, state, updates, lost)
    quiet = PrivateRounds(masks, clip=0.5, noise=noise(1e-12)).closed(rules, state, updates, lost)
    assert loud.privacy is not None
    assert loud.privacy.deviation == pytest.approx(2.0 * 0.5 / 5)
    with_noise, without = means(rules, state, loud.state), means(rules, state, quiet.state)
    every = torch.cat([(with_noise[name] - without[name]).reshape(-1) for name in ("q", "v")])
    assert every.numel() == 500 * 4
    # Relative to the deviation, the error of 2,000 numbers is about 0.016; columns that nobody sent have noise as well.
    assert float(every.std()) == pytest.approx(loud.privacy.deviation, rel=0.07)
    for column in (with_noise["q"] - without["q"]).T:
        assert float(column.std()) == pytest.approx(loud.privacy.deviation, rel=0.2)
    head = with_noise["head.weight"] - without["head.weight"]
    assert 0.4 < float(head.square().mean().sqrt()) / loud.privacy.deviation < 1.8
    assert abs(float(every.mean())) < 4 * loud.privacy.deviation / 2000**0.5
    # And the clients are still in it: without noise the mean is not zero.
    assert max(float(tensor.norm()) for tensor in without.values()) > 0.01


def test_rounds_have_noise_of_their_own_and_it_is_the_same_again(accounted: None) -> None:
    rules, state = federation(), begun()
    private = PrivateRounds(clip=0.5, noise=noise(2.0))
    once, again = (private.closed(rules, state, all_trained(rules, state)).state for _ in range(2))
    assert all(torch.equal(once.global_adapter[name].B, again.global_adapter[name].B) for name in SHAPES)
    later = replace(state, round_number=1)
    other = private.closed(rules, later, all_trained(rules, later)).state
    assert not torch.allclose(other.saved_parameters["head.weight"], once.saved_parameters["head.weight"], atol=1e-3)


def test_a_round_that_draws_nobody_has_noise_all_the_same(accounted: None) -> None:
    rules, state = federation(fraction=0.2), begun()
    private = PrivateRounds(clip=0.5, noise=noise(2.0, asked=1, sampling=Sampling.POISSON))
    closed = private.closed(rules, state, [])
    assert closed.broadcast is not None
    assert closed.deliveries == {}
    head = closed.state.saved_parameters["head.weight"] - state.saved_parameters["head.weight"]
    assert 0.4 < float(head.square().mean().sqrt()) < 1.8  # 2.0 * 0.5 / 1


def test_draws_by_themselves_have_the_probability_that_is_accounted(accounted: None) -> None:
    rules = federation({f"client_{k:02}": 2 for k in range(20)}, fraction=0.25)
    private = PrivateRounds(clip=0.5, noise=noise(2.0, clients=20, asked=5, sampling=Sampling.POISSON))
    drawn = [private.participants(rules, number) for number in range(1, 401)]
    assert private.participants(rules, 7) == drawn[6]
    counts = [len(each) for each in drawn]
    assert sum(counts) / 400 == pytest.approx(5, abs=0.4)
    assert len(set(counts)) > 5
    with pytest.raises(ConfigurationError, match="sampling = 'fixed' under masks"):
        replace(private, masks=MASKS)


# --- what is spent


def test_epsilon_is_written_down_and_the_rounds_end_before_it_is_exceeded(accounted: None) -> None:
    rules, state = federation(), begun()
    accountant = noise(4.0).accountant
    private = PrivateRounds(clip=0.5, noise=Noise(accountant, epsilon=accountant.epsilon(2) + 1e-6))
    assert private.rounds_within(10) == 2
    records: list[RoundRecord] = []
    for _ in range(2):
        closed = private.continued(records).closed(rules, state, all_trained(rules, state))
        work = dict.fromkeys(RANKS, LocalWork(0, 1.0, 0.1))
        records.append(private.marked(round_record(closed, work, {}, {}), 10))
        state = closed.state
    assert [record.epsilon for record in records] == [accountant.epsilon(1), accountant.epsilon(2)]
    assert [record.privacy.spent for record in records if record.privacy] == [False, True]
    assert "epsilon" in records[0].text


def test_a_run_that_goes_on_has_the_noise_that_it_was_begun_with(accounted: None) -> None:
    rules, state = federation(), begun()
    record = recorded(PrivateRounds(clip=0.5, noise=noise(4.0)), rules, state)
    weaker = PrivateRounds(clip=0.5, noise=noise(2.0))
    assert weaker.continued([record]) == PrivateRounds(clip=0.5, noise=noise(4.0))


def test_the_clip_follows_the_norms_and_costs_what_was_accounted(accounted: None) -> None:
    rules, state = federation(), begun()
    rule = AdaptiveClip(quantile=0.5, count_noise=1.5)
    private = PrivateRounds(clip=50.0, noise=noise(0.5, adaptive=rule))
    record = recorded(private, rules, state)
    assert record.privacy is not None
    assert record.privacy.next_clip is not None
    assert record.privacy.next_clip < 50  # all norms are below
    assert record.privacy.noise_multiplier == 0.5
    assert record.privacy.deviation == pytest.approx(rule.noise_for_both(0.5) * 50 / 5)
    assert private.continued([record]).clip == record.privacy.next_clip
    masked = recorded(replace(private, masks=Masks(bits=32)), rules, state)
    assert masked.privacy is not None
    assert masked.privacy.next_clip == pytest.approx(record.privacy.next_clip)
    low = recorded(replace(private, clip=1e-3), rules, state)
    assert low.privacy is not None
    assert low.privacy.next_clip is not None
    assert low.privacy.next_clip > 1e-3


def test_what_stands_above_the_noise_is_kept_and_noise_is_not(accounted: None) -> None:
    shapes = {f"layer_{k}": (120, 100) for k in range(12)}
    rules, state = federation(dict.fromkeys(RANKS, 4), shapes=shapes), begun()

    def above(deviation: float) -> Aggregator:
        return LinearRounds(NoiseEdge(deviation, rank=4, multiple=1.1))

    private = PrivateRounds(clip=0.5, noise=noise(2.0))
    still = [trained(rules, state, name, size=0.0) for name in RANKS]
    fixed = private.closed(rules, state, still)
    edge = replace(private, aggregator_at=above).closed(rules, state, still)
    assert fixed.broadcast is not None
    assert edge.broadcast is not None
    assert fixed.broadcast.certificate.total_rank == 4 * 12  # all of it noise
    assert edge.broadcast.certificate.total_rank == 0
    # A direction in which all clients agree is kept, and little beside it.
    agreed = [trained(rules, state, name, size=0.0) for name in RANKS]
    together = [
        replace(
            update,
            adapter=AdapterState.of(
                {
                    name: LoraFactor(factor.B + 100 * (name == "layer_3") * torch.eye(120, 1), factor.A)
                    for name, factor in update.adapter.items()
                }
            ),
        )
        for update in agreed
    ]
    loud = replace(private, clip=20.0, noise=noise(0.05), aggregator_at=above).closed(rules, state, together)
    assert loud.broadcast is not None
    kept = {name: module.rank for name, module in loud.broadcast.certificate.modules.items() if module.rank}
    assert kept == {"layer_3": 1}


def test_noise_needs_a_clip(accounted: None) -> None:
    with pytest.raises(ConfigurationError, match="expected a clip above 0"):
        PrivateRounds(noise=noise(1.0))
