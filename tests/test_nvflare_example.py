"""The aggregator of examples/nvflare against dense sums, what it refuses, and a run in NVFlare's simulator."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import LlamaForCausalLM

import florist
from florist.checkpoint import open_adapter
from tests.checkpoint.adapters import TOKENS, deltas, logits, relative, tiny_llama, trained

pytest.importorskip("nvflare", reason="examples/nvflare needs NVFlare: pip install nvflare==2.9.0")

FOLDER = Path(__file__).parents[1] / "examples" / "nvflare"
SHAPES = {"layers.0.q_proj": (12, 16), "layers.0.down_proj": (16, 20)}
EXAMPLES = {"site-1": 100, "site-2": 300, "site-3": 50}
RANKS = {"site-1": 2, "site-2": 4, "site-3": 8}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module with the aggregator, imported as NVFlare imports it: from the folder of the job."""
    monkeypatch.syspath_prepend(FOLDER)
    import florist_nvflare

    yield florist_nvflare
    for name in ("florist_nvflare", "client", "job"):
        sys.modules.pop(name, None)


def params(rank: int, seed: int, dtype: Any = np.float64, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> Any:
    """What a client of a rank sends: arrays by PEFT's names."""
    draw = np.random.default_rng(seed)
    sent = {}
    for module, (m, n) in shapes.items():
        sent[f"base_model.model.{module}.lora_A.weight"] = draw.standard_normal((rank, n)).astype(dtype)
        sent[f"base_model.model.{module}.lora_B.weight"] = draw.standard_normal((m, rank)).astype(dtype)
    return sent


def product(sent: Mapping[str, Any], module: str) -> Tensor:
    B, A = (torch.as_tensor(sent[f"base_model.model.{module}.lora_{half}.weight"]).double() for half in "BA")
    return B @ A


def model_of(example: ModuleType, client: str, sent: Any, **meta: Any) -> Any:
    told = {"num_examples": EXAMPLES[client], "client_name": client} | meta
    return example.FLModel(params=sent, meta=told)


def oracle(uploads: Mapping[str, Any], module: str) -> Tensor:
    total = sum(EXAMPLES[client] for client in uploads)
    parts = (EXAMPLES[client] / total * product(sent, module) for client, sent in uploads.items())
    return sum(parts, start=torch.zeros((), dtype=torch.float64))


def aggregated(example: ModuleType, uploads: Mapping[str, Any], **settings: Any) -> Any:
    aggregator = example.FloristAggregator(**settings)
    for client, sent in uploads.items():
        aggregator.accept_model(model_of(example, client, sent))
    return aggregator.aggregate_model()


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_unlike_ranks_give_the_dense_weighted_sum(example: ModuleType, dtype: Any, bound: float) -> None:
    uploads = {client: params(rank, rank, dtype) for client, rank in RANKS.items()}
    result = aggregated(example, uploads, tau=1.0)
    for module, shape in SHAPES.items():
        expected = oracle(uploads, module)
        assert relative(product(result.params, module), expected) < bound
        assert result.params[f"base_model.model.{module}.lora_A.weight"].shape[0] == min(*shape, sum(RANKS.values()))


def test_the_rank_is_the_smallest_that_keeps_tau_and_the_cut_is_the_best_of_that_rank(example: ModuleType) -> None:
    uploads = {client: params(rank, rank) for client, rank in RANKS.items()}
    result = aggregated(example, uploads, tau=0.8)
    for module in SHAPES:
        U, S, Vh = torch.linalg.svd(oracle(uploads, module), full_matrices=False)
        rank = int((S.square().cumsum(0) / S.square().sum() < 0.8).sum()) + 1
        assert 1 < rank < len(S)
        assert result.params[f"base_model.model.{module}.lora_B.weight"].shape[1] == rank
        assert relative(product(result.params, module), (U[:, :rank] * S[:rank]) @ Vh[:rank]) < 1e-12


def test_order_and_kind_of_arrays_change_nothing(example: ModuleType) -> None:
    uploads = {client: params(rank, rank) for client, rank in RANKS.items()}
    tensors = {
        client: {name: torch.tensor(value) for name, value in uploads[client].items()}
        for client in sorted(uploads)[::-1]
    }
    first, second = aggregated(example, uploads), aggregated(example, tensors)
    assert all(np.array_equal(first.params[name], second.params[name]) for name in first.params)


def test_what_is_sent_back_is_an_adapter_of_peft_with_every_scaling_one(example: ModuleType) -> None:
    linears = ["q_proj", "down_proj"]
    models = {
        client: trained(
            tiny_llama(), LoraConfig(r=rank, lora_alpha=3, use_rslora=rank == 4, target_modules=linears), rank
        )
        for client, rank in RANKS.items()
    }
    import client as script

    result = aggregated(example, {name: script.upload(model, "default") for name, model in models.items()}, tau=1.0)
    total = sum(EXAMPLES.values())
    made = get_peft_model(tiny_llama(), LoraConfig(**result.meta["adapter_config"])).eval()
    set_peft_model_state_dict(made, {name: torch.tensor(value) for name, value in result.params.items()})
    found, parts = deltas(made), {name: deltas(model) for name, model in models.items()}
    assert len(found) == 4
    for module, delta in found.items():
        expected = sum(EXAMPLES[name] / total * parts[name][module].double() for name in parts)
        assert relative(delta, expected) < 1e-6


def test_a_client_trains_a_new_adapter_on_top_of_the_frozen_global_one(example: ModuleType) -> None:
    import client as script

    source = trained(tiny_llama(), LoraConfig(r=3, lora_alpha=6, target_modules=script.TARGETS), 5)
    found = example.params_and_meta(example.adapter_of(script.upload(source, "default"), "test"))
    config = LoraConfig(r=2, target_modules=script.TARGETS, lora_alpha=4)
    model = get_peft_model(tiny_llama(), config, adapter_name="local").eval()
    script.begin(model, config, {}, None)
    assert relative(logits(model), logits(tiny_llama())) == 0
    for _ in range(2):  # the second time there is a global adapter already
        script.begin(model, config, found["params"], found["meta"]["adapter_config"])
        model.eval()
        assert relative(logits(model), logits(source)) < 1e-5
        script.train(model, TOKENS, 2)
        assert relative(logits(model), logits(source)) > 1e-3
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains
    assert all(".local." in name for name in trains)
    kept = script.upload(model, "global")
    assert all(np.array_equal(kept[name], value) for name, value in found["params"].items())


def test_what_the_server_saves_is_what_it_begins_with_again(example: ModuleType, tmp_path: Path) -> None:
    workflow = example.AdapterFedAvg("org/base", 3, 2, example.FloristAggregator())
    saved = example.FLModel(**example.params_and_meta(example.adapter_of(params(3, 1), "test")))
    workflow.save_model_file(saved, str(tmp_path / "adapter"))
    workflow.save_model_file(saved, str(tmp_path / "adapter"))  # every round replaces the one before
    again = workflow.load_model_file(str(tmp_path / "adapter"))
    assert all(relative(product(again.params, module), product(saved.params, module)) < 1e-15 for module in SHAPES)
    assert again.meta["adapter_config"]["base_model_name_or_path"] == "org/base"


# --- refusals


def broken(change: str) -> Any:
    sent = params(4, 4)
    A = "base_model.model.layers.0.q_proj.lora_A.weight"
    match change:
        case "NaN":
            sent[A][0, 0] = np.nan
        case "infinity":
            sent[A.replace("_A", "_B")][1, 1] = np.inf
        case "half":
            del sent[A]
        case "head":
            sent["base_model.model.lm_head.weight"] = np.ones((3, 3))
        case "rank":
            sent[A] = sent[A][:3]
        case "nothing":
            sent = {}
    return sent


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("NaN", r"'site-2': expected finite factors, .*q_proj\.lora_A\.weight holds NaN"),
        ("infinity", r"'site-2': expected finite factors, .*q_proj\.lora_B\.weight holds NaN"),
        ("half", r"'site-2': expected both halves of every module, but layers\.0\.q_proj lacks lora_A"),
        ("head", r"'site-2': expected names like .*, got 'base_model\.model\.lm_head\.weight'"),
        ("rank", r"'site-2': expected B \(out_features, r\) and A \(r, in_features\) of one rank"),
        ("nothing", r"'site-2': expected both halves of every module, but there is no module"),
    ],
)
def test_an_unsound_update_is_refused_and_the_round_is_that_of_the_others(
    example: ModuleType, change: str, told: str
) -> None:
    uploads = {client: params(RANKS[client], 1) for client in ("site-1", "site-3")}
    aggregator = example.FloristAggregator(tau=1.0)
    aggregator.accept_model(model_of(example, "site-1", uploads["site-1"]))
    with pytest.raises(florist.FloristError, match=told):
        aggregator.accept_model(model_of(example, "site-2", broken(change)))
    aggregator.accept_model(model_of(example, "site-3", uploads["site-3"]))
    result = aggregator.aggregate_model()
    for module in SHAPES:
        assert relative(product(result.params, module), oracle(uploads, module)) < 1e-12


@pytest.mark.parametrize("examples", [None, 0, -3, True, 2.5, "100"])
def test_a_number_of_examples_is_a_positive_integer(example: ModuleType, examples: Any) -> None:
    aggregator = example.FloristAggregator()
    with pytest.raises(florist.FloristError, match=r"'site-1': expected a positive integer as meta\['num_examples'\]"):
        aggregator.accept_model(model_of(example, "site-1", params(2, 1), num_examples=examples))


def test_a_second_update_of_a_client_is_refused_until_the_next_round(example: ModuleType) -> None:
    aggregator = example.FloristAggregator()
    aggregator.accept_model(model_of(example, "site-1", params(2, 1)))
    with pytest.raises(florist.FloristError, match="'site-1': expected one update in a round"):
        aggregator.accept_model(model_of(example, "site-1", params(2, 2)))
    aggregator.aggregate_model()
    aggregator.accept_model(model_of(example, "site-1", params(2, 2)))


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param({"layers.0.q_proj": (12, 16)}, id="a module is missing"),
        pytest.param({**SHAPES, "layers.0.q_proj": (12, 17)}, id="another shape"),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_who_adapts_other_modules_than_most_is_left_out_whenever_it_comes(
    example: ModuleType, shapes: Mapping[str, tuple[int, int]], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator, logged = example.FloristAggregator(tau=1.0), list[str]()
    monkeypatch.setattr(aggregator, "error", logged.append)
    sound = {"site-1": params(2, 1), "site-3": params(8, 3)}
    order = list(sound.items())
    order.insert(place, ("site-2", params(4, 2, shapes=shapes)))
    for client, sent in order:
        aggregator.accept_model(model_of(example, client, sent))
    result = aggregator.aggregate_model()
    assert len(logged) == 1
    assert logged[0].startswith("'site-2': expected the modules and shapes that most clients adapt")
    for module in SHAPES:
        assert relative(product(result.params, module), oracle(sound, module)) < 1e-12


def test_without_a_majority_the_round_fails(example: ModuleType) -> None:
    uploads = {"site-1": params(2, 1), "site-2": params(4, 2, shapes={"layers.0.q_proj": (12, 16)})}
    with pytest.raises(florist.FloristError, match="expected most clients to adapt the same modules: 'site-"):
        aggregated(example, uploads)


def test_too_few_sound_updates_fail_the_round(example: ModuleType) -> None:
    with pytest.raises(florist.FloristError, match="expected at least 2 sound updates, got 1"):
        aggregated(example, {"site-1": params(2, 1)}, min_updates=2)
    with pytest.raises(florist.FloristError, match="expected at least 1 sound updates, got 0"):
        aggregated(example, {})


# --- NVFlare's simulator

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SCRIPT = """
import sys
import numpy as np
import nvflare.client as flare

def params(rank, seed):
    draw, sent = np.random.default_rng(seed), {}
    for module, (m, n) in SHAPES.items():
        sent[f"base_model.model.{module}.lora_A.weight"] = draw.standard_normal((rank, n))
        sent[f"base_model.model.{module}.lora_B.weight"] = draw.standard_normal((m, rank))
    return sent

flare.init()
site = flare.get_site_name()
while flare.is_running():
    received = flare.receive()
    if received is None:
        break
    sent = params(RANKS[site], 10 * received.current_round + RANKS[site])
    if site == "site-2" and received.current_round == 1:
        sent["base_model.model.layers.0.q_proj.lora_A.weight"][0, 0] = np.nan
    flare.send(flare.FLModel(params=sent, meta={"num_examples": EXAMPLES[site]}))
"""


@pytest.mark.slow
def test_two_rounds_in_the_simulator_are_the_dense_sums_without_the_update_that_was_refused(
    example: ModuleType, tmp_path: Path
) -> None:
    from nvflare.fuel.utils.constants import FrameworkType
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.script_runner import ScriptRunner

    script = tmp_path / "sender.py"
    script.write_text(f"SHAPES, RANKS, EXAMPLES = {SHAPES}, {RANKS}, {EXAMPLES}\n{SCRIPT}")
    job = FedJob(name="sums", min_clients=3)
    job.to_server(
        example.AdapterFedAvg("org/base", num_clients=3, num_rounds=2, aggregator=example.FloristAggregator(tau=1.0))
    )
    for site in RANKS:
        job.to(ScriptRunner(script=str(script), framework=FrameworkType.NUMPY), site)
    assert not job.simulator_run(str(tmp_path / "run"), clients=list(RANKS), threads=3)
    saved = open_adapter(tmp_path / "run" / "server" / "simulate_job" / "adapter")
    assert saved.base_model == "org/base"
    rounds = [{site: params(rank, 10 * number + rank) for site, rank in RANKS.items()} for number in range(2)]
    del rounds[1]["site-2"]
    for module in SHAPES:
        expected = oracle(rounds[0], module) + oracle(rounds[1], module)
        assert relative(saved.adapter[module].delta_weight(), expected) < 1e-12
    log = (tmp_path / "run" / "server" / "log.txt").read_text()
    assert "'site-2': expected finite factors, base_model.model.layers.0.q_proj.lora_A.weight holds NaN" in log


@pytest.mark.slow
def test_the_job_trains_in_the_simulator_and_peft_loads_its_adapter(example: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "job.py", "--out", tmp_path / "run", "--ranks", "2", "4", "8", "--rounds", "2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 modules of rank" in done.stdout.splitlines()[-1]
    import client as script

    base = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "model")
    examples = script.sequences(50, base.config.vocab_size, seed=9)
    with torch.no_grad():
        before = script.loss(base, examples).item()
        adapter = next((tmp_path / "run").rglob("adapter"))
        after = script.loss(PeftModel.from_pretrained(base, adapter), examples).item()
    assert after < before - 0.2


def test_a_path_with_white_space_is_refused_before_anything_is_made(example: ModuleType, tmp_path: Path) -> None:
    folder = Path(example.__file__ or "").parent
    command = [sys.executable, str(folder / "job.py"), "--out", str(tmp_path / "a folder")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected paths without white space" in done.stderr
    assert not (tmp_path / "a folder").exists()
