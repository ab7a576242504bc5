"""What is written down of a private round before its sum is there."""

from contextlib import suppress

from florist.errors import ConfigurationError
from florist.federation.private_records import PrivacyRecord
from florist.federation.protections import Masks, Noise
from florist.federation.rules import Federation


def begun_record(
    federation: Federation, round_number: int, masks: Masks | None, noise: Noise | None, clip: float | None
) -> PrivacyRecord:
    """How a round is protected. Where clients add the noise, how large it is follows from who is in the sum.

    Args:
        federation: the rules.
        round_number: the round.
        masks: how updates are summed under masks; None where the server has single ones.
        noise: the noise of the sum; None for none.
        clip: that of the round; None for none.
    """
    masked, threshold = masks is not None, None
    if masks is not None:
        # Of clients that are too few for any round there is none, and a round that fails for it is written down.
        with suppress(ConfigurationError):
            threshold = masks.threshold_of(federation)
    if noise is None or clip is None:
        return PrivacyRecord(masked, threshold, clip=clip, next_clip=clip)
    accountant = noise.accountant
    return PrivacyRecord(
        masked,
        threshold,
        epsilon=accountant.epsilon(round_number),
        delta=accountant.delta,
        noise_multiplier=accountant.noise_multiplier,
        clip=clip,
        next_clip=clip,
        deviation=None if noise.by_clients else noise.multiplier * clip / federation.clients_per_round,
        noise="clients" if noise.by_clients else "server",
        honest_fraction=noise.honest_fraction,
    )
