"""How far a candidate is from the reference, in nats a token, on what it wrote itself."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import CausalLMOutputWithPast

Model = Callable[..., CausalLMOutputWithPast]
"""A causal language model, which takes ids [B, T], `past_key_values` and `use_cache`."""

LOGITS_AT_ONCE = 2**27
"""Of each model: 512 MiB in float32. A batch of long completions over a large vocabulary has a hundred times that."""


@torch.inference_mode()
def kl_per_token(
    candidate: Model,
    reference: Model,
    examples: Sequence[tuple[list[int], list[int]]],
    *,
    vocab_size: int,
    batch_size: int,
    device: torch.device,
) -> list[float]:
    """KL(candidate ‖ reference) in nats of each example (prompt and completion ids): the mean over its completion.

    At each token, both distributions are over the first `vocab_size` tokens. Over completions that the candidate
    drew, the sum over a completion estimates the KL of the two models as writers of whole completions.

    Both models read a batch piece by piece, each with its KV cache, so that memory holds the logits of a piece.
    """
    order = sorted(range(len(examples)), key=lambda place: len(examples[place][0]) + len(examples[place][1]))
    found = [0.0] * len(examples)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        rows = [torch.tensor([*examples[place][0], *examples[place][1]]) for place in places]
        ids = pad_sequence(rows, batch_first=True).to(device)  # on the right: no token sees its row's padding
        pieces = ids.split(max(1, LOGITS_AT_ONCE // (len(rows) * vocab_size)), dim=1)
        both = zip(_logits(candidate, pieces), _logits(reference, pieces), strict=True)
        divergence = torch.cat([_divergence(*(one[..., :vocab_size] for one in logits)) for logits in both], dim=1)
        for row, place in enumerate(places):
            prompt, completion = (len(part) for part in examples[place])
            found[place] = float(divergence[row, prompt - 1 : prompt - 1 + completion].mean())
    return found


def _logits(model: Model, pieces: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The logits [B, t, V] of each of the `pieces` [B, t] of ids, which follow one another."""
    cache = None
    for piece in pieces:
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        yield output.logits


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """KL [B, t] of the distributions of logits [B, t, V]."""
    ours, theirs = log_softmax(ours.float(), -1), log_softmax(theirs.float(), -1)
    terms = ours.exp() * (ours - theirs)
    return terms.masked_fill(ours == -torch.inf, 0).sum(-1)  # a masked token has probability 0
