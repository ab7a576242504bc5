"""What the tensors of a saved model are, from the model that transformers builds without its weights."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from florist.checkpoint.keys import owner
from florist.checkpoint.model_weights import ModelLayers
from florist.checkpoint.settings import IMPLIED_MODULES
from florist.errors import ModelError

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""PEFT's names of tasks, by the ends of the names of transformers' classes."""


def model_layers(directory: Path) -> ModelLayers:
    """Find the linear modules of a saved model, and what else it has.

    Args:
        directory: has its ``config.json``; no weights are read, and no code that the directory brings is run.

    Raises:
        ModelError: there is no configuration, it names no class, or transformers cannot build it.

    Cost: the model is built on torch's meta device, where its weights have no numbers.
    """
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        names: list[str] = list(config.architectures or ())
        kind = getattr(transformers, names[0], None) if names else None
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            raise ModelError(
                f"expected architectures in {directory / 'config.json'} to name a model of transformers, got {names}; "
                "save the model with save_pretrained()"
            )
        with torch.device("meta"):
            model = kind(config)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{directory}: transformers cannot build the model ({' '.join(str(error).split())[:200]}); complete its "
            "config.json"
        ) from error
    task = next((task for end, task in _TASKS.items() if names[0].endswith(end)), None)
    implied = IMPLIED_MODULES.get(str(task), ())
    modules = dict(model.named_modules())
    own = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in reversed(own.items())}
    aliases = {name: first[id(parameter)] for name, parameter in own.items() if first[id(parameter)] != name}
    names_of = {id(module): name for name, module in modules.items()}
    head = model.get_output_embeddings()
    if head is not None and getattr(config, "tie_word_embeddings", False):
        # On the meta device, the two may be tied by name alone.
        aliases[f"{names_of[id(head)]}.weight"] = f"{names_of[id(model.get_input_embeddings())]}.weight"
    linear = {
        name: isinstance(module, Conv1D)
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D)
        and f"{name}.weight" not in aliases
        and owner(f"{name}.weight", implied) is None
    }
    return ModelLayers(
        linear=linear,
        parameters=frozenset({*own, *model.state_dict()}),
        aliases=aliases,
        modules=frozenset(modules),
        heads=tuple(name for name in modules if implied and name.endswith(implied)),
        prefix=model.base_model_prefix,
        task_type=task,
        auto_mapping=None if task else {"base_model_class": names[0], "parent_library": kind.__module__},
    )
