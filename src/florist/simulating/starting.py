"""``florist.simulate``: a federation in one process, from objects."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from florist.config.given import Given
from florist.config.reading import config_of
from florist.config.splits import split
from florist.errors import ConfigurationError
from florist.federation.guard import Guard
from florist.federation.records import RoundRecord
from florist.models.loading import fingerprint
from florist.models.local_training import LocalTraining, by_trainer
from florist.rounds import Aggregator
from florist.simulating.examples import Dataset, fingerprint_of, held_out_examples, named_examples
from florist.simulating.keys import (
    Keys,
    communication_keys,
    data_keys,
    keys_of_guard,
    method_keys,
    ranks_of,
    require_keys,
    require_known_clients,
    without_none,
)
from florist.simulating.objects import (
    OwnMetrics,
    described,
    model_keys,
    own_metrics,
    require_callables,
    usable_tokenizer,
)
from florist.simulating.playing import play
from florist.simulating.run import Run


def simulate(
    *,
    model: PreTrainedModel | str | Path | Keys,
    clients: Mapping[str, Dataset],
    ranks: int | Sequence[int] | Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    method: Aggregator | str | None = None,
    rounds: int = 3,
    test: Dataset | Mapping[str, Dataset] | None = None,
    validation: Dataset | Mapping[str, Dataset] | None = None,
    train: LocalTraining | None = None,
    metric: OwnMetrics | Sequence[OwnMetrics] | None = None,
    callbacks: Callable[[RoundRecord], Any] | Sequence[Any] = (),
    progress: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    fraction: float = 1.0,
    min_replies: int | None = None,
    local_init: str | None = None,
    shared_init: bool = True,
    task: Keys | None = None,
    data: Keys | None = None,
    lora: Keys | None = None,
    training: Keys | None = None,
    aggregation: Keys | None = None,
    communication: str | Keys | None = None,
    guard: Guard | Keys | None = None,
    privacy: Keys | None = None,
    evaluation: Keys | None = None,
    federation: Keys | None = None,
    tracking: Keys | None = None,
) -> Run:
    r"""Fine-tune with a federation of clients in this process: train, aggregate, evaluate, round by round.

    What is not said is as in a configuration file, whose keys the keywords are: `seed`, `fraction`, `rounds` and others
    of ``[federation]`` by their own names, whole sections as dictionaries. The model is never changed: what PEFT puts
    into it meanwhile is taken out again, also after an error.

    Args:
        model: the base, a name or a path to load it from, or the keys of ``[model]``.
        clients: the examples of every client by its name: a ``datasets.Dataset``, or a list of dictionaries in a shape
            that ``[data] format`` knows, of texts, of (prompt, answer), or of ``input_ids`` and ``labels``.
        ranks: the rank of every client, or one each in the order of `clients`, or by name.
        tokenizer: the tokenizer of the base; by default the one that is saved under the name of the model.
        method: an aggregation method, or the name of one; florist by default.
        rounds: how many rounds are played.
        test: held-out examples, of all clients together or by client; by default a tenth of every client's.
        validation: examples to choose by. The rounds are then measured on these, and the end on `test`.
        train: a training loop of one's own: a function of the model, the encoded examples and a `TrainingContext`
            that trains the parameters that require gradients, and returns the mean loss.
        metric: a function of the model that returns values by name, or several. It takes the place of the metric that
            would be measured by default; ``evaluation={"metrics": [...]}`` has both.
        callbacks: a function that is called with the record of every round, or several, and observers.
        progress: whether stderr gets a line after every round.
        out: the directory to create for the run; by default a temporary one, which goes with the result.
        resume: whether to go on with the run in `out`, if there is one.
        seed: everything random derives from it.
        fraction: the fraction of the clients that is asked in each round.
        min_replies: how many usable updates a round needs.
        local_init: how local adapters start: ``"fresh"``, ``"aligned"`` or ``"warm"``.
        shared_init: whether the clients of a round share their random rows of A.
        task: keys of ``[task]``.
        data: keys of ``[data]`` that say how examples are read, ``max_length`` or ``test_fraction`` for instance.
        lora: keys of ``[lora]`` but the ranks.
        training: keys of ``[training]``.
        aggregation: keys of ``[aggregation]`` for a method that is a name.
        communication: a preset, or keys of ``[communication]``.
        guard: refuses, or scales down, updates that no honest client sends: a `florist.Guard`, ``Guard.off()`` for
            none, or keys of ``[guard]``; by default the guard with its defaults.
        privacy: keys of ``[privacy]``.
        evaluation: keys of ``[evaluation]``.
        federation: further keys of ``[federation]``, ``early_stopping`` or ``keep_rounds`` for instance.
        tracking: keys of ``[tracking]``.

    Returns:
        The run, which has ended.

    Raises:
        ConfigurationError: arguments are wrong or contradict each other; or the run that goes on was begun with others,
            which are named.
        DataError: examples are not what they should be.
        ModelError: the model cannot be loaded or adapted.
        GivenObjectError: `train` or `metric` returned something else than a number, or numbers by name.
        OutputExistsError: there is something at `out`, and `resume` is not set.

    Example, with the small model that comes with florist:

    >>> import florist
    >>> from florist.config.reading import DEMONSTRATION
    >>> run = florist.simulate(
    ...     model=DEMONSTRATION.parent / "demonstration" / "model",
    ...     clients={"north": [("upper: oak\n", "OAK")] * 4, "south": [("upper: elm\n", "ELM")] * 4},
    ...     ranks={"north": 4, "south": 2},
    ...     method=florist.Florist(florist.EnergyThreshold(0.9)),
    ...     rounds=1,
    ...     training={"steps": 1, "threads": 1},
    ... )
    >>> [client.rank for client in run.records[0].clients], sorted(run.metrics)
    ([4, 2], ['loss', 'perplexity'])
    """
    require_keys(data=data, lora=lora, evaluation=evaluation, aggregation=aggregation)
    require_keys(federation=federation, tracking=tracking, privacy=privacy)
    named = named_examples(clients, "clients")
    listed = ranks_of(ranks, list(named.by_client))
    own, said = method_keys(method, aggregation, listed)
    metrics, observer = own_metrics(metric), require_callables(callbacks, told=progress)
    evaluation, lora = dict(evaluation or {}), dict(lora or {})
    if "ranks" in lora:
        raise ConfigurationError("lora: expected the keys of [lora] but the ranks, which have an argument of their own")
    held_out = {
        name: held_out_examples(given, name)
        for name, given in (("test", test), ("validation", validation))
        if given is not None
    }
    for name, each in held_out.items():
        require_known_clients(each, named.by_client, name)
    config = config_of(
        without_none(
            model=model_keys(model),
            task=task,
            data=data_keys(data, named.keys, held_out),
            lora={**lora, "ranks": listed},
            training=training,
            federation={
                **(federation or {}),
                "rounds": rounds,
                "seed": seed,
                "fraction": fraction,
                "min_replies": min_replies,
                "local_init": local_init,
                "shared_init": shared_init,
            },
            aggregation=said,
            communication=communication_keys(communication, own),
            guard=keys_of_guard(guard),
            privacy=privacy,
            evaluation=evaluation,
            tracking=tracking,
        )
    )
    if own is not None:
        own.require_able(config.communication)
    if metrics and config.evaluation.metrics is None and "test" not in held_out:
        held_out["test"] = {}  # the metrics have examples of their own, and nothing needs to be held out
    splits = split(config, dict(named.by_client), held_out.get("test"), held_out.get("validation"))
    base = model if isinstance(model, PreTrainedModel) else None
    given = Given(
        base=base,
        tokenizer=usable_tokenizer(tokenizer, config.model.name_or_path),
        method=own,
        metrics=metrics,
        local_training=train or by_trainer,
    )
    facts = {
        **({"model": f"{type(base).__name__} of weights {fingerprint(base)[:16]}"} if base is not None else {}),
        **{f"clients[{name!r}]": fingerprint_of(examples) for name, examples in named.by_client.items()},
        **({"test": fingerprint_of(splits.test)} if test is not None else {}),
        **({"validation": fingerprint_of(splits.validation)} if validation is not None else {}),
        **({"method": described(method)} if own is not None else {}),
        "train": described(train) if train is not None else "the Trainer",
    }
    path = Path(out) if out is not None else None
    return play(config, splits, given, facts, observer=observer, out=path, resume=resume)
