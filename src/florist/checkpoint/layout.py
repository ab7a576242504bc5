"""How an adapter's factors are stored, so that what was read can be written back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LinearLayout:
    """``lora_A.weight`` (r, in) and ``lora_B.weight`` (out, r).

    Linear modules are stored so, and GPT-2's Conv1D too, without a transposition.
    """


@dataclass(frozen=True, slots=True)
class EmbeddingLayout:
    """``lora_embedding_A`` (r, vocabulary) and ``lora_embedding_B`` (d, r), without ``.weight``."""


@dataclass(frozen=True, slots=True)
class ConvolutionLayout:
    """``lora_A.weight`` (r, in, k...) and ``lora_B.weight`` (out, r, 1...). The factor has A flattened.

    Attributes:
        in_channels: how many channels the convolution reads.
        kernel: the one, two or three sizes of its kernel.
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
        stored: the name of the module in the file, with every ``.base_layer``.
        module: the name of the module in the base model.
        expert: e, the number of the expert, from 0.
        experts: E, how many there are. A parameter that is a plain matrix has 1.
        parameters: the parameters of the module that the adapter's `target_parameters` may mean.
    """

    stored: str
    module: str
    expert: int
    experts: int
    parameters: tuple[str, ...]


ModuleLayout = LinearLayout | EmbeddingLayout | ConvolutionLayout | ExpertLayout
"""How the factor of one module is stored."""

TokenIndices = Sequence[int] | Mapping[str, Sequence[int]] | None
"""PEFT's `trainable_token_indices`: rows of the input embedding, or rows by the name of the embedding."""


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """How a whole adapter is stored.

    Attributes:
        modules: the layout of each module, by its name. A module that is not named is linear.
        fan_in_fan_out: whether the base stores its weights transposed, as GPT-2 does. The factors are the same.
        modules_to_save: the ends of the names of modules that are saved whole.
        target_parameters: the ends of the names of adapted parameters, as PEFT takes them.
        trainable_token_indices: the rows of an embedding that are saved whole.
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
"""The layout in which every module is linear. `encode` assumes it of an adapter that came from no file."""
