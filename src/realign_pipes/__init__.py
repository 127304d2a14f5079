"""realign_pipes: move a language model's alignment by a measured amount, reproducibly."""

__version__ = "0.1.0"
