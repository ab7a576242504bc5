"""Examples on their way from JSON files to tokens: their shapes, prompts and labels, and which client has which."""

from florist.data.causal_lm import CausalLmEncoder, opening_tokens
from florist.data.classification import ClassificationEncoder, classes
from florist.data.examples import IGNORED, EncodedExamples, Features, as_features, encode_examples, is_encoded
from florist.data.prompts import alpaca_prompt, instruction_and_input, template_prompt
from florist.data.reading import Example, read_examples
from florist.data.rendering import (
    ChatTemplate,
    InstructionConversation,
    InstructionPrompt,
    PlainChat,
    PlainText,
    Renderer,
)
from florist.data.shapes import (
    ALPACA,
    DOLLY,
    KNOWN_SHAPES,
    MESSAGES,
    SHAREGPT,
    ChatShape,
    ExampleShape,
    InstructionShape,
    TextShape,
    recognise,
)

__all__ = [
    "ALPACA",
    "DOLLY",
    "IGNORED",
    "KNOWN_SHAPES",
    "MESSAGES",
    "SHAREGPT",
    "CausalLmEncoder",
    "ChatShape",
    "ChatTemplate",
    "ClassificationEncoder",
    "EncodedExamples",
    "Example",
    "ExampleShape",
    "Features",
    "InstructionConversation",
    "InstructionPrompt",
    "InstructionShape",
    "PlainChat",
    "PlainText",
    "Renderer",
    "TextShape",
    "alpaca_prompt",
    "as_features",
    "classes",
    "encode_examples",
    "instruction_and_input",
    "is_encoded",
    "opening_tokens",
    "read_examples",
    "recognise",
    "template_prompt",
]
