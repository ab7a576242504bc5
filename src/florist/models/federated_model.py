"""One loaded base model whose adapters change: a frozen ``global`` one and a trainable ``local`` one.

The base is never modified and never merged into. All clients of a simulation share it; from client to client, only the
local adapter changes and, where a head is trained, the values of that head. Full fine-tuning has no adapters and writes
to the weights of the targeted modules; the pristine weights are kept beside.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from florist.aggregation import lossless_sum
from florist.checkpoint import encode
from florist.errors import ModelError
from florist.factors import AdapterState, LoraFactor
from florist.models.whole_weights import PristineWeight, difference, pristine_weights, trainable_weights
from florist.rounds import NO_ADAPTER, SavedParameters, Trained, weight_name
from florist.seeding import random_rows

GLOBAL = "global"
LOCAL = "local"


@dataclass(frozen=True, slots=True)
class LocalLora:
    """What a client trains, in the terms of PEFT's ``LoraConfig``.

    Attributes:
        rank: The rank r of every module.
        alpha: The numerator of the scaling.
        use_rslora: Whether the scaling is alpha / sqrt(r) instead of alpha / r.
        dropout: The probability of dropout on the input of A.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    dropout: float = 0.0


def linear_modules(model: nn.Module) -> tuple[str, ...]:
    """The last parts of the names of the linear modules, as ``target_modules`` takes them, in the model's order.

    The module of the output embedding is left out, as PEFT leaves it out of ``"all-linear"``.
    """
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    )
    return tuple(dict.fromkeys(found))


class FederatedModel:
    """A base model with a frozen global and a trainable local adapter.

    Args:
        base: The pristine model; it gains PEFT's layers and keeps its weights.
        target_modules: The modules to adapt, as PEFT's ``LoraConfig`` takes them: suffixes of names, one regular
            expression, or ``"all-linear"``.
        modules_to_save: Modules that are trained and sent whole, a classification head for instance.
        task_type: PEFT's name of the task.
        trained: What a client trains in the targeted modules.

    Raises:
        ModelError: No module is targeted, PEFT cannot adapt a targeted one, or a module to save has no parameters; or
            weights are to be trained that are quantised, or shared with another module.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        target_modules: str | list[str],
        modules_to_save: tuple[str, ...],
        task_type: str,
        trained: Trained = Trained.FACTORS,
    ) -> None:
        base.requires_grad_(requires_grad=False)
        self._config: dict[str, Any] = {
            "target_modules": target_modules,
            "exclude_modules": list(modules_to_save) or None,
        }
        self.task_type = task_type
        self.modules_to_save = modules_to_save
        linear = linear_modules(base)  # PEFT replaces them
        try:
            self.peft = PeftModel(base, LoraConfig(r=1, **self._config), adapter_name=LOCAL)
        except (ValueError, re.error) as error:
            told = str(error).rstrip(". ")
            raise ModelError(f"[lora] target_modules = {target_modules!r}: {told}; {_there_are(linear)}") from error
        self._tuner: Any = self.peft.base_model  # torch types a module's attributes as Tensor | Module
        self._global = NO_ADAPTER
        ends = [] if isinstance(target_modules, str) else target_modules
        unmatched = [end for end in ends if not _ends_one(end, self._layers())]
        if unmatched:
            raise ModelError(
                f"[lora] target_modules = {target_modules!r}: expected names of modules, got {unmatched}, which match "
                f"none; {_there_are(linear)}"
            )
        self._halves = tuple(half for half in (Trained.A, Trained.B) if half in trained)
        self._whole = {
            name: parameter
            for name, parameter in base.named_parameters()
            if any(name.startswith(f"{module}.") for module in modules_to_save)
        }
        idle = [module for module in modules_to_save if not any(name.startswith(f"{module}.") for name in self._whole)]
        if idle:
            raise ModelError(
                f"[lora] modules_to_save: expected modules with parameters of their own, got {idle}; give full names, "
                "and leave out a head that is tied to the embedding"
            )
        self._pristine: Mapping[str, PristineWeight] = {}
        if Trained.WEIGHTS in trained:
            self._whole |= trainable_weights(base, self._layers())
            self._pristine = pristine_weights(self._layers())

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """The (out_features, in_features) of every adapted module, in the orientation of the factors."""
        return {name: (B.shape[0], A.shape[1]) for name, (B, A) in self._local_weights().items()}

    @property
    def saved_parameters(self) -> SavedParameters:
        """The current values of the parameters that travel whole, copied at each access."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._whole.items()}

    @saved_parameters.setter
    def saved_parameters(self, values: SavedParameters) -> None:
        with torch.no_grad():
            for name, parameter in self._whole.items():
                parameter.copy_(values[name])

    def set_global(self, adapter: AdapterState) -> None:
        """Put a new frozen global adapter in the place of the old one; afterwards the local adapter is inactive."""
        if adapter is not self._global:
            self._replace_global(adapter)
        self._activate(training=False)

    def start_local(self, lora: LocalLora, start: AdapterState, *, seed: int, max_rank: int) -> None:
        """Replace the local adapter by the components of `start`, and random rows of A under zero columns of B.

        `seeding.random_rows` draws the rows. Clients that share a seed share A: `max_rank` rows are drawn, and a client
        of a smaller rank takes the first of them.

        Args:
            lora: The rank and the scaling of the client; the scaling is divided out of the B of `start`.
            start: What the adapter adds at first, at most of the client's rank; an empty adapter adds nothing.
            seed: The seed of the random rows.
            max_rank: How many rows are drawn.
        """
        if self._global:
            self._tuner.set_adapter([GLOBAL])
        self.peft.delete_adapter(LOCAL)
        self.peft.add_adapter(
            LOCAL,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  # PEFT takes a float as well
                use_rslora=lora.use_rslora,
                lora_dropout=lora.dropout,
                **self._config,
            ),
        )
        with torch.no_grad():
            for name, layer in self._layers().items():
                B, A = self._weights_of(layer)
                A.copy_(random_rows(seed, name, max_rank, A.shape[1])[: lora.rank])
                if name in start:
                    given = start[name]
                    B[:, : given.rank] = given.B.to(B) / layer.scaling[LOCAL]
                    A[: given.rank] = given.A.to(A)
        self._activate(training=True)

    def read_local(self) -> AdapterState:
        """Return a copy of what the local adapter adds, with the scaling folded into B, in float32 on the CPU.

        The copy is empty where clients train no factors.
        """
        factors: dict[str, LoraFactor] = {}
        if not self._halves:
            return NO_ADAPTER
        for name, layer in self._layers().items():
            B, A = self._weights_of(layer)
            factors[name] = LoraFactor(
                (B.detach().float() * layer.scaling[LOCAL]).cpu().contiguous(),
                A.detach().float().cpu().clone(),
            )
        return AdapterState.of(factors)

    def deliverable(
        self, adapter: AdapterState, saved_parameters: SavedParameters
    ) -> tuple[AdapterState, SavedParameters]:
        """Return the adapter and the saved parameters that turn the pristine base into the global model.

        Weights that were trained themselves become the adapter that leads to them from the pristine weights, at its
        numerical rank, so that one format serves every method.

        Args:
            adapter: The global adapter.
            saved_parameters: The saved parameters of the server's state.

        Cost: one dense SVD for each module whose weights were trained.
        """
        whole = {weight_name(module) for module in self._pristine}
        heads = {name: value for name, value in saved_parameters.items() if name not in whole}
        if not self._pristine:
            return adapter, heads
        return lossless_sum([adapter, difference(self._pristine, saved_parameters)]), heads

    def _replace_global(self, adapter: AdapterState) -> None:
        if self._global:
            self._tuner.set_adapter([LOCAL])  # PEFT warns when the active adapter goes
            self.peft.delete_adapter(GLOBAL)
        self._global = adapter
        if adapter:
            encoded = encode(adapter, task_type=None)
            fields = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
            self.peft.add_adapter(GLOBAL, LoraConfig(**{name: encoded.config[name] for name in fields}))
            set_peft_model_state_dict(self.peft, encoded.tensors, adapter_name=GLOBAL)

    def _activate(self, *, training: bool) -> None:
        active = ([GLOBAL] if self._global else []) + ([LOCAL] if training and self._halves else [])
        if active:
            self._tuner.set_adapter(active)
            self._tuner.enable_adapter_layers()
        else:
            self._tuner.disable_adapter_layers()
        trained = tuple(f".lora_{half.name}.{LOCAL}." for half in self._halves)
        for name, parameter in self.peft.named_parameters():
            # set_adapter makes every active adapter trainable, but only the local one trains, or one half of it.
            parameter.requires_grad_(training and any(part in name for part in trained))
        for parameter in self._whole.values():
            parameter.requires_grad_(training)

    def _layers(self) -> dict[str, LoraLayer]:
        inner = self.peft.get_base_model()
        return {
            name: module
            for name, module in inner.named_modules()
            if isinstance(module, LoraLayer) and LOCAL in module.lora_A
        }

    def _local_weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: self._weights_of(layer) for name, layer in self._layers().items()}

    @staticmethod
    def _weights_of(layer: Any) -> tuple[Tensor, Tensor]:
        return layer.lora_B[LOCAL].weight, layer.lora_A[LOCAL].weight


def _ends_one(end: str, names: Collection[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for name in names)


def _there_are(linear: tuple[str, ...]) -> str:
    return f"the linear modules of this model are called {', '.join(linear)}, and 'all-linear' takes all"
