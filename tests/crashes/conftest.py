from tests.cli.conftest import _without_pages, florist, process

__all__ = ["_without_pages", "florist", "process"]
