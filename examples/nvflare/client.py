"""A site that trains a LoRA adapter of its own rank by PEFT, and does not use florist.

NVFlare starts it, and job.py says with which arguments. Each round it puts the global adapter frozen beside the base,
trains a new one on top, and sends that.
"""

import argparse
import zlib
from collections.abc import Mapping

import nvflare.client as flare
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Train until the server has no more rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the directory or the name of the base model")
    parser.add_argument("--rank", type=int, required=True, help="the rank of this site's adapter")
    parser.add_argument("--examples", type=int, default=32, help="how many sequences this site has")
    parser.add_argument("--steps", type=int, default=20, help="steps of training in a round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    flare.init()
    site = flare.get_site_name()
    seed = zlib.crc32(site.encode())
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(args.model)
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base, config, adapter_name="local")
    examples = sequences(args.examples, base.config.vocab_size, seed)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        torch.manual_seed(seed + received.current_round)
        begin(model, config, received.params, received.meta.get("adapter_config"))
        before = loss(model, examples).item()
        after = train(model, examples, args.steps)
        print(f"{site}, round {received.current_round}: rank {args.rank}, loss {before:.3f}, then {after:.3f}")
        meta = {"num_examples": args.examples}
        flare.send(flare.FLModel(params=upload(model, "local"), metrics={"loss": before}, meta=meta))


def begin(model: PeftModel, config: LoraConfig, params: Mapping[str, object], settings: Mapping | None) -> None:
    """Put the global adapter in the place of the last one, frozen, and a new adapter of this site on top of it.

    In the first round there is no global adapter yet, and the one of this site is new.
    """
    if params:
        if "global" in model.peft_config:
            model.base_model.set_adapter(["local"])  # PEFT warns when the active adapter goes
            model.delete_adapter("global")
        model.add_adapter("global", LoraConfig(**settings))
        tensors = {name: torch.tensor(value) for name, value in params.items()}
        set_peft_model_state_dict(model, tensors, adapter_name="global")
        model.base_model.set_adapter(["global"])
        model.delete_adapter("local")
        model.add_adapter("local", config)
    model.base_model.set_adapter(["global", "local"] if params else ["local"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".local." in name)


def train(model: PeftModel, examples: torch.Tensor, steps: int) -> float:
    """Train the adapter of this site on all examples at once, and return the loss afterwards."""
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, examples).backward()
        optimizer.step()
    return loss(model, examples).item()


def loss(model: PeftModel, examples: torch.Tensor) -> torch.Tensor:
    """The mean loss of the next token."""
    return model(input_ids=examples, labels=examples).loss


def upload(model: PeftModel, adapter: str) -> dict:
    """What PEFT saves of an adapter, with the scaling of each layer folded into lora_B.

    The state dict of PEFT holds no scaling: it follows from r, lora_alpha, use_rslora and patterns, which the server
    does not see.
    """
    state = get_peft_model_state_dict(model, adapter_name=adapter)
    scaling = {
        f"{name}.lora_B.weight": layer.scaling[adapter]
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    return {name: (value.detach().float() * scaling.get(name, 1.0)).cpu().numpy() for name, value in state.items()}


def sequences(count: int, vocabulary: int, seed: int) -> torch.Tensor:
    """A task that a small model learns: numbers that grow by a step, which each site has its own share of."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(vocabulary, (count, 1), generator=draw)
    step = torch.randint(1, 4, (count, 1), generator=draw)
    return (first + step * torch.arange(16)) % vocabulary


if __name__ == "__main__":
    main()
