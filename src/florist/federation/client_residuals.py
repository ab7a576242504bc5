"""What the clients of a simulation hold back, each for itself, and since which round."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from florist.compression.residual import NOTHING_OWED, Residual


class ClientResiduals(Mapping[str, Residual]):
    """The residual of every client that holds something back. An instance never changes.

    Args:
        kept: the residuals, by client id.
        rounds: the round after which a residual is what it is, by client id.
    """

    def __init__(
        self,
        kept: Mapping[str, Residual] = MappingProxyType({}),
        rounds: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._kept = dict(sorted(kept.items()))
        self.rounds = {client_id: rounds[client_id] for client_id in self._kept}

    def __getitem__(self, client_id: str) -> Residual:
        return self._kept[client_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, client_id: str) -> Residual:
        """What a client holds back; nothing where it has not uploaded yet."""
        return self._kept.get(client_id, NOTHING_OWED)

    def followed_by(self, round_number: int, changed: Mapping[str, Residual]) -> "ClientResiduals":
        """These residuals with those of the clients whose updates counted in a round."""
        kept = {name: residual for name, residual in {**self._kept, **changed}.items() if residual}
        return ClientResiduals(kept, {**self.rounds, **dict.fromkeys(changed, round_number)})
