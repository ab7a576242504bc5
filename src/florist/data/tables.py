"""Examples in tables: CSV by the standard library; Parquet and directories of `datasets` by optional packages."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from florist.data.fields import PlacedExample, listed
from florist.errors import DataError, MissingDependencyError, MissingInputError, how_to_install
from florist.files.reading import open_regular

_DATASET, _SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` leaves in the directory of one table, and of several tables by name."""
_LONGEST_FIELD = 2**31 - 1  # of a CSV file, in characters; by default csv refuses texts of more than 128 Ki


def is_dataset(path: Path) -> bool:
    """Tell whether a directory is one table as ``datasets.Dataset.save_to_disk`` writes it."""
    return Path(path, _DATASET).is_file()


def text_of_file(path: Path) -> str:
    """The text of a regular file in UTF-8, without the mark that some programs begin one with.

    Raises:
        UnreadableFileError: The path leads to something else than a file.
        UnicodeDecodeError: It is not UTF-8.
    """
    with open_regular(path) as stream:
        return stream.readall().decode("utf-8-sig")


def read_csv(path: Path) -> list[PlacedExample]:
    """Read a CSV file whose first line names the fields; every value is a text.

    Raises:
        DataError: A line has more or fewer values than there are fields, two fields share a name, or the file is no
            UTF-8 CSV.
    """
    longest = csv.field_size_limit(_LONGEST_FIELD)
    try:
        lines = csv.reader(io.StringIO(text_of_file(path), newline=""), strict=True)
        try:
            return list(_csv_rows(path, lines))
        except csv.Error as error:
            raise DataError(
                f"{path}: expected CSV, and reading failed in line {lines.line_num}: {error}; a comma, a quotation "
                "mark or a new line in a value goes between quotation marks"
            ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 CSV, and reading failed: {error}; save it as UTF-8") from error
    finally:
        csv.field_size_limit(longest)


def read_parquet(path: Path) -> list[PlacedExample]:
    """Read a Parquet file; it is read into memory as a whole.

    Raises:
        DataError: The file is no Parquet.
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet  # noqa: PLC0415  # optional, and takes its time
    except ModuleNotFoundError as error:
        raise _missing(path, "a Parquet file", error) from error
    try:
        return _placed(path, parquet.read_table(path).to_pylist())
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        raise DataError(
            f"{path}: expected a Parquet file, and reading failed: {' '.join(str(error).split())}"
        ) from error


def read_dataset(path: Path) -> list[PlacedExample]:
    """Read a directory that ``datasets.Dataset.save_to_disk`` wrote; a class is read by its name, not its number.

    Raises:
        MissingInputError: The directory holds something else, or several tables.
        DataError: It cannot be read.
        MissingDependencyError: `datasets` is not installed.
    """
    if Path(path, _SPLITS).is_file():
        splits = sorted(each.name for each in path.iterdir() if is_dataset(each))
        raise MissingInputError(
            f"expected one table of examples at {path}, got {len(splits)} of them: {', '.join(splits)}; name one, as "
            f"{path.name}/{splits[0] if splits else 'train'}"
        )
    if not is_dataset(path):
        raise MissingInputError(
            f"expected a data file or a directory of Dataset.save_to_disk at {path}, got another directory; name a "
            "file in it"
        )
    try:
        import datasets  # noqa: PLC0415  # optional, and takes its time
    except ModuleNotFoundError as error:
        raise _missing(path, "a directory of datasets", error) from error
    try:
        table = datasets.load_from_disk(str(path))
        rows: list[dict[str, Any]] = table.to_list()  # pyright: ignore[reportAttributeAccessIssue]  # one table, as checked above
    except Exception as error:  # whatever a damaged directory makes datasets and pyarrow raise
        raise DataError(
            f"{path}: expected a directory of Dataset.save_to_disk, and reading failed: {' '.join(str(error).split())}"
        ) from error
    named = {name: feature for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)}  # pyright: ignore[reportAttributeAccessIssue]
    for name, feature in named.items():
        for row in rows:
            row[name] = feature.int2str(row[name]) if row[name] is not None and row[name] >= 0 else None
    return _placed(path, rows)


def _placed(path: Path, rows: Iterable[dict[str, Any]]) -> list[PlacedExample]:
    return [PlacedExample(row, str(path), number, of_rows=True) for number, row in enumerate(rows, start=1)]


def _csv_rows(path: Path, lines: Any) -> Iterator[PlacedExample]:
    names = next(lines, [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: expected fields of different names in the first line, got {listed(twice)} more than once"
        )
    done = lines.line_num
    for values in lines:
        # A value may have several lines; an example is where it begins.
        number, done = done + 1, lines.line_num
        if not values:
            continue
        if len(values) != len(names):
            raise DataError(
                f"{path}, line {number}: expected {len(names)} values, one a field of {listed(names)}, got "
                f"{len(values)}; a comma in a value goes between quotation marks"
            )
        yield PlacedExample(dict(zip(names, values, strict=True)), str(path), number)


def _missing(path: Path, what: str, error: ModuleNotFoundError) -> MissingDependencyError:
    return MissingDependencyError(
        f"{path} is {what}, which takes the package {error.name}, and that is not installed: {how_to_install('data')}"
    )
