"""The errors that florist raises.

Every message says what was expected, what came, and what to do next. Each class derives from the builtin that a
caller who does not know florist would catch, too. The command line prints the message on one line and exits with
status 2.

A message quotes what came, and that may come from a stranger: a file, a model hub, a client on the network. Therefore
every message is one line of printable characters, however long or forged what it quotes is.
"""

from collections.abc import Iterable, Sequence

LONGEST_MESSAGE = 900
"""The characters of a message; one that is longer loses its middle, since it ends with what to do."""


def printable(text: str, longest: int = LONGEST_MESSAGE) -> str:
    r"""Foreign text as it may be logged: printable, and so on one line, and not longer than a reader reads.

    Args:
        text: anything.
        longest: the characters of the result.

    >>> printable("q_proj\n[INFO] forged \x1b[31mline")
    'q_proj\\n[INFO] forged \\x1b[31mline'
    >>> printable("a" * 91 + "; do this", longest=60)
    'aaaaaaaaaaaaaaaa ... (of 100 characters) ... aaaaaa; do this'
    """
    if len(text) > 4 * longest:  # what is escaped may be four times as long, and text may be megabytes
        text = _without_middle(text, 4 * longest)
    text = one_line(text)
    return _without_middle(text, longest) if len(text) > longest else text


def one_line(text: str) -> str:
    r"""Foreign text as it may be shown in full: what cannot be printed, line breaks included, is escaped.

    >>> one_line("a name\n\x1b[31m")
    'a name\\n\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def some(parts: Sequence[str], most: int = 5) -> str:
    """The first few of many parts of a message, and how many there are beside.

    >>> some(["a is missing", "b is missing", "c is missing"], most=2)
    'a is missing; b is missing; and 1 more'
    """
    rest = len(parts) - most
    return "; ".join([*parts[:most], *([f"and {rest} more"] if rest > 0 else [])])


def some_of(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: the first few, and how many more there are.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def _without_middle(text: str, longest: int) -> str:
    mark = f" ... (of {len(text)} characters) ... "
    tail = longest // 4
    head = max(0, longest - tail - len(mark))
    return f"{text[:head]}{mark}{text[-tail:]}"


class FloristError(Exception):
    """Florist refuses something; whoever catches this class catches all of its errors.

    >>> from florist import EnergyThreshold, FloristError
    >>> try:
    ...     EnergyThreshold(1.5)
    ... except FloristError as error:
    ...     print(error)
    expected 0 < tau <= 1 (a fraction of the energy to keep), got 1.5
    """

    def __str__(self) -> str:
        """The message on one line. `args` has it as it was given."""
        return printable(super().__str__())


def how_to_install(extras: str) -> str:
    """Say how to install optional dependencies.

    A package index may serve another package under florist's name.

    Args:
        extras: names of extras of pyproject.toml, with commas between them.

    >>> how_to_install("eval")
    'pip install -e ".[eval]" in a clone of florist'
    """
    return f'pip install -e ".[{extras}]" in a clone of florist'


class InvalidAdapterError(FloristError, ValueError):
    """An adapter or a factor is not what PEFT writes: a half is missing, or a rank contradicts the config."""


class UnsupportedAdapterError(FloristError, ValueError):
    """The model of an adapter is not ``base + s B A`` (DoRA, AdaLoRA, ...): its factors alone say too little."""


class IncompatibleAdaptersError(FloristError, ValueError):
    """Adapters that are sound one by one cannot be combined: they have unlike base models, or unlike shapes."""


class NonFiniteUpdateError(FloristError, ValueError):
    """A factor holds NaN or infinity."""


class InvalidUpdateError(FloristError, ValueError):
    """A client's update cannot be counted: it has no examples, is of another round, or was counted before."""


class UnknownCodecError(FloristError, ValueError):
    """A codec is named that this version of florist does not have."""


class ConfigurationError(FloristError, ValueError):
    """Some keys of a configuration are unknown or wrong, or contradict each other; all of them are listed."""


class DataError(FloristError, ValueError):
    """A data file is not what the configuration says it is."""


class ModelError(FloristError, ValueError):
    """A model directory or hub id cannot be loaded, or the model lacks what the configuration asks to train."""


class MissingInputError(FloristError, FileNotFoundError):
    """A file or directory that was named does not exist."""


class UnreadableFileError(FloristError, ValueError):
    """A path leads to no regular file, or to one that is larger than what is expected there."""


class DamagedRunError(FloristError, ValueError):
    """A run directory lacks a file or holds one that cannot be read."""


class OtherVersionError(FloristError, ValueError):
    """Another version of florist wrote it, in a format that this version does not read."""


class OutputExistsError(FloristError, FileExistsError):
    """The output is already there; florist never overwrites."""


class UnwritableOutputError(FloristError, PermissionError):
    """The output cannot be written: its folder may not be written to, or there is no room on the disk."""


class DirectoryInUseError(FloristError, BlockingIOError):
    """Another process is at work in the directory of a run or a comparison."""


class UnsupportedHardwareError(FloristError, RuntimeError):
    """The machine lacks what a setting asks of it, a CUDA device for instance."""


class MissingDependencyError(FloristError, ImportError):
    """The command needs an optional part of florist that is not installed."""


class UploadError(FloristError, ConnectionError):
    """The hub could not be reached, or it refused an upload; what was to be uploaded is on disk."""


class TooFewClientsError(FloristError, TimeoutError):
    """A federation had fewer clients than it needs when the time to wait for them was over."""


class GivenObjectError(FloristError, TypeError):
    """A training loop, a metric or a method that was given from code does not return what it should."""


class WorkerLostError(FloristError, ChildProcessError):
    """A process that did a part of the work was killed from outside."""


class BrokenSharesError(FloristError, ValueError):
    """Shares of a secret do not give it back: one is damaged, or was made for another secret."""


class RosterError(FloristError, ValueError):
    """The clients of a masked round, or their keys, are not such that a client may take part."""


class BelowThresholdError(FloristError, TimeoutError):
    """Too few clients are left to end a masked round, of which nothing can be read then."""
