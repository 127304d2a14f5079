"""What must hold of the data sets: suites of Great Expectations, and the validator that runs them."""
