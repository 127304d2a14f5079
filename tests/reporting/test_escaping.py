"""The report and Data Docs in a real browser, with script in everything that a model, a data set or a user wrote.

The pages forbid scripts from elsewhere, and Data Docs all of them; here the browser is told to ignore that, so that
nothing but the escaping stands between the payloads and the page.
"""

import io
import json
import shutil

import pandas as pd
import pytest
from kedro.validation import DataValidationError
from playwright.sync_api import sync_playwright
from rich.console import Console

from realign_pipes.reporting import pages, report
from realign_pipes.reporting.data_docs import build_data_docs, read_validations
from realign_pipes.reporting.figures import alpha_figure, budget_figure, pareto_figure
from realign_pipes.reporting.recommendation import recommend
from realign_pipes.reporting.tables import Cells, markdown_table, sweep_cells, terminal_table
from realign_pipes.reporting.training_curves import PANELS, training_figure
from realign_pipes.sweep.metrics import summarise_sweep
from realign_pipes.validation.validator import GreatExpectations

PAYLOADS = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "</pre></td></details><img src=x onerror='window.hacked = 1'>",
    '"><svg onload="window.hacked = 1"></svg>',
    "' onmouseover='window.hacked = 1' x='",
    "<a href='javascript:window.hacked = 1'>click</a>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "{{ 7 * 7 }}{% raw %}${7 * 7}",
    "<!--<script>",
    "]]><![CDATA[",
    "**bold** [x](javascript:window.hacked=1) `code`",
    "\u2028\u2029window.hacked = 1;//\u202e\u0000\ud83d",
    "&lt;script&gt;window.hacked = 1&lt;/script&gt;",
]
ALL = "\n".join(PAYLOADS).replace("\ud83d", "\ufffd").replace("\0", "")
"""As it is once saved: UTF-8 has no half of a surrogate pair, and HTML no NUL."""
NAME = " ".join(ALL.split())


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("This test needs Chromium: install the Debian package `chromium`.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """`open_page(file)` shows it, without the protection of its Content-Security-Policy."""
    context = browser.new_context(bypass_csp=True, offline=True)

    def show(file):
        page = context.new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: page.errors.append(dialog.message))
        page.goto(file.absolute().as_uri())
        return page

    yield show
    context.close()


@pytest.fixture(scope="module")
def attacked(generations):
    """The sweep with a hostile completion in every row, and one candidate and the only task with hostile names."""
    frames = {name: frame.assign(completion=ALL, task=NAME) for name, frame in generations.items()}
    frames[NAME] = frames.pop("aligned").assign(candidate=NAME)
    return frames


def write_report(attacked, results, validations, budget_results, file):
    results = results.copy()
    problems = {key: (ALL, ALL) for key in attacked["reference"]["problem_id"].unique()}
    found = recommend(attacked, 0.02, bootstrap_samples=50, bootstrap_seed=0)
    recommendation = {**found, "candidate": NAME, "sentence": ALL}
    curves = {NAME: pd.DataFrame({"step": [1, 2], **{panel: [2.0, 1.0] for panel in PANELS}})}
    page = report.render_report(
        results,
        recommendation,
        {
            "pareto": pareto_figure(results),
            "alpha": alpha_figure(results),
            "budget": budget_figure(budget_results),
            "training": training_figure(curves),
        },
        budget_results,
        report.collect_examples(attacked, results, problems, per_task=2),
        {"trra": {"note": ALL, NAME: [ALL]}},
        {**validations, NAME: next(iter(validations.values()))},
    )
    file.write_text(page, encoding="utf-8")


@pytest.fixture(scope="module")
def results(attacked):
    return summarise_sweep(attacked, bootstrap_samples=50, bootstrap_seed=0)


def look_at_everything(page) -> None:
    """Open all that is closed, move over every figure, and click every link that a payload made."""
    address = page.url
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for figure in page.locator(".plotly-graph-div").all():
        figure.scroll_into_view_if_needed()
        figure.hover()
    page.evaluate("""() => document.querySelectorAll('*').forEach(element => {
        for (const type of ['mouseover', 'mouseenter', 'focus', 'error', 'load'])
            element.dispatchEvent(new Event(type));
        if (element.tagName.toLowerCase() === 'a' && (element.getAttribute('href') || '').includes('hacked'))
            element.dispatchEvent(new MouseEvent('click'));
    })""")
    page.wait_for_timeout(200)
    assert page.url == address


@pytest.mark.browser
def test_report_runs_nothing_that_was_written_into_it(
    open_page, attacked, results, validation_results, budget_results, tmp_path
):
    write_report(attacked, results, read_validations(validation_results), budget_results, tmp_path / "report.html")
    page = open_page(tmp_path / "report.html")
    page.wait_for_selector(".plotly-graph-div .main-svg")
    look_at_everything(page)
    assert page.evaluate("window.hacked") is None
    assert page.errors == []
    assert page.locator("iframe, img, svg[onload], [onmouseover], [onerror], a[href^=javascript]").count() == 0
    # All of it is there to be read.
    completions = page.locator(".card pre").all_text_contents()
    assert len(completions) == 2 * len(attacked) and set(completions) == {ALL}
    assert page.locator("pre.question").first.text_content() == ALL
    assert page.locator(".card header b").filter(has_text=NAME).count() == 2
    assert page.locator("#recommendation p").text_content().replace("\u00a0", " ") == ALL


@pytest.mark.browser
def test_this_test_sees_a_report_that_is_not_escaped(
    open_page, attacked, results, validation_results, budget_results, tmp_path, monkeypatch
):
    monkeypatch.setattr(pages, "ENVIRONMENT", pages.ENVIRONMENT.overlay(autoescape=False))
    write_report(attacked, results, read_validations(validation_results), budget_results, tmp_path / "report.html")
    assert open_page(tmp_path / "report.html").evaluate("window.hacked") == 1


@pytest.mark.browser
def test_figures_run_nothing_that_names_hold(open_page, results, tmp_path):
    """Plotly sets texts with tags of its own, such as <b>; and its data stand inside a script."""
    others = [name for name in results["candidate"].unique() if name not in ("reference", NAME)]
    payloads = [payload.replace("\ud83d", "\ufffd") for payload in PAYLOADS]
    renamed = results.assign(candidate=results["candidate"].replace(dict(zip(others, payloads, strict=False))))
    figures = [report._figure_html(make(renamed), make.__name__) for make in (pareto_figure, alpha_figure)]
    script = f"<meta charset=utf-8><script>{report.get_plotlyjs()}</script>"
    (tmp_path / "figures.html").write_text("".join([script, *figures]), encoding="utf-8")
    page = open_page(tmp_path / "figures.html")
    page.wait_for_selector(".plotly-graph-div .main-svg")
    look_at_everything(page)
    assert page.evaluate("window.hacked") is None
    assert page.errors == []
    drawn = page.evaluate("JSON.stringify(document.querySelector('.plotly-graph-div').data)")
    assert all(json.dumps(payload, ensure_ascii=False)[1:-1] in drawn for payload in payloads[:2])


@pytest.mark.browser
def test_data_docs_run_nothing_that_was_found_in_data(open_page, generations, tmp_path):
    broken = {name: frame.copy() for name, frame in generations.items()}
    for row, payload in enumerate(PAYLOADS[:11]):
        broken["aligned"].loc[row, ["problem_id", "seconds"]] = [payload, -1.0]
        broken["aligned"].loc[row + 20, ["kind", "alpha"]] = [payload, 1.0]
        broken["aligned"].loc[row + 40, "completion"] = payload
    with pytest.raises(DataValidationError):
        GreatExpectations("generations", str(tmp_path / "validation" / "generations.json")).validate(broken)
    docs = build_data_docs(tmp_path / "validation", tmp_path / "data_docs")
    page = open_page(docs / "index.html")
    look_at_everything(page)
    text = page.locator("body").text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("iframe, img, svg[onload], [onmouseover], [onerror], a[href^=javascript]").count() == 0
    assert PAYLOADS[0] in text and PAYLOADS[2] in text


def test_tables_of_text_hold_no_markup(results):
    """Markdown allows HTML, and rich reads tags in square brackets: one that closes nothing is an error."""
    table = markdown_table(sweep_cells(results), NAME)
    assert len(table.splitlines()) == 2 + results["candidate"].nunique()
    assert "<" not in table and "&lt;script&gt;" in table
    assert markdown_table(Cells(["a"], [["x\n| y | <b>"]], left=1), None).splitlines()[2] == "| x \\| y \\| &lt;b&gt; |"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(Cells(["[/x]", "b"], [["[/bold] x", "1 [0, 2]"]], left=1), None))
    shown = console.export_text()
    assert "[/x]" in shown and "[/bold] x" in shown and "1 [0, 2]" in shown
