"""The stage as Kedro runs it."""

import logging
import subprocess
import sys

import pandas as pd
import plotly.graph_objects as go
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset
from kedro_datasets.plotly import JSONDataset as PlotlyDataset
from kedro_datasets.text import TextDataset
from pydantic import ValidationError

from realign_pipes.datasets.folders import FolderDataset
from realign_pipes.graders.metrics import metrics_of
from realign_pipes.graders.parameters import Scores
from realign_pipes.pipelines.reporting.nodes import print_summary
from realign_pipes.pipelines.reporting.parameters import Reporting
from realign_pipes.pipelines.reporting.pipeline import create_pipeline
from realign_pipes.reporting.tables import budget_cells, markdown_table
from realign_pipes.runtime.launch import Folders
from realign_pipes.runtime.tracking import NOT_TRACKED
from realign_pipes.sweep.metrics import read_answers
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.sweep.schemas import JUDGE_RESULTS
from realign_pipes.sweep.scores import summarise_scores


@pytest.fixture
def inputs(sweep_results, evaluation_set, validation_results, tmp_path) -> dict[str, MemoryDataset]:
    """What the stage reads, but for generations and budgets. The models were trained elsewhere: they have no curves."""
    parameters = Reporting(gain="tokens", loss="pass_at_1", margin=0.02, examples=1)
    data = {
        "sweep_results": sweep_results,
        "metric_results": pd.DataFrame(),  # without graders, nothing is read of them
        "scores": pd.DataFrame(),
        "judge_results": pd.DataFrame(),
        "params:scores": Scores(graders={}, distinct_n=2),
        "tax_results": pd.DataFrame(),
        "evaluation_set": evaluation_set,
        "reference_model": tmp_path,
        "aligned_model": tmp_path,
        "inra_checkpoint": tmp_path,
        "trra_checkpoints": {"trra-1.5": tmp_path},
        "params:folders": Folders(work=tmp_path / "work", logs=tmp_path / "logs", validation=validation_results),
        "params:reporting": parameters,
        "params:tracking": NOT_TRACKED,
        # All that the stage reads of it.
        "params:alpha_sweep": AlphaSweep.model_construct(bootstrap_samples=200, bootstrap_seed=0),
        "parameters": {"reporting": parameters},
    }
    return {name: MemoryDataset(value) for name, value in data.items()}


def test_stage_writes_its_files_and_ends_with_the_recommendation(
    inputs, generations, recommendation, sweep_results, budget_results, tmp_path, capsys, caplog
):
    outputs = {
        "recommendation": JSONDataset(filepath=str(tmp_path / "recommendation.json")),
        "headline_metrics": JSONDataset(filepath=str(tmp_path / "headline.json")),
        "sweep_metrics": JSONDataset(filepath=str(tmp_path / "sweep_metrics.json")),
        "sweep_table_markdown": TextDataset(filepath=str(tmp_path / "sweep_table.md")),
        "sweep_table_csv": CSVDataset(filepath=str(tmp_path / "sweep_table.csv"), save_args={"index": False}),
        "pareto_figure": PlotlyDataset(filepath=str(tmp_path / "pareto.json")),
        "alpha_figure": PlotlyDataset(filepath=str(tmp_path / "alpha.json")),
        "reward_figure": PlotlyDataset(filepath=str(tmp_path / "reward.json")),
        "budget_table_markdown": TextDataset(filepath=str(tmp_path / "budget_table.md")),
        "budget_figure": PlotlyDataset(filepath=str(tmp_path / "budget.json")),
        "training_figure": PlotlyDataset(filepath=str(tmp_path / "training.json")),
        "data_docs": FolderDataset(filepath=str(tmp_path / "data_docs")),
        "report_html": TextDataset(filepath=str(tmp_path / "report.html")),
    }
    catalog = DataCatalog({**inputs, **outputs})
    catalog["generations"] = {name: lambda frame=frame: frame for name, frame in generations.items()}
    catalog["budget_results"] = budget_results
    catalog["tax_results"] = pd.DataFrame(
        [{"candidate": "trra_1.5", "kind": "trra", "alpha": 1.5, "task": "mmlu", "metric": "acc", "value": 0.9,
          "stderr": 0.03, "difference": 0.4}]
    )  # fmt: skip
    assert create_pipeline().nodes[-1].func is print_summary
    with caplog.at_level(logging.INFO):
        SequentialRunner().run(create_pipeline(), catalog)

    assert outputs["recommendation"].load() == recommendation  # of the same resamples
    sentence = recommendation["sentence"]
    ours = [record for record in caplog.records if record.name.startswith("realign_pipes")]
    assert [record.getMessage() for record in ours] == [sentence]
    printed = capsys.readouterr().out
    assert all(name in printed for name in generations) and "…" not in printed
    markdown = outputs["sweep_table_markdown"].load()
    assert markdown.startswith("| candidate |") and markdown.endswith(f"\n\n{sentence}\n")
    assert list(outputs["sweep_metrics"].load()) == list(generations)
    assert outputs["headline_metrics"].load()["candidate"] in sentence
    overall = sweep_results[sweep_results["task"] == "all"].reset_index(drop=True)
    pd.testing.assert_series_equal(outputs["sweep_table_csv"].load()["pass_at_1"], overall["pass_at_1"])
    for name in ("pareto_figure", "alpha_figure", "budget_figure", "training_figure"):
        assert isinstance(outputs[name].load(), go.Figure), name
    budget_table = outputs["budget_table_markdown"].load()
    assert budget_table == markdown_table(budget_cells(budget_results), None)
    assert printed.index("reduction") < printed.index("TokenBudget") and printed.count("TokenBudget") == 3
    assert "<h2>Thinking inside a budget" in outputs["report_html"].load()
    assert "<h2>The alignment tax" in outputs["report_html"].load() and "0.900 ± 0.030 (+0.400)" in printed
    assert "0.900 ± 0.030 (+0.400)" in markdown and "0.900 ± 0.030 (+0.400)" in outputs["report_html"].load()
    assert outputs["sweep_table_csv"].load()["tax/mmlu/acc"].dropna().tolist() == [0.9]
    assert "What is 12 + 30 − 2?" in outputs["report_html"].load()
    assert (tmp_path / "data_docs" / "index.html").exists()


def test_stage_without_budgets_says_so(inputs, generations, no_budgets, tmp_path, capsys):
    saved = CSVDataset(filepath=str(tmp_path / "budget_results.csv"), save_args={"index": False})
    saved.save(no_budgets)
    report = TextDataset(filepath=str(tmp_path / "report.html"))
    catalog = DataCatalog({**inputs, "budget_results": saved, "report_html": report})
    catalog["generations"] = generations
    outputs = SequentialRunner().run(create_pipeline(), catalog)
    assert outputs["budget_table_markdown"].load() == "No token budgets were measured.\n"
    assert "Thinking inside a budget" not in report.load()
    assert "The alignment tax" not in report.load()
    assert "difference" not in capsys.readouterr().out  # the header of the table of budgets


def test_stage_shows_what_graders_say_and_decides_by_it(inputs, generations, no_budgets, tmp_path, capsys):
    graders = {
        "brief": {"kind": "rules", "instructions": [{"kind": "words", "at_most": 9}]},
        "liking": {"kind": "reward", "model": "m", "input": "chat", "batch_size": 1, "tokens": 9},
        "taste": {"kind": "judge", "url": "http://localhost:1", "model": "m", "prompt": "conf/base/prompts/judge.txt"},
    }
    parameters = Scores(graders=graders, distinct_n=2)
    every = pd.concat(generations.values())
    values = {
        "words": every["completion_tokens"],
        "distinct": 1.0,
        "brief": (every["completion_tokens"] < 80) * 1.0,
        "brief_each": 0.5,
        "liking": -2.0,  # nobody loses any of it
        "taste": 0.5,
    }
    columns = ["candidate", "task", "problem_id", "sample"]
    scores = pd.concat([every[columns].assign(metric=name, score=value) for name, value in values.items()])
    options = {"bootstrap_samples": 50, "bootstrap_seed": 0}
    results = summarise_scores(read_answers(generations), scores, metrics_of(parameters), **options)
    judged = pd.DataFrame([["taste", "trra_1.5", 0.5, 0.25, 0.0, 0.75, 0.9, 12, 30, 320, 9000, 800]],
                          columns=list(JUDGE_RESULTS))  # fmt: skip
    changed = {
        "params:scores": parameters,
        "params:reporting": Reporting(margin=0.05, examples=1, gain="brief", loss="liking"),
        "scores": scores,
        "metric_results": results,
        "judge_results": judged,
        "budget_results": no_budgets,
        "generations": generations,
    }
    kept = {
        "report_html": TextDataset(filepath=str(tmp_path / "report.html")),
        "recommendation": JSONDataset(filepath=str(tmp_path / "recommendation.json")),
        "pareto_figure": PlotlyDataset(filepath=str(tmp_path / "pareto.json")),
    }
    catalog = DataCatalog({**inputs, **kept})
    for name, value in changed.items():
        catalog[name] = value
    SequentialRunner().run(create_pipeline(), catalog)

    found, page, figure = (kept[name].load() for name in ("recommendation", "report_html", "pareto_figure"))
    assert found["survived"] and found["brief_gain"] > 0.2 and found["difference_low"] == 0
    assert "raises brief by" in found["sentence"] and "at liking −2 against −2" in found["sentence"]
    assert "<h2>What the graders say</h2>" in page and "<h2>liking against brief</h2>" in page
    assert "at most 0.05 worse than the reference in liking" in page
    assert "figure-reward" in page and "12.0 / 30.0" in page and "9,000 + 800" in page
    printed = capsys.readouterr().out
    assert "agrees with itself" in printed and "75.0 %" in printed
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("brief, %", "liking")


def test_importing_the_stage_is_light():
    code = (
        "import sys, typing, realign_pipes.pipelines.reporting.nodes as nodes;"
        "hints = [typing.get_type_hints(getattr(nodes, name)) for name in ('recommend_candidate', 'write_report')];"
        "assert hints[0]['parameters'] is nodes.Reporting;"
        "print([name for name in ('pandas', 'numpy', 'plotly', 'torch', 'jinja2') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"margin": float("nan")}, {"examples": -1}, {"margins": 0.1}])
def test_wrong_parameters_are_refused(wrong: dict):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Reporting(**({"gain": "tokens", "loss": "pass_at_1", "margin": 0.02, "examples": 1} | wrong))


@pytest.mark.parametrize("name", ["gain", "loss"])
def test_the_metrics_are_in_the_parameters_alone(name: str):
    given = {"gain": "tokens", "loss": "pass_at_1", "margin": 0.02, "examples": 1}
    with pytest.raises(ValidationError, match=rf"{name}\n  Field required"):
        Reporting(**{key: value for key, value in given.items() if key != name})
