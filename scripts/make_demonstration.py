"""Make the embedded demonstration: a small pretrained Llama and the string tasks that a federation teaches it.

Run from the project root, with the `train` extra installed; it takes minutes on one thread, and the same seed
gives the same files on the same machine:

    rm -r src/florist/demonstration/model
    python scripts/make_demonstration.py

The model is pretrained on `SEEN_TASKS`; `train.jsonl` and `test.jsonl` hold `NEW_TASKS`, which it has never seen.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from florist.data.causal_lm import CausalLmEncoder
from florist.data.examples import EncodedExamples
from florist.data.prompts import template_prompt
from florist.data.rendering import InstructionPrompt
from florist.data.shapes import ALPACA
from florist.errors import FloristError
from florist.evaluation import ExactMatch
from florist.files.outputs import new_directory, replace_file, require_absent

Example = dict[str, str]

PROMPT_TEMPLATE = "{instruction}: {input}\n"
MAX_LENGTH = 64
VOWELS = "aeiou"
WORDS = """
acorn agate alder amber apple arrow badge bark basil beach beam berry birch bird bloom blue boat bread brook brown
cabin cave cedar chalk clay clean cliff cloud coast cool coral crab crane creek crow daisy dawn deep deer delta dove
drift duck dune dusk eagle early earth elm ember fawn feast fern field fig finch fire flame flint flock foam fog fox
fresh frog frost fruit gate glass glow goat gold goose grain grape grass green grove gull hare hawk hazel hedge heron
hill hive holly honey horse inlet iris iron ivory ivy jade jolly kelp kind kite knoll lake lamp larch lark leaf lemon
lemur light lilac linen lotus loud lunar lynx maize mango maple marsh mild mint mist mole moon moose moss mouse nest
night north nut oak oat ocean old olive onyx opal otter owl paddy panda paper peach peak pear pearl petal pier pine
pink plain plant plum pond poppy quail quick quiet quill rain raven red reed reef ridge river robin rock root rope
rose round ruby rust rye sage sail salt sand satin sea seal seed shade shell shore shrub silk skunk sky slate slope
slow small smoke snail snow soft song spark stag star steel stem stone storm sun sunny swamp swan swift tall tide
tiger toad topaz tower track trail trout tulip twig umber vine vole warm wasp water wave whale wheat white wild wind
wing wolf wood wren yak yarn yew young zebra zinc
""".split()  # noqa: SIM905  # ruff would format a list as a word a line

SEEN_TASKS: Mapping[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "upper": str.upper,
    "capital": str.capitalize,
    "drop_last": lambda text: " ".join(word[:-1] for word in text.split()),
    "first_word": lambda text: text.split()[0],
    "last_word": lambda text: text.split()[-1],
    "initials": lambda text: "".join(word[0] for word in text.split()),
    "no_vowels": lambda text: "".join(letter for letter in text if letter not in VOWELS),
    "count": lambda text: str(len(text.split())),
}
"""What the model is pretrained on."""

NEW_TASKS: Mapping[str, Callable[[str], str]] = {
    "title": str.title,
    "drop_first": lambda text: " ".join(word[1:] for word in text.split()),
    "vowel_up": lambda text: "".join(letter.upper() if letter in VOWELS else letter for letter in text),
    "parity": lambda text: "odd" if len(text.split()) % 2 else "even",
}
"""What the federation teaches the model."""

TRAIN_EXAMPLES = 800
TEST_EXAMPLES = 200


def sample_input(generator: random.Random) -> str:
    """Return two to four words."""
    return " ".join(generator.choices(WORDS, k=generator.randint(2, 4)))


def example_of(task: str, text: str) -> Example:
    """Return one instruction in the Alpaca shape, with its task beside it."""
    return {"instruction": task, "input": text, "output": (SEEN_TASKS | NEW_TASKS)[task](text), "task": task}


def new_task_examples(seed: int) -> tuple[list[Example], list[Example]]:
    """Return training and test examples of the new tasks, equally many of each; all inputs are different."""
    generator = random.Random(seed)  # noqa: S311  # no secrets here
    inputs: dict[str, None] = {}
    while len(inputs) < TRAIN_EXAMPLES + TEST_EXAMPLES:
        inputs[sample_input(generator)] = None
    tasks = list(NEW_TASKS)
    examples = [example_of(tasks[index % len(tasks)], text) for index, text in enumerate(inputs)]
    return examples[:TRAIN_EXAMPLES], examples[TRAIN_EXAMPLES:]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 99 tokens: printable ASCII and the newline, one a character, `<pad>`, `<eos>` and `<unk>`.

    There is no beginning-of-sequence token: a sequence is prompt, output, `<eos>`.
    """
    tokens = ["<pad>", "<eos>", "<unk>", "\n", *(chr(code) for code in range(32, 127))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    characters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=2 * MAX_LENGTH,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return a small Llama with random weights."""
    torch.manual_seed(seed)  # transformers initialises from the global generator
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=336,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2 * MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encoded(examples: Iterable[Example], tokenizer: PreTrainedTokenizerFast) -> EncodedExamples:
    """Encode examples as the clients of the federation encode theirs."""
    encoder = CausalLmEncoder(tokenizer, InstructionPrompt(ALPACA, template_prompt(PROMPT_TEMPLATE)), MAX_LENGTH)
    return EncodedExamples([encoder(item) for item in examples], DataCollatorForSeq2Seq(tokenizer))


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    generator: random.Random,
    steps: int,
    held_out: set[str],
) -> None:
    """Train by AdamW with warm-up and cosine decay, on fresh batches of 64 examples of the seen tasks.

    Inputs in `held_out` are skipped, so that the federation's tasks are new in their inputs too.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    tasks = list(SEEN_TASKS)
    started = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        batch: list[Example] = []
        while len(batch) < 64:
            text = sample_input(generator)
            if text not in held_out:
                batch.append(example_of(generator.choice(tasks), text))
        examples = encoded(batch, tokenizer)
        loss = model(**examples.collate([*examples])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(f"step {step:4d}/{steps}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s", flush=True)


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, generator: random.Random) -> None:
    """Print the exact match of 200 fresh inputs in every task."""
    for task in (*SEEN_TASKS, *NEW_TASKS):
        examples = encoded((example_of(task, sample_input(generator)) for _ in range(200)), tokenizer)
        measured = ExactMatch(examples, tokenizer, batch_size=200, max_new_tokens=32)(model)
        print(f"{task:12s} exact match {measured['exact_match']:.3f}", flush=True)


def make(output: Path, *, seed: int, steps: int) -> None:
    """Train, write and measure.

    Raises:
        OutputExistsError: There is a model already.
    """
    output.mkdir(exist_ok=True)
    require_absent(output / "model")
    train, test = new_task_examples(seed)
    generator = random.Random(seed + 1)  # noqa: S311  # no secrets here
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    with new_directory(output / "model") as draft:
        pretrain(model, tokenizer, generator, steps, {item["input"] for item in (*train, *test)})
        model.half().save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    for name, examples in (("train", train), ("test", test)):
        replace_file(output / f"{name}.jsonl", "".join(json.dumps(item) + "\n" for item in examples))
    report(model.float(), tokenizer, generator)  # the weights as stored: float16 rounds them


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("src/florist/demonstration"), help="directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # at this size a second thread costs more than it brings
    try:
        make(arguments.output, seed=arguments.seed, steps=arguments.steps)
    except FloristError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
