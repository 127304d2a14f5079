"""The report opens offline, shows everything, and runs nothing that a model wrote."""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from realign_pipes.pipelines.reporting.parameters import Reporting
from realign_pipes.reporting.data_docs import read_validations
from realign_pipes.reporting.figures import alpha_figure, budget_figure, pareto_figure
from realign_pipes.reporting.recommendation import recommend, step_cells, task_recommendation_cells
from realign_pipes.reporting.report import collect_examples, render_report
from realign_pipes.reporting.tables import budget_cells
from realign_pipes.reporting.training_curves import PANELS, training_figure
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.metrics import summarise_sweep

ATTACK = "</pre><script>alert('model')</script><img src=https://example.com/x.png onerror=alert(1)>"
PROBLEMS = {f"chain_sum-{number:04d}": (f"Question {number} & <b>?", f"<i>{number}</i>") for number in range(40)}


class Elements(HTMLParser):
    """Collects start tags with their attributes, and the texts of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


@pytest.fixture(scope="module")
def examples(generations: dict, sweep_results: pd.DataFrame) -> list:
    attacked = {name: frame.copy() for name, frame in generations.items()}
    attacked["aligned"]["completion"] = ATTACK
    return collect_examples(attacked, sweep_results, PROBLEMS, per_task=2)


CURVES = {"inra": pd.DataFrame({"step": [1, 2], **{panel: [2.0, 1.0] for panel in PANELS}})}


@pytest.fixture(scope="module")
def render(
    sweep_results: pd.DataFrame, recommendation: dict, examples: list, validation_results: Path
) -> Callable[..., str]:
    """`render(budget_results, curves=CURVES, sweep=sweep_results, found=recommendation)` is the page."""

    def render(
        budget_results: pd.DataFrame,
        curves: dict[str, pd.DataFrame] = CURVES,
        sweep: pd.DataFrame = sweep_results,
        found: dict = recommendation,
    ) -> str:
        parameters = {
            "reporting": Reporting(gain="tokens", loss="pass_at_1", margin=0.02, examples=2),
            "trra": {"alphas": [0.5], "note": ATTACK},
        }
        return render_report(
            sweep,
            found,
            {
                "pareto": pareto_figure(sweep_results),
                "alpha": alpha_figure(sweep_results),
                "budget": budget_figure(budget_results),
                "training": training_figure(curves),
            },
            budget_results,
            examples,
            parameters,
            read_validations(validation_results),
        )

    return render


@pytest.fixture(scope="module")
def page(render: Callable[..., str], budget_results: pd.DataFrame) -> str:
    return render(budget_results.assign(candidate=ATTACK))


def test_examples_are_the_first_of_each_task_for_every_candidate(
    examples: list, generations: dict, sweep_results: pd.DataFrame
):
    assert [(one.task, one.problem_id) for one in examples] == [
        ("chain_sum", "chain_sum-0000"),
        ("chain_sum", "chain_sum-0001"),
    ]
    assert examples[1].question == "Question 1 & <b>?" and examples[1].reference_answer == "<i>1</i>"
    for example in examples:
        order = sweep_results.query("task == 'all'")["candidate"].tolist()
        assert [answer.candidate for answer in example.answers] == order
        first = generations["trra_1.5"].query("problem_id == @example.problem_id and sample == 0").iloc[0]
        answer = example.answers[order.index("trra_1.5")]
        assert (answer.completion, answer.tokens) == (first["completion"], first["completion_tokens"])


def test_verdicts(generations: dict, sweep_results: pd.DataFrame):
    marked = {name: frame.copy() for name, frame in generations.items()}
    for name, correct, finished in (("reference", True, True), ("aligned", False, True), ("dera_0.5", False, False)):
        marked[name][["correct", "finished"]] = [correct, finished]
    (example,) = collect_examples(marked, sweep_results, PROBLEMS, per_task=1)
    verdicts = {answer.candidate: answer.verdict for answer in example.answers}
    assert (verdicts["reference"], verdicts["aligned"], verdicts["dera_0.5"]) == ("correct", "wrong", "cut off")


def test_generations_of_another_evaluation_set_are_refused(generations: dict, sweep_results: pd.DataFrame):
    with pytest.raises(ValueError, match="problem chain_sum-0000 of task chain_sum, which evaluation_set lacks"):
        collect_examples(generations, sweep_results, {"other": ("q", "a")}, per_task=1)


def test_no_examples_when_none_are_wanted(generations: dict, sweep_results: pd.DataFrame):
    assert collect_examples(generations, sweep_results, PROBLEMS, per_task=0) == []


def test_the_report_says_what_drew_each_candidate(page: str, render, budget_results, sweep_results: pd.DataFrame):
    assert "Drawn by transformers 5.23.0 float32: all of them." in page
    served = sweep_results["candidate"] == "aligned"
    mixed = sweep_results.assign(engine=sweep_results["engine"].mask(served, "vllm 0.32.0 float32"))
    assert "Drawn by vllm 0.32.0 float32: aligned." in render(budget_results, sweep=mixed)


def test_model_output_is_escaped(page: str):
    assert ATTACK not in page
    assert html.escape(ATTACK, quote=False).replace("'", "&#39;") in page
    elements = Elements(page)
    assert not [tag for tag, _ in elements.tags if tag == "img"]
    assert not [script for script in elements.scripts if "alert('model')" in script]


def test_report_loads_nothing_from_anywhere(page: str):
    elements = Elements(page)
    loads = [
        (tag, name, value)
        for tag, attributes in elements.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "background")
    ]
    assert loads == [("a", "href", "data_docs/index.html")]  # which loads when it is clicked, and lies beside
    assert not [tag for tag, _ in elements.tags if tag in ("link", "iframe", "object", "embed", "base")]
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL))
    assert "url(" not in styles and "@import" not in styles
    policies = [attributes for _, attributes in elements.tags if "http-equiv" in attributes]
    assert policies[0]["content"].startswith("default-src 'none'")


def test_plotly_is_in_the_file_once(page: str):
    assert len([script for script in Elements(page).scripts if len(script) > 1_000_000]) == 1
    assert page.count('id="figure-pareto"') == page.count('id="figure-alpha"') == 1


def test_report_holds_recommendation_tables_examples_and_parameters(
    page: str, sweep_results: pd.DataFrame, recommendation: dict
):
    text = html.unescape(page).replace("\u00a0", " ")
    assert text.index(recommendation["sentence"]) < text.index("<h2>Candidates") < text.index("figure-pareto")
    for candidate in sweep_results["candidate"].unique():
        assert f'<td class="word">{candidate}</td>' in page and f"<b>{candidate}</b>" in page
    assert "Question 1 & <b>?" in text and "Question 1 & <b>?" not in page
    assert "margin: 0.02" in text and "- 0.5" in text


def cells_of(section: str) -> list[str]:
    return [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", section)]


def test_report_shows_how_the_recommendation_was_confirmed(page: str, recommendation: dict):
    section = page[page.index("How it was chosen and confirmed") : page.index("<h2>Candidates")]
    assert recommendation["steps"]
    assert cells_of(section) == [cell for row in step_cells(recommendation).rows for cell in row]
    assert "Figures of the 20 problems that had no part in the choice" in page
    assert "of all 40." in page


def test_report_of_several_tasks_has_a_recommendation_for_each(make_sweep: Callable, render: Callable, no_budgets):
    frames = make_sweep(tasks=("a", "b"))
    found = recommend(frames, 0.1, bootstrap_samples=50, bootstrap_seed=0)
    assert list(found["tasks"]) == ["a", "b"]
    results = summarise_sweep(frames, bootstrap_samples=50, bootstrap_seed=0)
    page = render(no_budgets, sweep=results, found=found)
    section = page[page.index("<h2>Task by task") : page.index("<details", page.index("<h2>Task by task"))]
    assert cells_of(section) == [cell for row in task_recommendation_cells(found).rows for cell in row]
    assert "gives away: tokens" not in render(no_budgets)  # with one task it would repeat the recommendation


def test_report_shows_budgets_after_alpha(page: str, budget_results: pd.DataFrame):
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[2:5] == ["Correctness and tokens against alpha", "Thinking inside a budget", "Task by task"]
    section = page[page.index("<h2>Thinking inside a budget") : page.index("<h2>Task by task")]
    for row in budget_cells(budget_results).rows:
        assert "".join(f'<td class="word">{value}</td>' for value in row[:2]) in section
        assert all(f"<td>{value}</td>" in section for value in row[2:])
    assert section.count('id="figure-budget"') == 1


def test_report_without_budgets_has_no_such_section(render: Callable[..., str], no_budgets: pd.DataFrame):
    page = render(no_budgets)
    assert "Thinking inside a budget" not in page and "figure-budget" not in page and "TokenBudget" not in page


def test_curves_of_trainings_stand_in_it_where_there_are_any(
    page: str, render: Callable[..., str], budget_results: pd.DataFrame
):
    assert "<h2>Training</h2>" in page and page.count('id="figure-training"') == 1
    assert "<h2>Training</h2>" not in render(budget_results, curves={})


def test_report_is_the_same_again(page: str, render: Callable[..., str], budget_results: pd.DataFrame):
    assert render(budget_results.assign(candidate=ATTACK)) == page


def test_report_explains_the_kinds_that_it_shows(
    page: str,
    render: Callable[..., str],
    sweep_results: pd.DataFrame,
    budget_results: pd.DataFrame,
    no_budgets: pd.DataFrame,
):
    explained = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    for name, kind in KINDS.items():
        shown = name in {*sweep_results["kind"], *budget_results["kind"]}
        assert html.unescape(explained.get(kind.label, "")) == (kind.about if shown else "")
    assert "<dt>TokenBudget</dt>" not in render(no_budgets)


def test_report_says_what_was_checked(page: str):
    section = page.split("<h2>What was checked</h2>")[1].split("<h2>", maxsplit=1)[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", section)
    assert cells[:5] == ["generations", "3,360", "26", "0", "0"]
    assert cells[5:] == ["sweep_results", "42", "40", "0", "1"]
