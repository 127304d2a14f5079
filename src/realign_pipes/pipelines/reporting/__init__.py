"""Stage reporting: the sweep as tables, figures, a recommendation and one HTML report."""

from realign_pipes.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
