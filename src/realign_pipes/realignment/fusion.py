"""z(alpha), and divergences between categorical distributions: the definitions, over full logits.

The paper writes lambda where this project writes alpha. `fused_loss` computes the same numbers without ever holding
[tokens, vocabulary]; tests hold the two together.
"""

from typing import Literal

import torch

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


def fuse_logits(
    reference_logits: torch.Tensor, aligned_logits: torch.Tensor, alpha: float | torch.Tensor
) -> torch.Tensor:
    """z(alpha) = (1 - alpha) z_ref + alpha z_aligned, in float32 (the paper's Eq. 5).

    Both logits are [..., V] and may be padded to different V over one tokenizer: the result has the smaller one.
    `alpha` is a number, or a tensor that broadcasts against [..., 1]: one number per row, for instance. At 0 and 1
    the result equals the one model's logits bit for bit, as long as the other's are finite.
    """
    vocab = min(reference_logits.shape[-1], aligned_logits.shape[-1])
    return (1 - alpha) * reference_logits[..., :vocab].float() + alpha * aligned_logits[..., :vocab].float()


def divergence_between(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, divergence: Divergence, temperature: float = 1.0
) -> torch.Tensor:
    """Divergence of student and teacher at each position, [..., V] -> [...], in nats, float32.

    With p = softmax(teacher / temperature), q = softmax(student / temperature) and m = (p + q) / 2:
    `forward_kl` is KL(p || q), `reverse_kl` is KL(q || p) (the paper's Eq. 6), `jsd` is KL(p || m)/2 + KL(q || m)/2.
    There is no factor temperature**2: the number is the divergence itself.
    """
    log_p = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    if divergence == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if divergence == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if divergence == "jsd":
        log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
        return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1)
    raise ValueError(f"divergence {divergence!r} is not known. Choose forward_kl, reverse_kl or jsd.")
