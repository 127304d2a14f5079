"""From problems and a reference model to a calibration set and an evaluation set."""
