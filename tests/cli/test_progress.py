from io import StringIO

from rich.console import Console

from florist.cli.progress import Progress


def shown(*, terminal: bool) -> str:
    stream = StringIO()
    with Progress(Console(file=stream, force_terminal=terminal, width=100), "modules of [bold] 3") as progress:
        for done in range(7):
            progress.count(done, 8)
        progress.part("loading")
        progress.part("[red] trains", 3, 25)
        progress.part("[red] trains", 4, 25)
    return stream.getvalue()


def test_a_terminal_shows_how_much_of_the_whole_and_of_a_part_is_done() -> None:
    text = shown(terminal=True)
    # A name in brackets is a name.
    for expected in ("modules of [bold] 3", "6/8", "[red] trains", "4/25"):
        assert expected in text


def test_a_part_of_unknown_length_does_not_keep_the_length_of_the_one_before() -> None:
    stream = StringIO()
    with Progress(Console(file=stream, force_terminal=True, width=100), "rounds") as progress:
        progress.part("client_1 trains", 25, 25)
        progress.part("evaluating")
    assert "0/?" in stream.getvalue().rpartition("evaluating")[2]


def test_what_is_no_terminal_shows_lines_alone() -> None:
    assert shown(terminal=False) == ""
    stream = StringIO()
    with Progress(Console(file=stream, width=10), "rounds") as progress:
        progress.count(1, 2)
        progress.line("round 1: loss 1.000, total rank 10")
    assert stream.getvalue() == "round 1: loss 1.000, total rank 10\n"
