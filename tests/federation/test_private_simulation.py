"""Private rounds as a configuration: through training, restart, export and what the commands say of them."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from florist.cli.simulate_table import privacy_lines, rounds_table
from florist.cli.watch_table import Row, line_of
from florist.config import read_config
from florist.config.building import build
from florist.federation.following import read_status
from florist.federation.history import RunDirectory
from florist.federation.records import RoundRecord
from florist.federation.simulation import Simulation
from florist.privacy.accounting import Accountant
from florist.reporting.content import Table
from tests.federation.test_simulated_methods import (
    KilledAfterTheFirstRound,
    KilledError,
    untimed,
)
from tests.tiny_federation import Silent, started, weights

CONFIG = """
[model]
name_or_path = "{model}"
[data]
path = "{data}"
test = "test.json"
partition = "iid"
prompt_template = "{{instruction}}\\n"
[lora]
ranks = [8, 4, 2]
alpha = [16, 4, 8]
target_modules = ["q_proj", "v_proj"]
[training]
learning_rate = 1e-2
batch_size = 4
steps = 2
threads = 1
[federation]
rounds = 3
seed = 5
[aggregation]
method = "linear"
[evaluation]
every = 3
[privacy]
"""
NOISE = "clip = 1.0\nnoise_multiplier = 0.5\ndelta = 0.1\n"


def start(folder: Path, text: str, out: str) -> tuple[Simulation, RunDirectory]:
    file = folder / f"{out}.toml"
    file.write_text(text)
    return started(file, folder / out)


@pytest.fixture
def text(tiny_llama: Path, toy_data: Path) -> str:
    return CONFIG.format(model=tiny_llama, data=toy_data)


@pytest.mark.slow
def test_a_masked_run_is_a_plain_run_but_for_rounding(text: str, tmp_path: Path) -> None:
    plain, plain_directory = start(tmp_path, text, "plain")
    masked, directory = start(tmp_path, text + "secure_aggregation = true\nbits = 64\n", "masked")
    before, after = plain.run(plain_directory, Silent()), masked.run(directory, Silent())
    assert after[-1].metrics["loss"] == pytest.approx(before[-1].metrics["loss"], rel=1e-4)
    assert after[-1].metrics["loss"] < directory.facts.initial["loss"]
    assert [len(record.clients) for record in after] == [3, 3, 3]
    assert directory.adapter.exists()
    # What clients have is in no record, nor beside the adapter.
    assert '"num_examples": null' in (directory.path / "rounds.jsonl").read_text()
    assert '"num_examples": null' in (directory.adapter / "florist.json").read_text()
    assert privacy_lines(after) == ["the server had sums of 2 clients or more, and no single update"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "adaptive",
    [
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("adaptive_clip = 0.5\n", marks=pytest.mark.slow),
        'adaptive_clip = 0.5\nnoise = "clients"\nhonest_fraction = 1.0\n',
    ],
    ids=["fixed", "adaptive", "by clients"],
)
def test_a_noisy_run_survives_a_kill_to_the_same_bits(text: str, tmp_path: Path, adaptive: str) -> None:
    pytest.importorskip("dp_accounting")
    text += NOISE + "secure_aggregation = true\n" + adaptive
    simulation, directory = start(tmp_path, text, "whole")
    records = simulation.run(directory, Silent())
    spent = [record.epsilon for record in records]
    assert all(one is not None and two is not None and one < two for one, two in pairwise(spent))
    clips = [record.privacy.clip for record in records if record.privacy is not None]
    assert (len(set(clips)) == 3) == bool(adaptive)
    told = "clients added the noise in shares, which counts on 100% honest ones a round"
    assert (told in privacy_lines(records)) == ("clients" in adaptive)

    interrupted, other = start(tmp_path, text, "killed")
    with pytest.raises(KilledError):
        interrupted.run(other, KilledAfterTheFirstRound())
    resumed = build(read_config(other.config_file)).run(RunDirectory.open(other.path), Silent())
    assert [untimed(record) for record in resumed if record] == [untimed(record) for record in records]
    assert weights(other.path) == weights(directory.path)


def test_a_run_ends_before_a_round_that_would_exceed_its_epsilon(text: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    from florist.reporting.of_run import page_of_run

    accountant = _accountant(text, tmp_path)
    budget = f"epsilon = {accountant.epsilon(2) + 1e-6}\n"
    simulation, directory = start(tmp_path, text + NOISE + budget, "run")
    records = simulation.run(directory, Silent())
    assert len(records) == 2
    last = records[-1]
    assert last.privacy is not None
    assert last.privacy.spent
    assert last.metrics  # the last round is measured, whichever it is
    assert directory.adapter.exists()
    assert privacy_lines(records)[-1] == "stopped after round 2: another would exceed privacy.epsilon"
    assert str(rounds_table({}, records).columns[-2].header) == "epsilon"
    assert f"epsilon {last.epsilon:.3g}" in line_of(Row.of(last))
    assert f"epsilon {last.epsilon:.3g}" in last.text
    assert last.ends
    status = read_status(directory.path)
    assert status is not None
    assert not status.is_over(2)
    assert status.is_over(2, ended=Row.of(last).ends)
    # It goes on with more rounds only as far as the epsilon lets it: no further.
    again = build(read_config(directory.config_file, ["federation.rounds=9"]))
    assert len(again.run(RunDirectory.open(directory.path), Silent())) == 2
    (section,) = [each for each in page_of_run(directory.path).sections if each.name == "privacy"]
    sums = [block for block in section.blocks if isinstance(block, Table)][-1]
    assert sums.caption == "Who was in which sum"
    assert len(sums.lines) == 2


def _accountant(text: str, folder: Path) -> Accountant:
    (folder / "probe.toml").write_text(text + NOISE)
    noise = build(read_config(folder / "probe.toml")).private
    assert noise is not None
    assert noise.noise is not None
    return noise.noise.accountant


@pytest.mark.slow
def test_epsilon_alone_says_how_much_noise_and_more_rounds_do_not_change_it(text: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    text += "clip = 1.0\nepsilon = 20.0\ndelta = 0.1\n"
    simulation, directory = start(tmp_path, text, "run")
    with pytest.raises(KilledError):
        simulation.run(directory, KilledAfterTheFirstRound())
    more = build(read_config(directory.config_file, ["federation.rounds=6"]))
    records = more.run(RunDirectory.open(directory.path), Silent())
    assert len({record.privacy.noise_multiplier for record in records if record.privacy}) == 1
    assert len(records) == 3  # what the noise was computed for
    assert records[-1].epsilon is not None
    assert 19 < records[-1].epsilon <= 20
    assert records[-1].privacy is not None
    assert records[-1].privacy.spent


@pytest.mark.slow
def test_draws_by_themselves_and_the_edge_of_the_noise(text: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    text = text.replace('method = "linear"', 'method = "linear"\nnoise_edge = true')
    text = text.replace("seed = 5", "seed = 5\nfraction = 0.3") + NOISE + 'sampling = "poisson"\n'
    simulation, directory = start(tmp_path, text, "run")
    records = simulation.run(directory, Silent())
    assert [record.aggregated for record in records] == [True] * 3
    assert len({len(record.clients) for record in records}) > 1


@pytest.mark.slow
def test_code_asks_for_the_same() -> None:
    pytest.importorskip("dp_accounting")
    import florist
    from florist.config.reading import DEMONSTRATION

    run = florist.simulate(
        model=DEMONSTRATION.parent / "demonstration" / "model",
        clients={name: [(f"upper: {name}\n", name.upper())] * 4 for name in ("oak", "elm", "fir")},
        ranks=2,
        method="linear",
        rounds=2,
        privacy={"secure_aggregation": True, "clip": 0.5, "noise_multiplier": 1.0, "delta": 0.1},
        training={"steps": 1, "threads": 1},
    )
    assert [record.epsilon for record in run.records] == sorted(record.epsilon or 0 for record in run.records)
    assert [record.privacy.threshold for record in run.records if record.privacy is not None] == [2, 2]


@pytest.mark.slow
def test_ffa_is_protected_as_well(text: str, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    text = text.replace('method = "linear"', 'method = "ffa"') + NOISE + "secure_aggregation = true\n"
    simulation, directory = start(tmp_path, text, "run")
    records = simulation.run(directory, Silent())
    assert [record.aggregated for record in records] == [True] * 3
    assert records[-1].total_rank == 8 * len(simulation.federation.shapes)


def test_one_line_says_that_nothing_could_be_read() -> None:
    from florist.federation.private_records import PrivacyRecord

    failed = PrivacyRecord(masked=True, threshold=3, failed="expected 3 of 5 clients\nthat are still there")
    record = RoundRecord(1, False, {}, 0, 0, 0, 0.0, {}, 0, 0, 0, 0, (), (), {"total": 1.0}, privacy=failed)
    assert "\n" not in record.text
    assert record.text == "round 1: expected 3 of 5 clients\\nthat are still there"
    assert privacy_lines([record])[0].startswith("round 1 changed nothing: ")
    assert replace(record, privacy=None).text == "round 1: too few replies, nothing changed"
