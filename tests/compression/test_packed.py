import pytest
import torch

from florist.compression.codecs import Codec, IntegerCodec
from florist.compression.packed import PackedAdapter, PackedFactor, packed_factor_bytes
from florist.errors import InvalidUpdateError, NonFiniteUpdateError
from florist.factors import AdapterState
from florist.rounds import Trained
from tests.builders import SHAPES, adapter
from tests.compression.test_codecs import CODECS

NAME = min(SHAPES)


@pytest.mark.parametrize("trained", [Trained.FACTORS, Trained.B, Trained.A], ids=str)
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_halves_that_travel_are_counted_and_come_back(codec: Codec, trained: Trained) -> None:
    sent = adapter(4, 1, dtype=torch.float32)
    packed = PackedAdapter.of(sent, codec, trained)
    assert packed.nbytes == sum(packed_factor_bytes(codec, spec, trained) for spec in sent.specs.values())
    arrived = packed.unpacked(sent)
    for name, factor in sent.items():
        assert arrived.specs[name] == factor.spec
        if Trained.A not in trained:
            assert torch.equal(arrived[name].A, factor.A)
        if Trained.B not in trained:
            assert torch.equal(arrived[name].B, factor.B)


def test_the_module_of_a_number_that_does_not_fit_is_named() -> None:
    sent = adapter(2, 0, dtype=torch.float32)
    sent[NAME].A[0, 0] = torch.inf
    with pytest.raises(NonFiniteUpdateError, match=f"{NAME}: expected finite"):
        PackedAdapter.of(sent, IntegerCodec(4))


def test_the_module_of_a_broken_half_is_named() -> None:
    packed = PackedAdapter.of(adapter(2, 0, dtype=torch.float32), IntegerCodec(4))
    broken = PackedFactor(packed.factors[NAME].shape, 3, packed.factors[NAME].B, packed.factors[NAME].A)
    with pytest.raises(InvalidUpdateError, match=f"{NAME}: expected codes of shape"):
        PackedAdapter(packed.codec, {**packed.factors, NAME: broken}).unpacked()


@pytest.mark.parametrize("known", [None, AdapterState.of({}), adapter(3, 0)], ids=["nothing", "empty", "other rank"])
def test_half_a_factor_needs_the_other(known: AdapterState | None) -> None:
    packed = PackedAdapter.of(adapter(2, 0, dtype=torch.float32), IntegerCodec(8), Trained.B)
    with pytest.raises(InvalidUpdateError, match="expected both halves, or a known factor of rank 2"):
        packed.unpacked(known)
