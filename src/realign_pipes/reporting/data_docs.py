"""Great Expectations' Data Docs of a data folder's validations, readable offline.

One page for each file that `realign_pipes.validation.GreatExpectations` wrote, one for its suite, and an index. As
Great Expectations makes them, the pages take their styles from the net, and the index its very rows: so the index is
our own here, and every page gets our style and is forbidden to load anything, like the report.
"""

import html
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from realign_pipes.runtime.files import atomic_path
from realign_pipes.validation.validator import describe_failure

INDEX = "data_docs.html.jinja"
STYLE = "data_docs.css"
POLICY = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"


def read_validations(folder: Path) -> dict[str, dict[str, Any]]:
    """What the validations found that wrote into `folder`, by the name of their file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def build_data_docs(results: Path, folder: Path) -> Path:
    """The site on all validations that wrote into `results`, as `folder`, which is returned; see its `index.html`."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    validations = read_validations(results)
    head = f"<head>{POLICY}<style>{(here / STYLE).read_text(encoding='utf-8')}</style>"
    with atomic_path(folder) as temporary:
        pages = _build_pages(validations, temporary)
        failures = {
            name: [describe_failure(one) for one in found["results"] if not one["success"]]
            for name, found in validations.items()
        }
        index = environment.get_template(INDEX).render(validations=validations, pages=pages, failures=failures)
        (temporary / "index.html").write_text(index, encoding="utf-8")
        for page in temporary.rglob("*.html"):
            # Great Expectations' own styles are for a page that has Bootstrap as well.
            text = page.read_text(encoding="utf-8").replace("<style>", '<style media="not all">')
            page.write_text(text.replace("<head>", head, 1), encoding="utf-8")
    return folder


def _build_pages(validations: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """Great Expectations' pages. Returns each validation's, relative to `folder`."""
    import great_expectations as gx
    from great_expectations.core import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
        RunIdentifier,
    )
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())},
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(), data_docs_sites={"site": site}, analytics_enabled=False
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    # A site is of runs. Here it is of the data that are there, and the same ones should give the same names of pages.
    run = RunIdentifier(run_name="latest", run_time="1970-01-01T00:00:00+00:00")
    for name, validation in validations.items():
        results = [
            ExpectationValidationResult(
                success=one["success"], expectation_config=_config(one), result=_escaped(one["result"])
            )
            for one in validation["results"]
        ]
        expectations = [_config(one) for one in validation["results"]]
        context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
        right = sum(one["success"] for one in validation["results"])
        found = ExpectationSuiteValidationResult(
            success=validation["success"],
            results=results,
            suite_name=name,
            statistics={
                "evaluated_expectations": len(results),
                "successful_expectations": right,
                "unsuccessful_expectations": len(results) - right,
                "success_percent": 100 * right / len(results),
            },
            meta={"great_expectations_version": gx.__version__, "batch_spec": {"data_asset_name": name}},
        )
        key = ValidationResultIdentifier(ExpectationSuiteIdentifier(name), run, batch_identifier=name)
        context.validation_results_store.set(key, found)
    context.build_data_docs(build_index=False)
    shutil.rmtree(folder / "static")  # 4 MB of fonts and pictures that no page may load
    return {
        name: next((folder / "validations" / name).rglob("*.html")).relative_to(folder).as_posix()
        for name in validations
    }


def _config(one: Mapping[str, Any]) -> Any:
    """The expectation of one result. Its notes are shown in the place of Great Expectations' own words."""
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    only = "" if one["severity"] == "critical" else " (only a warning)"
    return ExpectationConfiguration(
        type=one["type"],
        kwargs=one["kwargs"],
        notes=one["notes"],
        severity=one["severity"],
        description=f"{one['notes']}{only}",
    )


def _escaped(found: Any) -> Any:
    """Plain data with its texts as HTML: Great Expectations sets values of the data into its tables as they are."""
    if isinstance(found, str):
        return html.escape(found)
    if isinstance(found, list):
        return [_escaped(one) for one in found]
    if isinstance(found, dict):
        return {name: _escaped(one) for name, one in found.items()}
    return found
