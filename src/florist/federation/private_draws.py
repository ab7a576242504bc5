"""Who takes part in a private round, and the noise of its clients: from the seed, in a simulation, or in secret."""

from collections.abc import Collection

import torch

from florist.federation.protections import Noise
from florist.federation.rules import Federation
from florist.privacy.accounting import Sampling
from florist.privacy.noise_share import Source, in_secret
from florist.privacy.randomness import drawn_in_secret, each_in_secret
from florist.seeding import generator


def private_participants(
    federation: Federation,
    round_number: int,
    among: Collection[str] | None,
    noise: Noise | None,
    *,
    secret: bool,
) -> tuple[str, ...]:
    """The clients of a private round, sorted. It may be none.

    Args:
        federation: the rules.
        round_number: the round, from which and the seed they are drawn where the draw is not secret.
        among: the clients that can be reached; all of them where it is None. With noise the draw is among all clients,
            whoever can be reached, since the accountant counts on that.
        noise: the noise of the rounds; None for none.
        secret: whether they are drawn by the system's source of randomness.
    """
    ordered = sorted(federation.client_ranks)
    poisson = noise is not None and noise.accountant.sampling is Sampling.POISSON
    if not secret and not poisson:
        return federation.participants(round_number, among)
    if not secret:
        draw = torch.rand(len(ordered), generator=generator(federation.seed, "participants", round_number))
        probability = federation.clients_per_round / len(ordered)
        return tuple(name for name, drawn in zip(ordered, draw.tolist(), strict=True) if drawn < probability)
    if noise is None:
        reachable = sorted(ordered if among is None else among)
        return tuple(sorted(drawn_in_secret(reachable, min(len(reachable), federation.clients_per_round))))
    # A place for each client that is accounted for: where one has left, its place may be drawn, and is in no sum.
    clients, asked = noise.accountant.clients, noise.accountant.asked
    places = [*ordered, *[""] * (clients - len(ordered))]
    drawn = each_in_secret(places, asked / clients) if poisson else drawn_in_secret(places, asked)
    return tuple(sorted(name for name in drawn if name))


def noise_source(federation: Federation, round_number: int, client_id: str, *, secret: bool) -> Source:
    """Where the noise of one client in a round comes from.

    Args:
        federation: the rules.
        round_number: the round, from which, the client and the seed it is drawn where it is not secret.
        client_id: the client.
        secret: whether it comes from the system's source of randomness.
    """
    return in_secret if secret else lambda of: generator(federation.seed, of, round_number, client_id)
