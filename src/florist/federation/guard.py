"""The guard between what arrives and what is aggregated: it refuses or scales down what no honest client sends.

`admission` has looked at each update by itself, and a method cannot fail on it. The guard compares the updates of a
round with each other, and what a client claims with what it claimed before. It knows no more than norms, angles and
counts: ``docs/hostile-clients.md`` says what passes it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from florist.aggregation.products import product_gram
from florist.errors import ConfigurationError
from florist.federation.moved import Moved
from florist.federation.records import Clip, Drop

ROUNDING = 1e-6
"""By how much a cosine may be off."""
FEWEST_TO_COMPARE = 3
"""Of two updates that point apart, nobody can tell which is the hostile one."""


class Action(StrEnum):
    """What becomes of an update that is too long."""

    REFUSE = "refuse"
    CLIP = "clip"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard says of the updates of a round.

    Attributes:
        refused: the clients whose updates do not count, and why.
        clipped: the clients whose updates are scaled down, by how much, and why.
    """

    refused: tuple[Drop, ...] = ()
    clipped: tuple[Clip, ...] = ()


@dataclass(frozen=True, slots=True)
class Guard:
    """The checks, each of which is off where it is None.

    Norms are those of what training changed, taken apart: the products of the factors over all modules, the parameters
    that travel whole, and, where a method averages the halves apart, the halves. A large head therefore does not hide
    behind large factors, nor large halves behind a small product.

    Args:
        norm_factor: how many times the median norm of the others an update's may be, above 1. The others are those of
            the round whose norm is not zero, so that one client of three cannot raise the bound for itself.
        component_factor: how many times the median of the others the norm of an update's product, over the root of its
            rank, may be, above 1. Where all clients train equally many steps with one ratio of alpha to r, clients of
            unlike ranks are alike in it, so that a far smaller factor than `norm_factor` will do.
        largest_norm: the largest norm, whatever the others send.
        smallest_cosine: the smallest mean cosine between the product of a client and those of the others, from three
            clients on. An update without factors, or of norm zero, has none.
        examples_factor: by what factor a client may claim more or fewer examples than when it first counted, above 1.
        action: whether updates that are too long are refused, or scaled down to the longest that is allowed.

    Raises:
        ConfigurationError: a bound is out of its range.

    >>> import torch
    >>> from florist import AdapterState, LoraFactor
    >>> def change(size: float) -> AdapterState:
    ...     return AdapterState.of({"layer": LoraFactor(B=torch.full((2, 1), size), A=torch.ones(1, 3))})
    >>> moved = [Moved(name, 10, change(size)) for name, size in (("a", 1.0), ("b", 2.0), ("c", 90.0))]
    >>> [drop.client_id for drop in Guard()(moved, claimed={}).refused], Guard.off()(moved, claimed={}).refused
    (['c'], ())
    """

    norm_factor: float | None = 10.0
    component_factor: float | None = None
    largest_norm: float | None = None
    smallest_cosine: float | None = None
    examples_factor: float | None = 10.0
    action: Action = Action.REFUSE

    @classmethod
    def off(cls) -> "Guard":
        """A guard that checks nothing, and lets pass all that `admission` does."""
        return cls(
            norm_factor=None, component_factor=None, largest_norm=None, smallest_cosine=None, examples_factor=None
        )

    def __post_init__(self) -> None:
        for name in ("norm_factor", "component_factor", "examples_factor"):
            factor: float | None = getattr(self, name)
            if factor is not None and not 1 < factor < math.inf:
                raise ConfigurationError(f"expected {name} above 1, got {factor}; None turns the check off")
        if self.largest_norm is not None and not 0 < self.largest_norm < math.inf:
            raise ConfigurationError(f"expected largest_norm above 0, got {self.largest_norm}; None turns it off")
        if self.smallest_cosine is not None and not -1 <= self.smallest_cosine < 1:
            raise ConfigurationError(
                f"expected smallest_cosine in [-1, 1), got {self.smallest_cosine}; None turns it off"
            )

    def __call__(self, moved: Sequence[Moved], claimed: Mapping[str, int]) -> Verdict:
        """Judge the updates of a round.

        Args:
            moved: what the training of each client changed.
            claimed: how many examples each client claimed when it first counted, by client id.

        Cost: O((m + n) r^2) a module and client for the norms; that of `product_gram` where cosines are bounded.
        """
        judged = _Judged()
        for one in moved:
            judged.note(one.client_id, self._claim(one, claimed.get(one.client_id)))
        self._judge_norms(judged.left(moved), judged)
        self._judge_components(judged.left(moved), judged)
        self._judge_cosines(judged.left(moved), judged)
        return Verdict(
            tuple(
                Drop(one.client_id, judged.refused[one.client_id]) for one in moved if one.client_id in judged.refused
            ),
            tuple(judged.clipped[one.client_id] for one in judged.left(moved) if one.client_id in judged.clipped),
        )

    def _claim(self, one: Moved, before: int | None) -> str | None:
        factor, now = self.examples_factor, one.num_examples
        if factor is None or before is None or before / factor <= now <= before * factor:
            return None
        return (
            f"expected {before / factor:g} to {before * factor:g} examples, since it first claimed {before}, got {now} "
            "(guard.examples_factor)"
        )

    def _judge_norms(self, moved: Sequence[Moved], judged: "_Judged") -> None:
        norms = [one.norms for one in moved]
        for part in sorted(set[str]().union(*norms)):
            found = [own.get(part, 0.0) for own in norms]
            for k, one in enumerate(moved):
                norm = found[k]
                if not math.isfinite(norm):
                    judged.note(one.client_id, f"the norm of its {part} is not finite")
                    continue
                bound, why = self._longest(found[:k] + found[k + 1 :])
                if norm <= bound:
                    continue
                reason = f"the norm of its {part} is {norm:.3g}, above {bound:.3g}, {why}"
                self._judge_long(one, bound / norm, reason, judged)

    def _judge_components(self, moved: Sequence[Moved], judged: "_Judged") -> None:
        if self.component_factor is None:
            return
        found = [one.component_norm for one in moved]
        for k, one in enumerate(moved):
            others = [norm for norm in found[:k] + found[k + 1 :] if norm]
            if others and found[k] > (bound := self.component_factor * median(others)):
                reason = (
                    f"the norm of its product over the root of its rank is {found[k]:.3g}, above {bound:.3g}, "
                    f"{self.component_factor:g} times the median of the others (guard.component_factor)"
                )
                self._judge_long(one, bound / found[k], reason, judged)

    def _judge_long(self, one: Moved, factor: float, reason: str, judged: "_Judged") -> None:
        """Refuse an update that is too long, or scale it down by the factor."""
        if self.action is Action.REFUSE:
            judged.note(one.client_id, reason)
        else:
            judged.clip(Clip(one.client_id, factor, reason))

    def _longest(self, others: Sequence[float]) -> tuple[float, str]:
        """The longest that an update may be, beside the norms of the others, and why."""
        bound, why = math.inf, ""
        if self.largest_norm is not None:
            bound, why = self.largest_norm, "the largest that is allowed (guard.largest_norm)"
        positive = [norm for norm in others if norm and math.isfinite(norm)]
        if self.norm_factor is not None and positive:
            middle = median(positive)
            if self.norm_factor * middle < bound:
                bound = self.norm_factor * middle
                why = f"{self.norm_factor:g} times the median {middle:.3g} of the others (guard.norm_factor)"
        return bound, why

    def _judge_cosines(self, moved: Sequence[Moved], judged: "_Judged") -> None:
        if self.smallest_cosine is None:
            return
        inner = product_gram([one.change for one in moved], precision=None)
        norms = inner.diagonal().clamp(min=0.0).sqrt()
        there = [k for k in range(len(moved)) if norms[k] > 0 and math.isfinite(float(norms[k]))]
        if len(there) < FEWEST_TO_COMPARE:
            return
        cosines = inner[there][:, there] / (norms[there][:, None] * norms[there])
        means = (cosines.sum(dim=1) - cosines.diagonal()) / (len(there) - 1)
        for k, mean in zip(there, means.tolist(), strict=True):
            if mean < self.smallest_cosine - ROUNDING:
                judged.note(
                    moved[k].client_id,
                    f"its mean cosine with the others is {mean:.3g}, below {self.smallest_cosine:g} "
                    "(guard.smallest_cosine)",
                )


@dataclass(slots=True)
class _Judged:
    """What was said so far; the first reason of a client stands, and the strongest clip."""

    refused: dict[str, str] = field(default_factory=dict[str, str])
    clipped: dict[str, Clip] = field(default_factory=dict[str, Clip])

    def note(self, client_id: str, reason: str | None) -> None:
        if reason is not None:
            self.refused.setdefault(client_id, reason)

    def clip(self, clip: Clip) -> None:
        before = self.clipped.get(clip.client_id)
        if before is None or clip.factor < before.factor:
            self.clipped[clip.client_id] = clip

    def left(self, moved: Sequence[Moved]) -> list[Moved]:
        return [one for one in moved if one.client_id not in self.refused]
