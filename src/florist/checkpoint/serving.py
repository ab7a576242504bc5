"""What servers other than PEFT make of a written adapter, read in their sources."""

from florist.checkpoint.writing import EncodedAdapter

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as ``--max-lora-rank``."""


def serving_notes(encoded: EncodedAdapter) -> tuple[str, ...]:
    """What to know before serving the adapter with something other than PEFT; empty where nothing is to be known."""
    rank = int(encoded.config["r"])
    notes: list[str] = []
    if encoded.config["rank_pattern"]:
        notes.append(
            "ranks differ per module, which PEFT, transformers and vLLM read right; llama.cpp's converter would scale "
            "the smaller modules up, SGLang and TGI refuse or drop modules: for those, write --export uniform"
        )
    enough = next((allowed for allowed in _VLLM_RANKS if allowed >= rank), None)
    if enough is None:
        notes.append(f"rank {rank} is above vLLM's largest, {_VLLM_RANKS[-1]}; set --max-rank")
    elif enough > 16:
        notes.append(f"vLLM needs --max-lora-rank {enough}; its default is 16")
    return tuple(notes)
