"""How exact the fused loss is with products in float32 and in bfloat16, against float64.

    python benchmarks/loss_precision.py

Random states and heads whose logits have a standard deviation of `--spread`, as a language model's have about. The
student's states and head are float32, as with float32 masters; the teachers' are bfloat16, as cached. Errors are those
of log p (student and teacher, tokens with p of at least 1e-6) and of the gradients (norm of the difference over norm).

- float32: states and heads are multiplied in float32.
- bfloat16: `matmul_dtype` bfloat16. Factors are rounded, sums and results stay in float32.
- bfloat16 results: what a plain bfloat16 head gives under autocast. Logits are rounded too, which the loss never does.
"""

from harness import Results, arguments

# isort: split
import torch

from realign_pipes.paper.objective import divergence_between, fuse_logits, fused_linear_divergence

LEAST = 1e-6


def logits(hidden: torch.Tensor, head: torch.Tensor, way: str) -> torch.Tensor:
    """[N, V] in float64, with the errors of one way to multiply."""
    if way == "float64":
        return hidden.double() @ head.double().T
    if way == "float32":
        return (hidden.float() @ head.float().T).double()
    rounded = hidden.bfloat16().float() @ head.bfloat16().float().T
    return (rounded.bfloat16() if way == "bfloat16 results" else rounded).double()


def measure(results: Results, alpha: float, tokens: int, vocab: int, width: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    scale = spread / width**0.5
    # The three models are kin: their states differ by a tenth, as a student's and its teachers' do.
    shared, head = randn(tokens, width), randn(vocab, width) * scale
    student, reference, aligned = (shared + 0.1 * randn(tokens, width) for _ in range(3))
    reference, aligned, reference_head, aligned_head = (
        tensor.bfloat16() for tensor in (reference, aligned, head, head + 0.1 * scale * randn(vocab, width))
    )
    case = f"alpha {alpha:g}, {tokens} tokens, V = {vocab:,}, d = {width:,}, logits of spread {spread:g}"

    def log_p(way: str) -> tuple[torch.Tensor, torch.Tensor]:
        teacher = fuse_logits(logits(reference, reference_head, way), logits(aligned, aligned_head, way), alpha)
        return logits(student, head, way).log_softmax(-1), teacher.log_softmax(-1)

    exact = log_p("float64")
    for way in ("float32", "bfloat16", "bfloat16 results"):
        for name, true, found in zip(("student", "teacher"), exact, log_p(way), strict=True):
            worst = (found - true).abs()[true >= torch.tensor(LEAST).log()].max().item()
            results.figure(case, f"{way}: largest |error of log p|, {name}", worst)

    leaves = [student.double().requires_grad_(), head.double().requires_grad_()]
    teacher = fuse_logits(logits(reference, reference_head, "float64"), logits(aligned, aligned_head, "float64"), alpha)
    true_log_q, p = (leaves[0] @ leaves[1].T).log_softmax(-1), teacher.softmax(-1)
    true_loss = (p * (teacher.log_softmax(-1) - true_log_q)).sum(-1).mean()
    true_gradients = torch.autograd.grad(true_loss, leaves)
    for dtype in (torch.float32, torch.bfloat16):
        own = [student.clone().requires_grad_(), head.clone().requires_grad_()]
        loss = fused_linear_divergence(
            *own, reference, reference_head, aligned, aligned_head, alpha, matmul_dtype=dtype
        )
        way = str(dtype).removeprefix("torch.")
        results.figure(case, f"{way}: relative error of the loss", abs(loss.item() / true_loss.item() - 1))
        for name, ours, theirs in zip(("states", "head"), torch.autograd.grad(loss, own), true_gradients, strict=True):
            error = ((ours.double() - theirs).norm() / theirs.norm()).item()
            results.figure(case, f"{way}: relative error of the gradient of the {name}", error)
    own_definition = divergence_between(true_log_q.detach().float(), teacher.float(), "forward_kl").mean()
    torch.testing.assert_close(own_definition.double(), true_loss.detach(), rtol=1e-3, atol=1e-6)


if __name__ == "__main__":
    given = arguments(__doc__, alphas=[1.5, 5.0], tokens=128, vocab=16_384, width=1536, spread=3.0)
    results = Results("loss_precision", "Precision of the fused loss", given)
    for alpha in given.alphas:
        measure(results, alpha, given.tokens, given.vocab, given.width, given.spread)
    results.save()
