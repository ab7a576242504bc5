"""A model that is lent to a simulation, and is afterwards what it was."""

from collections.abc import Generator
from contextlib import contextmanager

from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel


@contextmanager
def lent(model: PreTrainedModel | None) -> Generator[None, None, None]:
    """Give a model back without the layers that PEFT put into it, and with the flags that it had.

    Its weights are nobody's to change meanwhile; whoever does, for a head or whole weights, restores them. On a machine
    with CUDA the model stays on the GPU.

    Args:
        model: the model; None where a simulation loads one of its own.
    """
    if model is None:
        yield
        return
    training = model.training
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config  # or PEFT would warn of a second time
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(requires_grad[name])
        model.train(training)
