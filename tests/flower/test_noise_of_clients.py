"""Noise that clients add over Flower: the sum of the engine in one process, from the system, and never left out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message

from florist.errors import ConfigurationError, InvalidUpdateError
from florist.federation.contributions import NOBODY, Lost
from florist.federation.private_rounds import PrivateRounds
from florist.federation.protections import Masks, Noise
from florist.federation.rules import Federation
from florist.federation.state import ServerState
from florist.flower import FloristStrategy, Journal
from florist.flower.messages import KEYS, WORDS
from florist.flower.private_terms import Demands, PrivacyTerms
from florist.privacy import clipping
from florist.privacy.accounting import Accountant
from florist.privacy.clipping import AdaptiveClip
from tests.federation.private_federations import RANKS, SHAPES
from tests.flower.grids import MemoryGrid
from tests.flower.private_participants import (
    HEAD,
    WHOLE,
    Trainer,
    answering,
    assert_same_bits,
    between,
    losing,
    trainers,
)

pytest.importorskip("dp_accounting")


def by_clients(multiplier: float = 2.0, honest_fraction: float = 0.8, **others: object) -> PrivateRounds:
    noise = Noise(Accountant(multiplier, 1e-3, 5, 5), honest_fraction=honest_fraction, **others)
    return PrivateRounds(Masks(bits=64), clip=0.3, noise=noise)


def played(
    private: PrivateRounds, clients: Mapping[str, Trainer] | None = None, rounds: int = 1, **settings: object
) -> tuple[FloristStrategy, MemoryGrid]:
    strategy, grid = between(clients or trainers(), private, **settings)
    strategy.start(grid, num_rounds=rounds)
    return strategy, grid


def in_one_process(private: PrivateRounds, clients: Mapping[str, Trainer], lost: Lost) -> ServerState:
    rules = Federation(RANKS, WHOLE, SHAPES, seed=3)
    updates = [each.updates[1] for each in clients.values()]
    return private.closed(rules, ServerState.initial(HEAD), updates, lost).state


@pytest.mark.parametrize("lost", [frozenset[str](), frozenset("ab")], ids=["all", "the threshold"])
@pytest.mark.parametrize("adaptive", [None, AdaptiveClip(count_noise=2.0)], ids=["fixed", "following"])
@pytest.mark.quick(1)
def test_the_noisy_sum_is_that_of_one_process_to_the_last_bit(
    adaptive: AdaptiveClip | None, lost: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def the_same(shape: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(sum(shape))  # in the place of the system's source and of the seed's
        return torch.randn(shape, generator=drawn, dtype=torch.float64)

    monkeypatch.setattr(clipping, "normal_numbers", the_same)
    private, clients = by_clients(adaptive=adaptive), trainers()
    strategy, _ = played(private, clients, deliver=losing({WORDS: lost}))
    expected = in_one_process(private, clients, Lost(after_shares=lost) if lost else NOBODY)
    assert_same_bits(strategy.state.saved_parameters, expected.saved_parameters)
    for name, factor in expected.global_adapter.items():
        assert torch.equal(strategy.state.global_adapter[name].B, factor.B)
    (line,) = strategy.records
    assert line.privacy is not None
    share = private.noise.multiplier * 0.3 / 2**0.5 if private.noise else 0.0  # two honest ones of three, at least
    assert line.privacy.deviation == pytest.approx(share * (5 - len(lost)) ** 0.5 / 5)
    assert (line.privacy.noise, line.privacy.honest_fraction) == ("clients", 0.8)


def test_the_noise_is_from_the_system_and_has_the_deviation_of_the_record() -> None:
    clients = trainers()
    found = [played(by_clients(), clients)[0] for _ in range(2)]
    quiet = in_one_process(by_clients(1e-11), clients, NOBODY).saved_parameters["head.weight"]
    offs = [strategy.state.saved_parameters["head.weight"] - quiet for strategy in found]
    assert not torch.allclose(offs[0], offs[1], atol=1e-3)
    record = found[0].records[0].privacy
    assert record is not None
    assert record.deviation is not None
    assert 0.5 < float(torch.stack(offs).square().mean().sqrt()) / record.deviation < 1.6
    assert record.deviation > 1.4 * 2.0 * 0.3 / 5


def test_a_client_of_a_version_that_adds_none_is_not_in_the_sum() -> None:
    def without(reply: Message) -> list[Message]:
        head = dict(reply.content.config_records["florist"])
        assert float(str(head.pop("noise"))) > 0
        reply.content["florist"] = ConfigRecord(head)
        return [reply]

    strategy, _ = played(by_clients(honest_fraction=1.0), deliver=answering("b", KEYS, without))
    (line,) = strategy.records
    (drop,) = line.dropped
    assert drop.client_id == "b"
    assert "it needs a version of florist that knows privacy.noise = 'clients'" in drop.reason
    assert sorted(client.client_id for client in line.clients) == ["a", "c", "d", "e"]


def test_everybody_sends_the_largest_rank_and_the_terms_say_who_adds_noise() -> None:
    _, grid = played(by_clients())
    heads = [each.content.config_records["florist"] for each in grid.sent if each.metadata.message_type == KEYS]
    assert [head["privacy.rank"] for head in heads] == [4] * 5
    assert {head["privacy.noise_multiplier"] for head in heads} == {2.0}
    assert {head["privacy.honest_fraction"] for head in heads} == {0.8}
    server = replace(by_clients(), noise=Noise(Accountant(2.0, 1e-3, 5, 5)))
    _, grid = played(server)
    heads = [each.content.config_records["florist"] for each in grid.sent if each.metadata.message_type == KEYS]
    assert not any("noise" in key or "honest" in key for head in heads for key in head)


@pytest.mark.parametrize(
    ("demand", "telling"),
    [
        (Demands(masked=True, noise=0.0), None),
        (Demands(masked=True, noise=2.0, honest_fraction=0.8), None),
        (Demands(masked=True, noise=2.5), "expected noise of 2.5 or more"),
        (Demands(masked=True, noise=1.0, honest_fraction=0.7), "honest fraction of 0.7 or less"),
    ],
    ids=["any", "as much", "more", "fewer honest"],
)
def test_a_site_demands_noise_of_clients(demand: Demands, telling: str | None) -> None:
    demands = {**dict.fromkeys(RANKS, Demands(masked=True)), "c": demand}
    strategy, _ = played(by_clients(), demands=demands)
    (line,) = strategy.records
    assert [drop.client_id for drop in line.dropped] == ([] if telling is None else ["c"])
    assert all(telling is not None and telling in drop.reason for drop in line.dropped)


def test_a_site_that_demands_noise_of_clients_takes_no_part_where_the_server_adds_it() -> None:
    server = replace(by_clients(), noise=Noise(Accountant(2.0, 1e-3, 5, 5)))
    demands = {**dict.fromkeys(RANKS, Demands(masked=True)), "c": Demands(masked=True, noise=0.0)}
    strategy, _ = played(server, demands=demands)
    (drop,) = strategy.records[0].dropped
    assert drop.client_id == "c"
    assert "it was asked to add none" in drop.reason


TERMS = PrivacyTerms(
    threshold=3, smallest_group=2, asked=5, bits=32, largest=4.0, max_examples=100, weighted=False, follows=False,
    rank=4, ranks=[4], modules=["q"], out_features=[12], saved_parameters=[], clip=0.5,
    noise_multiplier=2.0, honest_fraction=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"clip": None},
        {"honest_fraction": None},
        {"noise_multiplier": None},
        {"weighted": True},
        {"rank": 3, "ranks": [3, 4]},
        {"follows": True},
        {"count_noise": 1.0},
    ],
    ids=str,
)
def test_terms_whose_noise_is_not_in_each_number_are_refused(changed: Mapping[str, object]) -> None:
    TERMS.require_possible(2, 4, {"q": (12, 16)}, {})
    with pytest.raises(InvalidUpdateError, match="noise"):
        replace(TERMS, **changed).require_possible(2, 4, {"q": (12, 16)}, {})


def test_a_client_does_not_count_on_honest_ones_that_may_not_be_there() -> None:
    with pytest.raises(ConfigurationError, match=r"honest_fraction = 0\.4: expected more than 3 clients"):
        replace(TERMS, honest_fraction=0.4).bounding(4, {})


def test_a_run_is_not_resumed_with_another_honest_fraction(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", "linear")
    played(by_clients(), journal=journal)
    with pytest.raises(ConfigurationError, match=r"noise by clients of whom 0\.8 are honest"):
        played(by_clients(honest_fraction=1.0), rounds=2, journal=journal)
