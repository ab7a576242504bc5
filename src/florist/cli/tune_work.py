"""What ``florist tune`` does, once its arguments are known to be right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from florist import one_shot
from florist.cli.output import Output
from florist.cli.progress import Progress
from florist.cli.tune_table import Tuned
from florist.compression.codecs import codec_named
from florist.compression.packed import packed_factor_bytes
from florist.config.choosing import (
    Measuring,
    measuring_to_choose_by,
    metrics_to_choose_by,
    require_same_validation,
    require_validation,
)
from florist.config.reading import read_config
from florist.config.sections import AggregationSection, Config
from florist.config.splits import Splits, read_splits, read_validation
from florist.errors import ConfigurationError
from florist.evaluation import lower_is_better
from florist.factors import AdapterState
from florist.federation.history import RunDirectory
from florist.files import strict_json
from florist.one_shot import AggregatedAdapter
from florist.one_shot.tuning import Goal, Point, bisect, pick_efficient, pick_optimal, sweep
from florist.ranks import EnergyThreshold


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be tuned, and on which model.

    Attributes:
        run: a finished run; None for adapters.
        adapters: their directories or hub ids; empty for a run.
        config_file: the configuration that names the model and the validation examples.
        num_examples: the examples behind the adapters; None for what their certificates say.
        allow_base_mismatch: as for `one_shot.aggregate`.
        average_full: as for `one_shot.aggregate`.
    """

    run: Path | None
    adapters: tuple[str, ...]
    config_file: Path
    num_examples: Sequence[Fraction] | None
    allow_base_mismatch: bool
    average_full: bool

    @property
    def document(self) -> dict[str, Any]:
        """What the JSON document says of it."""
        if self.run is not None:
            return {"run": str(self.run)}
        return {"adapters": list(self.adapters), "config": str(self.config_file)}

    def decompose(self) -> AggregatedAdapter:
        """The whole adapter: that of the run, or the weighted sum of the adapters.

        Raises:
            FloristError: as `one_shot.aggregate`; a run has not ended.
        """
        if self.run is not None:
            return _final_adapter(self.run)
        return one_shot.aggregate(
            self.adapters,
            rank_rule=EnergyThreshold(1.0),
            num_examples=self.num_examples,
            allow_base_mismatch=self.allow_base_mismatch,
            average_full=self.average_full,
        )


def tune(
    source: Source,
    taus: Sequence[float],
    *,
    metric: str | None,
    margin: float,
    baseline: float | None,
    baseline_runs: Sequence[Path],
    bisecting: bool,
    output: Output,
    progress: Progress,
) -> tuple[Tuned, AggregatedAdapter]:
    """Measure an adapter at every threshold and pick two.

    Args:
        source: what to tune.
        taus: the thresholds, with 1 among them.
        metric: the metric that decides; None for the configuration's first.
        margin: how far FLoRIST-E may fall short.
        baseline: the value that FLoRIST-E has to match; None for that of the runs, or for that at tau = 1.
        baseline_runs: the runs to measure for a baseline.
        bisecting: whether to evaluate only what FLoRIST-E needs.
        output: where to print notes.
        progress: where to show how it goes.

    Returns:
        What was found, and the whole adapter.

    Raises:
        ConfigurationError: there are no validation examples, or the metric is unknown.
        FloristError: an adapter cannot be read, or not be measured with the model.
    """
    # Adapters are there already: with which ranks they were trained, nobody needs to say.
    config = read_config(source.config_file, unused={"lora": {"ranks": 1}} if source.run is None else {})
    require_validation(config)
    metrics = metrics_to_choose_by(config, metric)
    goal = Goal(metrics[0], lower_is_better(metrics[0]), baseline, margin)
    _use_threads(source.run, config)
    progress.whole("decomposing the adapter")
    baselines = {str(path): _final_adapter(path) for path in baseline_runs}
    whole = source.decompose()
    progress.whole("loading the model")
    splits = read_splits(config) if source.run is not None else read_validation(config)
    measuring = _measuring(config, splits, metrics, whole, baselines)
    for note in (*_unlike_bases(whole, config), *whole.inputs.notes):
        output.note(note)
    output.detail(*_decisions(config, metrics, metric, taus))
    progress.whole("evaluating")
    goal = _with_baseline(goal, measuring, baselines, progress)
    points = _points(whole, measuring, taus, goal, progress, bisecting=bisecting)
    tuned = Tuned(
        source=source.document,
        goal=goal,
        baseline_runs=tuple(baselines),
        bisected=bisecting,
        points=tuple(points),
        optimal=pick_optimal(points, goal),
        efficient=pick_efficient(points, goal),
        codec=config.communication.download,
        sent_bytes={point.tau: _sent_bytes(whole.adapter, point, config.communication.download) for point in points},
    )
    return tuned, whole


def report(tuned: Tuned, whole: AggregatedAdapter, out: Path | None, output: Output) -> None:
    """Print what was found, and write FLoRIST-E.

    Args:
        tuned: what was found.
        whole: the adapter that was cut.
        out: the directory to create for FLoRIST-E; None to write nothing.
        output: where to print.

    Raises:
        ConfigurationError: FLoRIST-E was to be written, and the baseline is out of reach.
    """
    output.table(tuned.table())
    output.lines(*tuned.summary())
    if out is not None and tuned.efficient is not None:
        document = strict_json.encode(tuned.document(), indent=2) + "\n"
        _write(whole, tuned.efficient, out, {"tune.json": document, "tune.csv": tuned.csv()})
        output.lines(f"FLoRIST-E written to {out}, with its certificate in {out}/florist.json")
    output.document(tuned.document())
    if out is not None and tuned.efficient is None:
        raise ConfigurationError(f"nothing was written to {out}: {tuned.out_of_reach}")


def _decisions(config: Config, metrics: Sequence[str], metric: str | None, taus: Sequence[float]) -> list[str]:
    why = "as --metric says" if metric is not None else "the first that the configuration can choose by"
    measured = f", measured with {', '.join(metrics[1:])}" if metrics[1:] else ""
    return [
        f"{metrics[0]} decides, {why}{measured}; {'lower' if lower_is_better(metrics[0]) else 'higher'} is better",
        f"thresholds: {', '.join(f'{tau:g}' for tau in sorted(set(taus)))}",
        f"measured on {config.model.name_or_path} with {torch.get_num_threads()} torch threads",
    ]


def _use_threads(run: Path | None, config: Config) -> None:
    """Use as many threads as the run had; small models are slower with more."""
    threads = RunDirectory.open(run).facts.threads if run is not None else config.training.threads
    torch.set_num_threads(threads or torch.get_num_threads())


def _unlike_bases(whole: AggregatedAdapter, config: Config) -> list[str]:
    named, model = whole.inputs.compatibility.base_model, config.model.name_or_path
    if named in {None, model}:
        return []
    return [f"the adapters name the base model {named}, and are measured on {model}"]


def _final_adapter(run: Path) -> AggregatedAdapter:
    """The final adapter of a run: the lossless sum of all its rounds, decomposed."""
    adapter = RunDirectory.open(run).result.require_adapter()
    return one_shot.aggregate([str(adapter)], rank_rule=EnergyThreshold(1.0), average_full=True)


def _measuring(
    config: Config,
    splits: Splits,
    metrics: Sequence[str],
    whole: AggregatedAdapter,
    baselines: Mapping[str, AggregatedAdapter],
) -> Measuring:
    for path in baselines:
        require_same_validation(config, splits, read_config(RunDirectory.open(Path(path)).played_config), path)
    return measuring_to_choose_by(config, splits, metrics, {"the adapter to be tuned": whole, **baselines})


def _with_baseline(
    goal: Goal, measuring: Measuring, baselines: Mapping[str, AggregatedAdapter], progress: Progress
) -> Goal:
    """The goal with the best of the baselines that are to be measured, if any are."""
    values: list[float] = []
    for name, one in baselines.items():
        progress.part(f"baseline {name}")
        values.append(measuring.measure(one.adapter, one.saved_parameters)[goal.metric])
        progress.line(f"baseline {name}: {goal.metric} {values[-1]:.4g}")
    return replace(goal, baseline=max(values, key=goal.gain)) if values else goal


def _points(
    whole: AggregatedAdapter,
    measuring: Measuring,
    taus: Sequence[float],
    goal: Goal,
    progress: Progress,
    *,
    bisecting: bool,
) -> list[Point]:
    def evaluate(cut: AdapterState) -> Mapping[str, float]:
        progress.part(f"total rank {cut.total_rank}")
        return measuring.measure(cut, whole.saved_parameters)

    def tell(point: Point) -> None:
        progress.line(f"tau {point.tau:g}: total rank {point.total_rank}, {goal.metric} {goal.value(point):.4g}")

    layout = whole.inputs.compatibility.layout
    if bisecting:
        return bisect(whole.adapter, taus, evaluate, goal, layout=layout, on_point=tell)
    return sweep(whole.adapter, taus, evaluate, layout=layout, on_point=tell)


def _sent_bytes(adapter: AdapterState, point: Point, codec: str) -> int:
    """The bytes of the factors of a cut as a codec sends them."""
    packing = codec_named(codec)
    specs = (replace(adapter.specs[name], rank=rank) for name, rank in point.ranks.items())
    return sum(packed_factor_bytes(packing, spec) for spec in specs)


def _write(whole: AggregatedAdapter, point: Point, out: Path, beside: Mapping[str, str]) -> None:
    settings = AggregationSection(tau=point.tau).model_dump(mode="json") | {"export": "per-module", "dtype": "float32"}
    whole.leading(point.ranks).write(out, settings=settings, beside=beside)
