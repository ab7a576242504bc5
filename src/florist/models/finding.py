"""Whether a base model is in the local cache of the hub or at the hub, without minutes of retries."""

from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from florist.errors import ModelError

TIMEOUT = 5.0
"""How many seconds the hub has to answer."""


def cached(name_or_path: str) -> Path | None:
    """The directory in the local cache of the hub with at least the configuration of a model; None if there is none.

    The network is not asked.

    Raises:
        ModelError: The name is neither a directory nor a hub id.
    """
    try:
        validate_repo_id(name_or_path)
    except HFValidationError as error:
        raise _missing(name_or_path, "it cannot be a hub id either, which looks like organisation/name") from error
    config = try_to_load_from_cache(name_or_path, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def require_at_hub(name: str) -> None:
    """Ask the hub once, for `TIMEOUT` seconds, whether it has a model.

    Raises:
        ModelError: The hub has no such model or cannot be reached, or ``HF_HUB_OFFLINE`` forbids to ask.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=TIMEOUT)
    except EntryNotFoundError:
        return  # there is such a repository: what it lacks, transformers says
    except OfflineModeIsEnabled as error:
        raise _missing(name, "nor is it whole in the local cache of the hub, and HF_HUB_OFFLINE is set") from error
    except RepositoryNotFoundError as error:
        raise _missing(name, "the hub has no such model, or only for those who log in by `hf auth login`") from error
    except Exception as error:  # the HTTP client has errors of its own, and is another one from version to version
        reason = " ".join(str(error).split())
        raise _missing(
            name,
            f"nor is it whole in the local cache, and the hub cannot be reached ({reason}); on a machine that "
            f"reaches it, run `hf download {name}`",
        ) from error


def _missing(name_or_path: str, why: str) -> ModelError:
    return ModelError(
        f"[model] name_or_path = {name_or_path!r}: expected a transformers model, got no such directory or hub id: "
        f"{why}"
    )
