"""The sum of what clients changed, in the clear and under masks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from florist.errors import BelowThresholdError
from florist.federation.contributions import Contribution, Lost
from florist.federation.protections import Masks
from florist.federation.rules import Federation
from florist.privacy.clipping import BELOW, Change
from florist.privacy.fixed_point import FixedPoint
from florist.privacy.layout import Layout, padded_ranks
from florist.rounds import SavedParameters

if TYPE_CHECKING:
    from florist.federation.masked_round import MaskedOutcome, MaskedRound


@dataclass(frozen=True, slots=True, eq=False)
class PrivateSum:
    """What the server has of the clients of a round.

    Attributes:
        total: the weighted sum of what they changed.
        weight: the sum of their weights.
        sent_bytes: what each of them has sent, by client id, in order.
        received_bytes: what each of them was sent between the phases of a masked round.
    """

    total: Change
    weight: int
    sent_bytes: Mapping[str, int]
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MaskedSums:
    """The sums of a federation under masks.

    Args:
        masks: the settings.
        federation: the rules.
        saved_shapes: the shapes of the parameters that travel whole, by name.
        size: the largest size of a number.
        weighted: whether clients have weights, which are then at most `Masks.max_examples`; all count the same
            otherwise.
        bit_size: the largest size of the bit that says whether a norm is below the clip.
        whole: whether every client sends the largest rank of all, since it adds noise to each number.
    """

    masks: Masks
    federation: Federation
    saved_shapes: Mapping[str, tuple[int, ...]]
    size: float
    weighted: bool
    bit_size: float = 0.5
    whole: bool = False

    def __call__(self, round_number: int, given: Mapping[str, Contribution], lost: Lost) -> PrivateSum:
        """The sum, in one process.

        Raises:
            RosterError, BelowThresholdError, BrokenSharesError: as `MaskedRound.play`.
        """
        return read_sum(self.round(round_number, given).play(given, lost))

    def round(self, round_number: int, client_ids: Collection[str]) -> "MaskedRound":
        """The settings of a round.

        Args:
            round_number: the round.
            client_ids: the clients that may take part in it.
        """
        from florist.federation.masked_round import MaskedRound  # noqa: PLC0415  # needs the package cryptography

        masks, rules = self.masks, self.federation
        threshold, asked = masks.threshold_of(rules), rules.clients_per_round
        # So many clients may be lost that these are still enough: a round fails by its threshold and by nothing else.
        longest = min(masks.smallest_group + asked - threshold, len(client_ids))
        ranks = (
            dict.fromkeys(client_ids, rules.max_rank)
            if self.whole
            else padded_ranks({name: rules.client_ranks[name] for name in client_ids}, longest)
        )
        layout = layout_of(
            FixedPoint(masks.bits, asked),
            {name: shape[0] for name, shape in rules.shapes.items()},
            self.saved_shapes,
            ranks.values(),
            size=self.size,
            bit_size=self.bit_size,
            largest_weight=masks.max_examples if self.weighted else 1,
        )
        return MaskedRound(f"florist {rules.seed}", round_number, threshold, masks.smallest_group, layout, ranks)


def layout_of(
    numbers: FixedPoint,
    out_features: Mapping[str, int],
    saved_shapes: Mapping[str, tuple[int, ...]],
    ranks: Collection[int],
    *,
    size: float,
    bit_size: float,
    largest_weight: int,
) -> Layout:
    """The order of the numbers of a round, which server and clients derive each for itself.

    Args:
        numbers: how a number becomes bits.
        out_features: the rows of B, by module.
        saved_shapes: the shapes of the parameters that travel whole, by name.
        ranks: the ranks that clients send, padded.
        size: the largest size of a number.
        bit_size: that of the bit that says whether a norm is below the clip.
        largest_weight: the largest weight of a client.
    """
    sizes = {**dict.fromkeys(out_features, size), **dict.fromkeys(saved_shapes, size), BELOW: bit_size}
    return Layout(numbers, out_features, saved_shapes, frozenset(ranks), sizes, largest_weight)


def read_sum(outcome: "MaskedOutcome") -> PrivateSum:
    """What the server has of a masked round."""
    total = Change(outcome.sum.B, outcome.sum.saved_parameters)
    return PrivateSum(total, outcome.sum.weight, dict(sorted(outcome.sent_bytes.items())), outcome.received_bytes)


def sum_in_the_clear(
    federation: Federation,
    saved_shapes: Mapping[str, tuple[int, ...]],
    given: Mapping[str, Contribution],
    fewest: int,
) -> PrivateSum:
    """The sum of what clients send to a server that sees it.

    Args:
        federation: the rules.
        saved_shapes: the shapes of the parameters that travel whole, by name.
        given: what they send.
        fewest: how many of them are needed.

    Raises:
        BelowThresholdError: they are fewer.
    """
    if len(given) < fewest:
        raise BelowThresholdError(f"expected {fewest} clients or more in the sum, got {len(given)}")
    sent = {name: sum(tensor.nbytes for tensor in tensors_of(each.change)) for name, each in given.items()}
    return PrivateSum(plain_sum(federation, saved_shapes, given), sum(each.weight for each in given.values()), sent)


def plain_sum(
    federation: Federation, saved_shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Contribution]
) -> Change:
    """The weighted sum of what clients send, in float64, in the order of their ids.

    Args:
        federation: the rules.
        saved_shapes: the shapes of the parameters that travel whole, by name.
        given: what they send; it may be of none.
    """
    total = no_change(federation, saved_shapes)
    for _, each in sorted(given.items()):
        for name, B in each.change.B.items():
            total.B[name][:, : B.shape[1]] += each.weight * B.double()
        for name, tensor in each.change.saved_parameters.items():
            total.saved_parameters[name].add_(each.weight * tensor.double())
    return total


def no_change(federation: Federation, saved_shapes: Mapping[str, tuple[int, ...]]) -> Change:
    """No change, in every number that a client might change."""
    rank = federation.max_rank
    return Change(
        {name: torch.zeros(shape[0], rank, dtype=torch.float64) for name, shape in federation.shapes.items()},
        {name: torch.zeros(shape, dtype=torch.float64) for name, shape in saved_shapes.items()},
    )


def padded_to_all(federation: Federation, saved_parameters: SavedParameters, total: Change) -> Change:
    """A sum in every number that a client might change: noise on what is missing would be missing as well."""
    rank = federation.max_rank
    return Change(
        {name: padded(total.B[name], rank) for name in federation.shapes},
        {name: total.saved_parameters[name] for name in (*saved_parameters, *total.saved_parameters)},
    )


def padded(B: torch.Tensor, rank: int) -> torch.Tensor:
    """B with as many columns as a rank; those that are added are zero."""
    return torch.nn.functional.pad(B, (0, rank - B.shape[1]))


def tensors_of(change: Change) -> list[torch.Tensor]:
    """All that changed, in no order that means anything."""
    return [*change.B.values(), *change.saved_parameters.values()]
