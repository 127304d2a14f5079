import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback


class Killed(Exception):
    """What stops a training in its sixth step."""


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Killed


@pytest.fixture
def kill():
    """A callback that stops a training in its sixth step, and the exception that it raises."""
    return Kill(), Killed


@pytest.fixture
def examples(tiny_tokenizer):
    """Nine calibration examples of different lengths."""
    generator = torch.Generator().manual_seed(3)

    def tokens(count):
        return torch.randint(4, len(tiny_tokenizer), (count,), generator=generator).tolist()

    return Dataset.from_list(
        [{"id": f"e{i}", "prompt_ids": tokens(2 + i % 3), "completion_ids": tokens(3 + 2 * (i % 4))} for i in range(9)]
    )


@pytest.fixture
def pair(tmp_path, make_checkpoint):
    """A reference and an aligned checkpoint, the aligned one's head padded further."""
    reference = make_checkpoint(tmp_path / "reference", seed=1, vocab_padding=3)
    aligned = make_checkpoint(tmp_path / "aligned", seed=2, vocab_padding=8)
    return reference, aligned
