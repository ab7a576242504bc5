"""Whole numbers of a few bits, side by side in bytes."""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import pad

_GROUP = 8
"""Eight codes of b bits fill b bytes, whatever b is."""


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack_codes(codes: UInt8[Tensor, " count"], bits: int) -> UInt8[Tensor, " packed"]:
    """Write codes below ``2**bits`` side by side, the first in the lowest bits; the last byte is filled with zeros.

    Args:
        codes: one a byte.
        bits: of each, from 1 to 8.

    Cost: 8 bytes of memory a code for 3, 5, 6 and 7 bits; 2 for the others.
    """
    if 8 % bits == 0:
        places = 8 // bits
        grouped = pad(codes, (0, -codes.numel() % places)).view(-1, places)
        packed = grouped[:, 0].clone()
        for place in range(1, places):
            packed |= grouped[:, place] << (place * bits)
        return packed
    groups = pad(codes, (0, -codes.numel() % _GROUP)).view(-1, _GROUP)
    words = (groups.long() << _shifts(bits, codes.device)).sum(dim=1)
    whole = words.view(torch.uint8).view(-1, _GROUP)[:, :bits].reshape(-1)
    return whole[: packed_length(codes.numel(), bits)]


def unpack_codes(packed: UInt8[Tensor, " packed"], bits: int, count: int) -> UInt8[Tensor, " count"]:
    """Read back what `pack_codes` wrote.

    Args:
        packed: as long as `packed_length` says.
        bits: of each code.
        count: of the codes.

    Cost: as `pack_codes`.
    """
    if 8 % bits == 0:
        places = 8 // bits
        codes = torch.stack([(packed >> (place * bits)) & (2**bits - 1) for place in range(places)], dim=1)
        return codes.view(-1)[:count]
    groups = pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    words = pad(groups, (0, _GROUP - bits)).reshape(-1).view(torch.int64)
    codes = (words[:, None] >> _shifts(bits, packed.device)) & (2**bits - 1)
    return codes.view(-1)[:count].to(torch.uint8)


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(_GROUP, device=device) * bits
