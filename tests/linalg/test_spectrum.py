import pytest
import torch

from florist.linalg.spectrum import Spectrum, rank_holding


@pytest.mark.parametrize(
    ("squares", "energy", "expected"),
    [
        ([8.0, 1.0, 1.0], 0.8, 1),
        ([8.0, 1.0, 1.0], 0.81, 2),
        ([8.0, 1.0, 1.0], 1.0, 3),
        ([1.0, 1e-13, 1e-17], 1.0, 2),
        ([0.0, 0.0], 1.0, 0),
        ([0.0, 0.0], 0.9, 0),
        ([], 0.9, 0),
    ],
)
def test_rank_holding_is_the_smallest_that_will_do(squares: list[float], energy: float, expected: int) -> None:
    values = torch.tensor(squares, dtype=torch.float64)
    assert rank_holding(values, energy=energy, total_energy=sum(squares), resolution=1e-8) == expected


def test_energy_that_is_not_in_the_spectrum_counts() -> None:
    # Half of the energy is in a tail that was never decomposed: 0.6 of the whole is more than all that is held.
    squares = torch.tensor([3.0, 2.0], dtype=torch.float64)
    assert rank_holding(squares, energy=0.3, total_energy=10.0, resolution=1e-8) == 1
    assert rank_holding(squares, energy=0.6, total_energy=10.0, resolution=1e-8) == 2


def test_leading_values_keep_the_energy_of_the_rest() -> None:
    whole = Spectrum(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), 1e-8, (5, 4), tail_energy=0.5)
    cut = whole.leading(1)
    assert (cut.S.tolist(), cut.tail_energy, cut.total_energy) == ([3.0], 5.5, 14.5)
    assert (cut.shape, cut.resolution, cut.numerical_rank) == ((5, 4), 1e-8, 1)
    assert cut.rank_holding(0.5) == whole.rank_holding(0.5) == 1


def test_in_trailing_values_the_noise_stays_where_it_was() -> None:
    whole = Spectrum(torch.tensor([8.0, 4.0, 2.0, 1e-3], dtype=torch.float64), 1e-3, (5, 4), tail_energy=0.5)
    cut = whole.trailing(1)
    assert (cut.S.tolist(), cut.tail_energy, cut.shape) == ([4.0, 2.0, 1e-3], 0.5, (5, 4))
    assert cut.resolution * float(cut.S[0]) == whole.resolution * float(whole.S[0])
    assert cut.numerical_rank == whole.numerical_rank - 1 == 2
    assert whole.trailing(4).numerical_rank == 0
