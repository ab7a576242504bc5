"""Clients of a simulation that are trained side by side, as one batch: for federations of many small clients.

A client with four short examples trains in a few milliseconds, and to set up its Trainer and its adapter takes longer
than that. Here all clients of a round go through the model as one batch. Each has its own B, and its own head, in
a stack along the first dimension, so that the gradient of the sum of their losses is each client's own gradient, and
AdamW, which works number by number, moves each as it would alone. What a client uploads is what it would upload after
training alone, up to rounding (`tests/test_together.py`). Dropout is off.

It is for methods that train B alone, along rows of A that all clients of a round share, and for clients of one rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from florist.evaluation import Measurements, Metric
from florist.factors import AdapterState, LoraFactor
from florist.federation.simulation import Client, Simulation
from florist.federation.state import ServerState
from florist.models.federated_model import LocalLora
from florist.models.local_training import TrainingContext
from florist.models.training import TrainingSettings
from florist.rounds import NO_ADAPTER, ClientUpdate, SavedParameters
from florist.seeding import derive_seed

_Batch = Mapping[str, Tensor]
AT_ONCE = 16
"""How many clients go through the model together: more do not fit into the caches of a processor."""


@dataclass
class _Stacks:
    """What the clients that are trained together have of their own: B by module, and heads by the name of a parameter.

    Attributes:
        A: the rows of A that they share, by module.
        B: the stacked B in the units of PEFT, before the scaling, by module.
        heads: the stacked parameters that travel whole, by name.
        scaling: what B A is multiplied by.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    scaling: float

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.B.values(), *self.heads.values()]


@dataclass(eq=False)
class Together:
    """The model of a simulation, in which the global adapter is added to the weights, and clients train side by side.

    Args:
        simulation: whose model it takes over: nobody else may play rounds with it afterwards.
    """

    simulation: Simulation
    _pristine: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    _linear: dict[str, nn.Linear] = field(default_factory=dict[str, nn.Linear])
    _heads: dict[str, nn.Linear] = field(default_factory=dict[str, nn.Linear])
    _stacks: _Stacks | None = None

    def __post_init__(self) -> None:
        """Hook into the layers."""
        model = self.simulation.model
        model.set_global(NO_ADAPTER)
        modules: Any = dict(model.peft.get_base_model().named_modules())
        for name in model.shapes:
            self._linear[name] = modules[name].base_layer
            self._pristine[name] = self._linear[name].weight.detach().clone()
            self._linear[name].register_forward_hook(self._with_local(name))
        for name in model.modules_to_save:
            self._heads[name] = modules[name]
            self._heads[name].register_forward_hook(self._with_head(name))

    def show(self, adapter: AdapterState, saved_parameters: SavedParameters) -> None:
        """Put the global model into the weights."""
        with torch.no_grad():
            for name, layer in self._linear.items():
                layer.weight.copy_(self._pristine[name])
                if name in adapter:
                    layer.weight.addmm_(adapter[name].B, adapter[name].A)
        self.simulation.model.saved_parameters = saved_parameters

    def measure(self, state: ServerState, metrics: Sequence[Metric]) -> Mapping[str, float]:
        """The metrics of the global model of a state."""
        self.show(state.global_adapter, state.saved_parameters)
        peft = self.simulation.model.peft.eval()
        return dict(Measurements.together(metric(peft) for metric in metrics))

    def train(self, state: ServerState, asked: Sequence[Client]) -> list[ClientUpdate]:
        """What the clients of a round upload.

        Args:
            state: the state before the round.
            asked: the clients; all of one rank.
        """
        if not asked:
            return []
        federation, number = self.simulation.federation, state.round_number + 1
        start = federation.start(state, asked[0].client_id)
        rows, rank = federation.rows(state, asked[0].client_id), asked[0].lora.rank
        A = {name: rows(name)[:rank].float() for name in self._linear}
        B = {name: start.local[name].padded(rank).B if name in start.local else None for name in self._linear}
        self.show(start.frozen, state.saved_parameters)
        peft = self.simulation.model.peft.eval()
        drawn = [(client, list(self._batches(peft, client, number))) for client in asked]
        drawn.sort(key=lambda each: max(batch["input_ids"].shape[1] for batch in each[1]))  # which pads least
        updates: list[ClientUpdate] = []
        for first in range(0, len(drawn), AT_ONCE):
            some = drawn[first : first + AT_ONCE]
            stacks = self._begun([client for client, _ in some], A, B, state.saved_parameters)
            self._stepped(peft, some[0][0].training, [batches for _, batches in some], stacks)
            for place, (client, _) in enumerate(some):
                factors = {n: LoraFactor(stacks.scaling * B[place].detach(), A[n]) for n, B in stacks.B.items()}
                saved = {name: stack[place].detach().clone() for name, stack in stacks.heads.items()}
                adapter = AdapterState.of(factors)
                updates.append(ClientUpdate(client.client_id, adapter, len(client.examples), number, saved))
        return sorted(updates, key=lambda update: update.client_id)

    def _begun(
        self, clients: Sequence[Client], A: Mapping[str, Tensor], B: Mapping[str, Tensor | None], saved: SavedParameters
    ) -> _Stacks:
        scaling, count, rank = scaling_of(clients[0].lora), len(clients), clients[0].lora.rank

        def stacked(tensor: Tensor) -> Tensor:
            return tensor.detach().float().expand(count, *tensor.shape).clone().requires_grad_()

        own = {
            name: stacked(torch.zeros(layer.out_features, rank) if (given := B[name]) is None else given / scaling)
            for name, layer in self._linear.items()
        }
        return _Stacks(A, own, {name: stacked(tensor) for name, tensor in saved.items()}, scaling)

    def _stepped(
        self, peft: nn.Module, settings: TrainingSettings, drawn: Sequence[Sequence[_Batch]], stacks: _Stacks
    ) -> None:
        optimizer = torch.optim.AdamW(stacks.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        for batches in zip(*drawn, strict=True):
            optimizer.zero_grad()
            with self._training(stacks):
                losses = client_losses(peft, batches)
            losses.sum().backward()
            norms = torch.sqrt(sum(p.grad.flatten(1).square().sum(1) for p in stacks.parameters if p.grad is not None))
            for parameter in stacks.parameters:
                if parameter.grad is not None:
                    factor = (settings.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
                    parameter.grad *= factor.view(-1, *[1] * (parameter.dim() - 1))
            optimizer.step()

    def _batches(self, peft: nn.Module, client: Client, number: int) -> Iterator[_Batch]:
        seed = derive_seed(self.simulation.federation.seed, "training", number, client.client_id)
        context = TrainingContext(client.client_id, number, seed, client.training, lambda _done, _total: None)
        return context.batches(peft, client.examples)

    @contextmanager
    def _training(self, stacks: _Stacks) -> Iterator[None]:
        self._stacks = stacks
        try:
            yield
        finally:
            self._stacks = None

    def _with_local(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._stacks is None:
                return None
            B, (x,) = self._stacks.B[name], inputs
            along = (x @ self._stacks.A[name].T).view(len(B), -1, B.shape[2])
            return output + (self._stacks.scaling * torch.bmm(along, B.transpose(1, 2))).view_as(output)

        return hook

    def _with_head(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._stacks is None:
                return None
            W, (x,) = self._stacks.heads[f"{name}.weight"], inputs
            own = torch.bmm(x.view(len(W), -1, x.shape[-1]), W.transpose(1, 2))
            if (bias := self._stacks.heads.get(f"{name}.bias")) is not None:
                own = own + bias.unsqueeze(1)
            return own.view_as(output)

        return hook


def scaling_of(lora: LocalLora) -> float:
    """What PEFT multiplies B A by."""
    return lora.alpha / (lora.rank**0.5 if lora.use_rslora else lora.rank)


def client_losses(model: nn.Module, batches: Sequence[_Batch]) -> Tensor:
    """The mean loss of each client's batch, of one pass through a model whose layers take them as one.

    Args:
        model: a causal language model, or a classifier.
        batches: one a client, of the same keys.

    Returns:
        As many losses as batches.
    """
    most = max(len(batch["labels"]) for batch in batches)
    width = max(batch["input_ids"].shape[1] for batch in batches)

    def joined(key: str, filler: int) -> Tensor:
        return torch.cat([padded(batch[key], most, width, filler) for batch in batches])

    labels = joined("labels", -100)
    ids, mask = joined("input_ids", 0), joined("attention_mask", 0)
    mask[:, 0] = 1  # a row of padding alone would be divided by zero; it has no label
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    if labels.dim() == 2:  # a label a token
        logits, labels = logits[:, :-1], labels[:, 1:]
    found = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100, reduction="none"
    ).view(len(batches), -1)
    return found.sum(1) / (labels != -100).view(len(batches), -1).sum(1)


def padded(tensor: Tensor, rows: int, width: int, filler: int) -> Tensor:
    """A tensor with more rows, and if it has columns more of them."""
    more = [0, width - tensor.shape[1]] if tensor.dim() > 1 else []
    return nn.functional.pad(tensor, (*more, 0, rows - len(tensor)), value=filler)


class Remembered(nn.Module):
    """The embeddings of a BERT and the lower layers, which nobody trains: their output is computed once a row.

    Args:
        embeddings: what they are.
        layers: the lower layers.
        kept: the output by the token numbers of a row; runs of one base model can share it.
    """

    def __init__(self, embeddings: nn.Module, layers: Sequence[nn.Module], kept: dict[bytes, Tensor]) -> None:
        super().__init__()
        self.embeddings, self.layers, self.kept = embeddings, nn.ModuleList(layers), kept

    @classmethod
    def below(cls, encoder: Any, layer: int, kept: dict[bytes, Tensor]) -> None:
        """Let an encoder remember what comes out below a layer.

        Args:
            encoder: with ``embeddings`` and ``encoder.layer``, in evaluation mode.
            layer: the first layer that is trained.
            kept: what is remembered.
        """
        layers = encoder.encoder.layer
        encoder.embeddings = cls(encoder.embeddings, layers[:layer], kept)
        for number in range(layer):
            layers[number] = _Pass()

    @torch.no_grad()
    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """The hidden states of all rows; those of padding are zero."""
        lengths = (input_ids != 0).sum(1).clamp(min=1).tolist()
        rows = [self._of(row[:length]) for row, length in zip(input_ids, lengths, strict=True)]
        return torch.stack([nn.functional.pad(row, (0, 0, 0, input_ids.shape[1] - len(row))) for row in rows])

    def _of(self, row: Tensor) -> Tensor:
        key = row.numpy().tobytes()
        if key not in self.kept:
            hidden = self.embeddings(input_ids=row[None])
            for layer in self.layers:
                hidden = layer(hidden, None)
            self.kept[key] = hidden[0].clone()
        return self.kept[key]


class _Pass(nn.Module):
    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden
