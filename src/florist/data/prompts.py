"""The text before an answer: instruction prompts, and templates over the fields of an example."""

import string
from collections.abc import Callable, Mapping
from typing import Any

from florist.data.fields import listed, text_of
from florist.errors import DataError

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def alpaca_prompt(values: Mapping[str, str]) -> str:
    """Return the prompt of Stanford Alpaca, which has one form with an input and one without."""
    return (ALPACA_PROMPT_WITH_INPUT if values["input"] else ALPACA_PROMPT).format_map(values)


def template_prompt(template: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what fills in a ``str.format`` template over ``{instruction}``, ``{input}`` and an example's own fields.

    Raises:
        DataError: The braces of the template do not pair, or hold more than the name of a field. What is returned
            raises it as well, where an example lacks a field that the template names, or has something there that is no
            text (`fields.text_of`).
    """
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise DataError(f"prompt_template {template!r}: {error}; write a literal brace twice") from error
    names = {name or "" for _, name, _, _ in fields}
    if any(spec or conversion for _, _, spec, conversion in fields) or any(not n or set(n) & set(".[") for n in names):
        raise DataError(
            f"prompt_template {template!r}: expected plain fields as {{instruction}}, got an empty one, or one with "
            "a format, an attribute or an index"
        )

    def render(values: Mapping[str, Any]) -> str:
        missing = sorted(names - values.keys())
        if missing:
            raise DataError(
                f"prompt_template {template!r}: expected an example with the fields {missing}, got one with "
                f"{listed(values)}; name fields that every example has"
            )
        return template.format_map({name: text_of(values, name) for name in names})

    return render


def instruction_and_input(values: Mapping[str, str]) -> str:
    """Return what a user would write: the instruction, and its input below."""
    return "\n\n".join(part for part in (values["instruction"], values["input"]) if part)
