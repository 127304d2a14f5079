"""The static site of `kedro viz build`, in a headless Chromium without a network."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import expect, sync_playwright

from realign_pipes.pipeline_registry import STAGES

CATALOG = yaml.safe_load((Path(__file__).parents[2] / "conf" / "base" / "catalog.yml").read_text())

pytestmark = pytest.mark.browser

# What Kedro-Viz itself reports in any static build without a network. Everything else on the console is ours.
KEDRO_VIZ_ERRORS = (
    ("https://fonts.googleapis.com/", "Failed to load resource"),  # its font; the browser's own stands in
    ("/api/metadata", "Failed to load resource"),  # the versions of packages, which only `kedro viz run` serves
    ("/assets/index-", "metadata fetch error:"),  # what it says of that
)


@pytest.fixture(scope="module")
def site(smoke_project):
    """The built site of the smoke run. `kedro viz build` has no --env and writes to build/ in the current folder."""
    build = subprocess.run(
        [sys.executable, "-m", "kedro", "viz", "build", "--include-previews"],
        cwd=smoke_project,
        env={**os.environ, "KEDRO_ENV": "smoke"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = " ".join((build.stdout + build.stderr).split())
    assert "Success!" in said, said
    for complaint in ("could not be previewed", "did not have preview type", "Layers visualisation is disabled"):
        assert complaint not in said, said
    return smoke_project / "build"


@pytest.fixture(scope="module")
def address(site):
    """The site, served to this machine only."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("This test needs Chromium: install the Debian package `chromium`.")
    arguments = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        expect.set_options(timeout=60_000)  # of a machine that is busy with other tests
        yield browser
        expect.set_options(timeout=None)
        browser.close()


@pytest.fixture
def page(browser, address):
    """The site as a first visitor sees it, less the tour of Kedro-Viz. Fails on what went wrong in the page."""
    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    page.set_default_timeout(120_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def note(message):
        known = any(
            part in message.location["url"] and message.text.startswith(text) for part, text in KEDRO_VIZ_ERRORS
        )
        if message.type == "error" and not known:
            errors.append(f"{message.text} ({message.location['url']})")

    page.on("console", note)
    page.add_init_script("localStorage.setItem('KedroViz', JSON.stringify({showFeatureHints: false}))")
    page.goto(address)
    node(page, "reporting").wait_for()
    yield page
    page.close()
    assert errors == []


def node(page, name):
    return page.locator(".pipeline-node").filter(has_text=re.compile(f"^{name}$"))


def select(page, name):
    """Choose a data set in the flowchart, and wait until the panel shows it. Toolbars may cover it: no real click."""
    node(page, name).dispatch_event("click")
    expect(page.locator(".pipeline-metadata__title")).to_have_text(name)


def test_the_page_opens_with_a_box_and_a_layer_for_each_stage(page):
    assert set(page.locator(".pipeline-layer-name").all_text_contents()) == set(STAGES)
    shown = page.locator(".pipeline-node").all_text_contents()
    assert set(STAGES) < set(shown)
    assert len(shown) < 33, "more is not readable at one glance"  # eight stages, and the data between them


def test_whatever_is_drawn_between_the_stages_is_data(page, site):
    """Every node that is not a stage or a node of one is an entry of the catalog; parameters are there, but hidden.

    find_alpha, ladder, plan, push, tax and turns are not in the default run, so their data sets are not there.
    """
    drawn = json.loads((site / "api" / "main").read_text())["nodes"]
    data = {one["name"] for one in drawn if one["type"] == "data"}
    besides = {
        name
        for name, entry in CATALOG.items()
        if entry["metadata"]["kedro-viz"]["layer"] in ("find_alpha", "ladder", "plan", "push", "tax", "turns")
    }
    assert data == set(CATALOG) - besides
    parameters = {one["name"] for one in drawn if one["type"] == "parameters"}
    assert "params:folders" in parameters
    assert parameters.isdisjoint(page.locator(".pipeline-node").all_text_contents())


def test_the_sweep_figures_show_their_plots(page, smoke_project):
    node(page, "reporting").click()  # the box opens
    node(page, "alpha_figure").click()
    for name in ("alpha_figure", "pareto_figure", "budget_figure", "training_figure"):
        select(page, name)
        saved = json.loads((smoke_project / f"data/smoke/08_reporting/{name}.json").read_text())
        page.wait_for_function(
            """traces => {
                const plot = document.querySelector(".pipeline-plotly__preview .js-plotly-plot");
                return plot?.data && JSON.stringify(plot.data.map(trace => trace.name)) === traces;
            }""",
            arg=json.dumps([trace.get("name") for trace in saved["data"]], separators=(",", ":"), ensure_ascii=False),
        )
        page.locator(".pipeline-plotly__preview .scatterlayer path:visible").first.wait_for()


def test_data_sets_show_as_tables(page):
    node(page, "data_prep").click()
    for name, column in (
        ("calibration_samples", "completion"),
        ("calibration_set", "completion"),
        ("short_solutions", "completion"),
        ("preference_pairs", "rejected"),
        ("evaluation_set", "question"),
        ("sweep_results", "pass_at_1"),
        ("budget_results", "budget"),
        ("sweep_table_csv", "token_reduction"),
    ):
        select(page, name)
        table = page.locator(".pipeline-metadata .preview-table")
        expect(table.locator("th").filter(has_text=re.compile(f"^{column}$"))).to_have_count(1)
        assert table.locator("tbody tr").count() >= 4, name
    expect(page.locator(".preview-table")).to_contain_text("trra-iter1-1.5")


def test_models_and_reports_show_as_json(page):
    node(page, "reporting").click()
    for name, text in (
        ("reference_model", '"Qwen2ForCausalLM"'),
        ("aligned_model", '"Qwen2ForCausalLM"'),
        ("inra_checkpoint", '"InRa (sft)"'),
        ("trra_checkpoints", '"1.5/trra-iter1-1.5"'),
        ("teacher_cache", '"hidden_size"'),
        ("teacher_cache_report", '"times_smaller"'),
        ("sweep_metrics", '"pass_at_1"'),
        ("recommendation", '"sentence"'),
    ):
        select(page, name)
        expect(page.locator(".pipeline-metadata__preview-json")).to_contain_text(text)
