"""parameters_scores.yml: which graders score the sweep's completions."""

from realign_pipes.graders.parameters import Scores

__all__ = ["Scores"]
