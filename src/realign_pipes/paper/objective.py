"""Equations 5 and 6 of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704): the fused teacher
z(alpha), and the divergence that TrRa minimises.

`fuse_logits` is Eq. 5 and `divergence_between` Eq. 6, both over full logits: these are the definitions. `implausible`
is beyond the paper: which tokens neither model finds plausible, so that extrapolation does not reach for them.
`fused_linear_divergence` computes the mean of the same divergence without ever holding [tokens, vocabulary]: it forms
the logits of a chunk of tokens, takes the loss and its gradient, and discards the logits, so memory grows with
chunk_tokens * V. Tests compare the two. This module needs only torch.

Names used throughout (the paper's lambda is `alpha`):

    z_ref, z_aligned, z_student    logits of the three models: final hidden states times the head
    z = z(alpha)                   the fused teacher's logits, Eq. 5
    p = softmax(z / T)             the teacher, at temperature T
    q = softmax(z_student / T)     the student
    m = (p + q) / 2                what the Jensen-Shannon divergence compares both with
    beta                           the argument `plausibility`: 0 is the paper
"""

import math
from typing import Any, get_args

import torch

from realign_pipes.paper import Divergence


def check_plausibility(plausibility: float, divergence: Divergence | None = None) -> None:
    """ValueError unless beta is in [0, 1), and 0 for a divergence (if one is given) that a mask would make infinite.

    KL(q || p) is infinite: the student q, a softmax, gives every token some probability, and the masked teacher p does
    not. To leave the masked tokens out of the sum would reward the student for moving its probability to them.
    """
    if not 0 <= plausibility < 1:
        raise ValueError(f"plausibility must be at least 0 and below 1, not {plausibility}.")
    if plausibility > 0 and divergence == "reverse_kl":
        raise ValueError(
            f"reverse_kl from a masked teacher is infinite: with plausibility {plausibility}, choose forward_kl or "
            "jsd; with reverse_kl, set plausibility to 0."
        )


def implausible(reference_logits: torch.Tensor, aligned_logits: torch.Tensor, plausibility: float) -> torch.Tensor:
    """True [..., V] for tokens that neither model finds plausible, from both models' logits [..., V] over the same ids.

    Those for which max(log p_ref, log p_aligned) < its maximum over the ids + log(beta): beta is `plausibility` in
    (0, 1). p_ref and p_aligned are the models' distributions at temperature 1. Extrapolation multiplies the difference
    of two log-probabilities, which for a token that both find next to impossible is noise. This is the constraint of
    contrastive decoding (https://arxiv.org/abs/2210.15097), here with both models as experts. A token whose best
    log-probability is the maximum is never masked, so at least one is left.
    """
    best = torch.maximum(torch.log_softmax(reference_logits, dim=-1), torch.log_softmax(aligned_logits, dim=-1))
    return best < best.amax(dim=-1, keepdim=True) + math.log(plausibility)


def fuse_logits(
    reference_logits: torch.Tensor,
    aligned_logits: torch.Tensor,
    alpha: float | torch.Tensor,
    plausibility: float = 0.0,
) -> torch.Tensor:
    """Eq. 5: z(alpha) = (1 - alpha) z_ref + alpha z_aligned, in float32 (float64 stays).

    Both are [..., V] and may be padded to different V over one tokenizer: the result has the smaller one. Where the
    head is linear, final hidden states [..., d] can be mixed in place of logits. `alpha` is a number, or a tensor that
    broadcasts against [..., 1]: one number per row, for instance. At 0 and 1 the result equals the one model's logits
    bit for bit, as long as the other's are finite.

    With a `plausibility` beta above 0, the logits of `implausible` tokens are -inf, at every alpha; both arguments must
    be logits then. ValueError for a beta outside [0, 1).
    """
    check_plausibility(plausibility)
    vocab = min(reference_logits.shape[-1], aligned_logits.shape[-1])
    z_ref, z_aligned = (
        logits[..., :vocab].to(torch.promote_types(logits.dtype, torch.float32))
        for logits in (reference_logits, aligned_logits)
    )
    mixed = (1 - alpha) * z_ref + alpha * z_aligned
    if plausibility == 0:
        return mixed
    return mixed.masked_fill(implausible(z_ref, z_aligned, plausibility), -torch.inf)


def mix_streams(
    reference: torch.Tensor, aligned: torch.Tensor, alphas: torch.Tensor, plausibility: float = 0.0
) -> torch.Tensor:
    """`fuse_logits` for rows that each have their own alpha, as InRa mixes its two streams: [..., n] in float32.

    `alphas` broadcasts against [..., 1]. With a `plausibility` above 0 rows whose alpha is exactly 0 or 1 are not
    masked: they stay the base and the expanded model.
    """
    mixed = fuse_logits(reference, aligned, alphas, plausibility)
    if plausibility == 0:
        return mixed
    at_an_end = (alphas == 0) | (alphas == 1)
    return torch.where(at_an_end, torch.where(alphas == 0, reference, aligned).to(mixed.dtype), mixed)


def divergence_between(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, divergence: Divergence, temperature: float = 1.0
) -> torch.Tensor:
    """Divergence of student and teacher at each position, [..., V] -> [...], in nats, float32.

    `forward_kl` is KL(p || q), `reverse_kl` is KL(q || p) (the paper's Eq. 6), `jsd` is (KL(p || m) + KL(q || m)) / 2.
    There is no factor temperature**2: the number is the divergence itself. Teacher logits may be -inf (a masked token):
    what such a token adds to KL(p || .) is 0, and `reverse_kl` is inf. ValueError for any other name.
    """
    log_p = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    impossible = log_p == -torch.inf  # p log(p / .) tends to 0 there, and would be 0 * inf
    if divergence == "forward_kl":
        return (log_p.exp() * (log_p - log_q).masked_fill(impossible, 0)).sum(-1)
    if divergence == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if divergence == "jsd":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        p_part = log_p.exp() * (log_p - log_m).masked_fill(impossible, 0)
        return 0.5 * (p_part + log_q.exp() * (log_q - log_m)).sum(-1)
    raise _unknown(divergence)


def _unknown(divergence: str) -> ValueError:
    return ValueError(f"there is no divergence {divergence!r}. Choose one of {', '.join(get_args(Divergence))}.")


def fused_linear_divergence(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    reference_hidden: torch.Tensor,
    reference_head: torch.Tensor,
    aligned_hidden: torch.Tensor,
    aligned_head: torch.Tensor,
    alpha: float,
    *,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    vocab_size: int | None = None,
    plausibility: float = 0.0,
    chunk_tokens: int = 256,
    num_tokens: int | torch.Tensor | None = None,
    matmul_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The mean over N tokens of `divergence_between(z_student, fuse_logits(z_ref, z_aligned, alpha, beta))`: Eqs. 5, 6.

    Each hidden is [N, d] and each head [V, d], with each model's own d and V; row i of the three hiddens belongs to
    the same token. Ids >= `vocab_size` (None: the smallest V) are cut off before mixing, since extrapolation
    would amplify padded rows that were never trained. `plausibility` is beta; 0 is the paper. `num_tokens` (None: N)
    divides the sum over the N tokens: when gradients are accumulated, give the number of completion tokens of the whole
    optimizer step.

    Gradients flow into `student_hidden` and `student_head` only. Everything inside a chunk of `chunk_tokens` tokens is
    float32, whatever the inputs' dtype; the result is a float32 scalar in nats.

    With `matmul_dtype` bfloat16, the factors of the five matrix products (states, heads, and the gradient of the
    student's logits) are rounded to bfloat16; sums and results stay in float32, and so do all logits, softmaxes and the
    accumulated gradients. Factors that are bfloat16 already lose nothing in the forward products. A GPU multiplies so
    on its tensor cores. On a CPU, for which torch has no such product, the rounded factors are multiplied in float32:
    the same numbers, no faster. docs/explanation/performance.md has the measured errors.

    Raises ValueError for shapes that do not fit together, an alpha that is not finite, a temperature that is not
    positive, an unknown divergence, a matmul_dtype other than float32 and bfloat16, or a plausibility that
    `check_plausibility` refuses.
    """
    pairs = {
        "student": (student_hidden, student_head),
        "reference": (reference_hidden, reference_head),
        "aligned": (aligned_hidden, aligned_head),
    }
    for name, (hidden, head) in pairs.items():
        if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
            raise ValueError(f"{name}: hidden {list(hidden.shape)} and head {list(head.shape)} must be [N, d], [V, d].")
        if hidden.shape[0] != student_hidden.shape[0]:
            raise ValueError(f"{name} has {hidden.shape[0]} tokens, the student {student_hidden.shape[0]}.")
    smallest = min(head.shape[0] for _, head in pairs.values())
    vocab = smallest if vocab_size is None else vocab_size
    if not 0 < vocab <= smallest:
        raise ValueError(f"vocab_size {vocab} must be between 1 and the smallest head's {smallest} rows.")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number, not {alpha}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}.")
    if divergence not in get_args(Divergence):
        raise _unknown(divergence)
    check_plausibility(plausibility, divergence)
    if matmul_dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"matmul_dtype must be float32 or bfloat16, not {matmul_dtype}.")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, not {chunk_tokens}.")
    if num_tokens is None:
        num_tokens = student_hidden.shape[0]
    if isinstance(num_tokens, int) and num_tokens <= 0:
        raise ValueError("there are no tokens to average over.")
    mean: torch.Tensor = _FusedLinearDivergence.apply(  # type: ignore[no-untyped-call]  # torch has no types for it
        student_hidden, student_head,
        reference_hidden.detach(), reference_head.detach(), aligned_hidden.detach(), aligned_head.detach(),
        alpha, divergence, temperature, plausibility, vocab, chunk_tokens, num_tokens, matmul_dtype,
    )  # fmt: skip
    return mean


class _FusedLinearDivergence(torch.autograd.Function):
    """Takes the gradients in the forward pass, while a chunk's logits are at hand; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: torch.Tensor,
        student_head: torch.Tensor,
        reference_hidden: torch.Tensor,
        reference_head: torch.Tensor,
        aligned_hidden: torch.Tensor,
        aligned_head: torch.Tensor,
        alpha: float,
        divergence: Divergence,
        temperature: float,
        plausibility: float,
        vocab: int,
        chunk_tokens: int,
        num_tokens: int | torch.Tensor,
        matmul_dtype: torch.dtype,
    ) -> torch.Tensor:
        need_hidden, need_head = ctx.needs_input_grad[:2]
        with torch.autocast(student_hidden.device.type, enabled=False):
            student_weight = _factor(student_head[:vocab], matmul_dtype)
            reference_weight = _factor(reference_head[:vocab], matmul_dtype)
            aligned_weight = _factor(aligned_head[:vocab], matmul_dtype)
            grad_hidden = torch.zeros_like(student_hidden, dtype=torch.float32) if need_hidden else None
            grad_head = torch.zeros_like(student_head, dtype=torch.float32) if need_head else None
            total = student_hidden.new_zeros((), dtype=torch.float32)
            # All chunks reuse the same memory: fresh pages would cost more than the computation in them.
            rows = min(chunk_tokens, student_hidden.shape[0])
            buffers = torch.empty(3, rows, vocab, dtype=torch.float32, device=student_hidden.device)
            for start in range(0, student_hidden.shape[0], chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                hidden = _factor(student_hidden[chunk], matmul_dtype)
                of_aligned, of_reference = (
                    _factor(states[chunk], matmul_dtype) for states in (aligned_hidden, reference_hidden)
                )
                z, z_student, spare = buffers[:, : len(hidden)]
                _multiply(z, of_aligned, aligned_weight.T)
                if plausibility == 0:
                    # Eq. 5 over T: z_ref is added to z_aligned, which is in z. T goes into these factors. They apply
                    # after the products, so that states in half precision enter those unrounded.
                    _multiply(
                        z,
                        of_reference,
                        reference_weight.T,
                        scale=(1 - alpha) / temperature,
                        keep=alpha / temperature,
                    )
                else:
                    _multiply(spare, of_reference, reference_weight.T)
                    _fuse_masked(z, spare, z_student, alpha, temperature, plausibility)
                _multiply(z_student, hidden, student_weight.T, scale=1 / temperature)
                loss, gradient = _divergence_and_gradient(z_student, z, spare, divergence)
                total += loss
                gradient = _factor(gradient, matmul_dtype)
                if grad_hidden is not None:
                    _multiply(grad_hidden[chunk], gradient, student_weight)
                if grad_head is not None:
                    _multiply(grad_head[:vocab], gradient.T, hidden, scale=1 / temperature, keep=1.0)
            if grad_hidden is not None:
                grad_hidden.div_(temperature)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.num_tokens = num_tokens
        ctx.dtypes = student_hidden.dtype, student_head.dtype
        return total / num_tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = grad_output / ctx.num_tokens
        gradients = (  # in place, as the head's may be large: a second backward over the same graph raises an error
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, *[None] * 12)


def _factor(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` as a factor of `_multiply`, rounded to `dtype`; on a CPU in float32 after that."""
    rounded = tensor.to(dtype)
    return rounded.float() if rounded.device.type == "cpu" else rounded


def _multiply(
    out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, scale: float = 1.0, keep: float = 0.0
) -> None:
    """out = keep * out + scale * left @ right; `out` and all sums are float32. With `keep` 0, `out` is not read."""
    if left.dtype == torch.float32:
        out.addmm_(left, right, beta=keep, alpha=scale)
    elif keep == 0:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
        if scale != 1:
            out.mul_(scale)
    else:
        out.mul_(keep).add_(torch.mm(left, right, out_dtype=torch.float32), alpha=scale)


MASKED = -1e30
"""The logit of a masked token inside the fused loss. Its probability is exactly 0 in float32, as that of -inf is; but
p * log(p / q) is then 0 * -1e30 = 0, where 0 * -inf would be NaN."""


def _fuse_masked(
    z: torch.Tensor, z_ref: torch.Tensor, spare: torch.Tensor, alpha: float, temperature: float, plausibility: float
) -> None:
    """`fuse_logits` with a mask, over T and up to a number per token, in the memory of z [c, V], which has z_aligned.

    `z_ref` and `spare`, also [c, V], are overwritten. Logits become log-probabilities first, which the mask compares;
    the softmax over the mixture is the same.
    """
    for logits in (z, z_ref):
        logits.sub_(torch.logsumexp(logits, dim=-1, keepdim=True))
    best = torch.maximum(z, z_ref, out=spare)
    mask = best < best.amax(dim=-1, keepdim=True) + math.log(plausibility)
    z.mul_(alpha / temperature).add_(z_ref, alpha=(1 - alpha) / temperature).masked_fill_(mask, MASKED)


def _divergence_and_gradient(
    z_student: torch.Tensor, z: torch.Tensor, spare: torch.Tensor, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over tokens of the divergence, and its gradient with respect to `z_student`.

    Both are logits [c, V], already divided by T. They and `spare`, a third tensor of their shape, are overwritten.
    The gradients, per token: of KL(p || q) it is q - p; of KL(q || p), q (log q - log p - KL(q || p)); of the
    Jensen-Shannon divergence, q (log q - log m - KL(q || m)) / 2.
    """
    log_p = torch.log_softmax(z, dim=-1, out=z)
    log_q = torch.log_softmax(z_student, dim=-1, out=z_student)
    if divergence == "forward_kl":
        p = torch.exp(log_p, out=spare)
        sum_of_kl = log_p.sub_(log_q).mul_(p).sum()
        return sum_of_kl, log_q.exp_().sub_(p)
    if divergence == "reverse_kl":
        q = torch.exp(log_q, out=spare)
        log_q_over_p = log_q.sub_(log_p)
        kl = torch.mul(q, log_q_over_p, out=log_p).sum(dim=-1, keepdim=True)
        return kl.sum(), q.mul_(log_q_over_p.sub_(kl))
    p = torch.exp(log_p, out=spare)
    log_p_over_q = log_p.sub_(log_q)
    q = log_q.exp_()
    # log(m / q) = log((1 + p / q) / 2): stable, and exactly 0 where p = q.
    log_m_over_q = torch.nn.functional.softplus(log_p_over_q).sub_(math.log(2))
    sum_of_kl_p_m = p.mul_(log_p_over_q.sub_(log_m_over_q)).sum()
    kl_q_m = -torch.sum(q * log_m_over_q, dim=-1, keepdim=True)
    return 0.5 * (sum_of_kl_p_m + kl_q_m.sum()), q.mul_(log_m_over_q.add_(kl_q_m)).mul_(-0.5)
