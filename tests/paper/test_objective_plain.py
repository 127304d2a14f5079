"""The definitions, against formulas written another way (in float64, from probabilities)."""

import pytest
import torch

from realign_pipes.paper.objective import check_plausibility, divergence_between, fuse_logits, implausible


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.7])
def test_fused_distribution_is_the_geometric_mixture(alpha):
    reference, aligned = torch.randn(4, 9), torch.randn(4, 9)
    mixture = torch.softmax(reference.double(), -1) ** (1 - alpha) * torch.softmax(aligned.double(), -1) ** alpha
    expected = mixture / mixture.sum(-1, keepdim=True)
    fused = torch.softmax(fuse_logits(reference, aligned, alpha), -1)
    torch.testing.assert_close(fused.double(), expected, rtol=0, atol=1e-6)


def test_ends_are_the_models_bit_for_bit():
    reference, aligned = torch.randn(4, 9), torch.randn(4, 9)
    assert torch.equal(fuse_logits(reference, aligned, 0), reference)
    assert torch.equal(fuse_logits(reference, aligned, 1), aligned)


def test_one_alpha_per_row_and_heads_of_different_size():
    reference, aligned = torch.randn(3, 9), torch.randn(3, 12)
    fused = fuse_logits(reference, aligned, torch.tensor([[0.0], [0.5], [2.0]]))
    expected = torch.stack(
        [
            reference[0],
            0.5 * reference[1] + 0.5 * aligned[1, :9],
            2 * aligned[2, :9] - reference[2],
        ]
    )
    torch.testing.assert_close(fused, expected)


def test_mixes_in_float32():
    low = torch.randn(2, 5, dtype=torch.bfloat16)
    assert fuse_logits(low, low, 0.5).dtype == torch.float32


def test_divergences_against_their_definitions():
    student, teacher = torch.randn(6, 11), torch.randn(6, 11)
    p, q = torch.softmax(teacher.double() / 1.7, -1), torch.softmax(student.double() / 1.7, -1)
    m = (p + q) / 2
    expected = {
        "forward_kl": (p * (p / q).log()).sum(-1),
        "reverse_kl": (q * (q / p).log()).sum(-1),
        "jsd": ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2,
    }
    for name, value in expected.items():
        got = divergence_between(student, teacher, name, temperature=1.7)
        torch.testing.assert_close(got.double(), value, rtol=1e-5, atol=1e-6)


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="there is no divergence 'kl'"):
        divergence_between(torch.zeros(1, 2), torch.zeros(1, 2), "kl")


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.3, 0.99])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 3.0, 10.0])
def test_with_a_mask_the_mixture_is_renormalised_over_plausible_tokens(alpha, beta):
    reference, aligned = 3 * torch.randn(50, 9), 3 * torch.randn(50, 12)
    p_ref, p_aligned = (torch.softmax(logits[:, :9].double(), -1) for logits in (reference, aligned))
    best = torch.maximum(p_ref, p_aligned)
    plausible = best >= beta * best.max(-1, keepdim=True).values
    mixture = torch.where(plausible, p_ref ** (1 - alpha) * p_aligned**alpha, 0)
    fused = fuse_logits(reference, aligned, alpha, beta)
    assert torch.equal(fused == -torch.inf, ~plausible)
    expected = mixture / mixture.sum(-1, keepdim=True)
    torch.testing.assert_close(torch.softmax(fused, -1).double(), expected, rtol=1e-4, atol=1e-6)


def test_one_alpha_per_row_does_not_change_a_mask():
    reference, aligned = 3 * torch.randn(3, 9), 3 * torch.randn(3, 9)
    fused = fuse_logits(reference, aligned, torch.tensor([[0.0], [0.5], [2.0]]), 0.2)
    expected = [fuse_logits(reference[row], aligned[row], alpha, 0.2) for row, alpha in enumerate([0.0, 0.5, 2.0])]
    torch.testing.assert_close(fused, torch.stack(expected))


def test_tokens_that_tie_for_the_best_are_all_kept():
    logits = torch.tensor([[2.0, 2.0, 1.9, -5.0]])
    assert implausible(logits, logits, 0.999).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_a_masked_token_adds_what_is_left_of_the_definition(divergence):
    student, teacher = torch.randn(6, 11, requires_grad=True), torch.randn(6, 11)
    teacher[:, 3] = -torch.inf
    p, q = torch.softmax(teacher.double(), -1), torch.softmax(student.double(), -1)
    m = (p + q) / 2
    expected = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)
    if divergence == "jsd":
        expected = (torch.xlogy(p, p) - torch.xlogy(p, m) + torch.xlogy(q, q) - torch.xlogy(q, m)).sum(-1) / 2
    got = divergence_between(student, teacher, divergence)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value.sum(), student)[0] for value in (got, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_reverse_kl_from_a_masked_teacher_is_infinite():
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -torch.inf]])
    assert divergence_between(student, teacher, "reverse_kl").tolist() == [torch.inf]


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_a_plausibility_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match="plausibility must be at least 0 and below 1"):
        fuse_logits(torch.zeros(1, 2), torch.zeros(1, 2), 0.5, beta)


def test_reverse_kl_with_a_mask_is_refused():
    with pytest.raises(ValueError, match="choose forward_kl or jsd; with reverse_kl, set plausibility to 0"):
        check_plausibility(0.1, "reverse_kl")
