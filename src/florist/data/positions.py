"""How many tokens of one text a model takes, and what happens beyond them.

A model with a table of positions (GPT-2, OPT, BERT) has no row for a further token and fails. A model with rotary
positions or with biases for distances (Llama, Falcon, BLOOM) goes on, at lengths that it was not trained on.
"""

import functools
import logging
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from florist.data.examples import EncodedExamples, Features
from florist.errors import ConfigurationError, DataError

_LOG = logging.getLogger("florist.data")
_TABLES = ("wpe", "position_embeddings", "embed_positions", "position_embedding", "positional_embedding")
"""What models of transformers call their tables of positions, at the end of the names of the modules."""
_TURNED = ("rope_parameters", "rope_scaling", "rope_theta", "rotary_emb_base")
"""Keys of the configurations of models with rotary positions."""
_NO_LIMIT = 10**9
"""From here on the limit of a tokenizer means that it knows none; transformers writes 10^30."""


@dataclass(frozen=True, slots=True)
class Positions:
    """How many tokens a model was made for.

    Attributes:
        most: the tokens of one text.
        fixed: whether it fails beyond them.
    """

    most: int
    fixed: bool


def positions_of(model: Any) -> Positions | None:
    """The positions of a model of transformers or PEFT; None where its configuration names none."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(config, "max_position_embeddings", None)
    table = next((rows for name, module in model.named_modules() if (rows := _rows(name, module)) is not None), None)
    if table is not None:
        return Positions(table, fixed=True)
    if not isinstance(most, int) or most < 1:
        return None
    turned = any(getattr(config, key, None) is not None for key in _TURNED) or bool(getattr(config, "alibi", False))
    # Without a table, some models look up sines and cosines, which end as well; those of unlike kinds know no end.
    relative = getattr(config, "position_biased_input", True) is False
    return Positions(most, fixed=not (turned or relative))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Checks the lengths of texts against a model and its tokenizer.

    Attributes:
        model: what messages call the model.
        positions: those of the model, if it has some.
        of_tokenizer: what the tokenizer says, if it does.
    """

    model: str
    positions: Positions | None
    of_tokenizer: int | None

    @classmethod
    def of(cls, model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> "Lengths":
        """Those of a model and its tokenizer."""
        limit = getattr(tokenizer, "model_max_length", None)
        return cls(name, positions_of(model), int(limit) if limit is not None and limit < _NO_LIMIT else None)

    def require(self, max_length: int) -> None:
        """Check that the model takes texts of the length at which they are cut.

        Raises:
            ConfigurationError: it has a table of positions, which is shorter.
        """
        if self.positions is not None and self.positions.fixed and max_length > self.positions.most:
            raise ConfigurationError(
                f"data.max_length = {max_length}: expected at most {self.positions.most}, since {self.model} has a "
                f"table of so many positions and fails beyond it; set data.max_length = {self.positions.most}"
            )

    def require_short(self, features: Features) -> Features:
        """Return an encoded example that the model takes.

        Raises:
            DataError: it has more tokens than the model has positions in a table.
        """
        length = len(features["input_ids"])
        if self.positions is not None and self.positions.fixed and length > self.positions.most:
            raise DataError(
                f"expected at most {self.positions.most} tokens, since {self.model} has a table of so many positions, "
                f"got {length}; encode the example shorter"
            )
        return features

    def tell(self, examples: EncodedExamples) -> None:
        """Log, once for each model, that examples are longer than it or its tokenizer was made for."""
        longest = max((len(features["input_ids"]) for features in examples), default=0)
        if self.positions is not None and longest > self.positions.most:
            _tell_once(
                f"{self.model} was trained on texts of at most {self.positions.most} tokens "
                "(max_position_embeddings), and some examples are longer: it may do worse on them; data.max_length "
                f"= {self.positions.most} cuts them"
            )
        elif self.of_tokenizer is not None and longest > self.of_tokenizer:
            _tell_once(
                f"the tokenizer of {self.model} names a limit of {self.of_tokenizer} tokens (model_max_length), and "
                f"some examples are longer; data.max_length = {self.of_tokenizer} cuts them"
            )


@functools.cache
def _tell_once(text: str) -> None:
    _LOG.warning("%s", text)


def _rows(name: str, module: nn.Module) -> int | None:
    """The positions of a table of positions; None for another module."""
    if not isinstance(module, nn.Embedding) or name.rpartition(".")[2] not in _TABLES:
        return None
    # RoBERTa counts from behind its padding token, and OPT and BART have rows that no text reaches.
    before = module.padding_idx + 1 if module.padding_idx is not None else int(getattr(module, "offset", 0))
    return module.num_embeddings - before
