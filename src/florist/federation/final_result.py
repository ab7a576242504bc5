"""What is written at the end of a run, its test and its adapter, and how both are known to be as they were written."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from florist.checkpoint.reading import CONFIG_NAME, WEIGHTS_NAME
from florist.errors import DamagedRunError, MissingInputError, OutputExistsError
from florist.federation.damage import DamagedFileError, checked_file, errors_as_damage
from florist.federation.last_round import LastRound
from florist.federation.records import FinalTest
from florist.federation.state_folder import StateFolder
from florist.files import strict_json
from florist.files.outputs import remove, replace_file
from florist.files.reading import read_bytes, sha256
from florist.one_shot.certificate import CERTIFICATE_NAME

_TEST_NAME = "test.json"
_ADAPTER = tuple(f"adapter/{name}" for name in (WEIGHTS_NAME, CONFIG_NAME, CERTIFICATE_NAME))
"""The files of the final adapter that are known by their hashes. Its card and its tokenizer may be edited."""
_AGAIN = "what the end of the run writes there is made again from its state, and nothing was changed"
_TEST = TypeAdapter(FinalTest)


@dataclass(frozen=True, slots=True)
class FinalResult:
    """The end of a run. What is missing or damaged of it can be made again from the state after the last round.

    Attributes:
        run: the directory of the run.
    """

    run: Path

    @property
    def adapter(self) -> Path:
        """Where the final adapter is, once a run has ended of which a round was aggregated."""
        return self.run / "adapter"

    @property
    def test(self) -> FinalTest | None:
        """Metrics that only the final adapter has; None where there are none, not yet, or not as they were written.

        Raises:
            DamagedRunError: test.json cannot be read.
        """
        with errors_as_damage(self.run):
            if not self.has_test:
                return None
            return _TEST.validate_python(strict_json.decode(read_bytes(self.run / _TEST_NAME, 1 << 26)))

    def require_adapter(self) -> Path:
        """The directory of the final adapter, which is as it was written.

        A server over Flower writes down no hashes of its adapter, which is taken as it is.

        Raises:
            MissingInputError: the run has none yet.
            DamagedRunError: it is damaged, or the pointer of the run cannot be read.

        Cost: the adapter is read once.
        """
        last = self._last_round()
        names = [name for name in _ADAPTER if name in last.result]
        if not names and self.adapter.is_dir():
            return self.adapter
        if not names:
            raise MissingInputError(
                f"expected a run that has ended, and {self.run} has no final adapter yet: "
                f"florist simulate --resume {self.run}"
            )
        try:
            for name in names:
                checked_file(self.run, name, last.result)
        except DamagedFileError as damage:
            raise DamagedRunError(
                f"expected the final adapter of {self.run} as it was written, and {damage}; make it again: "
                f"florist simulate --resume {self.run}"
            ) from damage
        return self.adapter

    def require_place(self) -> None:
        """Check that the end of the run can be written, before anything is done for it.

        Raises:
            OutputExistsError: something that florist did not write is in its place.
        """
        adapter, test = self.adapter, self.run / _TEST_NAME
        if (adapter.is_symlink() or adapter.exists()) and not adapter.is_dir():
            raise OutputExistsError(f"remove {adapter}, which is no directory of florist's, and resume: {_AGAIN}")
        if test.is_dir() and not test.is_symlink():
            raise OutputExistsError(f"remove {test}, which is no file of florist's, and resume: {_AGAIN}")

    def save_test(self, test: FinalTest) -> None:
        """Make the metrics of the final adapter permanent."""
        replace_file(self.run / _TEST_NAME, strict_json.encode(asdict(test), indent=2) + "\n")
        self._record([_TEST_NAME])

    def record_adapter(self) -> None:
        """Write down the hashes of the final adapter, by which it will be known.

        Cost: it is read once.
        """
        self._record([name for name in _ADAPTER if (self.run / name).is_file()])

    @property
    def flushed(self) -> bool | None:
        """Whether the final adapter has what the server held back, as its certificate says; None where nobody knows.

        Cost: the adapter is read once.
        """
        if not self.has_adapter or f"adapter/{CERTIFICATE_NAME}" not in self._last_round().result:
            return None
        with errors_as_damage(self.run):
            found = strict_json.decode(read_bytes(self.adapter / CERTIFICATE_NAME, 1 << 26))
        said = found.get("flushed") if isinstance(found, dict) else None
        return said if isinstance(said, bool) else None

    @property
    def has_test(self) -> bool:
        """Whether the metrics of the final adapter are there as they were written."""
        return self._is_whole([_TEST_NAME])

    @property
    def has_adapter(self) -> bool:
        """Whether the final adapter is there as it was written, and was written to its end.

        Cost: it is read once.
        """
        last = self._last_round()
        names = [name for name in _ADAPTER if name in last.result]
        return bool(names) and self._is_whole(names)

    @property
    def is_whole(self) -> bool:
        """Whether the run has ended with a final adapter, and all of its result is as it was written.

        Cost: the adapter is read once.
        """
        return any(name in self._last_round().result for name in _ADAPTER) and self.damage() is None

    def damage(self) -> str | None:
        """What of the result is missing or not as it was written; None where it is whole, or not yet there.

        Cost: the final adapter is read once.
        """
        last = self._last_round()
        try:
            for name in last.result:
                checked_file(self.run, name, last.result)
        except DamagedFileError as damage:
            return str(damage)
        return None

    def set_aside(self, round_number: int) -> None:
        """Rename the final adapter and its metrics, where there are any, after the round that they are of.

        A run that has ended and is to go on would otherwise be taken for one that is over. An earlier adapter of that
        round makes room: it differs in what the server holds back alone, and can be written again. One that is damaged
        is not kept.
        """
        last, damaged = self._last_round(), self.damage() is not None
        if last.result:
            self._state.make_current(replace(last, result={}))
        if damaged:
            remove(self.run / _TEST_NAME)
            remove(self.adapter)
        if (self.run / _TEST_NAME).exists():
            (self.run / _TEST_NAME).replace(self.run / f"test-round-{round_number:04d}.json")
        if self.adapter.exists():
            aside = self.run / f"adapter-round-{round_number:04d}"
            remove(aside)
            self.adapter.rename(aside)

    def _record(self, names: Collection[str]) -> None:
        last = self._last_round()
        with errors_as_damage(self.run):
            found = {name: sha256(self.run / name) for name in names}
        self._state.make_current(replace(last, result={**last.result, **found}))

    def _is_whole(self, names: Collection[str]) -> bool:
        last = self._last_round()
        try:
            for name in names:
                checked_file(self.run, name, last.result)
        except DamagedFileError:
            return False
        return True

    @property
    def _state(self) -> StateFolder:
        return StateFolder(self.run / "state")

    def _last_round(self) -> LastRound:
        with errors_as_damage(self.run):
            return self._state.last_round()
