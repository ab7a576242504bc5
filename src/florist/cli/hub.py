"""Uploading a directory to the Hugging Face hub."""

import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from florist.errors import ConfigurationError, MissingDependencyError, UploadError

_TIMEOUT = 5.0
"""How many seconds the hub has to answer."""

_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


PushToHub = Annotated[
    str | None, typer.Option(metavar="REPO_ID", help="Upload the directory to this repository of the hub as well.")
]
Private = Annotated[
    bool, typer.Option("--private", help="With --push-to-hub: a repository that is created is private.")
]


def require_hub(repo_id: str | None, *, private: bool) -> None:
    """Check what can be checked before an upload.

    Args:
        repo_id: the repository; None where nothing is uploaded.
        private: whether a repository that is created is to be private.

    Raises:
        ConfigurationError: the name is none of a repository, or there is none that could be private.
        MissingDependencyError: huggingface_hub is not installed.
    """
    if repo_id is None:
        if private:
            raise ConfigurationError("--private is for --push-to-hub REPO_ID: add that, or leave --private out")
        return
    if not _REPO_ID.fullmatch(repo_id):
        raise ConfigurationError(f"expected --push-to-hub as organisation/name, got {repo_id!r}")
    if find_spec("huggingface_hub") is None:
        raise MissingDependencyError(
            "--push-to-hub uploads with huggingface_hub, which is not installed: pip install -e '.[train]' in a clone "
            "of florist"
        )


def push(directory: Path, repo_id: str, *, private: bool) -> str:
    """Upload a directory, into a repository that is created if it is not there; return its address.

    Args:
        directory: what to upload.
        repo_id: the repository, as ``organisation/name``.
        private: whether a repository that is created is private.

    Raises:
        UploadError: the hub cannot be reached, or it refuses, for want of a token for instance.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415  # optional

    api = HfApi()
    try:
        _require_answer(repo_id)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Upload an adapter made by florist")
    except Exception as error:  # the HTTP client has errors of its own, and is another one from version to version
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UploadError(
            f"the adapter is in {directory}, and uploading it to {repo_id} failed: {reason}; see that the hub can be "
            f"reached and that you are logged in (hf auth login), then run: hf upload {repo_id} {directory}"
        ) from error
    return str(address)


def _require_answer(repo_id: str) -> None:
    """Ask the hub for anything at all: the requests of an upload would wait for minutes, or for ever.

    Raises:
        Exception: the hub does not answer within seconds, whatever the HTTP client calls that.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415  # optional
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    with suppress(HfHubHTTPError):  # there need not be such a repository yet: this is an answer
        get_hf_file_metadata(hf_hub_url(repo_id, "README.md"), timeout=_TIMEOUT)
