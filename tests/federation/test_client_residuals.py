import pytest
import torch

from florist.compression.residual import NOTHING_OWED, Residual
from florist.federation.client_residuals import ClientResiduals
from florist.rounds import NO_ADAPTER
from tests.builders import adapter


def residual(seed: int) -> Residual:
    return Residual(adapter(2, seed))


def test_a_client_that_has_not_uploaded_holds_back_nothing() -> None:
    assert ClientResiduals().of("client_0") is NOTHING_OWED
    assert not NOTHING_OWED


def test_who_took_part_has_what_it_holds_back_now_and_the_others_what_they_had() -> None:
    first, second, third = residual(1), residual(2), residual(3)
    before = ClientResiduals().followed_by(1, {"b": first, "a": second})
    after = before.followed_by(2, {"a": third})
    assert (list(after), after["a"], after["b"], after.rounds) == (["a", "b"], third, first, {"a": 2, "b": 1})
    assert (before["a"], before.rounds) == (second, {"a": 1, "b": 1})


def test_who_holds_back_nothing_any_more_is_left_out() -> None:
    before = ClientResiduals().followed_by(1, {"a": residual(1), "b": residual(2)})
    after = before.followed_by(2, {"a": NOTHING_OWED})
    assert (list(after), after.rounds, len(after)) == (["b"], {"b": 1}, 1)
    assert after.of("a") is NOTHING_OWED


def test_the_norm_is_that_of_all_products_together() -> None:
    held = adapter(3, 1)
    expected = sum(float(factor.delta_weight().norm()) ** 2 for factor in held.values()) ** 0.5
    assert Residual(held).norm == pytest.approx(expected, rel=1e-12)
    assert Residual(NO_ADAPTER, {"head": torch.ones(2)}).norm == 0
    assert Residual(NO_ADAPTER, {"head": torch.ones(2)})
