"""Learned vectors per (product, defect), spliced into a prompt beside the spatial tokens of a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from anomalydiffusion.core.errors import GenerationError
from anomalydiffusion.priors.base import Context, Prior

__all__ = ["AnomalyTokens", "insert"]

Key = tuple[str, str]


class AnomalyTokens(nn.Module):
    """The anomaly vectors `e_a`: k word embeddings for each (product, defect) [arXiv 2312.05767v2, anomaly embedding].

    They start from the word embedding of `initial_word` (the mean where it is several tokens), with a little noise so
    that the k vectors are not one. Each defect's are a parameter of their own, k x D.
    """

    def __init__(self, keys: Sequence[Key], count: int, width: int, start_D: torch.Tensor | None = None, seed: int = 0) -> None:
        super().__init__()
        self.keys: list[Key] = []
        self.vectors = nn.ParameterList()
        self.count, self.width = count, width
        self.add(keys, torch.zeros(width) if start_D is None else start_D, seed)

    def add(self, keys: Sequence[Key], start_D: torch.Tensor, seed: int = 0) -> None:
        """Vectors for further defects, at their start."""
        generator, start = torch.Generator().manual_seed(seed), start_D.cpu()
        noise = torch.randn(len(keys), self.count, self.width, generator=generator)
        for key, own in zip(keys, start + 0.1 * noise * start.std().clamp_min(1e-3), strict=True):
            self.keys.append((key[0], key[1]))
            self.vectors.append(nn.Parameter(own.clone()))

    def rows(self, keys: Sequence[Key]) -> torch.Tensor:
        """Vectors of these defects, B x k x D. Raises `GenerationError` on a name that was not learned."""
        for key in keys:
            if tuple(key) not in self.keys:
                known = ", ".join("/".join(each) for each in self.keys)
                raise GenerationError(f"defect '{key[0]}/{key[1]}' was not learned; this adapter knows {known}")
        return torch.stack([self.vectors[self.keys.index((key[0], key[1]))] for key in keys])

    def spread(self, keys: Sequence[Key]) -> torch.Tensor:
        """Deviation of each of these defects' vectors, B x 1 x 1: the unit of noise on them."""
        return self.rows(keys).detach().std((1, 2), keepdim=True)


def insert(prior: Prior, prompt: str, learned_BKD: torch.Tensor) -> Context:
    """Put the learned vectors where the `{}` of `prompt` stands and encode the whole sequence."""
    head, _, tail = prompt.partition("{}")
    return prior.embed((prior.tokenize(head) if head.strip() else [], prior.tokenize(tail) if tail.strip() else []), learned_BKD)
