import pytest
import torch

from florist.compression.codecs import FloatCodec
from florist.compression.saved import send_parameters
from florist.errors import InvalidUpdateError, NonFiniteUpdateError
from florist.rounds import NOTHING, SavedParameters

HALF = FloatCodec(torch.float16)


def test_changes_below_the_resolution_add_up() -> None:
    value, owed, with_feedback = torch.ones(3), NOTHING, torch.ones(3)
    for _ in range(40):
        value = value + 1e-4  # float16 cannot tell 1.0001 from 1
        sent = send_parameters({"head": value}, owed, HALF, feedback=True)
        with_feedback, owed = sent.decoded["head"], sent.held_back
    assert torch.allclose(with_feedback, value, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_sent_and_kept_is_what_was_due(dtype: torch.dtype) -> None:
    owed: SavedParameters = NOTHING
    before = torch.zeros(4, 5, dtype=torch.float64)
    for number in range(5):
        value = torch.randn(4, 5, generator=torch.Generator().manual_seed(number)).to(dtype)
        sent = send_parameters({"head": value}, owed, HALF, feedback=True)
        assert sent.nbytes == 40
        assert sent.decoded["head"].dtype == dtype
        expected = value.double() + before
        before = sent.held_back["head"].double()
        assert torch.allclose(sent.decoded["head"].double() + before, expected, atol=1e-9)
        owed = sent.held_back


def test_without_feedback_nothing_is_kept() -> None:
    assert not send_parameters({"head": torch.ones(2) / 3}, NOTHING, HALF, feedback=False).held_back


def test_what_does_not_fit_is_refused_by_its_name() -> None:
    with pytest.raises(NonFiniteUpdateError, match="head: expected finite numbers within the range"):
        send_parameters({"head": torch.full((2,), 1e6)}, NOTHING, HALF, feedback=True)


def test_a_residual_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidUpdateError, match=r"head: expected a residual of shape \(2,\), got \(3,\)"):
        send_parameters({"head": torch.ones(2)}, {"head": torch.ones(3)}, HALF, feedback=True)
