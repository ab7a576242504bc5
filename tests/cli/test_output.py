import json

import pytest

from florist.cli.output import Output, plain_table


def printed(capsys: pytest.CaptureFixture[str], *, as_json: bool) -> tuple[str, str]:
    output = Output(as_json=as_json)
    table = plain_table("module", "rank")
    table.add_row("[bold]q:smile:", "3")
    output.status_table(table)
    output.table(table, heading="two columns")
    output.lines("written to [red]", "w" * 200)
    output.note("a note")
    output.document({"loss": float("nan"), "long": "w" * 200})
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, as_json=False)
    assert out.splitlines()[0] == "two columns"
    # A name in brackets or between colons is a name, and a line is not broken.
    assert [line.split() for line in out.splitlines() if "q:smile:" in line] == [["[bold]q:smile:", "3"]]
    assert out.splitlines()[-2:] == ["written to [red]", "w" * 200]
    assert "[bold]q:smile:" in err
    assert err.endswith("note: a note\n")
    assert "NaN" not in out


def test_with_json_a_document_is_all_of_stdout_and_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, as_json=True)
    assert json.loads(out) == {"loss": None, "long": "w" * 200}
    assert out.count("\n") == 1
    assert err == f"written to [red]\n{'w' * 200}\nnote: a note\n"
