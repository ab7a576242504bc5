"""TensorBoard: event files in the directory of the run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from florist.tracking.tracker import Place, TrackedRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""In the directory of the run, so that ``tensorboard --logdir runs`` shows all runs under their names."""


class TensorBoard:
    """A run in TensorBoard."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    @classmethod
    def open(cls, run: TrackedRun, place: Place) -> "TensorBoard":
        """Begin an event file; what earlier files have from `run.next_step` on no longer counts for TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # imports tensorboard
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

        writer = SummaryWriter(str(run.path / FOLDER), purge_step=run.next_step)
        if not place:
            # `SummaryWriter.add_hparams` would write them into a run of their own.
            for summary in hparams(dict(run.hyperparameters), {}):
                writer._get_file_writer().add_summary(summary)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            writer.add_text("configuration", "\n".join(f"    {k} = {v}" for k, v in run.hyperparameters.items()), 0)
        return cls(writer)

    @property
    def place(self) -> Place:
        """The folder is always the same."""
        return {"folder": FOLDER}

    def last_step(self) -> int | None:
        """Not asked: steps that were logged twice are purged as the file is opened."""
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar in float32 for each value; they are on disk when this returns."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def summarise(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar for each value."""
        self.log(step, values)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002  # TensorBoard knows no end of a run
        """Close the file."""
        self._writer.close()
