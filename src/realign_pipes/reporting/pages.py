"""HTML pages from the templates beside this file: escaped, self-contained, and forbidden to load anything."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(template: str, **values: Any) -> str:
    """The page that `template` makes from `values`, which are all escaped, except for Markup."""
    return ENVIRONMENT.get_template(template).render(values)
