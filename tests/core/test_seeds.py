"""Randomness depends on the seed and the purpose, on nothing else."""

import torch

from anomalydiffusion.core.seeds import derive, rng, torch_noise


def test_a_seed_belongs_to_its_purpose() -> None:
    seeds = {derive(0), derive(1), derive(0, "a"), derive(0, "a", "b"), derive(0, "ab"), derive(0, "a", 1), derive(0, "a", 11)}
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "pair", 3) == derive(0, "pair", 3) == 8519491045624486340  # fixed: old runs must draw the same again


def test_noise_of_an_item_knows_no_batch_and_no_global_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = torch_noise((4, 8), 7, "start", 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(100)
    assert torch.equal(first, torch_noise((4, 8), 7, "start", 0))
    assert not torch.equal(first, torch_noise((4, 8), 7, "start", 1))
    big = torch_noise((100_000,), 7, "spread")
    assert abs(float(big.mean())) < 0.02 and abs(float(big.std()) - 1) < 0.02
    assert rng(7, "x").integers(1 << 60) == rng(7, "x").integers(1 << 60) != rng(7, "y").integers(1 << 60)
