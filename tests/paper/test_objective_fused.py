"""The fused loss and its gradients, against plain autograd over full logits in float64."""

import pytest
import torch

from realign_pipes.paper import objective
from realign_pipes.paper.objective import fused_linear_divergence

DIVERGENCES = ["forward_kl", "reverse_kl", "jsd"]
ALPHAS = [-0.5, 0, 0.3, 1, 2.5]
VOCAB = 48


def make_inputs(seed=0, tokens=37):
    """Hiddens and heads of three models with widths and padded vocabularies of their own."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    student = [randn(tokens, 16).requires_grad_(), randn(53, 16).requires_grad_()]
    return [*student, randn(tokens, 12), randn(50, 12), randn(tokens, 24), randn(60, 24)]


def plain_loss(inputs, alpha, divergence, temperature, mask=None, beta=0.0):
    """Mean over the tokens in `mask`: full logits, probabilities, logarithms; no code shared with the package."""
    hs, ws, hr, wr, ha, wa = (x.double() for x in inputs)
    z_ref, z_aligned = hr @ wr[:VOCAB].T, ha @ wa[:VOCAB].T
    z = (1 - alpha) * z_ref + alpha * z_aligned
    if beta:
        return masked_loss(z_ref, z_aligned, z, hs @ ws[:VOCAB].T, divergence, temperature, beta)
    log_p = (z / temperature).log_softmax(-1)
    log_q = ((hs @ ws[:VOCAB].T) / temperature).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    per_token = {
        "forward_kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "jsd": (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2,
    }[divergence]
    return per_token.mean() if mask is None else per_token[mask].mean()


def masked_loss(z_ref, z_aligned, z, z_student, divergence, temperature, beta):
    """The same from probabilities, with the tokens that neither model gives beta times the best token's probability
    removed from the teacher: `xlogy` makes 0 log 0 zero."""
    best = torch.maximum(torch.softmax(z_ref, -1), torch.softmax(z_aligned, -1))
    keep = best >= beta * best.max(-1, keepdim=True).values
    largest = z.masked_fill(~keep, -1e9).max(-1, keepdim=True).values  # of all, a masked one may be the largest
    weights = torch.where(keep, torch.exp((z - largest).clamp(max=0) / temperature), 0.0)
    p = weights / weights.sum(-1, keepdim=True)
    q = torch.softmax(z_student / temperature, -1)
    m = (p + q) / 2
    if divergence == "forward_kl":
        return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).mean()
    return (torch.xlogy(p, p) - torch.xlogy(p, m) + torch.xlogy(q, q) - torch.xlogy(q, m)).sum(-1).mean() / 2


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs[:2])


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradients_equal_plain_autograd(divergence, alpha, temperature):
    inputs = make_inputs()
    fused = fused_linear_divergence(
        *inputs, alpha, divergence=divergence, temperature=temperature, vocab_size=VOCAB, chunk_tokens=10
    )
    plain = plain_loss(inputs, alpha, divergence, temperature)
    torch.testing.assert_close(fused.double(), plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(fused, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("alpha", [-1, 0, 0.5, 1, 3, 10])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_with_a_mask_value_and_gradients_equal_plain_autograd(divergence, alpha, beta):
    inputs = make_inputs()
    for temperature in (1.0, 2.0):
        fused = fused_linear_divergence(
            *inputs,
            alpha,
            divergence=divergence,
            temperature=temperature,
            plausibility=beta,
            vocab_size=VOCAB,
            chunk_tokens=10,
        )
        plain = plain_loss(inputs, alpha, divergence, temperature, beta=beta)
        assert torch.isfinite(fused)
        torch.testing.assert_close(fused.double(), plain, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(gradients(fused, inputs), gradients(plain, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_mask_is_taken_from_both_models_own_probabilities():
    """Ids 0 and 1 tie for the best; the aligned model alone finds 2 plausible; neither finds 3 or 4."""
    reference = torch.tensor([[0.40, 0.40, 0.10, 0.0001, 0.0999]]).log()
    aligned = torch.tensor([[0.40, 0.40, 0.18, 0.0100, 0.0100]]).log()
    eye = torch.eye(5)
    student = torch.zeros(1, 5, requires_grad=True)
    loss = fused_linear_divergence(student, eye, reference, eye, aligned, eye, 3.0, plausibility=0.3)
    kept = [0, 1, 2]  # 0.3 of 0.4 is 0.12, and the best probabilities are 0.4, 0.4, 0.18, 0.01 and 0.0999
    p = torch.softmax((3.0 * aligned - 2.0 * reference)[0, kept].double(), -1)
    torch.testing.assert_close(loss.double(), (p * (p * 5).log()).sum(), rtol=1e-6, atol=1e-7)
    loss.backward()
    expected = torch.full((5,), 0.2, dtype=torch.double)
    expected[kept] -= p
    torch.testing.assert_close(student.grad[0].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_plausibility_0_is_the_code_without_a_mask_to_the_bit(divergence, monkeypatch):
    inputs = make_inputs()
    monkeypatch.setattr("realign_pipes.paper.objective._fuse_masked", None)  # must not be called
    losses = [
        fused_linear_divergence(*inputs, 2.5, divergence=divergence, temperature=2.0, vocab_size=VOCAB, **more)
        for more in ({}, {"plausibility": 0.0})
    ]
    assert torch.equal(*losses)
    for one, other in zip(*(gradients(loss, inputs) for loss in losses), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_tokens_do_not_count(divergence):
    inputs = make_inputs()
    mask = torch.rand(37, generator=torch.Generator().manual_seed(1)) < 0.5
    selected = [x[mask] if i in (0, 2, 4) else x for i, x in enumerate(inputs)]
    fused = fused_linear_divergence(*selected, 2.5, divergence=divergence, vocab_size=VOCAB)
    plain = plain_loss(inputs, 2.5, divergence, 1.0, mask)
    torch.testing.assert_close(fused.double(), plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(fused, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_padded_rows_of_the_heads_change_nothing():
    inputs = make_inputs()
    trimmed = [x[:VOCAB] if i in (1, 3, 5) else x for i, x in enumerate(inputs)]
    padded = fused_linear_divergence(*inputs, 2.5, vocab_size=VOCAB)
    assert torch.equal(padded, fused_linear_divergence(*trimmed, 2.5))
    assert torch.count_nonzero(gradients(padded, inputs)[1][VOCAB:]) == 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 37, 1000])
def test_chunk_size_does_not_change_the_result(divergence, chunk_tokens):
    inputs = make_inputs()
    whole = fused_linear_divergence(*inputs, 1.5, divergence=divergence, chunk_tokens=37)
    chunked = fused_linear_divergence(*inputs, 1.5, divergence=divergence, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(chunked, inputs), gradients(whole, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_reference_itself_is_at_zero_for_alpha_0(divergence, temperature):
    _, _, hidden, head, aligned_hidden, aligned_head = make_inputs()
    student = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    loss = fused_linear_divergence(
        *student, hidden, head, aligned_hidden, aligned_head, 0.0, divergence=divergence, temperature=temperature
    )
    assert loss.item() == 0
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients(loss, student))


def test_splits_of_a_step_add_up_to_the_whole():
    inputs = make_inputs()
    whole = fused_linear_divergence(*inputs, 1.5)
    parts = [
        fused_linear_divergence(
            *(x[rows] if i in (0, 2, 4) else x for i, x in enumerate(inputs)), 1.5, num_tokens=torch.tensor(37)
        )
        for rows in (slice(0, 5), slice(5, 30), slice(30, 37))
    ]
    torch.testing.assert_close(sum(parts), whole)
    for ours, theirs in zip(gradients(sum(parts), inputs), gradients(whole, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_half_precision_inputs_are_computed_in_float32():
    inputs = [x.detach().bfloat16() for x in make_inputs()]
    inputs[0].requires_grad_(), inputs[1].requires_grad_()
    fused = fused_linear_divergence(*inputs, 2.5, vocab_size=VOCAB)
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused.double(), plain_loss(inputs, 2.5, "forward_kl", 1.0), rtol=1e-5, atol=1e-5)
    assert [gradient.dtype for gradient in gradients(fused, inputs)] == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": float("nan")}, "alpha must be a finite number, not nan"),
        ({"alpha": float("inf")}, "alpha must be a finite number, not inf"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"divergence": "kl"}, "there is no divergence 'kl'"),
        ({"vocab_size": 51}, "vocab_size 51 must be between 1 and the smallest head's 50"),
        ({"num_tokens": 0}, "no tokens"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"alpha": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        fused_linear_divergence(*make_inputs(), arguments.pop("alpha"), **arguments)


def test_shapes_that_do_not_fit_are_refused():
    inputs = make_inputs()
    with pytest.raises(ValueError, match="aligned has 36 tokens, the student 37"):
        fused_linear_divergence(*inputs[:4], inputs[4][1:], inputs[5], 1.0)
    with pytest.raises(ValueError, match=r"reference: hidden \[37, 12\] and head \[60, 24\]"):
        fused_linear_divergence(*inputs[:3], inputs[5], *inputs[4:], 1.0)


def rounded(tensor):
    return tensor.detach().bfloat16().double()


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.3, 2.5])
def test_bfloat16_products_round_the_factors_and_nothing_else(alpha, beta):
    inputs = make_inputs()
    fused = fused_linear_divergence(
        *inputs, alpha, vocab_size=VOCAB, chunk_tokens=10, plausibility=beta, matmul_dtype=torch.bfloat16
    )
    hs, ws, hr, wr, ha, wa = (rounded(x) for x in inputs)
    plain = plain_loss([hs, ws, hr, wr, ha, wa], alpha, "forward_kl", 1.0, beta=beta)
    torch.testing.assert_close(fused.double(), plain, rtol=1e-5, atol=1e-5)
    z_student = (hs @ ws[:VOCAB].T).requires_grad_()
    (of_logits,) = torch.autograd.grad(
        plain_loss([z_student, torch.eye(VOCAB), hr, wr, ha, wa], alpha, "forward_kl", 1.0, beta=beta), z_student
    )
    of_logits = rounded(of_logits * len(hs)) / len(hs)  # the mean is taken after the products
    of_head = torch.zeros_like(ws)
    of_head[:VOCAB] = of_logits.T @ hs
    for ours, theirs in zip(gradients(fused, inputs), (of_logits @ ws[:VOCAB], of_head), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=2e-4)  # a float32 may round to the other side


def test_bfloat16_inputs_lose_nothing_in_bfloat16_products():
    inputs = [x.detach().bfloat16() for x in make_inputs()]
    one, other = (
        fused_linear_divergence(*inputs, 1.5, plausibility=0.1, matmul_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_products_of_a_gpu_give_what_those_of_a_cpu_give(beta, temperature, monkeypatch):
    """A GPU's product of bfloat16 factors with a float32 result, which a CPU lacks, is emulated here."""
    mm = torch.mm

    def product(left, right, *, out_dtype, out=None):
        assert left.dtype == right.dtype == torch.bfloat16 and out_dtype == torch.float32
        result = mm(left.float(), right.float())
        return result if out is None else out.copy_(result)

    inputs = make_inputs()

    def loss_and_gradients():
        loss = fused_linear_divergence(
            *inputs, 1.5, vocab_size=VOCAB, chunk_tokens=10, plausibility=beta, temperature=temperature,
            matmul_dtype=torch.bfloat16,
        )  # fmt: skip
        return loss.detach(), *gradients(loss, inputs)

    on_cpu = loss_and_gradients()
    monkeypatch.setattr(objective, "_factor", lambda tensor, dtype: tensor.to(dtype))
    monkeypatch.setattr(torch, "mm", product)
    torch.testing.assert_close(loss_and_gradients(), on_cpu, rtol=1e-5, atol=1e-6)


def test_a_dtype_without_the_range_of_a_gradient_is_refused():
    with pytest.raises(ValueError, match="matmul_dtype must be float32 or bfloat16"):
        fused_linear_divergence(*make_inputs(), 1.0, matmul_dtype=torch.float16)
