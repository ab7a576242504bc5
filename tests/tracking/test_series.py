from dataclasses import replace

import pytest

from florist.federation.records import ClientRecord, FinalTest
from florist.tracking.series import Totals, values_before, values_of, values_of_test
from tests.stored_runs import record

TOTALS = Totals().followed_by(record(1)).followed_by(record(2))


def client(name: str) -> ClientRecord:
    return ClientRecord(name, 4, 10, 100, 200, 0.5, 1.0)


def test_a_round_has_all_its_numbers_by_name() -> None:
    line = replace(record(2), clients=(client("a"), client("b")), codec_error=0.25, held_back=0.75)
    values = values_of(line, TOTALS)
    assert all(type(value) is float for value in values.values())
    assert {f"eval/{name}" for name in line.metrics} <= values.keys()
    assert {f"seconds/{phase}" for phase in line.seconds} <= values.keys()
    assert values["round/total_rank"] == line.total_rank
    assert (values["round/codec_error"], values["round/held_back"]) == (0.25, 0.75)
    assert (values["round/clients"], values["round/dropped"]) == (2, len(line.dropped))
    assert values["bytes/upload"] == line.upload_bytes
    assert values["bytes/upload_so_far"] == record(1).upload_bytes + record(2).upload_bytes
    assert values["bytes/download_so_far"] == record(1).download_bytes + record(2).download_bytes
    assert (values["client_loss/a"], values["client_loss/b"]) == (0.5, 0.5)
    assert not any(name.startswith("client_loss/") for name in values_of(line, TOTALS, clients=False))


def test_the_base_and_the_final_test_have_names_of_their_own() -> None:
    assert values_before({"loss": 2.0}) == {"eval/loss": 2.0}
    assert values_of_test(FinalTest({"loss": 1.0}, {"loss": True})) == {"test/loss": 1.0}


@pytest.mark.parametrize("name", ["..", "a/../b", "né", "x" * 400, "a b", "a:b"])
def test_a_client_may_have_any_name_and_stays_one_of_its_own(name: str) -> None:
    line = replace(record(1), clients=(client(name), client(f"{name}!"), client("a_b")))
    names = [each for each in values_of(line, Totals()) if each.startswith("client_loss/")]
    assert len(names) == 3
    for each in names:
        _, _, label = each.partition("/")
        assert len(label) <= 120
        assert label.isascii()
        assert label.strip(".")
        assert not set(label) & set("/ :")
