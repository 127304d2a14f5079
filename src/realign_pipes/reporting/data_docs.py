"""Data Docs: a page on what Great Expectations found in a data folder's data sets.

Great Expectations can make its own pages, but they load styles and scripts from six hosts. It has no setting to turn
that off, and its templates cannot be replaced.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realign_pipes.reporting.pages import render_page
from realign_pipes.reporting.tables import validation_cells
from realign_pipes.runtime.files import atomic_path
from realign_pipes.validation.validator import describe_examples, describe_result


@dataclass(frozen=True)
class Finding:
    """One expectation, and what was found."""

    status: str
    """met, warning or failed."""
    notes: str
    expectation: str
    """Great Expectations' name of it, with its arguments."""
    found: str
    examples: list[str]
    """Some of the rows that fail it."""


def read_validations(folder: Path) -> dict[str, dict[str, Any]]:
    """What the validations found that wrote into `folder`, by the name of their file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def build_data_docs(results: Path, folder: Path) -> Path:
    """Make `folder` with one page, `index.html`, on all validations that wrote into `results`. Returns `folder`."""
    validations = read_validations(results)
    page = render_page(
        "data_docs.html.jinja",
        summary=validation_cells(validations),
        findings={name: _findings(found) for name, found in validations.items()},
        rows={name: found["rows"] for name, found in validations.items()},
    )
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / "index.html").write_text(page, encoding="utf-8")
    return folder


def _findings(validation: Mapping[str, Any]) -> list[Finding]:
    """What was found, expectations that are not met first."""
    findings = []
    for outcome in validation["results"]:
        arguments = ", ".join(f"{name}={value!r}" for name, value in outcome["kwargs"].items())
        unmet = "failed" if outcome["severity"] == "critical" else "warning"
        findings.append(
            Finding(
                status="met" if outcome["success"] else unmet,
                notes=outcome["notes"],
                expectation=f"{outcome['type']}({arguments})",
                found=describe_result(outcome),
                examples=describe_examples(outcome),
            )
        )
    return sorted(findings, key=lambda finding: finding.status == "met")
