"""Make the model of the Dolly example: a byte-level tokenizer and a small Llama, pretrained on half of the rows.

Run from anywhere, with the `train` extra installed; it takes minutes on one thread:

    python examples/dolly/make_model.py --data DIR

`DIR` holds databricks-dolly-15k split into `client_0.json`, `client_1.json`, ...: lists of rows with the fields
instruction, context and response. The tokenizer and the model see every second row of each file, from the first
(`rows[0::2]`); the other half (`rows[1::2]`) is what the clients of the federation train on.
"""

import argparse
import json
import math
import reprlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from florist.errors import DataError, FloristError, MissingInputError
from florist.outputs import new_directory, require_absent

PROMPT_TEMPLATE = "Question: {instruction}\n{input}\nAnswer: "
"""Short, because every row pays for it; Dolly's context is the input."""

FIELDS = ("instruction", "context", "response")
VOCABULARY = 2048
SEQUENCE_LENGTH = 128
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
HERE = Path(__file__).resolve().parent


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one file.

    Raises:
        DataError: it is not a JSON list of rows with text in the three fields.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"expected a JSON list of rows in {path}, got a file that is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"expected a JSON list of rows in {path}, got {reprlib.repr(rows)}")
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(field), str) for field in FIELDS):
            raise DataError(
                f"expected text in the fields {', '.join(FIELDS)}, got another shape in row {index} of {path}"
            )
    return rows


def read_dolly(folder: Path) -> tuple[list[str], list[str]]:
    """The texts for pretraining, and those of `test.json` (none where that file is absent).

    Raises:
        MissingInputError: the folder holds no client file.
    """
    files = sorted(folder.glob("client_*.json"))
    if not files:
        raise MissingInputError(
            f"expected client_0.json, client_1.json, ... of databricks-dolly-15k in {folder}, found none; "
            "name the folder that holds them with --data DIR"
        )
    half = [text_of(row) for file in files for row in read_rows(file)[0::2]]
    test = folder / "test.json"
    return half, [text_of(row) for row in read_rows(test)] if test.exists() else []


def text_of(row: dict[str, Any]) -> str:
    """Prompt and response in one text."""
    return PROMPT_TEMPLATE.format(instruction=row["instruction"], input=row["context"]) + row["response"]


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<eos>` after a response and `<pad>`; nothing is put before a prompt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    torch.manual_seed(seed)  # transformers initialises from the global generator
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=336,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def packed(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """All texts, each with its end, as one stream cut into sequences; no padding, no text is cut short."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    stream = [token for tokens in encoded for token in (*tokens, tokenizer.eos_token_id)]
    sequences = len(stream) // SEQUENCE_LENGTH
    return torch.tensor(stream[: sequences * SEQUENCE_LENGTH]).view(sequences, SEQUENCE_LENGTH)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, sequences: Tensor) -> float:
    """Nats a token."""
    model.eval()
    losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in sequences.split(BATCH_SIZE)]
    model.train()
    return sum(losses) / len(sequences)


def pretrain(model: LlamaForCausalLM, sequences: Tensor, held_out: Tensor, steps: int, seed: int) -> None:
    """AdamW with warm-up and cosine decay, every token in the loss."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    order = torch.empty(0, dtype=torch.long)
    started = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        if len(order) < BATCH_SIZE:
            order = torch.randperm(len(sequences), generator=generator)
        chosen, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        loss = model(input_ids=sequences[chosen], labels=sequences[chosen]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            line = f"step {step:4d}/{steps}  loss {loss.item():.3f}"
            if len(held_out):
                line += f"  held-out {mean_loss(model, held_out):.3f}"
            print(f"{line}  {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()


def make(data: Path, output: Path, *, seed: int, steps: int) -> None:
    """Read, train and write.

    Raises:
        FloristError: the data is absent or of another shape, or the output exists.
    """
    require_absent(output)
    torch.set_num_threads(1)  # at this size a second thread costs more than it brings
    texts, test = read_dolly(data)
    print(f"{len(texts)} rows for pretraining; training the tokenizer", flush=True)
    tokenizer = train_tokenizer(texts)
    model = make_model(tokenizer, seed)
    sequences = packed(tokenizer, texts)
    print(f"{sequences.numel()} tokens, {model.num_parameters()} parameters", flush=True)
    with new_directory(output) as draft:
        pretrain(model, sequences, packed(tokenizer, test), steps, seed)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=HERE.parents[2] / "shared" / "data" / "dolly8", help="folder of client_*.json"
    )
    parser.add_argument("-o", "--output", type=Path, default=HERE / "model", help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    try:
        make(arguments.data, arguments.output, seed=arguments.seed, steps=arguments.steps)
    except FloristError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
