"""The embedded slow thinker: its tokenizer, its traces, and the training of its reference and aligned models."""
