"""From a configuration to the objects of a simulation."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from florist.config.methods import LOCAL_INITS, METHODS
from florist.config.sections import CLASSIFICATION, LANGUAGE_MODELLING, Config, as_slice
from florist.data import (
    CausalLmEncoder,
    ClassificationEncoder,
    Examples,
    Features,
    Record,
    RecordShape,
    alpaca_prompt,
    classes,
    encode,
    read_records,
    recognise,
    template_prompt,
)
from florist.errors import ConfigurationError, DataError, MissingInputError
from florist.evaluation import Classification, ExactMatch, LanguageModelLoss, Metric
from florist.federation import Federation
from florist.partition import Partitioner, dirichlet, hold_out, iid
from florist.peft_model import FederatedModel, LocalLora, load_causal_lm, load_classifier, load_tokenizer
from florist.simulation import Client, Simulation
from florist.training import TrainingSettings

Encode = Callable[[Sequence[Record], str], Examples]

METRICS: Mapping[str, Mapping[str, Callable[[Config, Examples, PreTrainedTokenizerBase], Metric]]] = {
    LANGUAGE_MODELLING: {
        "loss": lambda config, examples, _: LanguageModelLoss(examples, config.evaluation.batch_size),
        "exact_match": lambda config, examples, tokenizer: ExactMatch(
            examples, tokenizer, config.evaluation.batch_size, config.evaluation.max_new_tokens
        ),
    },
    CLASSIFICATION: {
        # One pass gives both.
        "accuracy": lambda config, examples, _: Classification(examples, config.evaluation.batch_size),
        "loss": lambda config, examples, _: Classification(examples, config.evaluation.batch_size),
    },
}


def build(config: Config) -> Simulation:
    """Load model and data and put the simulation together.

    Raises:
        ConfigurationError: keys contradict what is in the data, the number of clients for instance.
        MissingInputError, DataError: a data file is missing or is not what it should be.
        ModelError: the model cannot be loaded or adapted.
    """
    metric_names = _metric_names(config)
    holdings, held_out = _records(config)
    loras = _loras(config, list(holdings))
    tokenizer = load_tokenizer(config.model.name_or_path)
    tokenizer.padding_side = "right"  # from the left, models that count positions from there would be led astray
    base, head, task_type, encoder = _task(config, tokenizer, [row for rows in holdings.values() for row in rows])
    if torch.cuda.is_available():
        base.to("cuda")  # pyright: ignore[reportArgumentType]  # transformers wraps Module.to without its overloads
    target = config.lora.target_modules
    aggregator = METHODS[config.aggregation.method](config.aggregation, max(lora.rank for lora in loras))
    model = FederatedModel(
        base, target if isinstance(target, str) else list(target), head, task_type, aggregator.work.trained
    )
    clients = tuple(
        Client(client_id, encoder(rows, client_id), lora)
        for (client_id, rows), lora in zip(holdings.items(), loras, strict=True)
    )
    training, federation = config.training, config.federation
    rules = Federation(
        client_ranks={client.client_id: client.lora.rank for client in clients},
        aggregator=aggregator,
        shapes=model.shapes,
        seed=federation.seed,
        local_init=LOCAL_INITS[federation.local_init](),
        shared_init=federation.shared_init,
        fraction=federation.fraction,
        min_replies=federation.min_replies,
    )
    if rules.required_replies > rules.clients_per_round:
        raise ConfigurationError(
            f"federation.min_replies = {rules.required_replies}: expected at most the {rules.clients_per_round} of "
            f"{len(clients)} clients that a round asks"
        )
    return Simulation(
        model=model,
        base_model=config.model.name_or_path,
        clients=clients,
        federation=rules,
        training=TrainingSettings(
            learning_rate=training.learning_rate,
            batch_size=training.batch_size,
            steps=training.steps,
            epochs=training.epochs or 1.0,
            lr_scheduler_type=training.lr_scheduler_type,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            bf16=training.bf16,
        ),
        metrics=_metrics(config, metric_names, encoder(held_out, "the held-out records"), tokenizer),
        rounds=federation.rounds,
        evaluate_every=config.evaluation.every,
    )


def _records(config: Config) -> tuple[dict[str, list[Record]], list[Record]]:
    """(rows of every client in the order of the files, held-out rows)."""
    data = config.data
    part = as_slice(data.rows) if data.rows is not None else None
    rows = {name: list(read_records(file))[part or slice(None)] for name, file in _training_files(config).items()}
    empty = [name for name, some in rows.items() if not some]
    if empty:
        raise ConfigurationError(f"data.rows = {data.rows!r} leaves no rows of {empty}")
    if data.partition == "given":
        holdings = rows
    else:
        holdings = _share_out(config, [row for some in rows.values() for row in some])
    if data.test is not None:
        return holdings, list(read_records(Path(data.path, data.test)))
    kept: dict[str, list[Record]] = {}
    held_out: list[Record] = []
    for client_id, own in holdings.items():
        try:
            training, testing = hold_out(len(own), data.test_fraction, config.federation.seed)
        except DataError as error:
            raise DataError(f"{client_id}: {error}; give it more, or held-out records with [data] test") from error
        kept[client_id] = [own[i] for i in training]
        held_out += [own[i] for i in testing]
    return kept, held_out


def _training_files(config: Config) -> dict[str, Path]:
    """Name of a client -> its file, in the natural order of the names: 9 before 10."""
    data, folder = config.data, Path(config.data.path)
    if not folder.is_dir():
        raise MissingInputError(f"expected the data directory {folder}, found none; set it with --set data.path=DIR")
    try:
        found = [file for file in folder.glob(data.train) if file.is_file()]
    except (ValueError, NotImplementedError) as error:
        raise ConfigurationError(
            f"data.train = {data.train!r}: expected a file name or pattern in data.path, and it is none: {error}"
        ) from error
    test = (folder / data.test).resolve() if data.test is not None else None
    files: dict[str, Path] = {}
    for file in sorted(found):
        if file.resolve() == test:
            continue
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ConfigurationError(
                f"data.train = {data.train!r}: expected one file a client, got {files[name].name} and {file.name}; "
                "name one ending"
            )
        files[name] = file
    if not files:
        raise MissingInputError(f"expected training files {data.train} in {folder}, found none; set [data] train")
    return dict(sorted(files.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[str | int]:
    # Text and numbers take turns, so that like is compared with like.
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name))]


def _share_out(config: Config, rows: list[Record]) -> dict[str, list[Record]]:
    data, ranks = config.data, config.lora.ranks
    num_clients = data.num_clients or (len(ranks) if isinstance(ranks, tuple) else 1)
    # A client that holds some rows out itself needs another to train on.
    min_rows = 1 if data.test is not None else 2
    partitioners: Mapping[str, Partitioner] = {
        "iid": iid,
        "dirichlet": partial(dirichlet, alpha=data.dirichlet_alpha, min_rows=min_rows),
    }
    field = data.partition_field
    lacking = next((row for row in rows if field is not None and field not in row), None)
    if lacking is not None:
        raise ConfigurationError(
            f"data.partition_field = {field!r}: expected it in every record, got {sorted(lacking)}"
        )
    labels = [str(row[field]) if field is not None else "" for row in rows]
    shares = partitioners[data.partition](labels, num_clients, config.federation.seed)
    width = len(str(num_clients - 1))
    return {f"client_{k:0{width}d}": [rows[i] for i in share] for k, share in enumerate(shares)}


def _loras(config: Config, client_ids: Sequence[str]) -> list[LocalLora]:
    lora, count = config.lora, len(client_ids)
    ranks = lora.ranks if isinstance(lora.ranks, tuple) else (lora.ranks,) * count
    if lora.alpha is None:
        alphas: tuple[float, ...] = tuple(2.0 * rank for rank in ranks)
    else:
        alphas = lora.alpha if isinstance(lora.alpha, tuple) else (lora.alpha,) * count
    if len(ranks) != count or len(alphas) != count:
        raise ConfigurationError(
            f"lora.ranks lists {len(ranks)} clients, lora.alpha {len(alphas)}, and the data has {count}: "
            f"{', '.join(client_ids)}; give one each or one for all"
        )
    return [
        LocalLora(rank, alpha, lora.use_rslora, lora.lora_dropout) for rank, alpha in zip(ranks, alphas, strict=True)
    ]


def _task(
    config: Config, tokenizer: PreTrainedTokenizerBase, training: Sequence[Record]
) -> tuple[PreTrainedModel, tuple[str, ...], str, Encode]:
    """(base model, modules trained whole, PEFT's name of the task, encoder of records)."""
    data, dtype = config.data, getattr(torch, config.model.dtype)
    template = data.prompt_template
    collate: Callable[[list[Features]], Mapping[str, Any]]
    if config.task.kind == CLASSIFICATION and data.label_field is not None:
        labels = config.task.labels or classes(training, data.label_field)
        base, head = load_classifier(
            config.model.name_or_path, dtype, labels, config.lora.modules_to_save, config.federation.seed
        )
        text = template_prompt(template or "{instruction}")
        encoder = ClassificationEncoder(tokenizer, text, data.label_field, labels, data.max_length)
        collate = DataCollatorWithPadding(tokenizer)
        return base, head, "SEQ_CLS", lambda records, source: encode(records, encoder, collate, source)
    base = load_causal_lm(config.model.name_or_path, dtype)
    if data.instruction_field and data.output_field:
        shape = RecordShape(data.instruction_field, data.input_field or "", data.output_field)
    else:
        shape = recognise(training)
    prompt = template_prompt(template) if template is not None else alpaca_prompt
    encoder = CausalLmEncoder(tokenizer, shape, prompt, data.max_length)
    collate = DataCollatorForSeq2Seq(tokenizer)
    return base, config.lora.modules_to_save or (), "CAUSAL_LM", lambda r, source: encode(r, encoder, collate, source)


def _metric_names(config: Config) -> Sequence[str]:
    known = METRICS[config.task.kind]
    names = config.evaluation.metrics or tuple(known)[:1]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigurationError(
            f"evaluation.metrics: unknown {unknown} for task.kind = {config.task.kind!r}, which has {list(known)}"
        )
    return names


def _metrics(
    config: Config, names: Sequence[str], examples: Examples, tokenizer: PreTrainedTokenizerBase
) -> tuple[Metric, ...]:
    metrics = [METRICS[config.task.kind][name](config, examples, tokenizer) for name in names]
    return tuple(metric for i, metric in enumerate(metrics) if metric not in metrics[:i])
