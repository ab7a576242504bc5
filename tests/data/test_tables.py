"""Every kind of data file gives the same examples, and what is wrong in one is told with its place."""

import json
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from florist.data.reading import read_examples
from florist.data.tables import is_dataset
from florist.errors import DataError, FloristError, MissingDependencyError, MissingInputError

ROWS = [
    {"instruction": "say, so", "input": "", "output": 'a "b"\nc'},
    {"instruction": "größer", "input": "1", "output": "2"},
]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"examples{kind}"
    if kind == ".csv":
        path.write_text('\ufeffinstruction,input,output\r\n"say, so",,"a ""b""\nc"\r\ngrößer,1,2\r\n', encoding="utf-8")
    elif kind == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", [".csv", ".parquet", ".jsonl", ""])
def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    assert read_examples(written(tmp_path, kind)) == ROWS


def test_conversations_survive_parquet(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert read_examples(tmp_path / "x.parquet") == rows


def test_a_class_is_read_by_its_name(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, None]}, features=features)
    table.save_to_disk(str(tmp_path / "set"))
    assert read_examples(tmp_path / "set") == [{"text": "x", "label": "good"}, {"text": "y", "label": None}]


def test_one_of_several_tables_is_named(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "both"))
    assert is_dataset(tmp_path / "both" / "train")
    assert read_examples(tmp_path / "both" / "train") == ROWS
    with pytest.raises(MissingInputError, match="got 2 of them: test, train; name one, as both/test"):
        read_examples(tmp_path / "both")


@pytest.mark.parametrize(
    ("name", "content", "telling"),
    [
        ("x.csv", b"a,b\n1,2\n1,2,3\n", r"x\.csv, line 3: expected 2 values, one a field of \['a', 'b'\], got 3"),
        ("x.csv", b'a,b\n"1\n",2\n\n1\n', r"x\.csv, line 5: expected 2 values, .* got 1"),
        ("x.csv", b"a,a\n1,2\n", r"different names in the first line, got \['a'\]"),
        ("x.csv", b'a,b\n1,2\n"1"x,2\n', r"reading failed in line 3"),
        ("x.csv", b"a,b\n\xff,2\n", "expected UTF-8 CSV"),
        ("x.csv", b"", "expected at least one example, got an empty table"),
        ("x.csv", b"a,b\n", "expected at least one example, got an empty table"),
        ("x.parquet", b"PAR1", r"x\.parquet: expected a Parquet file, and reading failed"),
    ],
)
def test_what_is_no_table_is_refused_and_located(tmp_path: Path, name: str, content: bytes, telling: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=telling):
        read_examples(tmp_path / name)


def test_a_long_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n" + "x" * 200_000 + ",1\n")
    assert len(read_examples(tmp_path / "x.csv")[0]["a"]) == 200_000


@pytest.mark.parametrize("damage", [False, True])
def test_a_directory_that_is_no_dataset_is_refused(tmp_path: Path, damage: bool) -> None:
    path = written(tmp_path, "") if damage else tmp_path
    for file in path.glob("*.arrow"):
        file.write_bytes(b"none")
    with pytest.raises(FloristError, match=r"Dataset\.save_to_disk"):
        read_examples(path)


@pytest.mark.parametrize(("kind", "package"), [(".parquet", "pyarrow"), ("", "datasets")])
def test_what_is_not_installed_is_told(
    tmp_path: Path, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, kind)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf'package {package}.*pip install -e "\.\[data\]"'):
        read_examples(path)
