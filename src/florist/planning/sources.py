"""Where the shape of a model comes from: a preset, a configuration on disk, written shapes, or transformers."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from florist.checkpoint.locating import locate
from florist.errors import ConfigurationError, MissingInputError, ModelError
from florist.files import strict_json
from florist.files.reading import read_bytes
from florist.planning.architectures import ARCHITECTURES, ModelShape, Shape, shape_of
from florist.planning.presets import PRESETS

ALL_LINEAR = "all-linear"
CONFIG = "config.json"

MOST_LAYERS = 100_000
"""The most modules of one shape: more are a slip of the pen, and a line for each would be made."""
_MOST_BYTES = 1 << 24  # of a configuration, which takes some thousand bytes
_WRITTEN = re.compile(r"(?P<name>[\w.-]+)[=:](?P<m>[1-9]\d*)x(?P<n>[1-9]\d*)(\*(?P<count>[1-9]\d*))?")


def model_named(name: str) -> ModelShape:
    """The shape of a model.

    Args:
        name: a preset, a ``config.json``, a directory that has one, or a hub id in the local cache. A path that exists
            goes before a preset.

    Raises:
        MissingInputError: there is no such thing; the message lists the presets.
        ModelError: the configuration is none, or of an architecture that neither florist nor transformers knows.
    """
    preset = PRESETS.get(name.lower())
    if preset is not None and not Path(name).exists():
        return shape_of(name, preset)
    try:
        place = locate(name)
    except MissingInputError as error:
        raise MissingInputError(
            f"expected a model as one of the presets {', '.join(PRESETS)}, a config.json, a directory with one, or a "
            f"hub id in the local cache, got {name!r}; florist downloads nothing"
        ) from error
    file = place / CONFIG if place.is_dir() else place
    config = _read(name, file)
    if config.get("model_type") in ARCHITECTURES:
        return shape_of(name, config)
    try:
        # It takes transformers, which only those have who train.
        from florist.planning.meta_model import built_shape  # noqa: PLC0415
    except ModuleNotFoundError as error:
        try:
            return shape_of(name, config)
        except ModelError as unknown:
            raise ModelError(
                f'{unknown}; or install what can build the model without its weights: pip install -e ".[train]" in a '
                "clone"
            ) from error
    return built_shape(name, file.parent)


def written_shapes(text: str) -> ModelShape:
    """A model whose adapted modules are written out, as ``q_proj=4096x4096*32,v_proj=1024x4096*32``.

    Each entry is a name, out_features x in_features, and how many modules have that shape, by default one.

    Raises:
        ConfigurationError: an entry is not of this form, or a name comes twice.
    """
    linear: dict[str, Shape] = {}
    layers = 1
    for entry in text.split(","):
        match = _WRITTEN.fullmatch(entry.strip())
        if match is None:
            raise ConfigurationError(
                f"--shapes: expected NAME=OUTxIN*COUNT, as q_proj=4096x4096*32, with commas between, got {entry!r}"
            )
        count, shape = int(match["count"] or 1), (int(match["m"]), int(match["n"]))
        if count > MOST_LAYERS:
            raise ConfigurationError(f"--shapes: expected at most {MOST_LAYERS} modules of a shape, got {count}")
        layers = max(layers, count)
        for number in range(count):
            name = f"{number}.{match['name']}"
            if name in linear:
                raise ConfigurationError(f"--shapes: expected each name once, got {match['name']!r} twice")
            linear[name] = shape
    return ModelShape("the shapes given", linear, layers, 0)


def targeted(model: ModelShape, targets: Collection[str]) -> dict[str, Shape]:
    """The modules that are adapted: those whose name is a target or ends in one, as PEFT takes a list.

    Args:
        model: all linear modules.
        targets: names or their last parts; ``all-linear`` alone stands for all of them.

    Raises:
        ConfigurationError: a target fits no module; the message lists those that exist.
    """
    if list(targets) == [ALL_LINEAR]:
        return dict(model.linear)

    def fits(name: str, target: str) -> bool:
        return name == target or name.endswith(f".{target}")

    idle = [target for target in targets if not any(fits(name, target) for name in model.linear)]
    if idle or not targets:
        there = sorted({name.rpartition(".")[2] for name in model.linear})
        raise ConfigurationError(
            f"--target-modules: expected names out of {', '.join(there)}, or {ALL_LINEAR}, got "
            f"{', '.join(idle) or 'none'}, which {model.name} does not have"
        )
    return {name: shape for name, shape in model.linear.items() if any(fits(name, target) for target in targets)}


def default_targets(model: ModelShape) -> tuple[str, ...]:
    """The modules that the FLoRIST paper adapts, by their names in this model.

    Raises:
        ConfigurationError: it has none that are called so; the message lists those that exist.
    """
    there = {name.rpartition(".")[2] for name in model.linear}
    for names in (("q_proj", "v_proj"), ("query", "value"), ("qkv_proj",), ("c_attn",), ("query_key_value",)):
        if there.issuperset(names):
            return names
    raise ConfigurationError(
        f"{model.name}: name the modules to adapt with --target-modules: {', '.join(sorted(there))}"
    )


def _read(name: str, file: Path) -> Mapping[str, Any]:
    try:
        config = strict_json.decode(read_bytes(file, _MOST_BYTES))
    except FileNotFoundError as error:
        raise MissingInputError(f"{name}: expected a {CONFIG} there, found none at {file}") from error
    except ValueError as error:
        raise ModelError(f"{name}: expected JSON in {file}, got something else ({error})") from error
    if not isinstance(config, Mapping):
        raise ModelError(f"{name}: expected an object in {file}, got {type(config).__name__}")
    text = config.get("text_config")
    return text if isinstance(text, Mapping) and config.get("model_type") not in ARCHITECTURES else config
