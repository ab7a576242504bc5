"""``[communication]``: presets, what contradicts, and which objects come of it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from florist.aggregation import FedIt, Florist, WholeSum
from florist.compression.codecs import CODECS, FloatCodec, IntegerCodec
from florist.compression.feedback import Compression, Feedback
from florist.config import Config, to_toml
from florist.config.communication import CODEC_NAMES, PRESETS, SERVER_RANK_FACTOR, aggregator_of, communication_of
from florist.config.methods import METHODS
from florist.federation.communication import Communication
from florist.ranks import ByteBudget, Capped, EnergyThreshold
from tests.config.test_reading import MINIMAL, read, refusal

EVERYTHING = {"download": "float32", "upload": "float32", "upload_tau": None, "upload_budget": None, "feedback": False}
CONTINUES = [method.name for method in METHODS.values() if not method.adds_exact_sum]


def with_communication(*lines: str, method: str = "florist") -> str:
    if not any(line.startswith("preset") for line in lines):
        lines = ('preset = "plain"', *lines)
    return "\n".join([MINIMAL, "[communication]", *lines, "[aggregation]", f'method = "{method}"', ""])


def settings(config: Config) -> dict[str, Any]:
    return {key: getattr(config.communication, key) for key in EVERYTHING}


def of(folder: Path, *lines: str, method: str = "florist", overrides: Sequence[str] = ()) -> Communication:
    return communication_of(read(folder, with_communication(*lines, method=method), overrides))


def test_the_names_of_codecs_are_those_that_both_sides_know() -> None:
    assert tuple(CODECS) == CODEC_NAMES


def test_by_default_florist_sends_little_and_keeps_the_rest(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config == read(tmp_path, MINIMAL + '[communication]\npreset = "compact"\n')
    assert settings(config) == {**EVERYTHING, **PRESETS["compact"]}
    assert (config.aggregation.tau, config.federation.local_init) == (0.7, "aligned")
    assert aggregator_of(config, 8) == WholeSum()
    assert read(tmp_path, to_toml(config)) == config


@pytest.mark.parametrize("method", [name for name in METHODS if name != "florist"])
def test_by_default_all_that_other_methods_send_travels_as_it_is(tmp_path: Path, method: str) -> None:
    config = read(tmp_path, MINIMAL, [f"aggregation.method={method}"])
    assert settings(config) == EVERYTHING
    assert communication_of(config) == Communication()


@pytest.mark.parametrize(
    ("preset", "tau", "start"), [("plain", 0.9, "aligned"), ("paper", 0.9, "fresh"), ("compact", 0.7, "aligned")]
)
def test_what_belongs_to_a_preset_in_other_sections_gives_way_to_what_is_set_there(
    tmp_path: Path, preset: str, tau: float, start: str
) -> None:
    config = read(tmp_path, MINIMAL, [f"communication.preset={preset}"])
    assert (config.aggregation.tau, config.federation.local_init) == (tau, start)
    own = [f"communication.preset={preset}", "federation.local_init=aligned", "aggregation.budget=100kB"]
    changed = read(tmp_path, MINIMAL, own)
    assert (changed.aggregation.tau, changed.federation.local_init) == (None, "aligned")


# --- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_its_keys_and_the_others_change_it(tmp_path: Path, preset: str) -> None:
    assert settings(read(tmp_path, with_communication(f'preset = "{preset}"'))) == {**EVERYTHING, **PRESETS[preset]}
    changed = read(tmp_path, with_communication(f'preset = "{preset}"', 'upload = "int8"', 'upload_budget = "9kB"'))
    expected = {**EVERYTHING, **PRESETS[preset], "upload": "int8", "upload_tau": None, "upload_budget": 9000}
    assert settings(changed) == expected


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_preset_gives_every_method_what_it_can_use(tmp_path: Path, method: str, preset: str) -> None:
    config = read(tmp_path, with_communication(f'preset = "{preset}"', method=method))
    found = settings(config)
    assert {key: found[key] for key in ("download", "upload")} == {
        key: PRESETS[preset][key] for key in ("download", "upload")
    }
    if method in CONTINUES:
        assert (found["feedback"], found["upload_tau"]) == (False, None)
    else:
        cut = {"upload_tau": None} if METHODS[method].uncut_uploads else {}
        assert found == {**EVERYTHING, **PRESETS[preset], **cut}
    again = read(tmp_path, to_toml(config))
    assert again == config
    assert communication_of(again) == communication_of(config)


def test_a_preset_that_there_is_not_is_refused(tmp_path: Path) -> None:
    told = refusal(tmp_path, with_communication('preset = "smallest"'))
    assert "communication.preset: Input should be 'plain', 'paper' or 'compact', got 'smallest'" in told


# --- contradictions


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("feedback = true", "feedback = True"),
        ('feedback = "clients"', "feedback = 'clients'"),
        ("upload_tau = 0.8", "upload_tau = 0.8"),
        ('upload_budget = "200kB"', "upload_budget = 200000"),
    ],
)
@pytest.mark.parametrize("method", CONTINUES)
def test_what_a_method_that_continues_cannot_use_is_refused_with_what_to_do(
    tmp_path: Path, method: str, line: str, shown: str
) -> None:
    told = refusal(tmp_path, with_communication(line, method=method))
    assert f"communication.{shown} is for methods whose clients add the exact sum of what they trained" in told
    assert f"{METHODS[method].title} lets them train on from what it sends: remove it, or choose" in told
    assert "aggregation.method = 'florist' or 'flora'" in told


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_codec(tmp_path: Path, method: str) -> None:
    found = of(tmp_path, 'download = "int8"', 'upload = "int4"', method=method)
    assert found.download == Compression(IntegerCodec(8))
    assert found.upload == Compression(IntegerCodec(4))


@pytest.mark.parametrize(
    ("lines", "telling"),
    [
        (("upload_tau = 0.8", 'upload_budget = "200kB"'), "upload_tau = 0.8 and upload_budget = 200000 contradict"),
        (('download = "int5"',), "communication.download: Input should be 'float32', .* or 'int2', got 'int5'"),
        (('upload = "fp8"',), "communication.upload: Input should be 'float32', .* or 'int2', got 'fp8'"),
        (("upload_tau = 0",), "communication.upload_tau: expected a fraction of the energy"),
        (("upload_tau = 1.5",), "communication.upload_tau: expected a fraction of the energy"),
        (('upload_budget = "a lot"',), "communication.upload_budget: expected a size as 20MB"),
        (('feedback = "somewhere"',), "communication.feedback"),
        (('downlaod = "int4"',), r"unknown key communication\.downlaod \(did you mean communication\.download\?\)"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(tmp_path: Path, lines: tuple[str, ...], telling: str) -> None:
    assert re.search(telling, refusal(tmp_path, with_communication(*lines)))


# --- overrides


def test_an_override_of_the_preset_replaces_what_was_said_before(tmp_path: Path) -> None:
    content = with_communication('download = "float16"', "upload_tau = 0.5", 'feedback = "server"', "flush = false")
    found = read(tmp_path, content, ["communication.preset=compact"])
    assert settings(found) == {**EVERYTHING, **PRESETS["compact"]}
    assert not found.communication.flush
    found = read(tmp_path, content, ["communication.preset=compact", "communication.download=int8"])
    assert settings(found) == {**EVERYTHING, **PRESETS["compact"], "download": "int8"}


@pytest.mark.parametrize(
    ("before", "override", "expected"),
    [
        ("upload_tau = 0.5", "communication.upload_budget=200kB", (None, 200000)),
        ('upload_budget = "200kB"', "communication.upload_tau=0.5", (0.5, None)),
        ('preset = "compact"', "communication.upload_budget=200kB", (None, 200000)),
        ('preset = "compact"', "communication.upload_tau=0.5", (0.5, None)),
    ],
)
def test_an_override_of_how_much_is_uploaded_replaces_the_other_way(
    tmp_path: Path, before: str, override: str, expected: tuple[float | None, int | None]
) -> None:
    found = read(tmp_path, with_communication(before), [override]).communication
    assert (found.upload_tau, found.upload_budget) == expected


@pytest.mark.parametrize("method", CONTINUES)
def test_an_override_of_the_method_drops_what_it_cannot_use_and_keeps_the_codec(tmp_path: Path, method: str) -> None:
    lines = ('download = "int8"', 'upload = "int4"', "upload_tau = 0.8", "feedback = true", "flush = false")
    found = read(tmp_path, with_communication(*lines), [f"aggregation.method={method}"])
    assert settings(found) == {**EVERYTHING, "download": "int8", "upload": "int4"}
    # What comes with the override is meant, and refused.
    told = refusal(
        tmp_path, with_communication(*lines), [f"aggregation.method={method}", "communication.feedback=true"]
    )
    assert "communication.feedback = True is for methods whose clients add" in told
    assert "upload_tau" not in told


def test_an_override_by_what_is_no_method_is_refused_as_such(tmp_path: Path) -> None:
    for value in ("[1]", "5", "fedti"):
        told = refusal(tmp_path, with_communication("feedback = true"), [f"aggregation.method={value}"])
        assert "--set aggregation.method=" in told


@pytest.mark.parametrize("method", ["florist", "flora"])
def test_an_override_by_a_method_that_adds_keeps_all(tmp_path: Path, method: str) -> None:
    lines = ('download = "int8"', "upload_tau = 0.8", "feedback = true")
    found = read(tmp_path, with_communication(*lines), [f"aggregation.method={method}"])
    assert settings(found) == {**EVERYTHING, "download": "int8", "upload_tau": 0.8, "feedback": True}


# --- the objects


def test_with_feedback_the_communication_cuts_and_the_method_hands_over_the_whole_sum(tmp_path: Path) -> None:
    config = read(tmp_path, with_communication('preset = "compact"'), ["aggregation.tau=0.7", "aggregation.max_rank=9"])
    assert aggregator_of(config, 8) == WholeSum()
    assert communication_of(config) == Communication(
        upload=Compression(IntegerCodec(4), EnergyThreshold(0.75), Feedback()),
        download=Compression(IntegerCodec(4), Capped(EnergyThreshold(0.7), 9), Feedback(SERVER_RANK_FACTOR)),
        saved_upload=FloatCodec(torch.float16),
        saved_download=FloatCodec(torch.float16),
    )


@pytest.mark.parametrize(("side", "where"), [("server", "download"), ("clients", "upload")])
def test_feedback_at_one_side_alone(tmp_path: Path, side: str, where: str) -> None:
    config = read(tmp_path, with_communication(f'feedback = "{side}"', 'download = "int8"', 'upload = "int8"'))
    found = communication_of(config)
    kept = {name: getattr(found, name).feedback for name in ("download", "upload")}
    assert kept == {"download": None, "upload": None} | {
        where: Feedback(SERVER_RANK_FACTOR) if side == "server" else Feedback()
    }
    assert aggregator_of(config, 8) == (WholeSum() if side == "server" else Florist(EnergyThreshold(0.9)))


def test_a_budget_counts_the_bytes_of_the_codec(tmp_path: Path) -> None:
    lines = ('download = "int4"', 'upload = "int8"', 'upload_budget = "50kB"', "feedback = true")
    config = read(tmp_path, with_communication(*lines), ["aggregation.budget=100kB"])
    found = communication_of(config)
    assert found.download is not None
    assert found.upload is not None
    assert found.download.rank_rule == ByteBudget(100_000, 0.5, 4)
    assert found.upload.rank_rule == ByteBudget(50_000, 1.0, 4)
    alone = read(tmp_path, with_communication('download = "int4"'), ["aggregation.budget=100kB"])
    assert aggregator_of(alone, 8) == Florist(ByteBudget(100_000, 0.5, 4))


def test_what_flora_sends_with_feedback_is_not_cut(tmp_path: Path) -> None:
    found = of(tmp_path, "feedback = true", 'download = "int8"', method="flora")
    assert found.download == Compression(IntegerCodec(8), None, Feedback(SERVER_RANK_FACTOR))


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        ("float32", None),
        ("bfloat16", FloatCodec(torch.bfloat16)),
        *((codec, FloatCodec(torch.float16)) for codec in ("float16", "int8", "int2")),
    ],
)
def test_parameters_that_travel_whole_have_16_bits_at_least(
    tmp_path: Path, codec: str, expected: FloatCodec | None
) -> None:
    found = of(tmp_path, f'upload = "{codec}"', f'download = "{codec}"', method="fedit")
    assert found.saved_upload == found.saved_download == expected


def test_methods_that_continue_keep_their_object(tmp_path: Path) -> None:
    assert aggregator_of(read(tmp_path, with_communication('preset = "compact"', method="fedit")), 8) == FedIt()
