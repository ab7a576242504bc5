"""How an adapter's factors are stored, so that what was read can be written back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LinearLayout:
    """``lora_A.weight`` (r, in) and ``lora_B.weight`` (out, r): Linear, and GPT-2's Conv1D without a transposition."""


@dataclass(frozen=True, slots=True)
class EmbeddingLayout:
    """``lora_embedding_A`` (r, vocabulary) and ``lora_embedding_B`` (d, r), without ``.weight``."""


@dataclass(frozen=True, slots=True)
class ConvolutionLayout:
    """``lora_A.weight`` (r, in, k...) and ``lora_B.weight`` (out, r, 1...); the factor has A flattened.

    Attributes:
        in_channels: of the convolution.
        kernel: its one, two or three sizes.
    """

    in_channels: int
    kernel: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """One expert of a parameter that PEFT adapts itself (`target_parameters`).

    PEFT stores the experts of one parameter in one pair: ``lora_A.weight`` (E r, in) holds them one after the other,
    ``lora_B.weight`` (out, r E) has expert e in the columns e, E + e, 2 E + e... A second parameter of the same
    module is stored one ``.base_layer`` deeper; which parameter lies where depends on the base model alone.

    Attributes:
        stored: the module name in the file, with every ``.base_layer``.
        module: the module name in the base model.
        expert: e, from 0.
        experts: E; 1 for a parameter that is a plain matrix.
        parameters: the parameters of the module that the adapter's `target_parameters` may mean.
    """

    stored: str
    module: str
    expert: int
    experts: int
    parameters: tuple[str, ...]


ModuleLayout = LinearLayout | EmbeddingLayout | ConvolutionLayout | ExpertLayout

TokenIndices = Sequence[int] | Mapping[str, Sequence[int]] | None
"""PEFT's `trainable_token_indices`: of the input embedding, or by the name of the embedding."""


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """Of a whole adapter.

    Attributes:
        modules: by module name; a module that is not named is linear.
        fan_in_fan_out: whether the base stores its weights transposed, as GPT-2 does. The factors are the same.
        modules_to_save: endings of module names whose parameters travel whole.
        target_parameters: endings of parameter names, as PEFT takes them.
        trainable_token_indices: the rows of an embedding that travel whole.
        tied_parameters: parameters that PEFT stores beside a saved embedding, because the base model ties them to it.
            Their values are those of the embedding.
    """

    modules: Mapping[str, ModuleLayout] = field(default_factory=dict[str, ModuleLayout])
    fan_in_fan_out: bool = False
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    trainable_token_indices: TokenIndices = None
    tied_parameters: tuple[str, ...] = ()

    def module(self, name: str) -> ModuleLayout:
        """The layout of one module."""
        return self.modules.get(name, LinearLayout())


LINEAR = AdapterLayout()
"""Every module is linear: what `encode` assumes of an adapter that came from no file."""
