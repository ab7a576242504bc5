"""What florist refuses, and why.

Every message says what was expected, what came, and what to do next. Each class is also the builtin that a caller
who does not know florist would catch. The command line prints the message on one line and exits with status 2.
"""


class FloristError(Exception):
    """Anything that florist refuses; catch this to catch all of them."""


class InvalidAdapterError(FloristError, ValueError):
    """An adapter or factor is not what PEFT writes: a missing half, a rank that contradicts the config."""


class UnsupportedAdapterError(FloristError, ValueError):
    """An adapter whose update is not ``base + s B A`` (DoRA, AdaLoRA, ...): its factors alone say too little."""


class IncompatibleAdaptersError(FloristError, ValueError):
    """Adapters that are sound one by one and cannot be combined: another base model, another shape."""


class NonFiniteUpdateError(FloristError, ValueError):
    """A factor holds NaN or infinity."""


class InvalidUpdateError(FloristError, ValueError):
    """A client's update cannot be counted: no examples, the wrong round, counted before."""


class ConfigurationError(FloristError, ValueError):
    """One or more configuration keys are unknown, wrong, or contradict each other; all of them are listed."""


class DataError(FloristError, ValueError):
    """A data file is not what the configuration says it is."""


class ModelError(FloristError, ValueError):
    """A model directory or hub id cannot be loaded, or the model lacks what the configuration asks to train."""


class MissingInputError(FloristError, FileNotFoundError):
    """A file or directory that was named does not exist."""


class DamagedRunError(FloristError, ValueError):
    """A run directory lacks a file or holds one that cannot be read."""


class OtherVersionError(FloristError, ValueError):
    """Another version of florist wrote it, in a format that this version does not read."""


class OutputExistsError(FloristError, FileExistsError):
    """The output is already there; florist never overwrites."""


class UnwritableOutputError(FloristError, PermissionError):
    """The folder for the output may not be written to."""


class DirectoryInUseError(FloristError, BlockingIOError):
    """Another process is at work in the directory of a run or a comparison."""


class UnsupportedHardwareError(FloristError, RuntimeError):
    """The machine lacks what a setting asks of it, a CUDA device for instance."""


class MissingDependencyError(FloristError, ImportError):
    """The command needs an optional part of florist that is not installed."""


class TooFewClientsError(FloristError, TimeoutError):
    """A federation did not come together in time."""


class WorkerLostError(FloristError, ChildProcessError):
    """A process that did part of the work was killed from outside."""
