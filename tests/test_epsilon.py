"""The table of quality against epsilon (``benchmarks/epsilon.py``): its runs, and what it prints of them."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from benchmarks.epsilon import (
    EPSILONS,
    LINES,
    SEARCH_SEED,
    SETTINGS,
    Cell,
    Choice,
    cells_of,
    config_of,
    interval,
    markdown,
    searched,
)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_run_is_a_configuration(name: str) -> None:
    setting = SETTINGS[name]
    cells = [*cells_of(setting, 0), *searched(setting)]
    for cell in cells:
        config = config_of(cell, setting, ["data.validation=validation.json"])
        # One step; the configuration of the categories has no key for it but epochs.
        assert config.training.steps == 1 or config.training.epochs == config.training.batch_size / setting.rows
        assert config.privacy.on == (cell.epsilon is not None)
        assert config.privacy.epsilon == (cell.epsilon if cell.epsilon != math.inf else None)
    assert len(set(cells)) == len(cells)
    assert {cell.seed for cell in searched(setting)} == {SEARCH_SEED}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_what_is_chosen_was_tried(name: str) -> None:
    assert set(SETTINGS[name].chosen.values()) <= set(SETTINGS[name].candidates)


def outcomes(cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
    place = {line.name: number for number, line in enumerate(LINES)}
    return {
        cell: {
            "metrics": {"loss": 2 + place[cell.line] + 0.1 * cell.seed},
            "down_bytes": 1000.0,
            "total_rank": 8.0,
            "noise_multiplier": None if cell.epsilon is None else 1.0,
        }
        for cell in cells
    }


def test_lines_are_paired_by_seed_with_tau_at_the_same_epsilon() -> None:
    setting = SETTINGS["demonstration"]
    cells = [cell for seed in range(3) for cell in cells_of(setting, seed)]
    lines = list(markdown(cells, outcomes(cells), setting.metrics))
    assert len(lines) == 2 + 2 + sum(len(line.unlike) for line in LINES)
    assert lines[-1] == "| ffa | 1 | 1.00 | 5.100 ± 0.248 | +3.000 ± 0.000 | worse | 8.0 | 1.0 |"


def test_one_seed_has_no_interval() -> None:
    assert interval([1.0], ".1f") == "1.0"
    cell = Cell(LINES[0].name, EPSILONS[0], 0, Choice(1, 1.0), 1)
    *_, last = markdown([cell], outcomes([cell]), ["loss"])
    assert "±" not in last
