"""What must hold of the data sets: suites of Great Expectations, and the validator that runs them in the catalog."""

from realign_pipes.validation.validator import GreatExpectations

__all__ = ["GreatExpectations"]
