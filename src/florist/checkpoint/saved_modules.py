"""How PEFT's config names the parameters that are saved whole, beside the factors."""

from collections.abc import Collection

from florist.checkpoint.keys import TRAINED_ROWS, owner
from florist.checkpoint.layout import AdapterLayout
from florist.errors import InvalidAdapterError

CLASSIFIER_HEADS = ("classifier", "score")
"""Modules that PEFT saves whole for classification tasks of its own accord.

Modules inside one of these must not be named beside it.
"""


def stored_name(parameter: str, modules: Collection[str]) -> str:
    """The name of a base model's parameter in PEFT's model, where an adapted module lies one level deeper.

    Args:
        parameter: its name in the base model.
        modules: the adapted modules.
    """
    module, _, leaf = parameter.rpartition(".")
    return f"{module}.base_layer.{leaf}" if module in modules else parameter


def modules_to_save(parameters: Collection[str], layout: AdapterLayout) -> list[str]:
    """PEFT's `modules_to_save` for parameters that are saved whole.

    It holds what the layout names, and the modules of parameters that the layout does not name, as a head that was
    trained in this process.

    Raises:
        InvalidAdapterError: a parameter lies in no module.
    """
    names = dict.fromkeys(layout.modules_to_save)
    for parameter in parameters:
        if parameter in layout.tied_parameters:
            continue  # PEFT adds these itself
        module, _, leaf = parameter.rpartition(".")
        alone = leaf == "bias" and f"{module}.weight" not in parameters
        if owner(parameter, tuple(names)) is None and not alone and not parameter.endswith(TRAINED_ROWS):
            names[_module_to_save(parameter)] = None
    return list(names)


def trained_biases(parameters: Collection[str], saved: Collection[str], modules: Collection[str]) -> str:
    """PEFT's `bias`: which biases of the base model are among the parameters.

    Args:
        parameters: names of all that is saved whole.
        saved: `modules_to_save`, whose biases do not count.
        modules: the adapted modules.
    """
    owners = {
        name.removesuffix(".bias") for name in parameters if name.endswith(".bias") and owner(name, saved) is None
    }
    if not owners:
        return "none"
    return "lora_only" if owners.issubset(modules) else "all"


def _module_to_save(parameter: str) -> str:
    parts = parameter.split(".")[:-1]
    if not parts:
        raise InvalidAdapterError(
            f"expected the name of a parameter inside a module, as 'score.weight', got {parameter!r}"
        )
    end = next((position for position, part in enumerate(parts) if part in CLASSIFIER_HEADS), len(parts) - 1)
    return ".".join(parts[: end + 1])
