import threading
from collections.abc import Iterator

import pytest
import torch

from florist.linalg.parallel import in_order


@pytest.fixture(params=[1, 2, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order(threads: int) -> None:
    assert list(in_order(lambda i: i * i, range(50))) == [i * i for i in range(50)]
    assert torch.get_num_threads() == threads


def test_each_call_has_its_share_of_the_threads(threads: int) -> None:
    shares = set(in_order(lambda _: torch.get_num_threads(), range(20)))
    assert shares == {{1: 1, 2: 1, 8: 2}[threads]}


def test_calls_overlap() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=20)
    try:
        # Each of a pair waits for the other: one after the other they would wait for ever.
        assert sorted(in_order(lambda _: meeting.wait(), range(2))) == [0, 1]
    finally:
        torch.set_num_threads(before)


def test_an_error_is_raised_and_the_rest_left_out(threads: int) -> None:
    begun: list[int] = []

    def fail_early(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise ValueError("the third")
        return i

    found: list[int] = []
    with pytest.raises(ValueError, match="the third"):
        found.extend(in_order(fail_early, range(5000)))
    assert found == [0, 1, 2]
    assert len(begun) < 5000
    assert torch.get_num_threads() == threads
