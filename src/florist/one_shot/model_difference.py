"""What two models of one architecture differ in: the linear weights that LoRA can hold, and what else moved."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from florist.checkpoint import AdapterLayout
from florist.checkpoint.keys import owner
from florist.checkpoint.model_weights import ModelLayers, ModelWeights
from florist.errors import ModelError, UnsupportedAdapterError, some
from florist.rounds import SavedParameters

_CHUNK = 1 << 23
"""So many numbers are widened to float64 at a time."""

OnTensor = Callable[[int, int], None]
"""A function that is told how many tensors are compared, and how many there are."""


class Others(Enum):
    """What becomes of changes that are no linear weights: of norms, embeddings and biases.

    >>> Others("leave-out") is Others.LEAVE_OUT
    True
    """

    REFUSE = "refuse"
    """Nothing is extracted, and the message names them."""
    LEAVE_OUT = "leave-out"
    """The adapter lacks them, and the certificate names them."""
    SAVE = "save"
    """The adapter has them: biases of adapted modules as ``lora_B.bias``, and other modules whole."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelDifference:
    """What a fine-tuned model changed of its base. Weights are read when they are asked for.

    Attributes:
        base: the base.
        tuned: the fine-tuned model.
        layers: what the tensors of `tuned` are.
        paired: the name of each tensor of `tuned` -> its name in `base`. What the base lacks is missing.
        modules: the linear modules whose weights differ, or whose biases the adapter is to have.
        whole: the names of the parameters that the adapter is to have whole.
        biases: the modules whose changed bias the adapter is to have.
        left_out: what the adapter will lack: name -> how far it moved, over the norm of the base's; NaN where there is
            no such number.
        notes: what a person should know.
    """

    base: ModelWeights
    tuned: ModelWeights
    layers: ModelLayers
    paired: Mapping[str, str]
    modules: tuple[str, ...]
    whole: tuple[str, ...]
    biases: tuple[str, ...]
    left_out: Mapping[str, float]
    notes: tuple[str, ...]

    def shape(self, module: str) -> tuple[int, int]:
        """(out_features, in_features) of a linear module."""
        rows, columns = self.tuned.shape(f"{module}.weight")
        return (columns, rows) if self.layers.linear[module] else (rows, columns)

    def dtype(self, module: str) -> torch.dtype:
        """The dtype of the difference of a linear module: float64 if either weight has that, else float32."""
        name = f"{module}.weight"
        return _widened(self.base.tensors[self.paired[name]].dtype, self.tuned.tensors[name].dtype)

    def weight(self, module: str) -> Float[Tensor, "out_features in_features"]:
        """``W_tuned - W_base`` of one module, in its `dtype`.

        Raises:
            NonFiniteUpdateError: a weight holds NaN or infinity.

        Cost: the memory of three such matrices while it is computed.
        """
        moved = self._moved(f"{module}.weight")
        return moved.T.contiguous() if self.layers.linear[module] else moved

    @property
    def saved_parameters(self) -> SavedParameters:
        """The values of what the adapter is to have whole, read at each access."""
        return {name: self.tuned.read_finite(name) for name in self.whole}

    @property
    def additive(self) -> SavedParameters:
        """How far the biases moved that the adapter is to have, by module; read at each access."""
        return {module: self._moved(f"{module}.bias") for module in self.biases}

    @property
    def layout(self) -> AdapterLayout:
        """How the adapter is to be stored."""
        return AdapterLayout(
            fan_in_fan_out=any(self.layers.linear[module] for module in self.modules), modules_to_save=self.layers.heads
        )

    @property
    def saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what the adapter is to have whole."""
        return {name: self.tuned.shape(name) for name in self.whole}

    @property
    def biased(self) -> tuple[str, ...]:
        """The modules that have an output bias: PEFT gives one to all or to none."""
        return self.modules if self.biases else ()

    def rounding(self, module: str) -> float:
        """The largest singular value that rounding each number of the tuned weight to its dtype gives the difference.

        Rounding spreads evenly over a unit in the last place, which is at most eps times the number, and the largest
        singular value of independent errors of variance v is ``sqrt(v) (sqrt(m) + sqrt(n))``.
        """
        stored = self.tuned.tensors[f"{module}.weight"]
        norm = float(torch.linalg.vector_norm(self.tuned.read(f"{module}.weight"), dtype=torch.float64))
        m, n = stored.shape
        return torch.finfo(stored.dtype).eps * norm * (m**-0.5 + n**-0.5) / math.sqrt(12)

    def _moved(self, name: str) -> Tensor:
        before, after = self.base.read_finite(self.paired[name]), self.tuned.read_finite(name)
        dtype = _widened(before.dtype, after.dtype)
        return after.to(dtype) - before.to(dtype)


def _widened(*dtypes: torch.dtype) -> torch.dtype:
    return torch.float64 if torch.float64 in dtypes else torch.float32


def compare_models(
    base: ModelWeights,
    tuned: ModelWeights,
    layers: ModelLayers,
    *,
    others: Others = Others.REFUSE,
    on_tensor: OnTensor | None = None,
) -> ModelDifference:
    """Find what a fine-tuned model changed.

    The heads of its task, as a classifier's, are kept whole: PEFT saves them with every adapter of that task.

    Args:
        base: the base.
        tuned: the fine-tuned model.
        layers: what the tensors of `tuned` are.
        others: what becomes of other changes than those of linear weights.
        on_tensor: a function that is told how far the work is.

    Raises:
        ModelError: the models are not of one architecture, a tensor is missing, nothing changed, or something did that
            `others` refuses.
        UnsupportedAdapterError: a linear weight is quantised, or a change cannot be saved whole.

    Cost: it reads both models once, a tensor at a time.
    """
    paired = _paired(base, tuned, layers)
    changed: dict[str, float] = {}
    names = sorted(tuned.names)
    for position, name in enumerate(names):
        if on_tensor is not None:
            on_tensor(position, len(names))
        if name not in paired:
            changed[name] = math.nan
        elif not _equal(base, paired[name], tuned, name):
            weight = name.removesuffix(".weight") in layers.linear and name.endswith(".weight")
            changed[name] = 0.0 if weight else _moved_by(base, paired[name], tuned, name)
    modules = {m for m in layers.linear if f"{m}.weight" in changed and f"{m}.weight" in paired}
    whole = [name for name in names if owner(name, layers.heads) in layers.heads]
    # A tied name that a checkpoint holds as well says what the tensor says that it stands for.
    told = {f"{m}.weight" for m in modules} | {*whole}
    told |= {alias for alias, name in layers.aliases.items() if name in tuned.names}
    rest = {name: by for name, by in changed.items() if name not in told}
    biases: list[str] = []
    left_out: dict[str, float] = {}
    if rest and others is Others.REFUSE:
        raise ModelError(
            f"expected changes of linear weights alone, and {tuned.path} also changed {some(_told(rest))}; leave them "
            "out of the adapter with --others leave-out, or give it them whole with --others save"
        )
    if others is Others.SAVE:
        adapted = {f"{module}.bias": module for module in layers.linear}
        biases = [adapted[name] for name in rest if name in adapted and name in paired]
        whole += _whole_modules([name for name in rest if adapted.get(name) not in biases], tuned, layers)
        modules |= set(biases)
    else:
        left_out = rest
    if not modules:
        raise ModelError(
            f"expected {tuned.path} to differ from {base.path} in a linear weight, and none does; name the fine-tuned "
            "model last"
        )
    _require_floats(base, tuned, paired, modules)
    return ModelDifference(
        base,
        tuned,
        layers,
        paired,
        tuple(sorted(modules)),
        tuple(sorted(whole)),
        tuple(sorted(biases)),
        dict(sorted(left_out.items())),
        tuple(_notes(base, tuned, paired, modules, left_out)),
    )


def _paired(base: ModelWeights, tuned: ModelWeights, layers: ModelLayers) -> dict[str, str]:
    """Which tensor of the base each tensor of the other is. A model without a head lacks a prefix."""
    prefix = f"{layers.prefix}."
    paired: dict[str, str] = {}
    for name in tuned.names:
        candidates = (name, name.removeprefix(prefix), prefix + name)
        found = next((candidate for candidate in candidates if candidate in base.names), None)
        if found is not None:
            paired[name] = found
    unlike = [
        f"{name}: {tuned.shape(name)} and {base.shape(other)}"
        for name, other in sorted(paired.items())
        if tuned.shape(name) != base.shape(other)
    ]
    if unlike:
        raise ModelError(
            f"expected the shapes of {base.path} in {tuned.path}, got others for {some(unlike)}; name the model that "
            "was fine-tuned, with the vocabulary that it had"
        )
    unnamed = sorted(f"{m}.weight" for m in layers.linear if f"{m}.weight" not in tuned.names)
    if unnamed:
        raise ModelError(
            f"expected {tuned.path} to hold the weights that its architecture has, and it lacks {some(unnamed)}; copy "
            "or save the model again (models that transformers stores under other names than it gives them cannot be "
            "compared)"
        )
    found = set(paired.values())
    own = {*layers.parameters, *(name.removeprefix(prefix) for name in layers.parameters)}
    own -= layers.aliases.keys()
    lost = sorted(name for name in base.names - found if name in own)
    if lost:
        raise ModelError(
            f"expected in {tuned.path} every tensor of {base.path}, and it lacks {some(lost)}; copy or save it again"
        )
    if not any(f"{module}.weight" in paired for module in layers.linear):
        raise ModelError(
            f"expected two models of one architecture, and {base.path} has none of the linear weights of {tuned.path}, "
            f"as {next(iter(layers.linear), 'none')}.weight; name the base that was fine-tuned"
        )
    return paired


def _equal(base: ModelWeights, other: str, tuned: ModelWeights, name: str) -> bool:
    if base.dtype(other) == tuned.dtype(name):
        return torch.equal(base.read_raw(other), tuned.read_raw(name))
    if name not in tuned.tensors or other not in base.tensors:
        return False
    before, after = base.read(other), tuned.read(name)
    dtype = torch.promote_types(before.dtype, after.dtype)
    return torch.equal(before.to(dtype), after.to(dtype))


def _moved_by(base: ModelWeights, other: str, tuned: ModelWeights, name: str) -> float:
    """``||after - before|| / ||before||``, in float64; NaN for integers and for a zero before."""
    if name not in tuned.tensors or other not in base.tensors:
        return math.nan
    before, after = base.read(other).flatten(), tuned.read(name).flatten()
    norm = moved = 0.0
    for start in range(0, before.numel(), _CHUNK):
        own = before[start : start + _CHUNK].double()
        norm += float(own.square().sum())
        moved += float((after[start : start + _CHUNK].double() - own).square().sum())
    return math.sqrt(moved / norm) if norm else math.nan


def _told(moved: Mapping[str, float]) -> list[str]:
    return [f"{name} (by {by:.1e} of its norm)" if math.isfinite(by) else name for name, by in sorted(moved.items())]


def _whole_modules(names: list[str], tuned: ModelWeights, layers: ModelLayers) -> list[str]:
    """All parameters of the modules of some, which PEFT saves together."""
    owners = {name.rpartition(".")[0] for name in names}
    tied = {name.rpartition(".")[0] for name in layers.aliases.values()}
    for module in sorted(owners):
        own = [name for name in names if name.rpartition(".")[0] == module]
        # PEFT saves every module whose name ends so, with all that lies in it.
        others = [other for other in layers.modules if other != module and other.endswith(module)]
        inside = [other for other in layers.modules if other.startswith(f"{module}.")]
        why = (
            "it lies in no module"
            if not module or module not in layers.modules
            else "other modules lie in that one"
            if inside
            else f"{others[0]} is named alike"
            if others
            else "the output layer is tied to it"
            if module in tied
            else "it holds no floats"
            if any(name not in tuned.tensors for name in own)
            else None
        )
        if why is not None:
            raise UnsupportedAdapterError(
                f"expected changes that PEFT can save whole, got {some(own)}: {why}; leave them out of the adapter "
                "with --others leave-out"
            )
    return [name for name in tuned.tensors if name.rpartition(".")[0] in owners]


def _require_floats(base: ModelWeights, tuned: ModelWeights, paired: Mapping[str, str], modules: set[str]) -> None:
    for module in sorted(modules):
        name = f"{module}.weight"
        for model, own in ((tuned, name), (base, paired[name])):
            if own not in model.tensors:
                raise UnsupportedAdapterError(
                    f"expected {own} of {model.path} in float16, bfloat16, float32 or float64, got {model.dtype(own)}, "
                    "in which a model is quantised; load it dequantised with transformers and save it"
                )


def _notes(
    base: ModelWeights,
    tuned: ModelWeights,
    paired: Mapping[str, str],
    modules: set[str],
    left_out: Mapping[str, float],
) -> list[str]:
    notes: list[str] = []
    dtypes = sorted({(base.dtype(paired[f"{m}.weight"]), tuned.dtype(f"{m}.weight")) for m in modules})
    unlike = [f"{one} and {other}" for one, other in dtypes if one != other]
    if unlike:
        notes.append(
            f"the weights of the base and of the fine-tuned model are stored in unlike dtypes ({', '.join(unlike)}): "
            "what rounding changed counts as a change"
        )
    if left_out:
        notes.append(f"the adapter is without what else was changed: {some(_told(left_out))}")
    return notes
