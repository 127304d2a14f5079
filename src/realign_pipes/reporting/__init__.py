"""A sweep's results for people: tables, figures, a recommendation and one HTML report. Rounds only what it shows."""
