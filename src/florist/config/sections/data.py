"""The examples of a configuration, and how clients share them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from florist.config.sections.section import LARGEST_NUMBER, Positive, PositiveFloat, Section


def _held_out(what: str) -> AfterValidator:
    """A number in (0, 1), refused in words that say what to do where nothing is to be held out."""

    def fraction(number: float) -> float:
        if not 0 < number < 1:
            other = f"name a file of them in data.{what}" if what == "test" else "leave the key out"
            raise ValueError(f"expected a fraction in (0, 1) (to hold no {what} examples out, {other})")
        return number

    return AfterValidator(fraction)


class DataSection(Section):
    """``[data]``: files of examples, one a client or files to be shared out: JSON, JSONL, CSV, Parquet, `datasets`."""

    path: str
    """The directory of the files."""
    train: str = "client_*.json"
    """A file name or a pattern. With ``partition = "given"`` every file that matches is a client."""
    test: str | None = None
    """The file of the held-out examples; without it, `test_fraction` of every client's examples is held out."""
    test_fraction: Annotated[float, _held_out("test")] = 0.1
    """Without a file, this fraction of every client's examples is held out to test on."""
    validation: str | None = None
    """The file of the examples to choose by, which are neither trained on nor tested on."""
    validation_fraction: Annotated[float, _held_out("validation")] | None = None
    """Without a file, this fraction of every client's examples is held out to choose by, after those of the test."""
    partition: Literal["given", "iid", "dirichlet", "by-field", "shards"] = "given"
    """How the examples are shared out; ``given`` takes the files as the clients."""
    num_clients: Positive | None = None
    """How many clients share the examples; by default as many as there are ranks, or one a value for ``by-field``."""
    partition_field: str | None = None
    """The field whose values make clients unlike, a category for instance; ``given`` and ``iid`` take none."""
    dirichlet_alpha: PositiveFloat = 1.0
    """The concentration of ``dirichlet``: a small one gives unlike clients, a large one the iid split."""
    min_examples: Positive | None = None
    """How many examples each client has at least, before some are held out. ``dirichlet`` draws until all have them;
    other partitions are refused where one has fewer."""
    shards_per_client: Positive | None = None
    """How many parts of the sorted examples a client of ``shards`` gets; 2 by default."""
    rows: str | None = None
    """The part of every training file to use, as a Python slice ``start:stop:step``; ``1::2`` is every second
    example."""
    format: Literal["auto", "alpaca", "dolly", "messages", "sharegpt", "text"] = "auto"
    """The shape of the examples; ``auto`` takes the shape of the first one."""
    instruction_field: str | None = None
    """The field of the instruction where the shape is none of these; `output_field` must be set as well."""
    input_field: str | None = None
    """The field of what the instruction is about, if there is one."""
    output_field: str | None = None
    """The field of the answer."""
    label_field: str | None = None
    """The field of the class, for classification."""
    prompt_template: str | None = None
    """The text before the answer, from ``{instruction}``, ``{input}`` and the example's own fields; for classification
    the text to classify, from the example's own fields, by default its ``{instruction}``."""
    chat_template: bool | Literal["auto"] = "auto"
    """Whether the tokenizer's chat template writes the prompts; with ``auto`` it does where there is one and no
    `prompt_template` is set."""
    loss_on: Literal["response", "all"] = "response"
    """The tokens that training counts; evaluation always counts the responses."""
    max_length: Annotated[int, Field(ge=2, le=LARGEST_NUMBER)] = 512
    """The length of prompt and answer together, in tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataSection":
        wrong: list[str] = []
        by_value = self.partition in {"dirichlet", "by-field", "shards"}
        if by_value and self.partition_field is None:
            wrong.append(f"partition = {self.partition!r} needs partition_field, the field to split over")
        if not by_value and self.partition_field is not None:
            wrong.append(
                "partition_field is for partition = 'dirichlet', 'by-field' or 'shards', and partition is "
                f"{self.partition!r}"
            )
        if self.partition != "shards" and self.shards_per_client is not None:
            wrong.append(f"shards_per_client is for partition = 'shards', and partition is {self.partition!r}")
        if self.partition == "given" and self.num_clients is not None:
            wrong.append("num_clients is for examples that are shared out; given files are the clients themselves")
        if self.validation is not None and self.validation_fraction is not None:
            wrong.append("validation and validation_fraction contradict each other: remove one")
        if self.format != "auto" and self.instruction_field is not None:
            wrong.append(f"format = {self.format!r} and instruction_field contradict each other: remove one")
        if (self.instruction_field is None) != (self.output_field is None):
            wrong.append("instruction_field and output_field go together: set both or neither")
        if self.input_field is not None and self.instruction_field is None:
            wrong.append("input_field needs instruction_field and output_field")
        if self.rows is not None and as_slice(self.rows) is None:
            wrong.append(f"rows must be a slice start:stop:step of integers, got {self.rows!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def as_slice(rows: str) -> slice | None:
    """Return ``start:stop:step`` as a slice, or None where the text is none."""
    parts = rows.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        return None
    return slice(*numbers) if len(parts) == 2 or (len(parts) == 3 and numbers[2] != 0) else None
