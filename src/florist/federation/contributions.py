"""What clients put into a private round, and who is lost on the way."""

from dataclasses import dataclass

from florist.privacy.clipping import Change


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What one client puts into a sum.

    Attributes:
        change: what its training changed, bounded.
        weight: its weight.
    """

    change: Change
    weight: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Who is lost in a masked round, after which phase. Without masks, whoever is named here is lost.

    Attributes:
        after_keys: published keys and shares nothing: the round is as if it had never come.
        after_shares: sends no words; the shares of the others take its masks off the sum.
        after_words: is in the sum, and reveals nothing.
    """

    after_keys: frozenset[str] = frozenset()
    after_shares: frozenset[str] = frozenset()
    after_words: frozenset[str] = frozenset()

    @property
    def before_the_sum(self) -> frozenset[str]:
        """Those that are not in the sum."""
        return self.after_keys | self.after_shares


NOBODY = Lost()
