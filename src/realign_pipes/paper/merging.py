"""Weight interpolation: the free alternative to TrRa, as it needs no training and makes one ordinary model.

    model = merge(reference, aligned, alpha=1.5)

theta(alpha) = (1 - alpha) theta_ref + alpha theta_aligned, the weights in place of Eq. 5's logits. Between 0 and 1 this
is model merging ("Revisiting model interpolation", https://arxiv.org/abs/2510.10977, for long and short thinking), and
beyond 1 it is ExPO (https://arxiv.org/abs/2404.16792). With a `density` the difference of the weights is thinned out
first as TIES does (https://arxiv.org/abs/2306.01708).
"""

import copy
import math

import torch
from peft.utils.merge_utils import ties
from transformers import PreTrainedModel

from realign_pipes.errors import InputError


def check_mergeable(reference: PreTrainedModel, aligned: PreTrainedModel) -> None:
    """InputError, which names the first tensor that differs, unless both are of one architecture and shape."""
    if type(reference) is not type(aligned):
        raise InputError(
            "the weights of the reference and the aligned model cannot be merged: the reference is a "
            f"{type(reference).__name__} and the aligned model a {type(aligned).__name__}. Take two checkpoints of one "
            "architecture, or leave the kinds merge, ties and svd out."
        )
    ours, theirs = reference.state_dict(), aligned.state_dict()
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [list(state[name].shape) if name in state else "missing" for state in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the weights of the reference and the aligned model cannot be merged: {name} is {shapes[0]} in the "
                f"reference and {shapes[1]} in the aligned model. Take two checkpoints of one architecture, or leave "
                "the kinds merge, ties and svd out."
            )


def merge(
    reference: PreTrainedModel, aligned: PreTrainedModel, alpha: float, density: float | None = None
) -> PreTrainedModel:
    """A copy of `reference` with the weights theta_ref + alpha * (theta_aligned - theta_ref).

    Computed in float32 and rounded once to the reference's dtype. `density` in (0, 1) keeps that share of each tensor's
    difference, the entries of the largest magnitude (TIES: trim; PEFT's implementation also elects a sign for each
    entry, which of one difference is its own). None keeps all. Integer buffers stay the reference's.

    InputError for models that do not fit together, ValueError for an alpha that is not finite or a density outside its
    range.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number, not {alpha}.")
    if density is not None and not 0 < density < 1:
        raise ValueError(f"density must be between 0 and 1, not {density}; without it, nothing is thinned out.")
    check_mergeable(reference, aligned)
    merged = copy.deepcopy(reference)
    theirs = aligned.state_dict()
    weight = torch.tensor([alpha])
    with torch.no_grad():
        for name, tensor in merged.state_dict().items():  # tied weights are one tensor under several names
            if not tensor.is_floating_point():
                continue
            ours = reference.state_dict()[name].float()
            difference = theirs[name].to(ours) - ours
            change = alpha * difference if density is None else ties([difference], weight.to(ours), density)
            tensor.copy_(ours + change)
    return merged
