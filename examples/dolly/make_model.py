"""Make the model of the Dolly example: a small Llama that has read the documentation of Python, and nothing else.

Run from anywhere, with the `train` extra installed; it takes two or three minutes on one thread:

    python examples/dolly/make_model.py

The text is what every Python installation carries: the language reference behind `help()`, and the docstrings of the
standard library. The model therefore knows one kind of English prose and no Dolly, and a federation teaches it another
kind and the form of question and answer. The text depends on the version of Python; the same version gives the same
model on the same machine.
"""

import argparse
import ast
import math
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from florist.errors import FloristError, MissingInputError
from florist.files.outputs import new_directory, require_absent

VOCABULARY = 512
SEQUENCE_LENGTH = 128
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
HELD_OUT = 32
"""How many sequences, from all over the text, are held out."""
SHORTEST = 200
"""How many characters a docstring needs to be taken; shorter ones are hardly prose."""
NO_DOCUMENTATION = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}
HERE = Path(__file__).resolve().parent


def read_documentation(library: Path) -> list[str]:
    """Return the language reference, and the docstrings of the modules in a folder in the order of their names.

    Raises:
        MissingInputError: The folder has no docstrings.
    """
    files = sorted(library.rglob("*.py"))
    wanted = [file for file in files if not NO_DOCUMENTATION & {*file.relative_to(library).parts}]
    docstrings = [text for file in wanted for text in _docstrings(file)]
    if not docstrings:
        raise MissingInputError(f"expected Python's standard library with its docstrings in {library}, found none")
    return [*topics.values(), *docstrings]


def _docstrings(file: Path) -> Iterator[str]:
    # The file is parsed, because an import would run the module, and some modules open windows.
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST:
                yield text


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with `<eos>` after a text and `<pad>`; nothing is put before a prompt."""
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
    """Return a small Llama with random weights."""
    torch.manual_seed(seed)  # transformers initialises from the global generator
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=336,
            num_hidden_layers=2,
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
    """Return all texts, each with its end, as one stream that is cut into sequences without padding."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    stream = [token for tokens in encoded for token in (*tokens, tokenizer.eos_token_id)]
    sequences = len(stream) // SEQUENCE_LENGTH
    return torch.tensor(stream[: sequences * SEQUENCE_LENGTH]).view(sequences, SEQUENCE_LENGTH)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, sequences: Tensor) -> float:
    """Return the mean loss in nats a token."""
    model.eval()
    losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in sequences.split(BATCH_SIZE)]
    model.train()
    return sum(losses) / len(sequences)


def pretrain(model: LlamaForCausalLM, sequences: Tensor, held_out: Tensor, steps: int, seed: int) -> None:
    """Train by AdamW with warm-up and cosine decay; every token counts in the loss."""
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
            elapsed = time.perf_counter() - started
            line = f"step {step:4d}/{steps}  loss {loss.item():.3f}  held-out {mean_loss(model, held_out):.3f}"
            print(f"{line}  {elapsed:.0f} s", flush=True)
    model.eval()


def make(output: Path, *, seed: int, steps: int) -> None:
    """Read the texts, train the model and write it.

    Raises:
        FloristError: This Python has no documentation, or the output exists.
    """
    require_absent(output)
    torch.set_num_threads(1)  # at this size a second thread costs more than it brings
    texts = read_documentation(Path(sysconfig.get_paths()["stdlib"]))
    print(f"{len(texts)} texts of {sum(map(len, texts))} characters; training the tokenizer", flush=True)
    tokenizer = train_tokenizer(texts)
    model = make_model(tokenizer, seed)
    sequences = packed(tokenizer, texts)
    print(f"{sequences.numel()} tokens, {model.num_parameters()} parameters", flush=True)
    every = len(sequences) // HELD_OUT
    seen = torch.arange(len(sequences)) % every != 0
    with new_directory(output) as draft:
        pretrain(model, sequences[seen], sequences[~seen], steps, seed)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "model", help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    try:
        make(arguments.output, seed=arguments.seed, steps=arguments.steps)
    except FloristError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
