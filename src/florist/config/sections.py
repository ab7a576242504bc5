"""The configuration, as frozen sections whose keys, types and defaults are all in this file.

LoRA and training keys carry the names that PEFT and transformers give them.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from florist.config.communication import CODEC_NAMES, PRESETS, contradictions, with_default_preset, with_preset
from florist.config.methods import (
    DEFAULT_LOCAL_INIT,
    DEFAULT_METHOD,
    DEFAULT_TAU,
    HOW_MUCH,
    LOCAL_INITS,
    METHODS,
    OWN,
    method_named,
    require_own_keys,
)
from florist.tracking.trackers import TRACKERS

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]

LANGUAGE_MODELLING = "causal-lm"
CLASSIFICATION = "sequence-classification"

FROM_CODE = "(given from code)"
"""What stands in a configuration for the path or the name of what was an object."""


def _one_of(names: Collection[str], *beside: str) -> AfterValidator:
    """A text that is one of these names, or of others beside, refused in the words that pydantic has for a Literal."""
    *others, last = map(repr, names)

    def known(text: str) -> str:
        if text not in names and text not in beside:
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return text

    return AfterValidator(known)


def _fraction(whole: str) -> AfterValidator:
    """A number in (0, 1], refused in words that say what it is a fraction of."""

    def fraction(number: float) -> float:
        if not 0 < number <= 1:
            raise ValueError(f"expected a fraction of {whole} in (0, 1]")
        return number

    return AfterValidator(fraction)


def _held_out(what: str) -> AfterValidator:
    """A number in (0, 1), refused in words that say what to do where nothing is to be held out."""

    def fraction(number: float) -> float:
        if not 0 < number < 1:
            other = f"name a file of them in data.{what}" if what == "test" else "leave the key out"
            raise ValueError(f"expected a fraction in (0, 1) (to hold no {what} examples out, {other})")
        return number

    return AfterValidator(fraction)


class Section(BaseModel):
    """A table of the TOML file: frozen, without room for unknown keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(Section):
    """``[model]``: the base that is never modified."""

    name_or_path: str
    """A directory as transformers writes it, or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of the base's parameters; adapters train in float32."""
    quantization: Literal["4bit", "8bit"] | None = None
    """bitsandbytes holds the base in 4 bits (NF4, computed in `dtype`) or in 8; this takes CUDA."""


class TaskSection(Section):
    """``[task]``: what the model learns."""

    kind: Literal["causal-lm", "sequence-classification"] = LANGUAGE_MODELLING
    """Whether the model learns to answer (``causal-lm``) or to name a class (``sequence-classification``)."""
    labels: tuple[str, ...] | None = None
    """The names of the classes, for classification; by default those found in the training examples."""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSection":
        if self.labels is not None and self.kind != CLASSIFICATION:
            raise ValueError(f"labels are for kind = {CLASSIFICATION!r}, and kind is {self.kind!r}: remove one")
        if self.labels is not None and len(set(self.labels)) < 2:
            raise ValueError(f"labels must name at least two classes, got {list(self.labels)}: add the others")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ, got {list(self.labels)}: name each class once")
        return self


class DataSection(Section):
    """``[data]``: files of examples, one a client or files to be shared out: JSON, JSONL, CSV, Parquet, `datasets`."""

    path: str
    """The directory of the files."""
    train: str = "client_*.json"
    """A file name or a pattern. With ``partition = "given"`` every file that matches is a client."""
    test: str | None = None
    """The file of the held-out examples; without it, `test_fraction` of every client's examples is held out."""
    test_fraction: Annotated[float, _held_out("test")] = 0.1
    """Without a file, this fraction of every client's examples is held out to test on."""
    validation: str | None = None
    """The file of the examples to choose by, which are neither trained on nor tested on."""
    validation_fraction: Annotated[float, _held_out("validation")] | None = None
    """Without a file, this fraction of every client's examples is held out to choose by, after those of the test."""
    partition: Literal["given", "iid", "dirichlet", "by-field", "shards"] = "given"
    """How the examples are shared out; ``given`` takes the files as the clients."""
    num_clients: Positive | None = None
    """How many clients share the examples; by default as many as there are ranks, or one a value for ``by-field``."""
    partition_field: str | None = None
    """The field whose values make clients unlike, a category for instance; ``given`` and ``iid`` take none."""
    dirichlet_alpha: PositiveFloat = 1.0
    """The concentration of ``dirichlet``: a small one gives unlike clients, a large one the iid split."""
    min_examples: Positive | None = None
    """How many examples each client has at least, before some are held out. ``dirichlet`` draws until all have them;
    other partitions are refused where one has fewer."""
    shards_per_client: Positive | None = None
    """How many parts of the sorted examples a client of ``shards`` gets; 2 by default."""
    rows: str | None = None
    """The part of every training file to use, as a Python slice ``start:stop:step``; ``1::2`` is every second
    example."""
    format: Literal["auto", "alpaca", "dolly", "messages", "sharegpt", "text"] = "auto"
    """The shape of the examples; ``auto`` takes the shape of the first one."""
    instruction_field: str | None = None
    """The field of the instruction where the shape is none of these; `output_field` must be set as well."""
    input_field: str | None = None
    """The field of what the instruction is about, if there is one."""
    output_field: str | None = None
    """The field of the answer."""
    label_field: str | None = None
    """The field of the class, for classification."""
    prompt_template: str | None = None
    """The text before the answer, from ``{instruction}``, ``{input}`` and the example's own fields; for classification
    the text to classify, from the example's own fields, by default its ``{instruction}``."""
    chat_template: bool | Literal["auto"] = "auto"
    """Whether the tokenizer's chat template writes the prompts; with ``auto`` it does where there is one and no
    `prompt_template` is set."""
    loss_on: Literal["response", "all"] = "response"
    """The tokens that training counts; evaluation always counts the responses."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """The length of prompt and answer together, in tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataSection":
        wrong: list[str] = []
        by_value = self.partition in {"dirichlet", "by-field", "shards"}
        if by_value and self.partition_field is None:
            wrong.append(f"partition = {self.partition!r} needs partition_field, the field to split over")
        if not by_value and self.partition_field is not None:
            wrong.append(
                "partition_field is for partition = 'dirichlet', 'by-field' or 'shards', and partition is "
                f"{self.partition!r}"
            )
        if self.partition != "shards" and self.shards_per_client is not None:
            wrong.append(f"shards_per_client is for partition = 'shards', and partition is {self.partition!r}")
        if self.partition == "given" and self.num_clients is not None:
            wrong.append("num_clients is for examples that are shared out; given files are the clients themselves")
        if self.validation is not None and self.validation_fraction is not None:
            wrong.append("validation and validation_fraction contradict each other: remove one")
        if self.format != "auto" and self.instruction_field is not None:
            wrong.append(f"format = {self.format!r} and instruction_field contradict each other: remove one")
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
    """One rank for all clients, or one each in the order of the files."""
    alpha: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    """PEFT's ``lora_alpha``, one for all or one each; by default twice the client's rank, so that the scaling is 2."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """The modules to adapt: ends of their names, one regular expression for whole names, or all linear ones."""
    use_rslora: bool = False
    """Whether the scaling is alpha / sqrt(rank) in the place of alpha / rank."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The probability of dropout on the input of A."""
    modules_to_save: tuple[str, ...] | None = None
    """The modules that are trained whole and averaged; by default the head of a classifier."""

    @model_validator(mode="after")
    def _consistent(self) -> "LoraSection":
        if isinstance(self.ranks, tuple) and isinstance(self.alpha, tuple) and len(self.ranks) != len(self.alpha):
            raise ValueError(f"ranks lists {len(self.ranks)} clients and alpha {len(self.alpha)}: give one each")
        return self


class TrainingSection(Section):
    """``[training]``: how a client trains in a round, by AdamW."""

    learning_rate: PositiveFloat = 3e-4
    """The learning rate of AdamW."""
    batch_size: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 8
    """One number for all clients, or one each in the order of the files; the same goes for `steps` and `epochs`."""
    steps: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """How many steps the optimiser makes in a round."""
    epochs: PositiveFloat | Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    """How often a round passes over the client's examples; once where neither this nor `steps` is set."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate changes within a round."""
    gradient_accumulation_steps: Positive = 1
    """How many batches make one step of the optimiser."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """The weight decay of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """The norm that longer gradients are cut to."""
    bf16: bool = False
    """Clients train in bfloat16 mixed precision."""
    fp16: bool = False
    """Clients train in float16 mixed precision, with a scaled loss; this takes CUDA."""
    threads: Positive | None = None
    """How many threads torch uses; by default one or one a core, whichever a measurement at the start finds faster."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSection":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps = {self.steps} and epochs = {self.epochs} contradict each other: remove one")
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 contradict each other: remove one")
        return self


class FederationSection(Section):
    """``[federation]``: the rounds."""

    rounds: Positive = 3
    """How many rounds are played."""
    fraction: Annotated[float, _fraction("the clients")] = 1.0
    """The fraction of the clients that is asked in each round."""
    min_replies: Positive | None = None
    """How many usable updates a round needs; by default half as many as clients are asked."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The seed of all that is drawn: partitions, held-out examples, participants, adapters and batches."""
    shared_init: bool = True
    """Clients of a round start from the same random A, and a smaller rank from its first rows. Methods that average A
    and B apart need that, and have it in any case."""
    local_init: Annotated[str, _one_of(LOCAL_INITS)] = DEFAULT_LOCAL_INIT
    """How the next local adapter starts where clients add the broadcast: ``fresh``, ``aligned`` or ``warm``. That is at
    random, along the last global update, or from the global adapter. Where a method lets clients train on from the
    broadcast, that is the start itself."""
    early_stopping: Positive | None = None
    """After how many evaluations in a row without an improvement the rounds stop, by the first metric of
    ``[evaluation]`` on the validation examples; by default all rounds are played."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """By how much the metric has to be better than at the last improvement, for `early_stopping`."""
    best_round: bool = False
    """Whether the final adapter is that of the round with the best metric on the validation examples, and not that of
    the last."""
    keep_rounds: Literal["last", "sent", "all"] = "last"
    """What stays on disk of the rounds before the last, so that they can be exported: nothing, what was broadcast, or
    that and what the server held back."""

    @model_validator(mode="after")
    def _consistent(self) -> "FederationSection":
        if self.min_delta and self.early_stopping is None:
            raise ValueError(f"min_delta = {self.min_delta} is for early_stopping: set that as well, or remove it")
        return self

    @property
    def chooses(self) -> bool:
        """Whether the validation examples decide when the rounds stop, or which round is the result."""
        return self.best_round or self.early_stopping is not None


class AggregationSection(Section):
    """``[aggregation]``: the method, and the keys that it takes (`methods.METHODS`); the others stay unset.

    Where the method takes tau and nothing else says how much to keep, tau gets its default. A configuration that is
    written down therefore says what was done.
    """

    method: Annotated[str, _one_of(METHODS, OWN.name)] = DEFAULT_METHOD
    """The name of an aggregation method; ``own`` stands for an object that was given from code."""
    tau: Annotated[float, _fraction("the energy")] | None = None
    """The fraction of the energy to keep. It is the default way to say how much."""
    scope: Literal["per-module", "global"] | None = None
    """Whether `tau` holds in each module, which is the default, or over all modules together with few parameters."""
    budget: Annotated[ByteSize, Field(gt=0)] | None = None
    """The bytes of the broadcast, as ``"20MB"``: the most energy that fits is kept."""
    rank: Positive | None = None
    """One rank for every module."""
    max_rank: Positive | None = None
    """No module keeps more than this rank, whatever else says how much to keep."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        method = method_named(str(given.get("method", DEFAULT_METHOD))) if isinstance(given, Mapping) else None
        if method is None:
            return given  # which is refused with a reason
        defaults: dict[str, Any] = {"scope": "per-module"}
        if all(given.get(key) is None for key in HOW_MUCH):
            defaults["tau"] = DEFAULT_TAU
        unset = {key: value for key, value in defaults.items() if key in method.keys and given.get(key) is None}
        return {**given, **unset}

    @model_validator(mode="after")
    def _consistent(self) -> "AggregationSection":
        require_own_keys(method_named(self.method) or OWN, self.model_dump(exclude={"method"}, exclude_none=True))
        rules = {name: value for name in HOW_MUCH if (value := getattr(self, name)) is not None}
        if len(rules) > 1:
            given = " and ".join(f"{name} = {value}" for name, value in rules.items())
            raise ValueError(f"{given} contradict each other: each says how much to keep; set one")
        if self.scope == "global" and "tau" not in rules:
            raise ValueError(f"scope = 'global' goes with tau, not with {next(iter(rules))}")
        return self


class CommunicationSection(Section):
    """``[communication]``: how updates and broadcasts travel."""

    preset: Annotated[str, _one_of(PRESETS)] | None = None
    """Settings by one name, which the other keys change. ``compact``, the default of florist, sends 4 bits both ways at
    tau 0.7, from a warm start, and sends later what it cuts. ``plain``, the default of the other methods, sends float32
    and forgets what it cuts. ``paper`` is plain, and local adapters start fresh."""
    download: Annotated[str, _one_of(CODEC_NAMES)] = "float32"
    """How the numbers of a broadcast travel."""
    upload: Annotated[str, _one_of(CODEC_NAMES)] = "float32"
    """How the numbers of an upload travel. The parameters that travel whole have 16 bits at least."""
    upload_tau: Annotated[float, _fraction("the energy")] | None = None
    """The fraction of its energy that a client uploads in each module; all of it by default."""
    upload_budget: Annotated[ByteSize, Field(gt=0)] | None = None
    """The bytes of a client's factors in a round, as ``"200kB"``: the most energy that fits is uploaded."""
    feedback: bool | Literal["server", "clients"] = False
    """Whether the server and the clients keep what they did not send, and send it later; or only one of them."""
    flush: bool = True
    """Whether the final adapter has what the server still holds back at the end."""

    @model_validator(mode="after")
    def _consistent(self) -> "CommunicationSection":
        if self.upload_tau is not None and self.upload_budget is not None:
            raise ValueError(
                f"upload_tau = {self.upload_tau} and upload_budget = {self.upload_budget} contradict each other: each "
                "says how much a client uploads; set one"
            )
        return self

    @property
    def feedback_at_server(self) -> bool:
        """Whether the server keeps what it did not send."""
        return self.feedback is True or self.feedback == "server"

    @property
    def feedback_at_clients(self) -> bool:
        """Whether clients keep what they did not send."""
        return self.feedback is True or self.feedback == "clients"


class EvaluationSection(Section):
    """``[evaluation]``: what is measured on the held-out examples."""

    metrics: tuple[str, ...] | None = None
    """Language models have ``loss``, ``perplexity``, ``exact_match`` and ``multiple_choice``; classifiers have
    ``accuracy`` and ``loss``. By default the first of them is measured."""
    every: Positive = 1
    """Every so many rounds are evaluated, and the last one always."""
    split: Literal["validation", "test"] | None = None
    """The examples that the rounds are measured on; by default the validation examples where there are some. The final
    adapter is then measured on the test examples as well."""
    by_client: bool = False
    """Whether the rounds are measured on the held-out examples of each client as well."""
    batch_size: Positive = 32
    """How many examples are measured together."""
    max_new_tokens: Positive = 64
    """How many tokens a generated answer may have."""
    multiple_choice: str | None = None
    """The file of the questions for ``multiple_choice``."""
    choice_prompt: str = "{question}\nAnswer:"
    """The text before a choice, from ``{question}``, ``{options}`` (a line each: ``A. ...``) and the question's own
    fields."""
    choice_answer: str = " {choice}"
    """The text whose likelihood is measured, from ``{choice}`` and ``{letter}``."""
    harness_tasks: tuple[str, ...] = ()
    """The tasks of lm-evaluation-harness to measure the final adapter on; they take the extra ``[eval]``."""
    harness_task_path: str | None = None
    """The directory of task files of your own for lm-evaluation-harness."""
    harness_limit: Positive | None = None
    """How many examples of each task are measured, to try a configuration; by default all."""

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationSection":
        asked = "multiple_choice" in (self.metrics or ())
        if asked and self.multiple_choice is None:
            raise ValueError("metrics has 'multiple_choice': set multiple_choice, the file of the questions")
        if self.multiple_choice is not None and not asked:
            raise ValueError("multiple_choice is a file of questions: add 'multiple_choice' to metrics")
        return self


def _one_or_more(given: object) -> object:
    """One name alone is a list of one, so that ``--set tracking.to=tensorboard`` needs no brackets."""
    return (given,) if isinstance(given, str) else given


class TrackingSection(Section):
    """``[tracking]``: which experiment trackers are told of the rounds."""

    to: Annotated[tuple[Annotated[str, _one_of(TRACKERS)], ...], BeforeValidator(_one_or_more)] = ()
    """The trackers, each of which is an extra of florist: ``tensorboard``, ``mlflow``, ``trackio``, ``wandb``."""
    project: str = "florist"
    """What trackers call a group of runs; the experiment of MLflow."""
    run_name: str | None = None
    """What the run is called there; by default as its directory is."""
    client_losses: bool = True
    """Whether trackers are told the loss of every client, a curve each."""
    mlflow_uri: str | None = None
    """MLflow's server, or a folder; by default ``MLFLOW_TRACKING_URI`` or the folder ``mlruns``."""


class FlowerSection(Section):
    """``[flower]``: what a federation over Flower needs beside the rest."""

    run: str | None = None
    """The directory of the run at the server, which resumes what it finds there; by default each run of Flower has one
    in the server's current directory."""
    min_clients: Positive | None = None
    """How many clients must be there before the first round; by default as many as `lora.ranks` lists, or 2."""
    wait: PositiveFloat = 600.0
    """How many seconds the server waits for them."""
    round_timeout: PositiveFloat = 3600.0
    """How many seconds the server waits for the replies of a round; a later reply is left out of it."""
    evaluation: Literal["clients", "server", "none"] = "clients"
    """Who measures the global adapter after a round: the ``clients``, the ``server`` or nobody. Clients take held-out
    examples of their own; a server then needs the base model and the held-out examples."""
    max_examples: Positive | None = None
    """The largest number of examples that a client may claim; by default any number will do."""
    base_name: str | None = None
    """The name of the base, in the place of a fingerprint of its weights. Sites that hold it in unlike dtypes or
    quantizations need one, and must then vouch for it."""


class Config(Section):
    """A whole configuration."""

    model: ModelSection
    task: TaskSection = TaskSection()
    data: DataSection
    lora: LoraSection
    training: TrainingSection = TrainingSection()
    federation: FederationSection = FederationSection()
    aggregation: AggregationSection = AggregationSection()
    communication: CommunicationSection = CommunicationSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()
    flower: FlowerSection = FlowerSection()

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        given = with_default_preset(given) if isinstance(given, Mapping) else given
        communication = given.get("communication") if isinstance(given, Mapping) else None
        if not isinstance(communication, Mapping):
            return given
        aggregation = given.get("aggregation")
        chosen = aggregation.get("method") if isinstance(aggregation, Mapping) else None
        return {**given, "communication": with_preset(communication, str(chosen or DEFAULT_METHOD))}

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        wrong: list[str] = []
        ranks, clients = self.lora.ranks, self.data.num_clients
        if isinstance(ranks, tuple) and clients is not None and len(ranks) != clients:
            wrong.append(f"lora.ranks lists {len(ranks)} clients and data.num_clients says {clients}: make them agree")
        if self.data.partition not in {"given", "by-field"} and clients is None and not isinstance(ranks, tuple):
            wrong.append(f"data.partition = {self.data.partition!r} needs data.num_clients, or lora.ranks as a list")
        if self.task.kind == CLASSIFICATION and self.data.label_field is None:
            wrong.append(f"task.kind = {CLASSIFICATION!r} needs data.label_field, the field that holds the class")
        if self.task.kind == CLASSIFICATION and self.data.instruction_field is not None:
            wrong.append(
                f"data.instruction_field and output_field are for task.kind = {LANGUAGE_MODELLING!r}: name the text to "
                "classify with data.prompt_template, as '{text}'"
            )
        if self.task.kind == CLASSIFICATION and (self.evaluation.harness_tasks or self.data.chat_template is True):
            wrong.append(f"evaluation.harness_tasks and data.chat_template are for task.kind = {LANGUAGE_MODELLING!r}")
        wrong.extend(contradictions(self.aggregation.method, self.communication))
        if self.evaluation.split == "validation" and not self.has_validation:
            wrong.append("evaluation.split = 'validation' needs data.validation or data.validation_fraction")
        if self.federation.chooses and not (self.has_validation and self.evaluation.split != "test"):
            wrong.append(
                "federation.early_stopping and best_round choose by the validation examples, since a test that was "
                "chosen by is none: set data.validation or data.validation_fraction, and evaluation.split to none but "
                "'validation'"
            )
        if self.task.kind == LANGUAGE_MODELLING and self.data.label_field is not None:
            wrong.append(f"data.label_field is for task.kind = {CLASSIFICATION!r}, and it is {LANGUAGE_MODELLING!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def has_validation(self) -> bool:
        """Whether some examples are set apart to choose by."""
        return self.data.validation is not None or self.data.validation_fraction is not None


def as_slice(rows: str) -> slice | None:
    """Return ``start:stop:step`` as a slice, or None where the text is none."""
    parts = rows.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        return None
    return slice(*numbers) if len(parts) == 2 or (len(parts) == 3 and numbers[2] != 0) else None
