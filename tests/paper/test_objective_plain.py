"""The definitions, against formulas written another way (in float64, from probabilities)."""

import pytest
import torch

from realign_pipes.paper.objective import divergence_between, fuse_logits


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
