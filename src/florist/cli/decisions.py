"""What a command decided and why, in lines for ``--verbose``."""

from collections.abc import Iterator

from florist.config.sections import Config
from florist.federation.records import ClientRecord, RoundRecord

_SECTIONS = ("training", "federation", "aggregation", "communication", "evaluation")
_BY_SESSION = {"threads"}  # `threads_chosen` says how many


def decisions(config: Config) -> list[str]:
    """The settings that a run goes by, those of defaults and presets included: a line a section."""
    return [f"[{name}] {', '.join(_settings(config, name))}" for name in _sections(config)]


def threads_chosen(threads: int, config: Config) -> str:
    """How many threads torch uses, and why."""
    if config.training.threads is not None:
        return f"{threads} torch threads, as [training] threads says"
    return f"{threads} torch threads, the faster of one and all at the beginning, or 1 with `compare --jobs`"


def clients_of(record: RoundRecord) -> list[str]:
    """A line for every client of a round: those that count, and those that do not with the reason."""
    lines = [
        f"round {record.round}, {client.client_id}: rank {client.rank}, {_told(client)}"
        f"{client.upload_bytes / 1e3:.1f} KB up, {client.download_bytes / 1e3:.1f} KB down, "
        f"{client.seconds:.1f} s" + (f", holds back a norm of {client.held_back:.3g}" if client.held_back else "")
        for client in record.clients
    ]
    lines += [f"round {record.round}, {drop.client_id}: dropped: {drop.reason}" for drop in record.dropped]
    return lines + [f"round {record.round}, {clip.client_id}: scaled down: {clip.reason}" for clip in record.clipped]


def _told(client: ClientRecord) -> str:
    """What a client tells beside its update, which in a private round is nothing."""
    return f"{client.num_examples} examples, training loss {client.loss:.3f}, " if client.num_examples else ""


def _sections(config: Config) -> tuple[str, ...]:
    return (*_SECTIONS, "privacy") if config.privacy.on else _SECTIONS


def _settings(config: Config, section: str) -> Iterator[str]:
    for key, value in getattr(config, section).model_dump(mode="json", exclude_none=True).items():
        if key not in _BY_SESSION:
            yield f"{key} = {value}"
