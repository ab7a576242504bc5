"""The communication efficiency of the FLoRIST paper."""

from florist.rounds import Trained


def communication_efficiency(total_rank: float, sent: Trained) -> float | None:
    """1 / total rank of what the server sends, with the ranks of B and of A counted apart, as a half each.

    Where both halves of the factors travel, that is 1 / the sum of the ranks of all modules. FFA-LoRA sends B alone and
    is twice as efficient at the same rank.

    Args:
        total_rank: the sum of the ranks of all modules of a broadcast.
        sent: the halves of the factors that travel.

    Returns:
        None where no factors travel, or factors of rank 0.

    Source: FLoRIST, arXiv:2506.09199, which prints it times 1e4, and its published code.
    """
    halves = (Trained.B in sent) + (Trained.A in sent)
    return 2 / (halves * total_rank) if halves and total_rank else None
