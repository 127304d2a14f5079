"""The notebooks run from top to bottom on the smoke run's data, and are committed without what a run leaves."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def execute(smoke_project):
    """`execute(name)` runs the project copy's notebook of that name, as a user would, and returns it with outputs."""

    def run(name):
        folder = smoke_project / "notebooks"
        notebook = read(folder / name)
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
        return notebook

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KEDRO_ENV", "smoke")
        environment.setenv("PYTHONPATH", str(smoke_project / "src"))
        yield run


def outputs(notebook, cell):
    """What one cell printed, and the data it displayed."""
    (found,) = (c for c in notebook.cells if c.id == cell)
    text = "".join(o.text for o in found.outputs if o.output_type == "stream" and o.name == "stdout")
    shown = {kind: data for o in found.outputs if "data" in o for kind, data in o.data.items()}
    return text, shown


def by_alpha(text):
    """What was written at each alpha, without the line of dashes above it that names the alpha."""
    alphas = [part.partition(": ") for part in text.split("\n----- alpha ")[1:]]
    return {alpha: written.strip() for alpha, _, written in alphas}


def test_the_alpha_sweep_shows_its_tables_figures_and_completions(execute):
    notebook = execute("01_alpha_sweep.ipynb")
    assert "trra-iter1-1.5" in outputs(notebook, "results")[1]["text/html"]
    for cell in ("pareto-figure", "alpha-figure", "budget-figure"):
        assert outputs(notebook, cell)[1]["application/vnd.plotly.v1+json"]["data"], cell
    question, table = outputs(notebook, "side-by-side")
    assert "arithmetic problem" in question
    for alpha in ("-0.25", "0", "0.5", "1"):
        assert f">alpha {alpha}</th>" in table["text/html"]
    assert "&lt;/think&gt;" in table["text/html"], "tags that the model wrote are shown, not taken for HTML"


def test_the_playground_moves_alpha(execute):
    notebook = execute("02_inra_playground.ipynb")
    one, batch = (by_alpha(outputs(notebook, cell)[0]) for cell in ("one", "batch"))
    assert list(one) == ["0", "0.5", "1"]
    assert one == {alpha: batch[alpha] for alpha in one}
    assert len(set(batch.values())) > 1, "alpha changes nothing"
    assert "TokenBudget: " in outputs(notebook, "budget")[0]
    (line,) = outputs(notebook, "plot")[1]["application/vnd.plotly.v1+json"]["data"]
    assert line["mode"] == "lines+markers"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None, cell.id
            assert cell.outputs == [], cell.id
        assert cell.metadata == {}, cell.id
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}, "the Python version of whoever ran it"
