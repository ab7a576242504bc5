from io import StringIO

from rich.console import Console

from florist.cli.progress import module_bar


def shown(*, terminal: bool) -> str:
    stream = StringIO()
    with module_bar(Console(file=stream, force_terminal=terminal, width=100), "aggregating") as on_module:
        for done in range(7):
            on_module(done, 8)
    return stream.getvalue()


def test_a_terminal_shows_how_many_modules_are_done() -> None:
    assert "aggregating" in shown(terminal=True)
    assert "6/8" in shown(terminal=True)


def test_what_is_no_terminal_shows_nothing() -> None:
    assert shown(terminal=False) == ""
