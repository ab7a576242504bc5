"""A budget for the whole file of the result, and not for its factors alone."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from florist.checkpoint import AdapterLayout, stored_bytes, stored_ranks, written_bytes
from florist.errors import ConfigurationError
from florist.linalg.spectrum import Spectrum
from florist.ranks import RankRule

_STEPS = 8
"""How often the range of budgets is halved if modules share a rank."""


@runtime_checkable
class BesideFactors(Protocol):
    """What a file holds beside its factors, and how it stores them. `Inputs` says that of an aggregate."""

    @property
    def layout(self) -> AdapterLayout:
        """How the factors are stored."""
        ...

    @property
    def saved_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the parameters that are stored whole, by name."""
        ...

    @property
    def biased(self) -> Collection[str]:
        """The modules that have an output bias."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FileBudget:
    """The choice of another rule, given as many bytes as are left beside what else the file holds.

    The file's header, saved parameters and output biases take bytes of their own. Modules that share a rank in the
    file, as the experts of a layer do, are padded to the largest rank among them: what a rule takes for the price of
    one direction is then too low, and the rule is asked again with fewer bytes. Where the padding has room for
    directions that the rule left out, they are kept.

    Attributes:
        nbytes: the largest size of adapter_model.safetensors, as it is written with `Export.PER_MODULE`.
        rule: makes the other rule from the bytes that all factors together may take.
        inputs: what else the file holds; of an aggregate, the adapters that are combined.
        dtype: the dtype of the stored tensors.
    """

    nbytes: int
    rule: Callable[[int], RankRule]
    inputs: BesideFactors
    dtype: torch.dtype = torch.float32

    @property
    def required_energy(self) -> float:
        """What the other rule requires."""
        return self.rule(self.nbytes).required_energy

    @property
    def per_module(self) -> bool:
        """Modules share the file."""
        return False

    def __call__(self, spectra: Mapping[str, Spectrum], /) -> Mapping[str, int]:
        """Choose the rank of each module.

        Raises:
            ConfigurationError: the file is too large even with rank 1 in every module.

        Cost: that of the other rule and of `written_bytes`, twice if no modules share a rank, and else up to eleven
        times.
        """
        shapes = {name: spectrum.shape for name, spectrum in spectra.items()}
        smallest = self._file_bytes(shapes, dict.fromkeys(shapes, 1))
        if smallest > self.nbytes:
            raise ConfigurationError(
                f"expected a budget that holds rank 1 in each of the {len(shapes)} modules, a file of {smallest} bytes "
                f"with its header and all that lies beside the factors, got {self.nbytes}; allow more, adapt fewer "
                "modules, or store a narrower dtype"
            )
        floor = stored_bytes(shapes, dict.fromkeys(shapes, 1), layout=self.inputs.layout, dtype=self.dtype)
        most = floor + self.nbytes - smallest
        ranks, excess = self._choose(spectra, shapes, most)
        if excess <= 0:
            return ranks
        # Larger numbers make a longer header. If that is all, the excess says how many bytes to leave for it.
        ranks, excess_left = self._choose(spectra, shapes, max(floor, most - excess))
        if excess_left <= 0:
            return ranks
        best, _ = self._choose(spectra, shapes, floor)
        low, high = floor, most
        for _ in range(_STEPS):
            middle = (low + high) // 2
            ranks, excess = self._choose(spectra, shapes, middle)
            if excess <= 0:
                best, low = ranks, middle
            else:
                high = middle
        return best

    def _choose(
        self, spectra: Mapping[str, Spectrum], shapes: Mapping[str, tuple[int, int]], nbytes: int
    ) -> tuple[dict[str, int], int]:
        """What the other rule chooses with so many bytes, and how many bytes more than the budget its file takes."""
        chosen = self.rule(nbytes)(spectra)
        stored = stored_ranks(chosen, self.inputs.layout)
        ranks = {
            # The padding of a module that shares no rank holds nothing: it has its own rank, or the update is zero.
            name: max(rank, min(stored[name], spectra[name].numerical_rank))
            for name, rank in chosen.items()
        }
        return ranks, self._file_bytes(shapes, ranks) - self.nbytes

    def _file_bytes(self, shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int]) -> int:
        return written_bytes(
            shapes,
            ranks,
            layout=self.inputs.layout,
            saved_shapes=self.inputs.saved_shapes,
            additive=self.inputs.biased,
            dtype=self.dtype,
        )
