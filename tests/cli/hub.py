"""What stands for the hub in tests."""

from pathlib import Path
from typing import Any


class Hub:
    """Stands for the hub: it keeps what it is asked for."""

    error: Exception | None = None
    unreachable: Exception | None = None
    asked: list[tuple[Any, ...]]

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        if self.error is not None:
            raise self.error
        self.asked = [(repo_id, private, exist_ok)]
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.asked.append((repo_id, sorted(file.name for file in folder_path.iterdir())))

    def answer(self, url: str, timeout: float) -> None:
        """What asking for a file ends with."""
        assert timeout <= 10
        if self.unreachable is not None:
            raise self.unreachable
