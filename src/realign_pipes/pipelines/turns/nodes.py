"""Pipeline turns: conversations whose alpha changes by turn (the paper's appendix F.3)."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.data.parameters import Models
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.turns.parameters import Turns
from realign_pipes.runtime.launch import Folders

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # Kedro evaluates these annotations when a run starts; the import would slow it down
    DataFrame = Any

logger = logging.getLogger(__name__)


def measure_turns(parameters: Turns, inra: InRa, models: Models, folders: Folders, inra_checkpoint: Path) -> DataFrame:
    """How often the replies are what is expected of them, and how long, at each list of alphas, by turn."""
    from realign_pipes.pipelines.turns.job import MeasureTurns

    return MeasureTurns(parameters, inra_checkpoint, inra.plausibility, models, folders.work / "turns").run()


def tabulate_turns(turns_results: DataFrame) -> str:
    """The table as Markdown, which is logged too."""
    from realign_pipes.reporting.tables import markdown_table, turns_cells

    table = markdown_table(turns_cells(turns_results), None)
    logger.info("%s", table)
    return table
