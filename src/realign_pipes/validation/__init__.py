"""Checks of the data sets: Great Expectations suites, and the validator that runs them in the catalog."""

from realign_pipes.validation.validator import GreatExpectations

__all__ = ["GreatExpectations"]
