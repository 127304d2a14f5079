"""The site that `make docs` builds: every link leads somewhere, and no page loads anything from elsewhere."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

PROJECT = Path(__file__).parents[2]
BUILD = [Path(sys.executable).with_name("zensical"), "build", "--clean", "--strict"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what the site is made from."""
    root = tmp_path_factory.mktemp("site")
    for name in ("docs", "conf", "src"):
        shutil.copytree(
            PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "local")
        )
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(PROJECT / name, root)
    return root


@pytest.fixture(scope="module")
def site(sources):
    subprocess.run(BUILD, cwd=sources, check=True)
    return sources / "site"


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.browser
def test_no_page_loads_anything_from_elsewhere(site, address):
    requests, failed = [], []
    with sync_playwright() as playwright:
        executable = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on(
            "requestfailed",  # aborted: the next page was opened meanwhile
            lambda request: None if request.failure == "net::ERR_ABORTED" else failed.append(request.url),
        )
        page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
        for file in sorted(site.rglob("*.html")):
            page.goto(address + file.relative_to(site).as_posix(), wait_until="networkidle")
        page.keyboard.press("Control+k")  # the search, which loads its index
        page.keyboard.type("fused linear divergence", delay=20)
        found = page.get_by_text("fused_linear_divergence").first
        found.wait_for()
        browser.close()
    assert len(requests) > 100
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []  # an image that is not there among them, which the build does not notice


@pytest.mark.parametrize(
    "line",
    [
        "[a page](nowhere.md)",
        "[a heading](tutorial.md#nowhere)",
        "::: realign_pipes.nowhere",
    ],
)
def test_a_link_that_leads_nowhere_fails_the_build(site, sources, tmp_path, line):
    shutil.copytree(sources, tmp_path / "copy", ignore=shutil.ignore_patterns("site", ".cache"))
    index = tmp_path / "copy" / "docs" / "index.md"
    index.write_text(f"{index.read_text()}\n\n{line}\n")
    assert subprocess.run(BUILD, cwd=tmp_path / "copy", check=False, capture_output=True).returncode != 0
