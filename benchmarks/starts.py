"""How the next local adapter should start: fresh, aligned or warm, over many rounds of a task that takes them.

    python benchmarks/starts.py OUT               # 3 seeds, 10 rounds: the better part of an hour on one core
    python benchmarks/starts.py OUT --seeds 1 --rounds 4

Eight string tasks that the embedded model has not seen, Dirichlet(0.5) over eight clients of ranks 32 to 2, tau 0.9. It
writes data and configuration to OUT and runs `florist compare` on them: the entry `florist` is the aligned start,
which is the default. Runs are paired, so that equal seeds differ in the start alone.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from make_demonstration import NEW_TASKS, VOWELS, sample_input

import florist

TASKS: Mapping[str, Callable[[str], str]] = {
    **NEW_TASKS,
    "dash": lambda text: text.replace(" ", "-"),
    "double_space": lambda text: text.replace(" ", "  "),
    "vowel_star": lambda text: "".join("*" if letter in VOWELS else letter for letter in text),
    "first_two": lambda text: " ".join(word[:2] for word in text.split()),
}
TRAIN, TEST = 1600, 320
CONFIG = """
[model]
name_or_path = "{model}"
[data]
path = "."
train = "train.jsonl"
test = "test.jsonl"
partition = "dirichlet"
partition_field = "task"
dirichlet_alpha = 0.5
prompt_template = "{{instruction}}: {{input}}\\n"
max_length = 96
[lora]
ranks = [32, 16, 16, 8, 8, 4, 4, 2]
[training]
learning_rate = 3e-3
batch_size = 16
steps = 20
threads = 1
[federation]
rounds = {rounds}
local_init = "aligned"
[aggregation]
tau = 0.9
[evaluation]
metrics = ["loss", "exact_match"]
batch_size = 160
max_new_tokens = 40
every = 2
"""


def write_examples(folder: Path) -> None:
    """Write equally many examples of every task; no input occurs twice."""
    draw = random.Random(0)  # noqa: S311  # no secrets here
    inputs: dict[str, None] = {}
    while len(inputs) < TRAIN + TEST:
        inputs[sample_input(draw)] = None
    names = list(TASKS)
    lines = [
        json.dumps({"instruction": name, "input": text, "output": TASKS[name](text), "task": name}) + "\n"
        for name, text in ((names[index % len(names)], text) for index, text in enumerate(inputs))
    ]
    (folder / "train.jsonl").write_text("".join(lines[:TRAIN]))
    (folder / "test.jsonl").write_text("".join(lines[TRAIN:]))


def prepare(out: Path, rounds: int) -> Path:
    """Write data and configuration to `out`, a directory that is created, and return the file of the configuration."""
    out.mkdir(parents=True)
    write_examples(out)
    model = Path(florist.__file__).parent / "demonstration" / "model"
    config = out / "starts.toml"
    config.write_text(CONFIG.format(model=model, rounds=rounds))
    return config


def main() -> None:
    """Prepare OUT and become `florist compare`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory to create")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    config = prepare(args.out, args.rounds)
    starts = [f"--variant={start}: federation.local_init={start}" for start in ("fresh", "warm")]
    options = [*starts, f"--seeds={args.seeds}", f"--jobs={args.jobs}", f"--out={args.out / 'runs'}"]
    command = [sys.executable, "-m", "florist.cli", "compare", str(config), *options]
    os.execv(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
