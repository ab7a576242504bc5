"""Private rounds of a configuration, and what does not go with them; what loads torch is imported where it is used."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from florist.config.methods import METHODS, OWN, method_named
from florist.errors import ConfigurationError, MissingDependencyError, how_to_install

if TYPE_CHECKING:
    from florist.config.sections import Config
    from florist.federation.private_rounds import PrivateRounds
    from florist.federation.protections import Masks, Noise
    from florist.federation.rules import Federation
    from florist.rounds import Aggregator, SavedParameters

# ruff: noqa: PLC0415  # what loads torch, or needs an extra, is imported where it is used

NOISE_EDGE_MULTIPLE = 1.1
"""How far above the edge of the noise a direction has to stand. At the edge itself, one module in six would keep a
direction of noise; the largest singular values of small modules spread by some percent."""


def contradictions(config: Any) -> list[str]:
    """What of a configuration does not go with its section ``[privacy]``, each with the reason and what to do.

    Args:
        config: whose sections are validated each by itself.
    """
    section, wrong = config.privacy, list[str]()
    edge = str(config.aggregation.noise_edge).lower()
    if config.aggregation.noise_edge and not section.noisy:
        wrong.append(f"aggregation.noise_edge = {edge} needs noise whose size is known: set privacy.noise_multiplier")
    if not section.on:
        return wrong
    method = method_named(config.aggregation.method) or OWN
    if method.not_private is not None:
        able = " or ".join(repr(other.name) for other in METHODS.values() if other.not_private is None)
        wrong.append(
            f"[privacy] does not go with {method.title}: {method.not_private}; choose aggregation.method = {able}"
        )
    if config.aggregation.robust is not None:
        wrong.append(
            f"aggregation.robust = {config.aggregation.robust!r} weighs single updates, which [privacy] keeps from the "
            "server: remove it, and bound each client by privacy.clip"
        )
    wrong += _of_the_guard(config.guard)
    wrong += _of_the_communication(config.communication)
    if section.noisy and section.sampling == "poisson" and config.federation.min_replies is not None:
        wrong.append(
            f"federation.min_replies = {config.federation.min_replies} would show how many clients were drawn, which "
            "privacy.sampling = 'poisson' counts on to be hidden: remove it"
        )
    if config.aggregation.noise_edge and config.communication.feedback_at_server:
        wrong.append(
            f"aggregation.noise_edge = {edge} knows the noise of one round, and with communication.feedback what is "
            "due has noise of earlier rounds: set feedback to false, or remove noise_edge"
        )
    return wrong


def private_rounds(config: "Config", clients: int, asked: int, largest_rank: int) -> "PrivateRounds | None":
    """The private rounds of a configuration; None where it protects nothing.

    Args:
        config: a validated one.
        clients: how many clients there are.
        asked: how many of them a round asks.
        largest_rank: the largest rank that any client trains.

    Raises:
        ConfigurationError: not even one round stays within epsilon, or a number is out of range.
        MissingDependencyError: what accounts for noise, or masks updates, is not installed.
    """
    section = config.privacy
    if not section.on:
        return None
    from florist.federation.private_rounds import PrivateRounds

    return PrivateRounds(
        masks=_masks(section),
        clip=section.clip,
        noise=_noise(config, clients, asked),
        aggregator_at=_AtDeviation(
            largest_rank, config.aggregation.max_rank, shrunk=config.aggregation.noise_edge == "shrunk"
        )
        if config.aggregation.noise_edge
        else None,
    )


def require_possible(
    private: "PrivateRounds | None", federation: "Federation", saved_parameters: "SavedParameters"
) -> None:
    """Check that a private round of a federation can be played; nothing where there are none.

    Raises:
        ConfigurationError: as `PrivateRounds.require_possible`.
    """
    if private is not None:
        private.require_possible(federation, saved_parameters)


def private_rounds_over_flower(config: "Config", largest_rank: int) -> "PrivateRounds | None":
    """The private rounds of a configuration over Flower, which draw in secret; None where it protects nothing.

    Args:
        config: a validated one.
        largest_rank: the largest rank that any client trains.

    Raises:
        ConfigurationError: it does not say how many clients there are, which epsilon is counted for, or what
            `private_rounds` refuses.
        MissingDependencyError: as `private_rounds`.
    """
    from florist.federation.rules import clients_asked

    clients, ranks = config.flower.min_clients, config.lora.ranks
    if clients is None and isinstance(ranks, tuple):
        clients = len(ranks)
    if clients is None and config.privacy.noisy:
        raise ConfigurationError(
            "flower.min_clients: expected how many clients there are, since epsilon is counted for so many, of whom a "
            "round draws federation.fraction: set it"
        )
    count = clients or 1
    private = private_rounds(config, count, clients_asked(config.federation.fraction, count), largest_rank)
    return replace(private, secret=True) if private is not None else None


def _masks(section: Any) -> "Masks | None":
    if not section.secure_aggregation:
        return None
    from florist.federation.protections import Masks

    try:
        import cryptography as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"privacy.secure_aggregation needs the package cryptography, and {error.name} is not installed: "
            f"{how_to_install('privacy')}"
        ) from error
    return Masks(section.bits, section.threshold, section.smallest_group, section.max_examples, section.largest)


def _noise(config: "Config", clients: int, asked: int) -> "Noise | None":
    section = config.privacy
    if not section.noisy or section.delta is None:
        return None
    from florist.federation.protections import Noise
    from florist.privacy.accounting import Accountant, Sampling, noise_for
    from florist.privacy.clipping import AdaptiveClip

    sampling, multiplier = Sampling(section.sampling), section.noise_multiplier
    if multiplier is None and section.epsilon is not None:
        multiplier = noise_for(
            section.epsilon,
            config.federation.rounds,
            delta=section.delta,
            clients=clients,
            asked=asked,
            sampling=sampling,
        )
    if multiplier is None:
        return None
    accountant = Accountant(multiplier, section.delta, clients, asked, sampling)
    adaptive = None
    if section.adaptive_clip is not None:
        # A twentieth of the clients is what the paper takes; in few clients, the count must not cost more than the sum.
        adaptive = AdaptiveClip(section.adaptive_clip, count_noise=max(asked / 20, multiplier))
    noise = Noise(accountant, section.epsilon, adaptive, section.honest_fraction)
    spent = accountant.epsilon(1)
    if section.epsilon is not None and spent > section.epsilon:
        raise ConfigurationError(
            f"privacy.epsilon = {section.epsilon}: one round with noise_multiplier = {multiplier} spends {spent:.3g}; "
            "raise the noise, or remove noise_multiplier, which is then computed"
        )
    return noise


@dataclass(frozen=True, slots=True)
class _AtDeviation:
    """Linear rounds that keep what stands above noise of a known deviation."""

    largest_rank: int
    most: int | None
    shrunk: bool

    def __call__(self, deviation: float) -> "Aggregator":
        import florist

        rule = florist.NoiseEdge(deviation, self.largest_rank, NOISE_EDGE_MULTIPLE)
        shrinkage = florist.OptimalShrinkage(deviation, self.largest_rank) if self.shrunk else None
        return florist.LinearRounds(rule if self.most is None else florist.Capped(rule, self.most), shrinkage)


def _of_the_guard(guard: Any) -> list[str]:
    """What of the guard was asked for by name, and cannot be: its defaults are off where there are no updates."""
    unset = {key: field.default for key, field in type(guard).model_fields.items()}
    return [
        f"guard.{key} = {value!r} looks at single updates, which [privacy] keeps from the server, so that clipping is "
        "the clients': remove it, and set privacy.clip"
        for key, value in guard.model_dump().items()
        if value is not False and (type(value), value) != (type(unset[key]), unset[key])  # 0.0 is a cosine
    ]


def _of_the_communication(communication: Any) -> list[str]:
    wrong: list[str] = []
    given: Mapping[str, Any] = communication.model_dump()
    if given["upload"] != "float32":
        wrong.append(
            f"communication.upload = {given['upload']!r} rounds after the clip, so that what arrives may be longer: "
            "set it to 'float32'; privacy.bits is the precision of masked sums"
        )
    if communication.feedback_at_clients:
        wrong.append(
            f"communication.feedback = {given['feedback']!r} lets clients add what they held back before, which no "
            "clip and no epsilon counts: set it to 'server' or false"
        )
    return wrong
