import pytest
from hypothesis import given
from hypothesis import strategies as st

from florist.comparison.intervals import estimate
from florist.comparison.summary import Line, Verdict, reference, summarise
from florist.rounds import Trained

from .made import a_round, result


def by_name(lines: list[Line]) -> dict[str, Line]:
    return {line.name: line for line in lines}


def test_differences_are_taken_within_a_seed() -> None:
    # Seeds differ by far more than methods do: unpaired, nothing could be told apart.
    lines = by_name(
        summarise(
            [
                result(name, seed, {"loss": float(seed) + offset + wobble})
                for seed, wobble in enumerate((0.0, 0.001, -0.001))
                for name, offset in (("fedit", 0.1), ("florist", 0.0 - wobble))
            ]
        )
    )
    measured = lines["fedit"].metrics["loss"]
    assert measured.value.half_width is not None
    assert measured.value.half_width > 2
    assert measured.difference == estimate([0.1, 1.101 - 1.0, 2.099 - 2.0])
    assert measured.verdict is Verdict.WORSE
    assert lines["florist"].metrics["loss"].difference is None
    assert lines["florist"].metrics["loss"].verdict is None


def test_two_seeds_give_no_verdict() -> None:
    results = [
        result(name, seed, {"loss": loss}) for seed in (0, 1) for name, loss in (("florist", 1.0), ("fedit", 2.0))
    ]
    assert by_name(summarise(results))["fedit"].metrics["loss"].verdict is None


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        ("loss", -0.5, Verdict.BETTER),
        ("loss", 0.5, Verdict.WORSE),
        ("accuracy", 0.5, Verdict.BETTER),
        ("accuracy", -0.5, Verdict.WORSE),
        ("loss", 0.0, Verdict.TIED),
    ],
)
def test_the_verdict_knows_which_way_is_better(metric: str, shift: float, verdict: Verdict) -> None:
    results = [
        result(name, seed, {metric: 1.0 + offset + 0.01 * seed * offset})
        for seed in range(3)
        for name, offset in (("florist", 0.0), ("flora", shift))
    ]
    assert by_name(summarise(results))["flora"].metrics[metric].verdict is verdict


@pytest.mark.parametrize(
    ("lower", "verdict"), [({"crows/pct": True}, Verdict.WORSE), ({"crows/pct": False}, Verdict.BETTER), ({}, None)]
)
def test_the_direction_is_what_the_run_says_and_not_what_the_name_looks_like(
    lower: dict[str, bool], verdict: Verdict | None
) -> None:
    results = [
        result(name, seed, {"crows/pct": value + 0.01 * seed * value}, lower_is_better=lower)
        for seed in range(3)
        for name, value in (("florist", 0.5), ("flora", 0.7))
    ]
    measured = by_name(summarise(results))["flora"].metrics["crows/pct"]
    assert measured.difference is not None
    assert measured.difference.mean == pytest.approx(0.202)
    assert (measured.lower_is_better, measured.verdict) == (lower.get("crows/pct"), verdict)


def test_runs_that_contradict_each_other_give_no_verdict() -> None:
    results = [
        result(name, seed, {"own/score": float(len(name))}, lower_is_better={"own/score": name == "flora"})
        for seed in range(3)
        for name in ("florist", "flora")
    ]
    assert by_name(summarise(results))["flora"].metrics["own/score"].verdict is None


def test_one_seed_has_a_difference_and_no_verdict() -> None:
    lines = by_name(summarise([result("florist", 0, {"loss": 1.0}), result("flora", 0, {"loss": 0.5})]))
    measured = lines["flora"].metrics["loss"]
    assert measured.difference is not None
    assert (measured.difference.mean, measured.difference.half_width) == (-0.5, None)
    assert measured.verdict is None


def test_failed_runs_count_neither_in_means_nor_in_pairs() -> None:
    lines = by_name(
        summarise(
            [
                result("florist", 0, {"loss": 1.0}),
                result("flora", 0, {"loss": 2.0}),
                result("florist", 1, {"loss": float("nan")}, failure="diverged"),
                result("flora", 1, {"loss": 4.0}),
                result("florist", 2, {"loss": 1.0}),
                result("flora", 2, {"loss": 3.0}),
            ]
        )
    )
    assert (lines["florist"].seeds, lines["florist"].failures) == ((0, 2), {1: "diverged"})
    assert lines["florist"].metrics["loss"].value == estimate([1.0, 1.0])
    assert lines["flora"].metrics["loss"].value == estimate([2.0, 4.0, 3.0])
    assert lines["flora"].metrics["loss"].difference == estimate([1.0, 2.0])


def test_an_entry_whose_runs_all_failed_keeps_its_line() -> None:
    lines = by_name(summarise([result("florist", 0, {"loss": 1.0}), result("flora", 0, {}, failure="no memory")]))
    assert lines["flora"].failures == {0: "no memory"}
    assert lines["flora"].metrics == {}
    assert lines["flora"].total_rank is lines["flora"].upload_bytes is lines["flora"].client_seconds is None


def test_a_reference_that_failed_leaves_the_others_without_differences() -> None:
    lines = by_name(summarise([result("florist", 0, {}, failure="no memory"), result("flora", 0, {"loss": 1.0})]))
    assert lines["flora"].metrics["loss"].value.mean == 1.0
    assert lines["flora"].metrics["loss"].difference is None


def test_costs_of_a_run_and_of_a_client_in_a_round() -> None:
    records = (a_round(1, {}), a_round(2, {"loss": 1.0}, total_rank=20, clients=1, dropped=1))
    (line,) = summarise([result("florist", 0, {"loss": 1.0}, records=records)])
    assert (line.total_rank, line.last_total_rank, line.efficiency) == (15.0, 20.0, 1 / 15)
    assert (line.upload_bytes, line.download_bytes) == (300.0, 200.0)
    assert (line.client_upload_bytes, line.client_download_bytes) == (75.0, 50.0)
    assert (line.server_seconds, line.client_seconds) == (1.0, 9.0)


def test_a_method_that_sends_one_half_is_twice_as_efficient_as_the_paper_counts() -> None:
    lines = by_name(summarise([result("fedit", 0, {}), result("ffa", 0, {}, sent=Trained.B)]))
    assert (lines["fedit"].total_rank, lines["fedit"].efficiency) == (15.0, 1 / 15)
    assert (lines["ffa"].total_rank, lines["ffa"].efficiency) == (15.0, 2 / 15)


def test_rounds_that_changed_nothing_have_no_rank_and_are_counted() -> None:
    records = (a_round(1, {}, total_rank=30), a_round(2, {}, aggregated=False), a_round(3, {"loss": 1.0}))
    (line,) = summarise([result("florist", 0, {"loss": 1.0}, records=records)])
    assert (line.total_rank, line.last_total_rank, line.lost_rounds) == (20.0, 10.0, 1)


def test_a_method_without_ranks_has_none() -> None:
    (line,) = summarise([result("full", 0, {"loss": 1.0}, records=(a_round(1, {"loss": 1.0}, with_ranks=False),))])
    assert line.total_rank is line.last_total_rank is line.efficiency is None


def test_validation_is_summarised_beside_the_test() -> None:
    lines = by_name(
        summarise(
            [
                result(name, seed, {"loss": 1.0}, validation={"loss": value + 0.1 * seed * value})
                for seed in range(3)
                for name, value in (("florist", 2.0), ("flora", 1.0))
            ]
        )
    )
    assert lines["flora"].metrics["loss"].verdict is Verdict.TIED
    assert lines["flora"].validation["loss"].value == estimate([1.0, 1.1, 1.2])
    assert lines["flora"].validation["loss"].difference == estimate([-1.0, 1.1 - 2.2, 1.2 - 2.4])


def test_the_reference_is_florist_or_the_first() -> None:
    assert reference(["fedit", "florist", "flora"]) == "florist"
    assert reference(["fedit", "flora"]) == "fedit"


@given(st.permutations([(name, seed) for name in ("fedit", "florist", "flora") for seed in range(3)]))
def test_the_order_of_the_results_changes_no_number(order: list[tuple[str, int]]) -> None:
    def lines(cells: list[tuple[str, int]]) -> dict[str, Line]:
        return by_name(summarise([result(name, seed, {"loss": len(name) / (seed + 1)}) for name, seed in cells]))

    found, expected = lines(order), lines(sorted(order))
    for name, line in expected.items():
        assert found[name].metrics["loss"].verdict is line.metrics["loss"].verdict
        assert found[name].metrics["loss"].value.mean == pytest.approx(line.metrics["loss"].value.mean)
