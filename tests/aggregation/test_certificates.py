"""The certified norm and error of every method, against the stored numbers in extended precision, for any spectrum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from florist.aggregation import FedEx, FedIt, FedSvd, FfaLora, FlexLora, Flora, Florist, LinearRounds, RaFlora
from florist.checkpoint import encode, write_adapter
from florist.compression.codecs import Codec, FloatCodec, IntegerCodec
from florist.compression.feedback import Compression, Feedback
from florist.factors import AdapterState, LoraFactor, stack
from florist.one_shot import aggregate
from florist.ranks import EnergyThreshold, FixedRank, GlobalEnergyThreshold, RankRule
from florist.rounds import Aggregator, ClientUpdate
from tests.linalg.matrices import generator, orthonormal

TAUS = (0.5, 0.9, 0.99, 0.999999, 1.0)
LEVELS = tuple(10.0**-power for power in range(1, 13))
HALVES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Spec:
    """A hard module.

    Attributes:
        head: how many singular values are about 1.
        tail: how many are about `level`.
        spare: further components, which leave the product as it is.
        gauge: the scale of B, and of 1 / A.
        balance: the power of S in B: 0 puts all of S into A.
        cancelling: the size, beside the module's own, of terms of two clients that cancel.
    """

    seed: int
    shape: tuple[int, int] = (24, 20)
    head: int = 1
    tail: int = 3
    level: float = 3e-4
    spare: int = 0
    gauge: float = 1.0
    balance: float = 0.5
    scale: float = 1.0
    clients: int = 1
    cancelling: float = 0.0
    dtype: torch.dtype = torch.float32


def updates(spec: Spec) -> list[ClientUpdate]:
    draw, (m, n) = generator(spec.seed), spec.shape
    rank = min(spec.head + spec.tail, m, n)
    S = spec.scale * torch.cat([torch.ones(spec.head), spec.level * 0.5 ** torch.arange(spec.tail)]).double()[:rank]
    U, V = orthonormal(m, rank, draw), orthonormal(n, rank, draw)
    mixed = torch.randn(rank, rank + spec.spare, generator=draw, dtype=torch.float64)
    B = spec.gauge * (U * S**spec.balance) @ mixed
    A = torch.linalg.pinv(mixed) @ (S[:, None] ** (1 - spec.balance) * V.T) / spec.gauge
    whole = LoraFactor(B, A)
    shares = [part.tolist() for part in torch.arange(whole.rank).chunk(spec.clients)]
    factors = [LoraFactor(whole.B[:, share], whole.A[share]) for share in shares]
    if spec.cancelling:
        size = (spec.cancelling * spec.scale) ** 0.5
        left, right = size * orthonormal(m, 2, draw), size * orthonormal(n, 2, draw).T
        factors += [LoraFactor(left, right), LoraFactor(-left, right)]
    return [
        ClientUpdate(f"client_{number}", AdapterState.of({"layer": factor.to(dtype=spec.dtype)}), 1, 1)
        for number, factor in enumerate(factors)
    ]


def product(factors: Sequence[tuple[float, LoraFactor]]) -> np.ndarray:
    """The weighted sum in numpy's longest floating point: 64 bits of mantissa here."""

    def long(tensor: Tensor) -> np.ndarray:
        return tensor.double().numpy().astype(np.longdouble)

    return sum(np.longdouble(weight) * (long(f.B) @ long(f.A)) for weight, f in factors)  # type: ignore[return-value]


def norm(matrix: np.ndarray) -> float:
    return float(np.sqrt(np.square(matrix).sum()))


def require_certified(aggregator: Aggregator, sent: Sequence[ClientUpdate]) -> None:
    broadcast = aggregator(sent)
    module = broadcast.certificate.modules["layer"]
    uploads = [(1 / len(sent), update.adapter["layer"]) for update in sent]
    exact = product(uploads)
    arrived = [(1.0, each["layer"]) for each in (broadcast.shared, broadcast.continued) if "layer" in each]
    error = norm(exact - product(arrived))
    terms = math.hypot(
        *(weight * float(f.B.double().norm() * f.A.double().norm()) for weight, f in (*uploads, *arrived))
    )
    assert module.norm == pytest.approx(norm(exact), rel=1e-3, abs=2e-15 * terms)
    assert module.error == pytest.approx(error, rel=1e-3, abs=2e-15 * terms)
    assert module.energy_kept == (1 - (module.error / module.norm) ** 2 if module.norm else 1)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize(
    ("level", "scale"), [(3e-4, 1.0), (1e-3, 1.0), (2e-7, 14.7)], ids=["error 0", "understated", "overstated"]
)
def test_a_tail_below_the_noise_of_gram_matrices_is_certified(
    level: float, scale: float, tau: float, balance: float
) -> None:
    for seed in range(3):
        spec = Spec(seed, (64, 48), level=level, scale=scale, balance=balance)
        require_certified(Florist(EnergyThreshold(tau)), updates(spec))


def test_no_error_is_certified_as_zero() -> None:
    certificate = Florist(EnergyThreshold(0.9))(updates(Spec(0))).certificate
    assert certificate.relative_error == pytest.approx(3e-4 * (1 + 1 / 4 + 1 / 16) ** 0.5, rel=1e-3)
    assert certificate.modules["layer"].energy_kept < 1


SPECS = st.builds(
    Spec,
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(24, 20), (12, 30), (30, 12), (9, 9)]),
    head=st.integers(1, 4),
    tail=st.integers(1, 6),
    level=st.sampled_from(LEVELS),
    spare=st.sampled_from([0, 0, 4, 30]),
    gauge=st.sampled_from([1.0, 1.0, 1e4, 1e-4]),
    balance=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([1.0, 1.0, 14.7, 1e-20, 1e15]),
    clients=st.integers(1, 4),
    cancelling=st.sampled_from([0.0, 0.0, 1e2, 1e5, 1e9]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]),
)
RULES = st.one_of(
    st.sampled_from(TAUS).map(EnergyThreshold),
    st.sampled_from(TAUS).map(GlobalEnergyThreshold),
    st.integers(1, 4).map(FixedRank),
)


@settings(max_examples=100)
@given(spec=SPECS, rule=RULES)
def test_any_spectrum_is_certified_at_any_threshold(spec: Spec, rule: RankRule) -> None:
    require_certified(Florist(rule), updates(spec))


@pytest.mark.slow
@settings(max_examples=800)
@given(spec=SPECS, rule=RULES)
def test_many_spectra_are_certified(spec: Spec, rule: RankRule) -> None:
    require_certified(Florist(rule), updates(spec))


METHODS = st.sampled_from([FedIt(), FedEx(), FlexLora(2), FlexLora(64), RaFlora(2), RaFlora(64), Flora()])


@settings(max_examples=60)
@given(spec=SPECS, method=METHODS)
def test_any_spectrum_is_certified_by_every_method(spec: Spec, method: Aggregator) -> None:
    require_certified(method, updates(spec))


@pytest.mark.slow
@settings(max_examples=400)
@given(spec=SPECS, method=METHODS)
def test_many_spectra_are_certified_by_every_method(spec: Spec, method: Aggregator) -> None:
    require_certified(method, updates(spec))


@pytest.mark.parametrize("method", [FedIt(), FedEx()], ids=["fedit", "fedex"])
def test_the_rounding_of_halves_that_cancel_is_certified(method: Aggregator) -> None:
    """Clients that cancel leave of a small B little but the rounding of its mean, in float64 as well."""
    spec = Spec(0, head=1, tail=1, level=0.1, gauge=1e-4, balance=0.0, scale=1e15, cancelling=1e9)
    require_certified(method, updates(spec))


def sharing_rows(spec: Spec) -> list[ClientUpdate]:
    """Three clients with the same A; two of them cancel all but the module itself."""
    (update, *_) = updates(spec)
    factor = update.adapter["layer"].to(dtype=torch.float64)
    away = torch.randn(factor.B.shape, generator=generator(spec.seed), dtype=torch.float64)
    away *= spec.cancelling * factor.B.norm() / away.norm()
    halves = [factor.B, away, -away]
    return [
        ClientUpdate(f"client_{k}", AdapterState.of({"layer": LoraFactor(B, factor.A).to(dtype=spec.dtype)}), 1, 1)
        for k, B in enumerate(halves)
    ]


ALONG_ROWS = st.one_of(st.sampled_from([FfaLora(), FedSvd()]), RULES.map(LinearRounds))


@settings(max_examples=40)
@given(spec=SPECS, method=ALONG_ROWS)
def test_any_spectrum_is_certified_along_shared_rows(spec: Spec, method: Aggregator) -> None:
    require_certified(method, sharing_rows(spec))


@pytest.mark.slow
@settings(max_examples=300)
@given(spec=SPECS, method=ALONG_ROWS)
def test_many_spectra_are_certified_along_shared_rows(spec: Spec, method: Aggregator) -> None:
    require_certified(method, sharing_rows(spec))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("spare", [780, 900], ids=["stacked", "dense"])
@pytest.mark.parametrize("level", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("tau", [0.9, 0.999999])
def test_the_randomized_solver_is_certified(spare: int, level: float, tau: float, precision: str) -> None:
    sent = updates(Spec(1, (880, 850), head=20, tail=20, level=level, spare=spare, clients=3))
    exact = sum(update.adapter["layer"].to(dtype=torch.float64).delta_weight() for update in sent) / 3
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        broadcast = Florist(EnergyThreshold(tau))(sent)
    finally:
        torch.set_float32_matmul_precision(before)
    error = float(torch.linalg.norm(exact - broadcast.shared["layer"].to(dtype=torch.float64).delta_weight()))
    assert broadcast.certificate.modules["layer"].error == pytest.approx(error, rel=1e-3, abs=1e-13)


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("tau", TAUS)
def test_what_is_written_is_certified(tau: float, dtype: torch.dtype, tmp_path: Path) -> None:
    for number, update in enumerate(updates(Spec(3, (24, 20), clients=2, tail=5, level=2e-3))):
        (tmp_path / str(number)).mkdir()
        write_adapter(tmp_path / str(number), encode(update.adapter))
    merged = aggregate([tmp_path / "0", tmp_path / "1"], rank_rule=EnergyThreshold(tau))
    sent = [(0.5, update.adapter["layer"]) for update in merged.inputs.updates]
    for cut, folder in ((merged, "whole"), (merged.leading({"layer": 2}), "cut")):
        module = cut.write(tmp_path / folder, dtype=dtype)["modules"]["layer"]
        truth = norm(product(sent) - product([(1.0, cut.adapter["layer"].to(dtype=dtype))]))
        assert module["error"] == pytest.approx(truth, rel=1e-3, abs=1e-15)
        assert module["energy_kept"] == 1 - (module["error"] / module["norm"]) ** 2
        assert module["storage_error"] <= module["error"] * (1 + 1e-3)


@settings(max_examples=50)
@given(
    spec=SPECS,
    codec=st.sampled_from([FloatCodec(), FloatCodec(torch.float16), IntegerCodec(8), IntegerCodec(4)]),
    rule=RULES,
    feedback=st.sampled_from([None, Feedback(0.5), Feedback(2.0)]),
)
def test_what_travels_through_a_codec_is_accounted_for(
    spec: Spec, codec: Codec, rule: RankRule, feedback: Feedback | None
) -> None:
    assume(spec.scale < 1e4 or not isinstance(codec, FloatCodec) or codec == FloatCodec())  # beyond float16 otherwise
    sent = updates(spec)
    due = AdapterState.of({"layer": stack([u.adapter["layer"].to(dtype=torch.float64) for u in sent])})
    outcome = Compression(codec, rule, feedback)(due)
    account, exact = outcome.accounts["layer"], product([(1.0, due["layer"])])
    gone = exact - product([(1.0, outcome.decoded["layer"])])
    held = [(1.0, outcome.held_back["layer"])] if outcome.held_back else []
    terms = math.hypot(*(float(f.B.double().norm() * f.A.double().norm()) for f in (u.adapter["layer"] for u in sent)))
    assert account.due == pytest.approx(norm(exact), rel=1e-3, abs=2e-15 * terms)
    # The parts are added as if they were orthogonal, which is quite so for a cut and about so for a rounding.
    found = math.hypot(account.held_back, account.let_go)
    assert found == pytest.approx(norm(gone), rel=0.3 if isinstance(codec, IntegerCodec) else 0.1, abs=2e-15 * terms)
    if held:
        assert account.held_back == pytest.approx(norm(product(held)), rel=1e-2, abs=2e-15 * terms)
