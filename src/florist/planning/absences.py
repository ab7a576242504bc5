"""What clients that were away have missed when they are asked again, as expectations over who is asked.

Every round asks each client with probability f, whatever it asked before. A client that is asked in round t has
therefore missed exactly d broadcasts since it last took part with probability f (1 - f)^d for d <= t - 2, and has never
taken part with probability (1 - f)^(t - 1). `Federation.download` says what it is then sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from florist.federation.broadcasts import CATCH_UP_ROUNDS


@dataclass(frozen=True, slots=True, eq=False)
class Absences:
    """What the clients of a run lack when they are asked, on average over all times that a client is asked.

    Attributes:
        missed: the share of the clients that lack d broadcasts and are sent these, by d.
        whole: the share that is sent the whole global adapter instead, by round: entry t - 1 is round t.
    """

    missed: Mapping[int, float]
    whole: NDArray[np.float64]

    @property
    def any(self) -> float:
        """The share that lacks anything."""
        return sum(self.missed.values()) + float(self.whole.sum())


def absences(asked_share: float, rounds: int, *, packed: bool) -> Absences:
    """The expected absences of a run in which no round fails.

    Args:
        asked_share: f, the probability that a round asks a client.
        rounds: how many rounds are played.
        packed: whether broadcasts were packed by a codec. A client that has never taken part is then sent all of them
            as long as they are kept; else it is sent the global adapter as soon as it lacks two.

    Cost: O(rounds).
    """
    f, away = asked_share, 1.0 - asked_share
    whole = np.zeros(rounds)
    if away == 0:
        return Absences({}, whole)
    t = np.arange(1, rounds + 1)
    missed = {d: f * away**d * (rounds - 1 - d) for d in range(1, min(CATCH_UP_ROUNDS, rounds - 2) + 1)}
    for new_at in range(2, min(rounds, CATCH_UP_ROUNDS + 1 if packed else 2) + 1):
        missed[new_at - 1] = missed.get(new_at - 1, 0.0) + away ** (new_at - 1)
    # Of holders, those away for longer than broadcasts are kept; of those who never took part, all the others.
    longest = CATCH_UP_ROUNDS + 1
    since = longest + 1 if packed else 3
    whole[since - 1 :] = away ** np.minimum(t[since - 1 :] - 1, longest)
    return Absences({d: weight / rounds for d, weight in missed.items()}, whole / rounds)
