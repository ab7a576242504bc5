"""NVFlare's FedAvg for LoRA adapters of unlike ranks: florist sums the updates of a round and sends one adapter.

Copy this file into an NVFlare job of a causal language model. The server needs florist without extras, and the clients
need PEFT alone.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.workflows.fedavg import FedAvg

import florist
from florist.aggregation import lossless_sum
from florist.checkpoint import EncodedAdapter, encode, open_adapter, write_adapter
from florist.errors import IncompatibleAdaptersError, InvalidUpdateError, NonFiniteUpdateError, some

NUM_EXAMPLES = "num_examples"
"""Where a client says in the meta of its FLModel how many training examples are behind its update."""

ADAPTER_CONFIG = "adapter_config"
"""Where the server says in the meta of its FLModel what `peft.LoraConfig` builds the global adapter with."""

SERVER = "the server"
"""Whose the global adapter is, in messages."""

_HALF = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


class FloristAggregator(ModelAggregator):
    """The exact weighted sum of the updates of a round, cut to the smallest ranks that keep a fraction of its energy.

    A client sends what ``peft.get_peft_model_state_dict`` returns, with the scaling of each layer folded into
    ``lora_B``, and ``meta["num_examples"]``. Ranks may differ from client to client and from module to module.

    What one update shows by itself is checked when it comes: `accept_model` raises, NVFlare logs the reason as an
    error, and the round goes on without that client. What only all of them show, that one adapts other modules or
    shapes than most, is checked and logged by `aggregate_model`.

    Args:
        tau: the fraction of the energy that each module keeps, in (0, 1].
        min_updates: the fewest sound updates; with less the round fails, and with it the job.
    """

    def __init__(self, tau: float = 0.9, min_updates: int = 1) -> None:
        super().__init__()
        self.tau = tau
        self.min_updates = min_updates
        self._method = florist.Florist(florist.EnergyThreshold(tau))
        self._updates: dict[str, florist.ClientUpdate] = {}

    def accept_model(self, model: FLModel) -> None:
        """Keep the update of one client until all are there.

        Raises:
            InvalidUpdateError: the client has sent one already, its number of examples is no positive integer, or
                `adapter_of` refuses what it sent.
            NonFiniteUpdateError: a value is NaN or infinite.
        """
        client = str(model.meta.get("client_name", "unknown"))
        if client in self._updates:
            raise InvalidUpdateError(f"{client!r}: expected one update in a round, got a second; send one of them")
        examples = model.meta.get(NUM_EXAMPLES)
        if type(examples) is not int or examples <= 0:
            raise InvalidUpdateError(
                f"{client!r}: expected a positive integer as meta[{NUM_EXAMPLES!r}], got {examples!r}; send the number "
                "of training examples"
            )
        adapter = adapter_of(model.params or {}, client)
        self._updates[client] = florist.ClientUpdate(client, adapter, examples, round_number=1)

    def aggregate_model(self) -> FLModel:
        """Return the adapter of the round, which clients and server add to the global one, and forget the updates.

        Raises:
            InvalidUpdateError: fewer than `min_updates` are left.
            IncompatibleAdaptersError: no majority of the clients adapts the same modules.
        """
        updates = self._of_one_model()
        self.reset_stats()
        if len(updates) < self.min_updates:
            raise InvalidUpdateError(
                f"expected at least {self.min_updates} sound updates, got {len(updates)}; the errors above say why "
                "others were refused"
            )
        broadcast = self._method(updates)
        certificate = broadcast.certificate
        total_rank = sum(update.adapter.total_rank for update in updates)
        self.info(
            f"florist: {len(updates)} updates of total rank {total_rank} ({certificate.bytes_in} bytes) became one of "
            f"{broadcast.shared.total_rank} ({broadcast.shared.nbytes} bytes); the relative error of the cut is "
            f"{certificate.relative_error:.3f}"
        )
        return FLModel(params_type=ParamsType.FULL, **params_and_meta(broadcast.shared))

    def reset_stats(self) -> None:
        """Forget the updates of the round."""
        self._updates = {}

    def _of_one_model(self) -> list[florist.ClientUpdate]:
        """The updates of the clients that adapt what most of them adapt; the others are logged."""
        seen = {
            client: frozenset((module, spec.shape) for module, spec in update.adapter.specs.items())
            for client, update in self._updates.items()
        }
        if not seen:
            return []
        usual, count = Counter(seen.values()).most_common(1)[0]
        others = {client: modules for client, modules in seen.items() if modules != usual}
        told = [
            f"{client!r}: expected the modules and shapes that most clients adapt, got others for "
            f"{some(sorted({module for module, _ in modules ^ usual}))}; train the same target_modules of the same base"
            for client, modules in sorted(others.items())
        ]
        if 2 * count <= len(seen):
            raise IncompatibleAdaptersError(f"expected most clients to adapt the same modules: {some(told)}")
        for line in told:
            self.error(f"{line}. The round goes on without it.")
        return [update for client, update in self._updates.items() if client not in others]


class AdapterFedAvg(FedAvg):
    """FedAvg whose global model is one adapter: the exact sum of what the aggregator made of every round so far.

    A client puts it frozen beside the pristine base and trains a new adapter of its own rank on top. After each round
    the server writes it as PEFT does, to the folder `save_filename` of the run.

    Args:
        base_model: the name of the base model, for adapter_config.json.
        num_clients: how many clients are asked in each round.
        num_rounds: how many rounds there are.
        aggregator: what combines the updates of a round.
        save_filename: the folder of the adapter.
    """

    def __init__(
        self,
        base_model: str,
        num_clients: int,
        num_rounds: int,
        aggregator: ModelAggregator,
        save_filename: str = "adapter",
    ) -> None:
        super().__init__(
            num_clients=num_clients,
            num_rounds=num_rounds,
            persistor_id="",
            aggregator=aggregator,
            save_filename=save_filename,
        )
        self.base_model = base_model

    def update_model(self, model: FLModel, aggr_result: FLModel) -> FLModel:
        """Add the adapter of the round to the global one."""
        total = lossless_sum([adapter_of(each.params, SERVER) for each in (model, aggr_result) if each.params])
        found = params_and_meta(total, self.base_model)
        aggr_result.params = found["params"]
        aggr_result.meta = {**(aggr_result.meta or {}), **found["meta"]}
        return super().update_model(model, aggr_result)

    def save_model_file(self, model: FLModel, filepath: str) -> None:
        """Write the global adapter as ``PeftModel.from_pretrained`` loads it.

        A server that is killed between its two files leaves the weights of one round beside the ranks of another,
        which PEFT refuses to load where they differ.
        """
        Path(filepath).mkdir(exist_ok=True)
        write_adapter(Path(filepath), _encoded(adapter_of(model.params or {}, SERVER), self.base_model))

    def load_model_file(self, filepath: str) -> FLModel:
        """Begin with an adapter that is there already."""
        return FLModel(**params_and_meta(open_adapter(Path(filepath)).adapter, self.base_model))


def adapter_of(params: Mapping[str, Any], owner: str) -> florist.AdapterState:
    """The factors in a state dict of PEFT, whose `lora_B` have the scaling in them.

    Args:
        params: PEFT's names, as ``base_model.model.layers.0.q_proj.lora_A.weight``, and arrays or tensors.
        owner: whose they are, for messages.

    Raises:
        InvalidUpdateError: a name is none of a plain LoRA of linear layers, a half is missing, or shapes do not fit.
        NonFiniteUpdateError: a value is NaN or infinite.
    """
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in params.items():
        match = _HALF.fullmatch(name)
        if match is None:
            raise InvalidUpdateError(
                f"{owner!r}: expected names like base_model.model.MODULE.lora_A.weight, got {name!r}; send plain LoRA "
                "of linear layers, without modules_to_save, biases or DoRA"
            )
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(np.asarray(value))
        if not tensor.isfinite().all():
            raise NonFiniteUpdateError(
                f"{owner!r}: expected finite factors, {name} holds NaN or infinity; train with a lower learning rate"
            )
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        halves.setdefault(match["module"], {})[match["half"]] = tensor.detach().to("cpu", wide)
    incomplete = [f"{module} lacks lora_{'B' if 'A' in own else 'A'}" for module, own in halves.items() if len(own) < 2]
    if incomplete or not halves:
        raise InvalidUpdateError(
            f"{owner!r}: expected both halves of every module, but {some(incomplete) or 'there is no module'}; send "
            "all that get_peft_model_state_dict returns"
        )
    try:
        return florist.AdapterState.of({module: florist.LoraFactor(**own) for module, own in halves.items()})
    except florist.FloristError as error:
        raise InvalidUpdateError(f"{owner!r}: {error}") from error


def params_and_meta(adapter: florist.AdapterState, base_model: str | None = None) -> dict[str, Any]:
    """An adapter as NVFlare sends it: arrays by PEFT's names, and the settings for ``peft.LoraConfig``."""
    encoded = _encoded(adapter, base_model)
    return {
        "params": {name: tensor.numpy() for name, tensor in encoded.tensors.items()},
        "meta": {ADAPTER_CONFIG: encoded.config},
    }


def _encoded(adapter: florist.AdapterState, base_model: str | None) -> EncodedAdapter:
    wide = any(spec.dtype == torch.float64 for spec in adapter.specs.values())
    dtype = torch.float64 if wide else torch.float32
    return encode(adapter, base_model=base_model, task_type="CAUSAL_LM", dtype=dtype)
