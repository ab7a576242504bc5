"""A federation of sites with unlike ranks in NVFlare's simulator, with a tiny random Llama that is made here.

    python job.py --out run
    python job.py --out run --ranks 4 16 --rounds 3 --tau 0.99 --model DIRECTORY

At the end PEFT loads the global adapter from the run.
"""

import argparse
import sys
from pathlib import Path

from florist_nvflare import AdapterFedAvg, FloristAggregator
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

NAME = "florist"


def main() -> None:
    """Make the job, run it, and load what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the workspace of the simulator")
    parser.add_argument("--model", help="the base model; by default a tiny one is made")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="one for each site")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tau", type=float, default=0.9, help="the fraction of the energy that a round keeps")
    args = parser.parse_args()
    given = str(Path(args.model).resolve()) if args.model and Path(args.model).is_dir() else args.model
    # NVFlare splits the arguments of a client script at white space, whatever quotes there are.
    if len(f"{given} {args.out.resolve()}".split()) != 2:
        parser.error("expected paths without white space, which NVFlare cannot hand to a client script: move them")
    if args.out.exists():
        parser.error(f"{args.out} is there already; name a new folder, or delete that one")
    # The simulator's processes work in another folder.
    model = given or str(tiny_llama((args.out / "model").resolve()))
    status = job(model, args.ranks, args.rounds, args.tau).simulator_run(
        str((args.out / "workspace").resolve()),
        clients=[f"site-{number}" for number in range(1, len(args.ranks) + 1)],
        threads=len(args.ranks),
    )
    adapter = args.out / "workspace" / "server" / "simulate_job" / "adapter"
    if status or not adapter.is_dir():
        sys.exit(f"the simulator failed (status {status}); the reason is in {args.out / 'workspace'}")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    ranks = [layer.r["default"] for layer in loaded.modules() if isinstance(layer, LoraLayer)]
    print(f"{adapter}: {len(ranks)} modules of rank {min(ranks)} to {max(ranks)}, total rank {sum(ranks)}")


def job(model: str, ranks: list[int], rounds: int, tau: float) -> FedJob:
    """The server's workflow, and a client script for each site."""
    made = FedJob(name=NAME, min_clients=len(ranks))
    made.to_server(
        AdapterFedAvg(
            base_model=model, num_clients=len(ranks), num_rounds=rounds, aggregator=FloristAggregator(tau=tau)
        )
    )
    for number, rank in enumerate(ranks, 1):
        site = ScriptRunner(
            script=str(Path(__file__).with_name("client.py").resolve()),
            script_args=f"--model {model} --rank {rank} --examples {16 * number}",
            # Arrays travel as they are. NVFlare's conversion for PyTorch would reshape what comes to what was sent.
            framework=FrameworkType.NUMPY,
        )
        made.to(site, f"site-{number}")
    return made


def tiny_llama(directory: Path) -> Path:
    """A random Llama of two layers, which nobody has to download."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


if __name__ == "__main__":
    main()
