import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from florist.checkpoint import open_adapter
from florist.comparison.intervals import Estimate
from florist.comparison.summary import summarise
from florist.errors import MissingInputError, OutputExistsError
from florist.federation.records import RoundRecord
from florist.reporting.client_metrics import client_metrics
from florist.reporting.content import Table
from florist.reporting.contributions import cosines, drops, update_norms
from florist.reporting.curves import Point, metric_against_bytes, metric_by_round
from florist.reporting.figures import Figure
from florist.reporting.numbers import MISSING
from florist.reporting.of_run import adapter_spectra, page_of_run
from florist.reporting.operating_points import operating_points
from florist.reporting.spectra import layer, rank_against_tau, ranks_by_layer, singular_values
from florist.reporting.writing import page_of, write_figures
from tests.comparison.made import a_round, result

from .made import a_record, a_run, module_names


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.12.self_attn.q_proj", 12),
        ("bert.encoder.layer.3.attention.query", 3),
        ("layers.0.mlp.experts.7.up_proj", 0),
        ("lm_head", None),
        ("blocks.4", 4),
        ("conv2d.out", None),
    ],
)
def test_the_layer_is_the_first_number_of_a_name(module: str, expected: int | None) -> None:
    assert layer(module) == expected


def test_singular_values_are_those_of_the_dense_update(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", modules=5, features=12, rank=3)
    figures = singular_values(adapter_spectra(run.adapter), "x")
    assert [figure.title.split()[-1] for figure in figures] == ["k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    adapter = open_adapter(run.adapter).adapter
    for figure in figures:
        (name,) = {row["module"] for row in figure.rows}
        dense = torch.linalg.svdvals(adapter[name].delta_weight().double())[:3]
        assert [row["value"] for row in figure.rows] == pytest.approx(dense.tolist(), rel=1e-4)
        assert [row["layer"] for row in figure.rows] == [0, 0, 0]


def test_rank_against_tau_adds_up_the_layers(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", modules=10, features=12, rank=3)
    spectra = adapter_spectra(run.adapter)
    figure = rank_against_tau(spectra, "x")
    assert figure is not None
    for row in figure.rows:
        own = [one for name, one in spectra.items() if name.endswith(str(row["series"]))]
        assert row["value"] == sum(one.rank_holding(row["tau"]) for one in own)


def test_ranks_of_experts_are_added_up_and_modules_without_a_layer_left_out() -> None:
    ranks = {"layers.0.experts.0.up": 2, "layers.0.experts.1.up": 3, "layers.1.experts.0.up": 4, "lm_head": 9}
    figure = ranks_by_layer(ranks, "x")
    assert figure is not None
    assert [(row["layer"], row["rank"]) for row in figure.rows] == [(0, 5), (1, 4)]
    assert ranks_by_layer({"lm_head": 9}, "x") is None


def test_bytes_are_added_up_over_the_rounds(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", rounds=3, clients=4)
    figure = next(figure for figure in page_of_run(run.path).figures if figure.name == "bytes-loss")
    # Three clients count; the base model took no bytes and has no place on a logarithmic axis.
    assert [row["traffic"] for row in figure.rows] == [9000, 18000, 27000]
    assert [row["value"] for row in figure.rows] == [3.0 / (1 + k) for k in (1, 2, 3)]


@pytest.mark.parametrize(("count", "shown"), [(1, False), (2, False), (3, True)])
def test_an_interval_needs_three_seeds(count: int, shown: bool) -> None:
    points = [Point("florist", k, Estimate(1.0, 0.5 if count > 1 else None, count, 0.5, 1.5), 10.0) for k in (1, 2)]
    figure = metric_by_round("loss", "loss", points)
    assert figure is not None
    assert ("95%" in figure.caption) == shown
    assert [row["low"] for row in figure.rows] == ([0.5, 0.5] if shown else [None, None])


def test_values_that_are_no_numbers_are_not_drawn() -> None:
    points = [
        Point("florist", k, Estimate(value, None, 1, value, value), 10.0) for k, value in ((1, math.nan), (2, math.inf))
    ]
    assert metric_by_round("loss", "loss", points) is None
    assert metric_against_bytes("loss", "loss", points) is None


def test_norms_cosines_and_drops_say_whose_they_are() -> None:
    names = ["a", "b", "c", "gone"]
    records = [a_record(number, names, module_names(2)) for number in (1, 2)]
    norms, angles, gone = update_norms(records), cosines(records), drops([("run", records)])
    assert norms is not None
    assert angles is not None
    assert gone is not None
    assert [(row["client"], row["round"], row["value"]) for row in norms.rows[:3]] == [
        ("a", 1, 1),
        ("b", 1, 2),
        ("c", 1, 3),
    ]
    # Of the last round, for pairs of the clients that count.
    assert [(row["client"], row["with"]) for row in angles.rows] == [("b", "a"), ("c", "a"), ("c", "b")]
    assert [row["cosine"] for row in angles.rows] == [cosine for line in records[-1].cosines for cosine in line]
    assert [line[:2] for line in gone.lines] == [["1", "gone"], ["2", "gone"]]
    old: list[RoundRecord] = [a_round(1, {"loss": 1.0})]
    assert update_norms(old) is None
    assert cosines(old) is None
    assert drops([("run", old)]) is None


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # The lowest tau that matches the baseline of 1.2 is 0.9; the best is 0.99.
        ({"f8": 1.3, "f9": 1.1, "f99": 1.0, "fedit": 1.2}, {"f9": "FLoRIST-E", "f99": "FLoRIST-O"}),
        ({"f8": 1.0, "f9": 1.1, "f99": 1.1, "fedit": 1.2}, {"f8": "FLoRIST-O, FLoRIST-E"}),
        ({"f8": 1.3, "f9": 1.1, "f99": 1.2, "fedit": 0.9}, {"f9": "FLoRIST-O"}),
        ({"f8": 1.3, "f9": 1.1, "f99": 1.2}, {"f9": "FLoRIST-O"}),
        ({"f9": 1.1, "fedit": 1.2}, {}),
    ],
)
def test_the_operating_points_of_the_paper(losses: dict[str, float], expected: dict[str, str]) -> None:
    taus = {"f8": 0.8, "f9": 0.9, "f99": 0.99, "fedit": None}
    lines = summarise([result(name, seed, {"loss": loss}) for name, loss in losses.items() for seed in (0, 1)])
    from dataclasses import replace

    lines = [replace(line, method="florist" if line.name != "fedit" else "fedit") for line in lines]
    found = operating_points(lines, taus)
    assert found.points == expected
    assert ("test examples" in found.explanation) == bool(expected)


@pytest.mark.slow
def test_figures_become_files_without_a_browser(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", rounds=2, modules=5)
    page = page_of(run.path)
    files = write_figures(page, tmp_path / "figures")
    assert len(files) == 3 * len(page.figures)
    heads = {".svg": b"<svg", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    for file in files:
        assert file.read_bytes().startswith(heads[file.suffix]), file
    assert not [file for file in files if file.suffix == ".svg" and "currentColor" in file.read_text()]
    with pytest.raises(OutputExistsError):
        write_figures(page, tmp_path / "figures")


def test_the_metrics_of_each_client_have_a_table_and_figures(tmp_path: Path) -> None:
    records = [a_record(number, ["a", "b", "c", "d"], module_names(2)) for number in (1, 2)]
    records.append(replace(records[0], round=3, client_metrics={}))
    table, loss, mine = client_metrics(records, {"loss": True})
    assert isinstance(table, Table)
    assert "after round 2 " in table.caption
    assert table.lines == [
        ["loss", "2.5", "3.5", "c", "1.5", "3.5", "0.8165"],
        ["mine", "0.5", MISSING, MISSING, "0.5", "0.5", "0"],
    ]
    assert isinstance(loss, Figure)
    assert isinstance(mine, Figure)
    assert {(row["client"], row["round"]): row["value"] for row in loss.rows} == {
        ("a", 1): 2.0, ("b", 1): 3.0, ("c", 1): 4.0, ("a", 2): 1.5, ("b", 2): 2.5, ("c", 2): 3.5,
    }  # fmt: skip
    assert client_metrics(records[2:], {"loss": True}) == []


def test_a_perplexity_whose_square_no_float_holds_is_shown() -> None:
    record = replace(a_record(1, ["a", "b"], []), client_metrics={"a": {"perplexity": 1e200}, "b": {"perplexity": 1.0}})
    table = client_metrics([record], {"perplexity": True})[0]
    assert isinstance(table, Table)
    assert table.lines[0][1:4] == ["5e+199", "1e+200", "a"]
    assert table.lines[0][-1] == "5e+199"


def test_the_page_tells_which_round_was_the_best_and_that_the_rounds_stopped(tmp_path: Path) -> None:
    a_run(tmp_path / "stopped")
    a_run(tmp_path / "goes-on", rounds=2)
    a_run(tmp_path / "old", bare=True)
    pages = {name: page_of_run(tmp_path / name) for name in ("stopped", "goes-on", "old")}
    tables = {name: page.sections[0].blocks[0] for name, page in pages.items()}
    lines = {
        name: {line[0]: line[1] for line in table.lines} for name, table in tables.items() if isinstance(table, Table)
    }
    assert lines["stopped"]["stopped"] == "after round 3, for want of an improvement"
    assert lines["stopped"]["best round"] == lines["goes-on"]["best round"] == "2"
    assert "stopped" not in lines["goes-on"]
    assert not {"stopped", "best round"} & lines["old"].keys()
    assert pages["stopped"].summary.endswith(
        ". The rounds stopped early, for want of an improvement. The best round was 2."
    )
    assert pages["goes-on"].summary.endswith("KB. The best round was 2.")
    assert "best round" not in pages["old"].summary


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="a run, a comparison or an aggregate"):
        page_of(tmp_path)
