"""``python -m florist.cli``: the command, where its script is not on the path."""

from florist.cli import main

main()
