"""The configuration: frozen sections whose keys, types and defaults are all in this file.

LoRA and training keys carry the names that PEFT and transformers give them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]

LANGUAGE_MODELLING = "causal-lm"
CLASSIFICATION = "sequence-classification"


class Section(BaseModel):
    """A table of the TOML file: frozen, without room for unknown keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """``[model]``: the base that is never modified."""

    name_or_path: str
    """A directory as transformers writes it, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the base's parameters; adapters train in float32."""


class TaskSection(Section):
    """``[task]``: what the model learns."""

    kind: Literal["causal-lm", "sequence-classification"] = LANGUAGE_MODELLING
    labels: tuple[str, ...] | None = None
    """Class names; by default those found in the training rows. Classification only."""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSection":
        if self.labels is not None and self.kind != CLASSIFICATION:
            raise ValueError(f"labels are for kind = {CLASSIFICATION!r}, and kind is {self.kind!r}: remove one")
        if self.labels is not None and len(set(self.labels)) < 2:
            raise ValueError(f"labels must name at least two classes, got {list(self.labels)}")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ, got {list(self.labels)}")
        return self


class DataSection(Section):
    """``[data]``: JSON or JSONL records, one file a client or one file to be shared out."""

    path: str
    """Directory of the files."""
    train: str = "client_*.json"
    """File name or pattern. With ``partition = "given"`` every file that matches is a client."""
    test: str | None = None
    """File of held-out records; without it, `test_fraction` of every client's rows is held out."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    partition: Literal["given", "iid", "dirichlet"] = "given"
    num_clients: Positive | None = None
    """For ``iid`` and ``dirichlet``; by default as many as there are ranks."""
    partition_field: str | None = None
    """Whose values the Dirichlet split is over, a task or category for instance."""
    dirichlet_alpha: PositiveFloat = 1.0
    """Concentration: small gives unlike clients, large the iid split."""
    rows: str | None = None
    """Part of every training file to use, as a Python slice ``start:stop:step``; ``1::2`` is every second row."""
    instruction_field: str | None = None
    """With `output_field`: names of the fields; by default the Alpaca and Dolly shapes are recognised."""
    input_field: str | None = None
    output_field: str | None = None
    label_field: str | None = None
    """Field of the class. Classification only."""
    prompt_template: str | None = None
    """Text before the answer, from ``{instruction}``, ``{input}`` and the record's own fields; or the text to
    classify, from the record's own fields, by default its ``{instruction}``."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """In tokens, prompt and answer together."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataSection":
        wrong: list[str] = []
        if self.partition == "dirichlet" and self.partition_field is None:
            wrong.append("partition = 'dirichlet' needs partition_field, the field to split over")
        if self.partition != "dirichlet" and self.partition_field is not None:
            wrong.append(f"partition_field is for partition = 'dirichlet', and partition is {self.partition!r}")
        if self.partition == "given" and self.num_clients is not None:
            wrong.append("num_clients is for partition = 'iid' or 'dirichlet'; given files are the clients themselves")
        if (self.instruction_field is None) != (self.output_field is None):
            wrong.append("instruction_field and output_field go together: set both or neither")
        if self.input_field is not None and self.instruction_field is None:
            wrong.append("input_field needs instruction_field and output_field")
        if self.rows is not None and as_slice(self.rows) is None:
            wrong.append(f"rows must be a slice start:stop:step of integers, got {self.rows!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class LoraSection(Section):
    """``[lora]``: what clients train."""

    ranks: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
    """One for all clients, or one each in the order of the files."""
    alpha: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    """``lora_alpha``, one for all or one each; by default twice the client's rank, which gives all the scaling 2."""
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modules_to_save: tuple[str, ...] | None = None
    """Modules trained whole and averaged; by default the head of a classifier."""

    @model_validator(mode="after")
    def _consistent(self) -> "LoraSection":
        if isinstance(self.ranks, tuple) and isinstance(self.alpha, tuple) and len(self.ranks) != len(self.alpha):
            raise ValueError(f"ranks lists {len(self.ranks)} clients and alpha {len(self.alpha)}: give one each")
        return self


class TrainingSection(Section):
    """``[training]``: one client's part of a round, by AdamW."""

    learning_rate: PositiveFloat = 3e-4
    batch_size: Positive = 8
    steps: Positive | None = None
    """Optimiser steps a round."""
    epochs: PositiveFloat | None = None
    """Passes over the client's rows a round; 1 where neither is set."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    gradient_accumulation_steps: Positive = 1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    bf16: bool = False
    threads: Positive | None = None
    """Torch threads; by default the faster of one and all cores, measured at the start."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSection":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps = {self.steps} and epochs = {self.epochs} contradict each other: remove one")
        return self


class FederationSection(Section):
    """``[federation]``: the rounds."""

    rounds: Positive = 3
    fraction: Fraction = 1.0
    """Of the clients, asked in each round."""
    min_replies: Positive | None = None
    """Usable updates that a round needs; by default half of the asked clients."""
    seed: Annotated[int, Field(ge=0)] = 0
    shared_init: bool = True
    """Clients of a round start from the same random A (a smaller rank from its first rows). Methods that average A or
    B apart need that, and have it in any case."""
    local_init: Literal["fresh", "aligned", "warm"] = "fresh"
    """How the next local adapter starts: at random, along the last global update, or from the global adapter. For
    methods whose broadcast is added; where it is trained on (fedit, ffa, flexlora, fedex), it is the start itself."""


class AggregationSection(Section):
    """``[aggregation]``: the method."""

    method: Literal["florist", "fedit", "ffa", "flora", "flexlora", "fedex", "full"] = "florist"
    """All other keys are florist's: the other methods have nothing to set."""
    tau: Fraction | None = None
    """Fraction of the energy to keep; 0.9 where neither `budget` nor `rank` is set."""
    scope: Literal["per-module", "global"] = "per-module"
    """Whether `tau` holds in each module, or over all together with the fewest parameters."""
    budget: Annotated[ByteSize, Field(gt=0)] | None = None
    """Bytes of the broadcast, as ``"20MB"``: the most energy that fits."""
    rank: Positive | None = None
    """The same rank for every module."""
    max_rank: Positive | None = None
    """No module above this rank, whatever the rule."""

    @model_validator(mode="after")
    def _consistent(self) -> "AggregationSection":
        rules = {name: value for name in ("tau", "budget", "rank") if (value := getattr(self, name)) is not None}
        if len(rules) > 1:
            given = " and ".join(f"{name} = {value}" for name, value in rules.items())
            raise ValueError(f"{given} contradict each other: each says how much to keep; set one")
        if self.scope == "global" and ("budget" in rules or "rank" in rules):
            raise ValueError(f"scope = 'global' goes with tau, not with {next(iter(rules))}")
        return self


class EvaluationSection(Section):
    """``[evaluation]``: what is measured on the held-out records."""

    metrics: tuple[str, ...] | None = None
    """``loss`` and ``exact_match`` for language models, ``loss`` and ``accuracy`` for classifiers."""
    every: Positive = 1
    """Rounds between evaluations; the last is always evaluated."""
    batch_size: Positive = 32
    max_new_tokens: Positive = 64
    """Of a generated answer."""


class Config(Section):
    """A whole configuration."""

    model: ModelSection
    task: TaskSection = TaskSection()
    data: DataSection
    lora: LoraSection
    training: TrainingSection = TrainingSection()
    federation: FederationSection = FederationSection()
    aggregation: AggregationSection = AggregationSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        wrong: list[str] = []
        ranks, clients = self.lora.ranks, self.data.num_clients
        if isinstance(ranks, tuple) and clients is not None and len(ranks) != clients:
            wrong.append(f"lora.ranks lists {len(ranks)} clients and data.num_clients says {clients}")
        if self.data.partition != "given" and clients is None and not isinstance(ranks, tuple):
            wrong.append(f"data.partition = {self.data.partition!r} needs data.num_clients, or lora.ranks as a list")
        if self.task.kind == CLASSIFICATION and self.data.label_field is None:
            wrong.append(f"task.kind = {CLASSIFICATION!r} needs data.label_field, the field that holds the class")
        if self.task.kind == CLASSIFICATION and self.data.instruction_field is not None:
            wrong.append(
                f"data.instruction_field and output_field are for task.kind = {LANGUAGE_MODELLING!r}: name the text to "
                "classify with data.prompt_template, as '{text}'"
            )
        if self.task.kind == LANGUAGE_MODELLING and self.data.label_field is not None:
            wrong.append(f"data.label_field is for task.kind = {CLASSIFICATION!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def as_slice(rows: str) -> slice | None:
    """``start:stop:step`` as a slice; None where it is none."""
    parts = rows.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        return None
    return slice(*numbers) if len(parts) == 2 or (len(parts) == 3 and numbers[2] != 0) else None
