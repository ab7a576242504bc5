"""What ``[privacy]`` takes, and what it is refused with: each by the key, with the reason."""

import sys
from pathlib import Path

import pytest

from florist.aggregation import LinearRounds
from florist.config import Config, read_config, to_toml
from florist.config.methods import METHODS
from florist.config.privacy import NOISE_EDGE_MULTIPLE, private_rounds, private_rounds_over_flower
from florist.errors import ConfigurationError, MissingDependencyError
from florist.federation.protections import Masks
from florist.ranks import NoiseEdge, OptimalShrinkage

BASE = '[model]\nname_or_path = "org/model"\n[data]\npath = "rows"\n[lora]\nranks = 8\n'
MASKED = "privacy.secure_aggregation=true"
NOISY = ("privacy.clip=1.0", "privacy.delta=1e-3", "privacy.noise_multiplier=2.0")
LINEAR = "aggregation.method=linear"


def read(folder: Path, *overrides: str) -> Config:
    file = folder / "config.toml"
    file.write_text(BASE)
    return read_config(file, overrides)


def test_nothing_is_protected_by_default(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert not config.privacy.on
    assert private_rounds(config, 10, 10, 8) is None
    assert private_rounds_over_flower(config, 8) is None


def test_masks_and_noise_are_read_and_written(tmp_path: Path) -> None:
    config = read(tmp_path, LINEAR, MASKED, *NOISY, "privacy.threshold=0.8", "privacy.bits=40", "privacy.epsilon=50")
    (tmp_path / "written.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "written.toml") == config
    pytest.importorskip("dp_accounting")
    found = private_rounds(config, 10, 10, 8)
    assert found is not None
    assert found.masks == Masks(bits=40, threshold=0.8)
    assert found.clip == 1.0
    assert found.noise is not None
    assert found.noise.multiplier == 2.0
    assert found.noise.epsilon == 50


def test_clients_add_the_noise_where_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    config = read(tmp_path, LINEAR, MASKED, *NOISY, "privacy.noise=clients", "privacy.honest_fraction=0.7")
    (tmp_path / "written.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "written.toml") == config
    found = private_rounds(config, 10, 10, 8)
    assert found is not None
    assert found.noise is not None
    assert found.noise.honest_fraction == 0.7
    server = private_rounds(read(tmp_path, LINEAR, MASKED, *NOISY), 10, 10, 8)
    assert server is not None
    assert server.noise is not None
    assert not server.noise.by_clients


def test_epsilon_alone_computes_the_noise_for_all_rounds(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    config = read(tmp_path, LINEAR, *NOISY[:2], "privacy.epsilon=5", "federation.rounds=7")
    found = private_rounds(config, 10, 10, 8)
    assert found is not None
    assert found.noise is not None
    assert 4.9 < found.noise.accountant.epsilon(7) <= 5
    assert found.rounds_within(100) == 7


@pytest.mark.parametrize(
    ("edge", "shrinkage"), [("true", None), ("shrunk", OptimalShrinkage(0.2, 8))], ids=["edge", "shrunk"]
)
def test_the_noise_of_a_round_says_what_is_kept_and_with_which_values(
    tmp_path: Path, edge: str, shrinkage: OptimalShrinkage | None
) -> None:
    pytest.importorskip("dp_accounting")
    config = read(tmp_path, LINEAR, *NOISY, f"aggregation.noise_edge={edge}")
    (tmp_path / "written.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "written.toml") == config
    found = private_rounds(config, 10, 10, 8)
    assert found is not None
    assert found.aggregator_at is not None
    assert found.aggregator_at(0.2) == LinearRounds(NoiseEdge(0.2, 8, NOISE_EDGE_MULTIPLE), shrinkage)


@pytest.mark.parametrize(
    ("overrides", "telling"),
    [
        ([LINEAR, "privacy.noise_multiplier=1"], "privacy: noise_multiplier and epsilon need clip and delta"),
        ([LINEAR, "privacy.epsilon=1", "privacy.clip=1"], "need delta"),
        ([LINEAR, MASKED, "privacy.delta=0.01"], r"delta = 0.01: set noise_multiplier or epsilon as well"),
        ([LINEAR, MASKED, "privacy.adaptive_clip=0.5"], r"adaptive_clip = 0.5: set noise_multiplier"),
        ([LINEAR, MASKED, "privacy.sampling=poisson"], "sampling = 'poisson': set noise_multiplier"),
        ([LINEAR, "privacy.clip=1"], r"clip = 1.0 goes with secure_aggregation"),
        ([LINEAR, MASKED, *NOISY, "privacy.sampling=poisson"], "may draw one client, and a masked sum of one client"),
        (
            [LINEAR, MASKED, "privacy.noise=clients", "privacy.honest_fraction=1"],
            "noise = 'clients': set noise_multiplier",
        ),
        (
            [LINEAR, *NOISY, "privacy.noise=clients", "privacy.honest_fraction=1"],
            "set secure_aggregation = true as well",
        ),
        ([LINEAR, MASKED, *NOISY, "privacy.noise=clients"], "expected honest_fraction with noise = 'clients'"),
        ([LINEAR, MASKED, *NOISY, "privacy.honest_fraction=0.9"], "noise = 'server' and honest_fraction = 0.9"),
        ([LINEAR, MASKED, *NOISY, "privacy.noise=clients", "privacy.honest_fraction=0"], r"privacy\.honest_fraction"),
        ([LINEAR, MASKED, *NOISY, "privacy.noise=clients", "privacy.honest_fraction=1.1"], r"privacy\.honest_fraction"),
        ([LINEAR, MASKED, *NOISY, "privacy.noise=nobody"], r"privacy\.noise"),
        ([LINEAR, MASKED, "privacy.threshold=0.5"], r"privacy\.threshold"),
        ([LINEAR, MASKED, "privacy.threshold=1"], r"privacy\.threshold"),
        ([LINEAR, MASKED, "privacy.smallest_group=1"], r"privacy\.smallest_group"),
        ([LINEAR, MASKED, "aggregation.robust=geometric-median"], r"aggregation\.robust = .* weighs single updates"),
        ([LINEAR, MASKED, "guard.smallest_cosine=0"], r"guard\.smallest_cosine = 0.* clipping is the clients'"),
        ([LINEAR, MASKED, "guard.largest_norm=3"], r"guard\.largest_norm = 3.* looks at single updates"),
        ([LINEAR, MASKED, "guard.norm_factor=4.0"], r"guard\.norm_factor = 4.0"),
        ([LINEAR, MASKED, "guard.action=clip"], r"guard\.action = 'clip'"),
        ([LINEAR, MASKED, "communication.upload=int8"], r"communication\.upload = 'int8' rounds after the clip"),
        ([LINEAR, *NOISY, "communication.feedback=true"], r"communication\.feedback = True lets clients add"),
        ([LINEAR, *NOISY, "communication.feedback=clients"], r"communication\.feedback = 'clients'"),
        ([LINEAR, "aggregation.noise_edge=true"], r"aggregation\.noise_edge = true needs noise"),
        ([LINEAR, "aggregation.noise_edge=shrunk"], r"aggregation\.noise_edge = shrunk needs noise"),
        (
            [LINEAR, *NOISY, "aggregation.noise_edge=true", "communication.feedback=server"],
            "has noise of earlier rounds",
        ),
        (
            [LINEAR, *NOISY, "privacy.sampling=poisson", "federation.min_replies=2"],
            r"federation\.min_replies = 2 would show how many",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_would_protect_nothing_is_refused_by_name(tmp_path: Path, overrides: list[str], telling: str) -> None:
    with pytest.raises(ConfigurationError, match=telling):
        read(tmp_path, *overrides)


@pytest.mark.parametrize("overrides", [[MASKED], list(NOISY)], ids=["masked", "noisy"])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in {"linear", "ffa"}])
def test_every_other_method_is_refused_with_its_reason(tmp_path: Path, name: str, overrides: list[str]) -> None:
    method = METHODS[name]
    assert method.not_private is not None
    with pytest.raises(ConfigurationError) as held:
        read(tmp_path, f"aggregation.method={name}", "communication.preset=plain", *overrides)
    assert f"[privacy] does not go with {method.title}: {method.not_private}" in str(held.value)
    assert "choose aggregation.method = 'ffa' or 'linear'" in str(held.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["communication.download=int4", "communication.feedback=server"],
        ["guard.norm_factor=false", "guard.examples_factor=false"],
        ["aggregation.method=ffa"],
        ["federation.early_stopping=2", "data.validation_fraction=0.1"],
    ],
    ids=lambda value: value[0],
)
def test_what_comes_after_the_sum_goes_with_it(tmp_path: Path, overrides: list[str]) -> None:
    assert read(tmp_path, LINEAR, MASKED, *NOISY, *overrides).privacy.on


def test_a_run_that_cannot_afford_a_round_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    config = read(tmp_path, LINEAR, *NOISY, "privacy.epsilon=0.1")
    with pytest.raises(ConfigurationError, match=r"privacy\.epsilon = 0\.1: one round with noise_multiplier = 2\.0"):
        private_rounds(config, 10, 10, 8)
    large = read(tmp_path, LINEAR, *NOISY, "privacy.delta=0.2")
    with pytest.raises(ConfigurationError, match=r"expected 0 < delta < 1/10"):
        private_rounds(large, 10, 10, 8)


@pytest.mark.parametrize(
    ("package", "overrides", "telling"),
    [
        ("cryptography", [MASKED], "needs the package cryptography"),
        ("dp_accounting", list(NOISY), "dp-accounting, and dp_accounting is not installed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, overrides: list[str], telling: str
) -> None:
    config = read(tmp_path, LINEAR, *overrides)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=telling) as held:
        private_rounds(config, 23, 23, 8)
    assert "[privacy]" in str(held.value).rpartition("pip install")[2]


def test_over_flower_draws_are_secret_and_epsilon_is_counted_for_the_clients_that_are_waited_for(
    tmp_path: Path,
) -> None:
    masked = private_rounds_over_flower(read(tmp_path, LINEAR, MASKED), 8)
    assert masked is not None
    assert masked.secret
    with pytest.raises(ConfigurationError, match=r"flower\.min_clients: expected how many clients there are"):
        private_rounds_over_flower(read(tmp_path, LINEAR, *NOISY), 8)
    pytest.importorskip("dp_accounting")
    for given, clients in (("flower.min_clients=40", 40), (f"lora.ranks={[8] * 20}", 20)):
        noisy = private_rounds_over_flower(read(tmp_path, LINEAR, *NOISY, given, "federation.fraction=0.25"), 8)
        assert noisy is not None
        assert noisy.secret
        assert noisy.noise is not None
        assert (noisy.noise.accountant.clients, noisy.noise.accountant.asked) == (clients, clients // 4)
