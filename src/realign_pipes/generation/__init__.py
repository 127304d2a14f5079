"""Drawing completions, and grading them. There is one interface, with the engines behind it."""
