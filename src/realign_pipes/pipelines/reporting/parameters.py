"""parameters_reporting.yml: what is recommended, and what the report shows."""

from typing import Annotated

from pydantic import Field, NonNegativeInt

from realign_pipes.runtime.parameters import Parameters


class Reporting(Parameters):
    """parameters_reporting.yml: what is recommended, and what the report shows."""

    margin: Annotated[float, Field(ge=0, lt=1)]
    """How much of pass@1 a recommended candidate may lose against the reference (0.02 is 2 points)."""
    examples: NonNegativeInt
    """Problems of each task whose completions the report shows side by side."""
