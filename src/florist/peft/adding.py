"""The weighted sum of adapters of a live PEFT model, as one more adapter of it."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from florist.aggregation.certifying import certify_error
from florist.aggregation.cutting import cut_by_rule
from florist.checkpoint import AdapterLayout, EmbeddingLayout, EncodedAdapter, ModuleLayout, encode
from florist.checkpoint.keys import PREFIX
from florist.errors import ConfigurationError, IncompatibleAdaptersError, NonFiniteUpdateError, UnsupportedAdapterError
from florist.factors import AdapterState, LoraFactor
from florist.linalg import NonFinitePartError, OverflowingSumError, ThinSvd, WeightedFactor, decompose
from florist.peft.live_adapter import LiveAdapter, halves, lora_layers, output_bias, read_adapter
from florist.ranks import EnergyThreshold, RankRule
from florist.rounds import Certificate, ClientUpdate, ModuleCertificate

EXACT = EnergyThreshold(1.0)
"""Nothing is left out but rounding."""

_TAKEN = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "lora_bias",
    "fan_in_fan_out",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
"""What the config of the new adapter has of one that `checkpoint.encode` makes."""


def add_weighted_adapter(
    model: PeftModel, adapters: Sequence[str], weights: Sequence[float], name: str, rank_rule: RankRule = EXACT
) -> Certificate:
    """Add to a live PEFT model an adapter whose update is the weighted sum of the updates of others.

    Each update is what its adapter really adds: ``s B A`` with the scaling s of each module, whatever rsLoRA,
    `rank_pattern`, `alpha_pattern` or `set_scale` made of it, and ``s b`` for a bias of `lora_B`. The sum is decomposed
    from the factors, and every module has a rank of its own. By default nothing is cut: who does not ask for less gets
    the sum. ``EnergyThreshold(0.9)`` keeps a fraction of the energy, and ``FixedRank(16)`` does what PEFT's `svd_rank`
    does.

    The new adapter has no dropout, is frozen and is not active, as one that PEFT combines; nothing else of the model
    changes. Modules that are trained whole (`modules_to_save`) are no summands. Where all adapters hold the same
    values, the new one holds them too.

    Args:
        model: it has the adapters.
        adapters: their names. A module that one lacks counts as a zero update.
        weights: a finite number for each; they may be negative, and need not sum to 1.
        name: what to call the new adapter.
        rank_rule: how many directions each module keeps.

    Returns:
        What the ranks kept and lost, by module.

    Raises:
        ConfigurationError: an argument is none of these; the name is taken, or PEFT cannot use it.
        UnsupportedAdapterError: the update of an adapter is not ``s B A`` (DoRA and other variants, initialisations
            that change the base, tuners other than LoRA), or the sum is not one that a live adapter can hold.
        IncompatibleAdaptersError: the adapters hold unlike modules trained whole.
        NonFiniteUpdateError: a factor holds NaN or infinity, or the sum overflows.

        After each of these the model is as it was.

    Cost: that of `linalg.decompose` a module, about O((m + n) R^2) for the sum R of its ranks, and the memory of the
    new adapter twice. No dense update is made while R is below min(m, n).
    """
    _require_arguments(model, adapters, weights, name)
    live = [read_adapter(model, each) for each in adapters]
    whole = _saved_modules(model, adapters)
    layouts: dict[str, ModuleLayout] = {module: own for one in live for module, own in one.layouts.items()}
    additive = _output_biases(live, weights, layouts)
    adapter, modules = _weighted_sum(live, weights, rank_rule)
    first = live[0].config
    encoded = encode(
        adapter,
        layout=AdapterLayout(layouts, fan_in_fan_out=any(bool(one.config.fan_in_fan_out) for one in live)),
        additive=additive,
        base_model=first.base_model_name_or_path,
        revision=first.revision,
        task_type=first.task_type,
        dtype=torch.float64 if any(s.dtype == torch.float64 for s in adapter.specs.values()) else torch.float32,
    )
    config = LoraConfig(
        **{key: encoded.config[key] for key in _TAKEN},
        modules_to_save=list(whole) or None,
        exclude_modules=_longer_names(model, adapter) or None,
        auto_mapping=first.auto_mapping,
    )
    _add(model, name, config, encoded, {module: (wrapper, adapters[0]) for module, wrapper in whole.items()})
    return Certificate(
        modules,
        bytes_in=sum(one.adapter.nbytes for one in live) + sum(b.nbytes for one in live for b in one.additive.values()),
        bytes_out=encoded.nbytes,
    )


def _require_arguments(model: object, adapters: Sequence[str], weights: Sequence[float], name: str) -> None:
    if not isinstance(model, PeftModel):
        raise ConfigurationError(
            f"expected a peft.PeftModel, got {type(model).__name__}; give the model that PEFT wrapped (_orig_mod of a "
            "compiled one)"
        )
    held = list(model.peft_config)
    if isinstance(adapters, str) or not adapters or any(each not in held for each in adapters):
        raise ConfigurationError(f"expected names of adapters out of {held}, got {adapters!r}")
    twice = [each for each, count in Counter(adapters).items() if count > 1]
    if twice:
        raise ConfigurationError(f"expected each adapter once, got {twice} more often; raise its weight instead")
    if len(weights) != len(adapters) or not all(math.isfinite(weight) for weight in weights):
        raise ConfigurationError(f"expected a finite weight for each of {list(adapters)}, got {list(weights)}")
    if name in held:
        raise ConfigurationError(
            f"expected a new name, got {name!r}, which the model has already; choose another, or delete that adapter"
        )
    try:
        nn.ModuleDict({name: nn.Identity()})
    except (KeyError, TypeError) as error:
        raise ConfigurationError(f"expected a name that torch takes for a module, got {name!r}: {error}") from error
    if name in "lora_":
        raise ConfigurationError(
            f"expected a name that is no part of 'lora_', got {name!r}, which PEFT takes for its own"
        )


def _saved_modules(model: PeftModel, adapters: Sequence[str]) -> dict[str, ModulesToSaveWrapper]:
    """The modules that every adapter holds whole, and with the same values, by name."""
    found: dict[str, ModulesToSaveWrapper] = {}
    for module, wrapper in model.get_base_model().named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        held: dict[str, Mapping[str, Tensor]] = {
            each: wrapper.modules_to_save[each].state_dict() for each in adapters if each in wrapper.modules_to_save
        }
        if not held:
            continue
        values = list(held.values())
        if len(held) < len(adapters) or not all(_equal(one, values[0]) for one in values[1:]):
            raise IncompatibleAdaptersError(
                f"expected the same values of {module} (modules_to_save) in all of {list(adapters)}, got others or "
                "none in some: it was trained whole, and has no weighted sum; save the adapters and combine these with "
                "`florist aggregate --average-full`, which takes the mean"
            )
        found[module] = wrapper
    return found


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _output_biases(
    live: Sequence[LiveAdapter], weights: Sequence[float], layouts: Mapping[str, ModuleLayout]
) -> dict[str, Tensor]:
    """``sum_k w_k s_k b_k`` of the modules whose ``lora_B`` has a bias in some adapter."""
    summed: dict[str, Tensor] = {}
    for one, weight in zip(live, weights, strict=True):
        for module, bias in one.additive.items():
            summed[module] = summed[module] + weight * bias if module in summed else weight * bias
    embeddings = [module for module, layout in layouts.items() if isinstance(layout, EmbeddingLayout)]
    if summed and embeddings:
        raise UnsupportedAdapterError(
            f"expected no embedding beside adapters with lora_bias, got {embeddings}: PEFT gives a bias to every "
            "module of an adapter or to none, and to no embedding; leave these adapters out of one sum"
        )
    return summed


def _weighted_sum(
    live: Sequence[LiveAdapter], weights: Sequence[float], rule: RankRule
) -> tuple[AdapterState, dict[str, ModuleCertificate]]:
    """The sum, cut by a rule, and the certificate of each module."""

    def parts(module: str) -> list[WeightedFactor]:
        return [
            WeightedFactor(weight, one.adapter.specs[module], partial(one.adapter.__getitem__, module))
            for one, weight in zip(live, weights, strict=True)
            if module in one.adapter.specs
        ]

    def svd(module: str, energy: float) -> ThinSvd:
        try:
            return decompose(parts(module), energy=energy)
        except NonFinitePartError as error:
            culprit = [one.name for one in live if module in one.adapter.specs][error.index]
            raise NonFiniteUpdateError(
                f"expected finite factors, {module} of the adapter {culprit!r} holds NaN or infinity; leave it out"
            ) from error
        except OverflowingSumError as error:
            raise NonFiniteUpdateError(f"{module}: {error}") from error

    updates = [ClientUpdate(one.name, one.adapter, 1, round_number=1) for one in live]
    factors: dict[str, LoraFactor] = {}
    modules: dict[str, ModuleCertificate] = {}
    names = sorted(set[str]().union(*(one.adapter for one in live)))
    for cut in cut_by_rule(rule, names, svd, parts):
        factors[cut.module] = cut.factor
        modules[cut.module] = certify_error(updates, cut.module, cut.factor.rank, norm=cut.norm, error=cut.error)
    return AdapterState.of(factors), modules


def _longer_names(model: PeftModel, adapter: AdapterState) -> list[str]:
    """Other modules that PEFT would adapt as well, since their names end as that of one in the sum."""
    ends = tuple(f".{module}" for module in adapter)
    names = (name for name, _ in model.get_base_model().named_modules())
    return [name for name in names if name.endswith(ends) and name not in adapter]


def _add(
    model: PeftModel,
    name: str,
    config: LoraConfig,
    encoded: EncodedAdapter,
    whole: Mapping[str, tuple[ModulesToSaveWrapper, str]],
) -> None:
    """Add the adapter and give it its values; take it away again where that fails."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # PEFT draws a start, which nobody will see
            model.add_adapter(name, config)
            for module, layer in lora_layers(model, name).items():
                _fill(module, layer, name, encoded.tensors)
            for wrapper, source in whole.values():
                wrapper.modules_to_save[name].load_state_dict(wrapper.modules_to_save[source].state_dict())
                wrapper.modules_to_save[name].requires_grad_(requires_grad=False)
    except BaseException:
        model.peft_config.setdefault(name, config)  # of what fails, PEFT forgets the config and keeps the layers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.delete_adapter(name)
        raise
    finally:
        for parameter, before in trainable:
            parameter.requires_grad_(before)


def _fill(module: str, layer: Any, name: str, tensors: Mapping[str, Tensor]) -> None:
    kind = "embedding_" if name in layer.lora_embedding_A else ""
    end = "" if kind else ".weight"
    stored = [tensors.get(f"{PREFIX}{module}.lora_{kind}{half}{end}") for half in "BA"]
    bias, live_bias = tensors.get(f"{PREFIX}{module}.lora_B.bias"), output_bias(layer, name)
    pairs = list(zip([*halves(layer, name), live_bias], [*stored, bias], strict=True))
    if layer.scaling[name] != 1 or any(_shape(live) != _shape(value) for live, value in pairs):
        raise UnsupportedAdapterError(
            f"expected PEFT to make {module} as its config says, got {[_shape(live) for live, _ in pairs]} with the "
            f"scaling {layer.scaling[name]} for {[_shape(value) for _, value in pairs]} (B, A and a bias); report this "
            "with the version of PEFT"
        )
    for live, value in pairs:
        if live is not None and value is not None:
            live.copy_(value)
            live.requires_grad = False


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
