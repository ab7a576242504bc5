"""The directory of a run: its configuration, the server's state after the last round, and the record of every round.

    RUN/config.toml          the whole configuration, defaults included, that the run goes on with
    RUN/begun.toml           the configuration that the run was begun with
    RUN/run.json             format, version, method, threads, metrics before the first round
    RUN/rounds.jsonl         one record a round
    RUN/examples.json        how many training examples of which label each client has, where examples have labels
    RUN/report.html          the page that `florist report` makes of all this
    RUN/state/current.json   the last whole round: its number, who holds what, which broadcasts are kept, its record,
                             and the SHA-256 of all files that the run is read from (`last_round`), those above
                             included (`own_files`)
    RUN/state/round-0003/    the tensors of round 3: broadcast.safetensors, as long as a client may lack it; and of the
                             last round cumulative.safetensors (all that was ever added), continued.safetensors,
                             saved_parameters.safetensors, and what the server holds back: owed.safetensors and
                             owed_parameters.safetensors. What clients hold back is in owed-by-ID.safetensors and
                             owed-parameters-by-ID.safetensors of the last round that changed it, where ID is a hash of
                             the client's name. What a codec packed is written as it is sent.
    RUN/.lock                held by the process that plays the rounds, which RUN/.lock-holder names
    RUN/tracking.json        which trackers were told of which rounds, where a run is tracked (`tracking.bookmark`)
    RUN/test.json            metrics that only the final adapter has, and which way each gets better
    RUN/adapter/             the final adapter, as PEFT writes it, with a model card, a certificate (florist.json) and
                             the tokenizer of the base; none where no round had enough usable updates
    RUN/adapter-round-0003/  the adapter of a run that had ended after round 3 and went on, or was written with
                             or without what the server holds back; its test is beside it

Where the best round is kept, its folder has the files of the last round too. Where all rounds are kept
(`kept_rounds.KeepRounds`), each folder has its broadcast, its continued.safetensors and its
saved_parameters.safetensors for good, and what the server held back if that is kept too.

A round becomes visible by one replacement of ``state/current.json``, after its tensors are on disk; its line in
``rounds.jsonl`` follows, and then what nobody needs any more is removed. A run that is killed at any point resumes from
the last whole round: ``current.json`` holds the last line of ``rounds.jsonl`` and says where it begins, so that a line
which is missing or was to be replaced is written.

Anything else that differs from what was written is refused before it is used, and nothing is changed then: a run
without ``current.json``, a line too few or too many, a tensor file with another bit, a ``begun.toml`` that was edited.
A ``config.toml`` that was edited is refused by whoever reads it as the configuration of the rounds that were played; a
resumption takes it over as far as `config.resuming` allows, and says so. What was written at the end of a run, the
final adapter and its test, is made again from the state where it is missing or damaged.

A number that is not finite is null in these files (`strict_json`).
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from florist.data.partition import LabelCounts
from florist.errors import MissingInputError
from florist.federation.client_residuals import ClientResiduals
from florist.federation.damage import damaged_run, errors_as_damage
from florist.federation.final_result import FinalResult
from florist.federation.kept_rounds import KeptRounds
from florist.federation.last_round import LastRound
from florist.federation.own_files import ALWAYS_READ, BEGUN, CONFIG, EXAMPLES, OwnFiles
from florist.federation.records import FinalTest, RoundRecord
from florist.federation.round_lines import RoundLines
from florist.federation.run_facts import RunFacts, facts_document, read_facts
from florist.federation.run_format import FACTS, require_format
from florist.federation.state import ServerState
from florist.federation.state_folder import StateFolder
from florist.files import strict_json
from florist.files.outputs import new_directory, remove_drafts
from florist.files.reading import read_bytes, require_regular

_EXAMPLES = TypeAdapter(LabelCounts)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run on disk; `create` begins one and `open` finds one."""

    path: Path

    @classmethod
    def create(
        cls, path: Path, config_toml: str, facts: RunFacts, examples: LabelCounts | None = None
    ) -> "RunDirectory":
        """Start a run directory, whole or not at all.

        Args:
            path: where.
            config_toml: the configuration that the run is begun with; empty where there is none.
            facts: what the run needs to know of itself beside.
            examples: how many training examples of which label each client has, where that is known.

        Raises:
            OutputExistsError, UnwritableOutputError: as `outputs.require_absent`.
        """
        with new_directory(path) as draft:
            contents = {CONFIG: config_toml, BEGUN: config_toml, FACTS: facts_document(facts)}
            if examples is not None:
                contents[EXAMPLES] = strict_json.encode(asdict(examples)) + "\n"
            (draft / "rounds.jsonl").touch()
            (draft / "state").mkdir()
            OwnFiles(draft).begin(contents)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run directory.

        Raises:
            MissingInputError: it is none.
            OtherVersionError: a version of florist wrote it whose format this one does not read.
            DamagedRunError: run.json cannot be read.
        """
        if not (path / FACTS).is_file():
            raise MissingInputError(f"expected the directory of a run at {path}, found no run.json in it")
        require_format(path)
        return cls(path)

    @property
    def config_file(self) -> Path:
        """The configuration that the run goes on with, which may have been edited since."""
        return self.path / CONFIG

    @property
    def played_config(self) -> Path:
        """The configuration that the run goes on with, once it was found to be what it was played with.

        Raises:
            DamagedRunError: it is missing, cannot be read or was edited since.
        """
        return self.own_files.played_config()

    @property
    def begun_file(self) -> Path:
        """The configuration that the run was begun with."""
        return self.path / BEGUN

    @property
    def own_files(self) -> OwnFiles:
        """The files that say what the run is, and are known by their hashes."""
        return OwnFiles(self.path)

    @property
    def adapter(self) -> Path:
        """Where the final adapter is, once a run has ended of which a round was aggregated."""
        return self.result.adapter

    @property
    def result(self) -> FinalResult:
        """What is written at the end of the run."""
        return FinalResult(self.path)

    @property
    def facts(self) -> RunFacts:
        """What `create` was given.

        Raises:
            DamagedRunError: run.json cannot be read.
        """
        return read_facts(self.path)

    @property
    def tested(self) -> FinalTest | None:
        """Metrics that only the final adapter has; None where there are none, or not yet.

        Raises:
            DamagedRunError: test.json cannot be read.
        """
        return self.result.test

    def save_tested(self, test: FinalTest) -> None:
        """Make the metrics of the final adapter permanent."""
        self.result.save_test(test)

    @property
    def examples(self) -> LabelCounts | None:
        """How many training examples of which label each client has; None where nobody wrote it down.

        Raises:
            DamagedRunError: examples.json is missing, cannot be read or is not as it was written.
        """
        with errors_as_damage(self.path):
            if EXAMPLES not in self.own_files:
                return None
            return _EXAMPLES.validate_python(strict_json.decode(read_bytes(self.own_files.whole(EXAMPLES), 1 << 26)))

    def save_config(self, config_toml: str) -> None:
        """Replace the configuration that the run goes on with; the one that it was begun with stays."""
        self.own_files.replace(CONFIG, config_toml)

    def save(
        self,
        state: ServerState,
        record: RoundRecord,
        owed: ClientResiduals | None = None,
        best: int | None = None,
    ) -> None:
        """Make a closed round permanent.

        Args:
            state: the state of the server after it.
            record: what is written down of it.
            owed: what the clients hold back after it, where they are in this process.
            best: the best round so far, this one or the one that is kept as such, whose state is to be kept.

        Raises:
            DamagedRunError: the rounds before cannot be read.
        """
        owed, kept = owed if owed is not None else ClientResiduals(), self.facts.keep_rounds.files
        last = self._state.save(state, record, self._last_round(), owed, best=best, kept=kept)
        self._lines.write(last)
        self._state.remove_all_but(last)

    def amend(self, state: ServerState, record: RoundRecord) -> None:
        """Replace the record of the last saved round, and who holds what: what became known after it was saved.

        Raises:
            DamagedRunError: no round was saved, or current.json cannot be read.
        """
        before = self._last_round()
        if before.round == 0:
            raise damaged_run(self.path, "there is no round to amend")
        self._lines.write(before)  # what is replaced is then known to be there, and nothing older
        self._lines.write(self._state.amend(state, record, before))

    def kept_rounds(self) -> KeptRounds | None:
        """The rounds that can be read again; None before the first whole round.

        Raises:
            DamagedRunError: a file is missing, cannot be read or is not as it was written.
        """
        last, records = self._read()
        return KeptRounds(self.path, self._state, last, records, self.facts.keep_rounds) if last.round else None

    def state_after(self, round_number: int, *, with_held_back: bool = True) -> ServerState:
        """What makes the global adapter of a round; see `KeptRounds.state_after`.

        Raises:
            MissingInputError: there is no such round, it added nothing, or it was not kept.
            DamagedRunError: a file is missing, cannot be read or is not as it was written.
        """
        kept = self.kept_rounds()
        if kept is None:
            raise MissingInputError(f"{self.path}: expected a run with a whole round, and none was played yet")
        with self._errors_as_damage():
            return kept.state_after(round_number, with_held_back=with_held_back)

    def client_residuals(self) -> ClientResiduals:
        """What the clients of a simulation held back after the last whole round.

        Raises:
            DamagedRunError: a file is missing, cannot be read or is not as it was written.
        """
        last = self._last_round()
        with self._errors_as_damage():
            return self._state.client_residuals(last)

    def records(self) -> list[RoundRecord]:
        """The records of all whole rounds.

        Raises:
            DamagedRunError: a file is missing, cannot be read or is not as it was written.
        """
        return self._read()[1]

    def require_whole(self) -> None:
        """Check that a run can go on, without changing anything.

        Raises:
            OutputExistsError: something is in the place of its final adapter that florist did not write there.
            DamagedRunError: a file that a resumption reads is missing, cannot be read or is not as it was written. It
                is named, and so is what of the run is whole.

        Cost: every such file is read once, to hash it.
        """
        last, _ = self._read()
        with self._errors_as_damage():
            require_regular(self._lines.file)
            self.own_files.require_config()
            self._state.verify(last)
        self.result.require_place()

    def load(self, initial: ServerState) -> tuple[ServerState, list[RoundRecord]]:
        """The state after the last whole round, or `initial` where there is none, and the records so far.

        What a process left half written because it was killed is then completed or removed: no other may be at work
        here. Where something is damaged, nothing is changed.

        Raises:
            DamagedRunError: as `require_whole`.
        """
        self.require_whole()
        last, records = self._read()
        with self._errors_as_damage():
            state = self._state.load(last) if last.round else initial
        for folder in (self.path, self._state.path):
            remove_drafts(folder)
        self._lines.write(last)
        self._state.remove_all_but(last)
        return state, records

    def _read(self) -> tuple[LastRound, list[RoundRecord]]:
        """What current.json says, and the records."""
        last = self._last_round()
        with errors_as_damage(self.path):
            for name in ALWAYS_READ:
                self.own_files.whole(name, last)
        return self._lines.with_last_round(last)

    @contextmanager
    def _errors_as_damage(self) -> Generator[None, None, None]:
        with errors_as_damage(self.path, self._still_usable):
            yield

    def _still_usable(self) -> str:
        """What of a run with damaged tensors can be used."""
        kept = self.kept_rounds()
        number = kept.last_whole() if kept is not None else None
        # An export reads the configuration, and refuses one that is not as it was written.
        own, first = self.own_files, ""
        if not own.is_whole(CONFIG):
            first = own.way_back() if own.can_be_put_back else f"restore {CONFIG} from a copy, as it was played with"
            first += "; then "
        offers = [
            *([f"the final adapter in {self.adapter} is whole"] if self.result.has_adapter else []),
            *(
                [f"round {number} is whole: {first}florist export {self.path} --round {number}"]
                if number is not None
                else []
            ),
        ]
        return " and ".join(offers) or "no round of it can be exported"

    @property
    def _lines(self) -> RoundLines:
        return RoundLines(self.path)

    @property
    def _state(self) -> StateFolder:
        return StateFolder(self.path / "state")

    def _last_round(self) -> LastRound:
        with errors_as_damage(self.path):
            return self._state.last_round()
