"""parameters_reporting.yml: what is recommended, and what the report shows."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, model_validator

from realign_pipes.errors import InputError
from realign_pipes.graders.parameters import Scores
from realign_pipes.runtime.parameters import Parameters


class Reporting(Parameters):
    """parameters_reporting.yml: what is recommended, and what the report shows."""

    margin: Annotated[float, Field(ge=0)]
    """How much of `loss` a recommended candidate may lose against the reference: 0.02 is 2 points of pass@1. Less than
    1, unless `loss` is a number such as a reward."""
    examples: NonNegativeInt
    """Problems of each task whose completions the report shows side by side."""
    gain: str
    """The metric that the recommended candidate gains the most of."""
    loss: str
    """The metric that may be lost. Both are pass_at_1, tokens, words, distinct, or come from `scores.graders`."""

    def check_metrics(self, scores: Scores) -> None:
        """InputError unless gain and loss are metrics that are always there or that a grader of `scores` gives, and the
        margin one of such a loss."""
        unit = "share"
        if (self.gain, self.loss) != ("tokens", "pass_at_1"):  # for which pandas, slow to import, is not needed
            from realign_pipes.graders.metrics import find_metric, metrics_of

            find_metric(metrics_of(scores), self.gain, "reporting.gain")
            unit = find_metric(metrics_of(scores), self.loss, "reporting.loss").unit
        if self.margin >= 1 and unit != "number":
            raise InputError(f"reporting.margin is {self.margin:g}, but of {self.loss} it is a share below 1: 0.02 is "
                             "2 points, or of a count 2 %.")  # fmt: skip

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.gain == self.loss:
            raise ValueError(f"gain and loss are both {self.gain}. Name two metrics.")
        return self
