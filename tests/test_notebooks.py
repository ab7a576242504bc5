"""The notebooks run from top to bottom, and what their prose says is what came out.

`CLAIMS` has sentences of the prose, and Python that is true where a sentence is. It runs in the kernel of the notebook,
after the last cell.
"""

import json
import os
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from scripts.strip_notebooks import stripped

from .pages import DOCS, NOTEBOOKS, ROOT, cells, text_of

CLAIMS = {
    "aggregate-and-look": {
        "takes less than a minute of CPU": "__import__('time').process_time() < 60",
        "It has four layers": "AutoModelForCausalLM.from_pretrained(base).config.num_hidden_layers == 4",
        "The ranks, the alphas and the rules for the scaling are unlike": (
            "[len(set(sites[column])) for column in ('r', 'lora_alpha', 'use_rslora')] == [3, 2, 2]"
        ),
        "Three adapters have 16 + 8 + 4 = 28 directions in each of the 28 modules": (
            "sites['r'].tolist() == [16, 8, 4] and len(modules) == 28 and set(modules['input rank']) == {28}"
        ),
        "less than half of them hold nine tenths of the energy": (
            "certificate.total_rank < certificate.input_rank / 2 and certificate.input_rank == 784"
        ),
        "allows at most the square root of 0.1, which is 0.316": "0.2 < certificate.relative_error <= 0.1**0.5",
        "Every module keeps at least 0.9 of its energy.": "(modules['energy kept'] >= 0.9).all()",
        "How many directions that takes is not the same everywhere": "modules['rank'].nunique() > 3",
        "With tau = 1, nothing is cut": "whole.certificate.relative_error < 1e-5 and cuts[1.0].total_rank == 784",
        "The curves rise steeply and then flatten": (
            "all(spectra[name].kept_energy(5) > 0.5 and spectra[name].kept_energy(20) > 0.9"
            " for name in spectra if name.endswith('o_proj'))"
        ),
        "Where a curve crosses the dashed line is the rank that tau = 0.9 keeps.": (
            "all(certificate.modules[name].rank == curves[(curves['layer'] == layer) & (curves['energy kept'] >= 0.9)]"
            "['directions'].min() for layer in range(4) for name in [f'model.layers.{layer}.self_attn.o_proj'])"
        ),
        "The last tenth of the energy takes more than half of the rank.": (
            "cuts[1.0].total_rank - cuts[0.9].total_rank > cuts[1.0].total_rank / 2"
        ),
        "Both numbers are the same, up to the rounding of float32.": (
            "abs(by_hand / certificate.modules[module].relative_error - 1) < 1e-4"
        ),
        "FLoRA loses nothing and has the rank of all three together.": (
            "methods['FLoRA'].relative_error < 1e-5 and methods['FLoRA'].total_rank == certificate.input_rank"
        ),
        "FedIT's error is more than twice that of the cut, and more than half of the update itself.": (
            "methods['FedIT'].relative_error > max(0.5, 2 * certificate.relative_error)"
        ),
        "It names every input by its SHA-256.": (
            "[len(one['sha256']['adapter_model.safetensors']) for one in written['inputs']] == [64, 64, 64]"
        ),
        "The aggregate is better than the base at every task": "(losses.loc['aggregate'] < losses.loc['base']).all()",
        "not as good at a task as the adapter of the site that has it": (
            "(losses.loc['aggregate'] > losses.loc['own adapter']).all()"
        ),
    },
    "federation-from-python": {
        "takes less than a minute of CPU": "__import__('time').process_time() < 60",
        "trains a LoRA adapter of its own rank, 16, 8 or 4 here": (
            "dict(zip(last['client'], last['rank'])) == {'north': 16, 'south': 8, 'west': 4}"
        ),
        "a run shows its rounds as a table": "run._repr_html_().count('<tr>') == 1 + 1 + len(run.records) == 6",
        "Round 0 is the model before any training.": "rounds['loss'][0] == run.initial['loss']",
        "The clients' own adapters have 28 directions in each of the 28 modules.": (
            "{record.input_rank for record in run.records} == {28 * 28} and len(run.state) == 28"
        ),
        "Less than half of it is sent.": "all(2 * record.total_rank < record.input_rank for record in run.records)",
        "the sum of what was sent so far": (
            "rounds['total_rank'].cumsum()[1:].tolist() == rounds['cumulative_rank'][1:].tolist()"
        ),
        "keep what they left out and send it later": "all(record.held_back > 0 for record in run.records)",
        "Loss of the global model": "rounds['loss'].iloc[-1] < rounds['loss'][1] < rounds['loss'][0] / 2",
        "A client of a smaller rank sends less; everybody receives the same.": (
            "last['upload_bytes'].is_monotonic_decreasing and last['download_bytes'].nunique() == 1"
        ),
        "a folder as PEFT's `save_pretrained` writes it": (
            "{'adapter_config.json', 'adapter_model.safetensors'} <= {file.name for file in adapter.iterdir()}"
        ),
        "it still makes mistakes; the base has never seen the task at all": (
            "(lambda like: like(before, wanted) < 0.5 < like(answer(prompt), wanted))"
            "(lambda one, other: __import__('difflib').SequenceMatcher(None, one, other).ratio())"
        ),
        "They are nearly the same.": "0 < abs(by_hand - run.metrics['loss']) < 0.1",
        "whose loss is that of the round": (
            "__import__('typer').main.get_command(__import__('florist.cli').cli.app)"
            ".main(['export', str(folder / 'run'), '--no-flush', '-o', str(folder / 'exact')], standalone_mode=False)"
            " in {None, 0}"
            " and model.load_adapter(folder / 'exact', 'exact') is not None and model.set_adapter('exact') is None"
            " and abs(loss_by_hand(test) - run.metrics['loss']) < 1e-4"
        ),
    },
}

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)


def test_every_notebook_makes_claims_that_are_tested() -> None:
    assert {notebook.stem for notebook in NOTEBOOKS} == CLAIMS.keys()


@every_notebook
def test_a_claim_is_in_the_prose(notebook: Path) -> None:
    said = " ".join("\n".join([text_of(notebook), *cells(notebook, "code")]).split())
    assert [claim for claim in CLAIMS[notebook.stem] if claim.casefold() not in said.casefold()] == []


@every_notebook
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    """The site is built from what the cells do today, and a change of a cell is a change of that cell alone."""
    text = notebook.read_text(encoding="utf-8")
    assert stripped(text) == text, "python scripts/strip_notebooks.py takes the outputs out"


def test_outputs_would_be_found() -> None:
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    run = text.replace('"execution_count": null', '"execution_count": 7').replace('"outputs": []', '"outputs": [{}]')
    assert run != text
    assert stripped(run) == text


@every_notebook
def test_prose_stands_between_the_cells(notebook: Path) -> None:
    kinds = [cell["cell_type"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    assert all(before != after or after == "markdown" for before, after in pairwise(kinds))


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a kernel that sees this repository, no network, and one thread."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture(scope="module")
def nbclient() -> ModuleType:
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    return pytest.importorskip("nbclient")


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs_and_does_what_it_says(notebook: Path, nbclient: ModuleType, kernel_folder: Path) -> None:
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    content.cells += [
        nbformat.v4.new_code_cell(f"assert {check}, {claim!r}") for claim, check in CLAIMS[notebook.stem].items()
    ]
    nbclient.NotebookClient(
        content, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(kernel_folder)}}
    ).execute()
    assert all(cell.execution_count for cell in content.cells if cell.cell_type == "code")
    assert (
        sum("image/svg+xml" in output.get("data", {}) for cell in content.cells for output in cell.get("outputs", ()))
        == 1
    )
    assert list(kernel_folder.iterdir()) == []


@pytest.mark.slow
def test_a_claim_that_is_not_true_would_be_found(nbclient: ModuleType, kernel_folder: Path) -> None:
    import nbformat

    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 > 2, 'said'")])
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="said"):
        nbclient.NotebookClient(
            content, kernel_name="python3", resources={"metadata": {"path": str(kernel_folder)}}
        ).execute()


def test_the_notebooks_are_where_the_script_looks() -> None:
    assert {notebook.parent for notebook in NOTEBOOKS} == {DOCS / "notebooks"}
