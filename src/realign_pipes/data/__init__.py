"""From problems and a reference model to the data sets that models are trained and evaluated on."""
