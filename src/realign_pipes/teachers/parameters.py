"""Parameters of the teachers."""

from typing import Literal

from pydantic import PositiveInt

from realign_pipes.runtime.parameters import Parameters


class Teachers(Parameters):
    """parameters_teacher_logits.yml: where the trra stage gets the two models' final hidden states from."""

    mode: Literal["cached", "online"]
    """`cached`: teacher_logits writes them to disk once. `online`: both models run at every training step."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """The dtype in which hidden states are stored. `auto` is the one of the model's checkpoint, which loses nothing."""
    batch_size: PositiveInt
    """Examples in a forward pass."""
    padding_free: bool = False
    """Lay the examples of a forward pass end to end in one row, without padding; see `padding_free` of trra."""
    shard_tokens: PositiveInt
    """Completion tokens in a shard file, and so how much is lost when a run is killed."""
