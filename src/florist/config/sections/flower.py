"""What a configuration says of a federation over Flower."""

from typing import Literal

from florist.config.sections.section import Positive, PositiveFloat, Section


class FlowerSection(Section):
    """``[flower]``: what a federation over Flower needs beside the rest."""

    run: str | None = None
    """The directory of the run at the server, which resumes what it finds there; by default each run of Flower has one
    in the server's current directory."""
    min_clients: Positive | None = None
    """How many clients must be there before the first round; by default as many as `lora.ranks` lists, or 2."""
    wait: PositiveFloat = 600.0
    """How many seconds the server waits for them."""
    round_timeout: PositiveFloat = 3600.0
    """How many seconds the server waits for the replies of a round; a later reply is left out of it."""
    phase_timeout: PositiveFloat = 600.0
    """How many seconds the server waits for the replies of each phase of a masked round after training."""
    evaluation: Literal["clients", "server", "none"] = "clients"
    """Who measures the global adapter after a round: the ``clients``, the ``server`` or nobody. Clients take held-out
    examples of their own; a server then needs the base model and the held-out examples."""
    max_examples: Positive | None = None
    """The largest number of examples that a client may claim; by default any number will do."""
    base_name: str | None = None
    """The name of the base, in the place of a fingerprint of its weights. Sites that hold it in unlike dtypes or
    quantizations need one, and must then vouch for it."""
