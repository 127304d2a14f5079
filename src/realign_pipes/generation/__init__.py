"""Who draws completions, and drawing them graded. One interface; the engines stand behind it."""
