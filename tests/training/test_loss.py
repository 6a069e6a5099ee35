"""The masked loss against a plain loop."""

import torch

from anomalydiffusion.training.loss import masked_loss


def test_value_against_a_plain_loop() -> None:
    torch.manual_seed(0)
    answer, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    mask = (torch.rand(2, 1, 4, 5) > 0.5).float()
    expected = 0.0
    for b in range(2):
        inside = [((target - answer)[b, c, y, x] ** 2).item() for c in range(3) for y in range(4) for x in range(5) if mask[b, 0, y, x]]
        rest = [((target - answer)[b, c, y, x] ** 2).item() for c in range(3) for y in range(4) for x in range(5) if not mask[b, 0, y, x]]
        expected += (sum(inside) / len(inside) + 0.3 * sum(rest) / len(rest)) / 2
    assert abs(float(masked_loss(answer, target, mask, outside=0.3)) - expected) < 1e-5


def test_a_weight_is_each_samples_own() -> None:
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 1, 1, 2)
    mask, weight = torch.ones(2, 1, 1, 2), torch.tensor([2.0, 0.5]).view(2, 1, 1, 1)
    assert float(masked_loss(torch.zeros_like(target), target, mask, weight=weight)) == (2 * 2.5 + 0.5 * 12.5) / 2


def test_nothing_outside_the_mask_gets_a_gradient() -> None:
    answer = torch.randn(2, 3, 8, 8, requires_grad=True)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:4, 3:6] = 1
    masked_loss(answer, torch.randn(2, 3, 8, 8), mask).backward()
    assert answer.grad is not None
    assert (answer.grad[(mask == 0).expand(-1, 3, -1, -1)] == 0).all()
    assert (answer.grad[(mask == 1).expand(-1, 3, -1, -1)] != 0).all()


def test_a_large_defect_counts_as_much_as_a_small_one_only_when_normalised() -> None:
    small, large = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    small[..., :2, :2], large[..., :4, :4] = 1, 1
    answer, target = torch.zeros(1, 2, 8, 8), torch.full((1, 2, 8, 8), 3.0)
    assert masked_loss(answer, target, small) == masked_loss(answer, target, large) == 9
    assert 4 * masked_loss(answer, target, small, normalise=False) == masked_loss(answer, target, large, normalise=False)
