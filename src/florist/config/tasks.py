"""What depends on the kind of task: which model is loaded, and how examples become tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from florist.config.sections import CLASSIFICATION, Config
from florist.config.splits import Splits
from florist.data.causal_lm import CausalLmEncoder
from florist.data.classification import ClassificationEncoder, classes
from florist.data.examples import EncodedExamples, Features, as_features, encode_examples, is_encoded
from florist.data.positions import Lengths
from florist.data.prompts import alpaca_prompt, instruction_and_input, template_prompt
from florist.data.reading import Example
from florist.data.rendering import (
    ChatTemplate,
    InstructionConversation,
    InstructionPrompt,
    PlainChat,
    PlainText,
    Renderer,
)
from florist.data.shapes import KNOWN_SHAPES, ChatShape, ExampleShape, InstructionShape, TextShape, recognise
from florist.errors import ConfigurationError
from florist.models.loading import head_of, load_causal_lm, load_classifier, require_classes
from florist.models.quantization import prepared, quantized_loading

Encode = Callable[[Sequence[Example], str], EncodedExamples]
Encoded = dict[str, EncodedExamples]
"""Encoded examples, by how and whose they are."""


class RecentEncodings:
    """The examples that were encoded last, for the next configuration that reads the same ones.

    Tokenizing costs more than all else in building a small simulation, and a comparison builds one a run.
    """

    def __init__(self) -> None:
        self._origin: object = None
        self._encoded: Encoded = {}

    def of(self, config: Config, splits: Splits) -> Encoded:
        """What is kept of these examples, to be looked up and added to; what is kept of others is let go."""
        origin = (config.model.name_or_path, config.task, config.data, splits)
        if origin != self._origin:
            self._origin, self._encoded = origin, {}
        return self._encoded


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What depends on the kind of task.

    Attributes:
        base: the model.
        modules_to_save: the modules that are trained and sent whole.
        task_type: PEFT's name of the task.
        encode_training: encodes the examples of a client.
        encode_held_out: encodes held-out examples, of which the answers alone count.
    """

    base: PreTrainedModel
    modules_to_save: tuple[str, ...]
    task_type: str
    encode_training: Encode
    encode_held_out: Encode


def load_task(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    training: Sequence[Example],
    kept: Encoded | None,
    given: PreTrainedModel | None = None,
) -> Task:
    """Load the base model of a configuration, and prepare the encoders of its examples.

    Args:
        config: the configuration.
        tokenizer: the tokenizer of the base.
        training: examples that tell the classes, and the shape of all of them.
        kept: where encoded examples are looked up and kept; None where whoever asks for some keeps them.
        given: a base model to take in the place of one that is loaded.

    Raises:
        ConfigurationError: keys contradict the examples or the tokenizer.
        DataError: the examples have no known shape.
        ModelError: the model cannot be loaded.
    """
    data, name, dtype = config.data, config.model.name_or_path, getattr(torch, config.model.dtype)
    bits = config.model.quantization
    quantized = quantized_loading(bits, dtype) if bits is not None else {}
    if config.task.kind == CLASSIFICATION and data.label_field is not None:
        labels = config.task.labels or classes(training, data.label_field)
        own_head = config.lora.modules_to_save
        if given is not None:
            base, head = given, head_of(given, name, own_head)
            require_classes(base, labels)
        else:
            base, head = load_classifier(name, dtype, labels, own_head, config.federation.seed, **quantized)
        text = template_prompt(data.prompt_template or "{instruction}")
        encoder = ClassificationEncoder(tokenizer, text, data.label_field, labels, data.max_length)
        lengths = Lengths.of(base, tokenizer, name)
        lengths.require(data.max_length)
        encoding = _encoding(encoder, DataCollatorWithPadding(tokenizer), kept, "text", lengths)
        return Task(prepared(base) if bits else base, head, "SEQ_CLS", encoding, encoding)
    base = given if given is not None else load_causal_lm(name, dtype, **quantized)
    collate, lengths = DataCollatorForSeq2Seq(tokenizer), Lengths.of(base, tokenizer, name)
    if is_encoded(training[0]):
        encoding = _encoding(as_features, collate, kept, "tokens", lengths)
        return Task(base, config.lora.modules_to_save or (), "CAUSAL_LM", encoding, encoding)
    lengths.require(data.max_length)
    render = _renderer(config, tokenizer, training)
    learn, answer = (
        _encoding(
            CausalLmEncoder(tokenizer, render, data.max_length, loss_on_prompts),
            collate,
            kept,
            "prompts and answers" if loss_on_prompts else "answers",
            lengths,
        )
        for loss_on_prompts in (data.loss_on == "all", False)
    )
    return Task(prepared(base) if bits else base, config.lora.modules_to_save or (), "CAUSAL_LM", learn, answer)


def _encoding(
    encoder: Callable[[Example], Features],
    collate: Callable[[list[Features]], Mapping[str, Any]],
    kept: Encoded | None,
    counted: str,
    lengths: Lengths,
) -> Encode:
    def encode(examples: Sequence[Example], source: str) -> EncodedExamples:
        encoded = encode_examples(examples, lambda example: lengths.require_short(encoder(example)), collate, source)
        lengths.tell(encoded)
        return encoded

    def encode_once(examples: Sequence[Example], source: str) -> EncodedExamples:
        if kept is None:
            return encode(examples, source)
        name = f"{counted} of {source}"
        if name not in kept:
            kept[name] = encode(examples, source)
        return kept[name]

    return encode_once


def _renderer(config: Config, tokenizer: PreTrainedTokenizerBase, training: Sequence[Example]) -> Renderer:
    data = config.data
    if data.instruction_field and data.output_field:
        shape: ExampleShape = InstructionShape(data.instruction_field, data.input_field or "", data.output_field)
    else:
        shape = KNOWN_SHAPES[data.format] if data.format != "auto" else recognise(training)
    has_template = bool(tokenizer.chat_template)
    if data.chat_template is True and not has_template:
        raise ConfigurationError(
            f"data.chat_template = true: expected a tokenizer with a chat template, and that of "
            f"{config.model.name_or_path} has none; leave it at 'auto'"
        )
    if isinstance(shape, TextShape):
        if data.prompt_template is not None or data.chat_template is True:
            raise ConfigurationError(
                "data.prompt_template and data.chat_template = true are for examples with an instruction, and these "
                "are whole texts: remove them"
            )
        return PlainText(shape)
    if isinstance(shape, ChatShape):
        if data.prompt_template is not None:
            raise ConfigurationError(
                "data.prompt_template is for examples with an instruction, and these hold messages: remove it; the "
                "tokenizer's chat template says how messages are written"
            )
        use_template = has_template and data.chat_template is not False
        return ChatTemplate(tokenizer, shape.conversation) if use_template else PlainChat(shape)
    prompt = template_prompt(data.prompt_template) if data.prompt_template is not None else None
    if data.chat_template is True or (data.chat_template == "auto" and has_template and prompt is None):
        return ChatTemplate(tokenizer, InstructionConversation(shape, prompt or instruction_and_input))
    return InstructionPrompt(shape, prompt or alpaca_prompt)
