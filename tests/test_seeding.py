import torch
from hypothesis import given
from hypothesis import strategies as st

from florist.seeding import derive_seed, generator

purposes = st.lists(st.text(max_size=8) | st.integers(-5, 5), max_size=4)


@given(seed=st.integers(-(2**70), 2**70), purpose=purposes)
def test_a_seed_is_one_that_numpy_and_torch_take(seed: int, purpose: list[str | int]) -> None:
    found = derive_seed(seed, *purpose)
    assert 0 <= found < 2**31
    assert found == derive_seed(seed, *purpose)


def test_seeds_are_the_same_on_every_machine_and_in_every_version() -> None:
    # A change here makes a resumed run differ from an uninterrupted one.
    assert derive_seed(0) == 1751011464
    assert derive_seed(0, "partition") == 769651072
    assert derive_seed(1, "local adapter", 3, "client_0") == 1948830786
    assert derive_seed(7, "é") == 163743288


def test_purposes_are_told_apart() -> None:
    asked: list[tuple[str | int, ...]] = [
        (),
        ("a",),
        ("b",),
        ("a", "b"),
        ("ab",),
        ("a", 1),
        ("a", "1"),
        (1, "a"),
        ("a1",),
    ]
    assert len({derive_seed(seed, *purpose) for seed in (0, 1) for purpose in asked}) == 2 * len(asked)


def test_a_run_asks_for_seeds_that_differ() -> None:
    seeds = [derive_seed(0, "training", number, f"client_{k}") for number in range(20) for k in range(50)]
    assert len(set(seeds)) == len(seeds)


def test_a_generator_draws_the_same_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    drawn = [torch.rand(5, generator=generator(3, "x", 1)) for _ in range(2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], torch.rand(5, generator=generator(3, "x", 2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert generator(3, "x", 1).initial_seed() == derive_seed(3, "x", 1)
