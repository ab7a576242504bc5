"""How to load a result, and how to come by it again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from florist.files import strict_json
from florist.files.reading import LARGEST_TEXT, read_bytes
from florist.reporting.content import Block, Code, Section, Table


def loading(adapter: Path) -> Section:
    """Three lines that load an adapter; no section where there is none, or none that can be read.

    Args:
        adapter: the directory of the adapter, whose configuration names its base and its task.
    """
    settings = _settings(adapter / "adapter_config.json")
    there = settings is not None
    settings = settings or {}
    base_model = settings.get("base_model_name_or_path")
    classifies = settings.get("task_type") == "SEQ_CLS"
    kind = "AutoPeftModelForSequenceClassification" if classifies else "AutoPeftModelForCausalLM"
    code = (
        f"from peft import {kind}\n"
        f"model = {kind}.from_pretrained({str(adapter)!r})\n"
        "merged = model.merge_and_unload()  # a plain model of transformers, if that is what you need"
    )
    blocks: list[Block] = []
    if there:
        blocks = [Code(f"PEFT finds the base model, {base_model}, by itself" if base_model else "With PEFT", code)]
    return Section("load", "How to load the result", blocks)


def _settings(file: Path) -> Mapping[str, Any] | None:
    try:
        found = strict_json.decode(read_bytes(file, LARGEST_TEXT))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def reproducing(command: str, facts: Mapping[str, str], configurations: Mapping[str, str]) -> Section:
    """The command that does it again, what it ran on, and the whole configuration.

    Args:
        command: the command.
        facts: versions, seed and machine, by what they are.
        configurations: the text of each configuration, by its title.
    """
    known = [[name, value] for name, value in facts.items() if value]
    return Section(
        "reproduce",
        "How to reproduce it",
        [
            Code(
                "The command"
                if "\n" not in command
                else "The commands, one for each entry; other seeds in the same way",
                command,
            ),
            Table("Versions, seed and machine", ["", "value"], known),
            *(Code(title, text, folded=True) for title, text in configurations.items()),
        ],
    )
