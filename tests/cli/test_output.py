import json
from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from florist.cli.output import Output, plain_table
from florist.cli.progress import Progress
from florist.cli.simulate_table import examples_table
from florist.data.partition import LabelCounts

FORGED = "x\x1b[31m\nflorist: ok\ud800"
SHOWN = "x\\x1b[31m\\nflorist: ok\\ud800"


def require_one_line_each(text: str, lines: int) -> None:
    """Nothing but the lines of florist's own, and each of printable characters."""
    assert all(line.isprintable() for line in text.splitlines()), text
    assert not any(line.startswith("florist: ok") for line in text.splitlines()), text
    assert text.count(SHOWN) == lines, text


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


@pytest.mark.parametrize("as_json", [False, True])
def test_no_text_writes_control_characters_or_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    output = Output(as_json=as_json, verbose=True)
    table = plain_table("module", FORGED, Text("held\nback"))
    table.add_row(FORGED, FORGED, Text("3"))
    table.caption = FORGED
    output.table(table, heading=FORGED, gap=True)
    output.lines(FORGED, f"base {FORGED}")
    output.note(FORGED)
    output.detail(FORGED)
    output.document({FORGED: FORGED})
    captured = capsys.readouterr()
    require_one_line_each(captured.err, 4 if as_json else 2)
    if as_json:
        assert json.loads(captured.out) == {FORGED: FORGED}
        assert captured.out[:-1].isprintable()
    else:
        require_one_line_each(captured.out, 7)
        assert captured.out.startswith(f"\n{SHOWN}\n")
        assert "back" in captured.out  # the line break of florist's own head is one
        assert "held\\nback" not in captured.out


def test_no_table_on_stderr_and_no_progress_does_either(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    table = plain_table(FORGED)
    table.add_row(FORGED)
    output.status_table(table)
    with output.progress(FORGED) as progress:
        progress.part(FORGED)
        progress.line(FORGED)
        assert progress.doing() == f"{SHOWN}; {SHOWN}"
    progress.stopped(FORGED)
    require_one_line_each(capsys.readouterr().err, 4)
    stream = StringIO()
    with Progress(Console(file=stream, force_terminal=True, width=200, color_system=None), FORGED) as progress:
        progress.whole(FORGED)
        progress.part(FORGED)
    assert SHOWN in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()


def test_labels_of_the_data_are_shown_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    label = "red\x1b[31m\nok"
    Output(as_json=False).table(examples_table(LabelCounts((label,), (label,), ((3,),))))
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert any(line.startswith("red\\x1b[31m\\nok 3") for line in map(" ".join, map(str.split, out.splitlines())))
