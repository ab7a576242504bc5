"""The model card of an adapter: README.md, as the Hugging Face hub and PEFT read it, made from its certificate."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from florist.errors import printable
from florist.one_shot.inspection import kind

CARD_NAME = "README.md"

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CLASSES = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}
_PIPELINES = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification"}
_MOST_CLIENTS = 20
_LONGEST_ID = 96
"""The characters of a repository's name that the hub allows."""


def model_card(certificate: Mapping[str, Any], config: Mapping[str, Any], labels: int | None = None) -> str:
    """The text of README.md.

    Args:
        certificate: the content of florist.json, of an aggregate or of a run.
        config: the content of adapter_config.json.
        labels: how many classes a classifier has.
    """
    base = str(config.get("base_model_name_or_path") or "")
    name = printable(base, 200) or "an unnamed base model"
    ranks = [module["rank"] for module in certificate["modules"].values()]
    sections = [
        _front_matter(base, config.get("task_type")),
        f"# A LoRA adapter for {name}",
        _SUMMARY.format(
            name=name,
            florist=certificate["florist"],
            origin=_origin(certificate),
            modules=len(ranks),
            least=min(ranks),
            most=max(ranks),
            total=certificate["total_rank"],
        ),
        "## Loading it",
        _loading(base, str(config.get("task_type")), labels),
        "## What it is the difference of" if "base" in certificate else "## What it is the sum of",
        *_parts(certificate),
        "## Certificate",
        _certifies(certificate),
        _modules(certificate["modules"]),
        *(f"Note: {note}." for note in certificate["notes"]),
        "The whole certificate is in `florist.json`, with the SHA-256 of the adapter beside it.",
    ]
    return "\n\n".join(sections) + "\n"


_SUMMARY = (
    "This PEFT adapter is what is added to `{name}`, whose own weights it does not hold. florist {florist} made it: "
    "{origin}. It has {modules} modules of rank {least} to {most}, {total} in all. The scaling is folded into the "
    "factors, so that `lora_alpha / r` is 1 in every module."
)
_CERTIFIES_AGGREGATE = (
    "By modules of one name and shape: the ranks of all inputs together and of the result, the least energy kept, and "
    "the largest error against the exact weighted sum, over its norm."
)
_CERTIFIES_EXTRACT = (
    "By modules of one name and shape: the smaller side of the weight and the rank of the result, the least energy "
    "kept, and the largest error against the difference of the two weights, over its norm."
)
_CERTIFIES_RUN = (
    "By modules of one name and shape: the least and the largest rank and norm, and the largest bound on the error "
    "against the exact sum of all that clients sent. What clients hold back themselves is not part of that sum."
)


def _front_matter(base: str, task_type: object) -> str:
    # The hub refuses a base that is no id, a local path for instance.
    on_hub = len(base) <= _LONGEST_ID and bool(_HUB_ID.fullmatch(base)) and not Path(base).exists()
    tags = [*([f"base_model:adapter:{base}"] if on_hub else []), "federated-learning", "florist", "lora"]
    lines = [
        *([f"base_model: {json.dumps(base)}"] if on_hub else []),
        "library_name: peft",
        *([f"pipeline_tag: {_PIPELINES[str(task_type)]}"] if task_type in _PIPELINES else []),
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _origin(certificate: Mapping[str, Any]) -> str:
    if "base" in certificate:
        return "it is what fine-tuning changed, extracted from the whole fine-tuned model"
    method = f"the method `{certificate['method']}`" if certificate.get("method") else "its aggregation"
    if "clients" not in certificate:
        count = len(certificate["inputs"])
        return f"{method} combined {count} adapter{'s' if count != 1 else ''}"
    held_back = "with" if certificate["flushed"] else "without"
    return (
        f"{method}, {certificate['rounds']} aggregated rounds of a federation of {len(certificate['clients'])} clients "
        f"up to round {certificate['round']}, {held_back} what the server still held back then"
    )


def _certifies(certificate: Mapping[str, Any]) -> str:
    if "clients" in certificate:
        return _CERTIFIES_RUN
    return _CERTIFIES_EXTRACT if "base" in certificate else _CERTIFIES_AGGREGATE


def _loading(base: str, task_type: str, labels: int | None) -> str:
    auto = _CLASSES.get(task_type, "AutoModel")
    classes = f", num_labels={labels}" if labels is not None and task_type == "SEQ_CLS" else ""
    return (
        "```python\n"
        "from peft import PeftModel\n"
        f"from transformers import {auto}\n"
        f"model = PeftModel.from_pretrained({auto}.from_pretrained({json.dumps(base or 'BASE')}{classes}), "
        '"THIS_DIRECTORY")\n'
        "```"
    )


def _parts(certificate: Mapping[str, Any]) -> Iterator[str]:
    if "base" in certificate:
        tuned = certificate["inputs"][0]["path"]
        yield _table(("model", "path"), [("fine-tuned", tuned), ("base", certificate["base"]["path"])])
        return
    if "clients" not in certificate:
        yield _table(
            ("adapter", "weight"), [(one["path"], f"{one['weight']:.4f}") for one in certificate["inputs"]][:20]
        )
        return
    clients = list(certificate["clients"].items())
    yield _table(
        ("client", "examples", "rounds"),
        [(name, str(one["num_examples"] or "not told"), str(one["rounds"])) for name, one in clients[:_MOST_CLIENTS]],
    )
    if len(clients) > _MOST_CLIENTS:
        yield f"And {len(clients) - _MOST_CLIENTS} more clients."


def _modules(modules: Mapping[str, Mapping[str, Any]]) -> str:
    groups: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for name, module in modules.items():
        groups.setdefault((kind(name), *module["shape"]), []).append(module)
    of_run = "input_rank" not in next(iter(modules.values()))
    heads = ("norm", "error at most") if of_run else ("rank in", "energy kept", "relative error")
    rows: list[tuple[str, ...]] = []
    for (name, out_features, in_features), group in groups.items():
        shape = f"{out_features} x {in_features}"
        rows.append((name, shape, str(len(group)), _span(group, "rank"), *(_of_run if of_run else _of_sum)(group)))
    return _table(("module", "shape", "how many", "rank", *heads), rows)


def _of_sum(group: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return (
        _span(group, "input_rank"),
        f"{min(module['energy_kept'] for module in group):.4f}",
        f"{max(module['relative_error'] for module in group):.2e}",
    )


def _of_run(group: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    bounds = [module["error_at_most"] for module in group]
    norms = [module["norm"] for module in group]
    return (
        f"{min(norms):.3g} to {max(norms):.3g}",
        "unknown" if None in bounds else f"{max(bounds):.2e}",
    )


def _span(group: Sequence[Mapping[str, Any]], key: str) -> str:
    low, high = min(module[key] for module in group), max(module[key] for module in group)
    return str(low) if low == high else f"{low} to {high}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(printable(cell, 300).replace('|', '&#124;') for cell in line)} |" for line in lines
    )
