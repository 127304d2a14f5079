"""How far a candidate is from the reference, in nats a token, on what it wrote itself."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Logits [B, T, V] of ids [B, T], padded on the right."""


@torch.inference_mode()
def kl_per_token(
    candidate: Logits,
    reference: Logits,
    examples: Sequence[tuple[list[int], list[int]]],
    *,
    vocab_size: int,
    batch_size: int,
    device: torch.device,
) -> list[float]:
    """KL(candidate ‖ reference) in nats of each example (prompt and completion ids): the mean over its completion.

    At each token, both distributions are over the first `vocab_size` tokens. Over completions that the candidate
    drew, the sum over a completion estimates the KL of the two models as writers of whole completions.
    """
    order = sorted(range(len(examples)), key=lambda place: len(examples[place][0]) + len(examples[place][1]))
    found = [0.0] * len(examples)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = [torch.tensor([*examples[place][0], *examples[place][1]]) for place in places]
        ids = pad_sequence(rows, batch_first=True).to(device)
        ours, theirs = (log_softmax(model(ids)[..., :vocab_size].float(), -1) for model in (candidate, reference))
        terms = ours.exp() * (ours - theirs)
        divergence = terms.masked_fill(ours == -torch.inf, 0).sum(-1)  # a masked token has probability 0
        for row, place in enumerate(places):
            prompt, completion = (len(part) for part in examples[place])
            found[place] = float(divergence[row, prompt - 1 : prompt - 1 + completion].mean())
    return found
