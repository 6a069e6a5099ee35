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
    that the k vectors are not one.
    """

    def __init__(self, keys: Sequence[Key], count: int, width: int, start_D: torch.Tensor | None = None, seed: int = 0) -> None:
        super().__init__()
        self.keys = [tuple(key) for key in keys]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(self.keys), count, width, generator=generator)
        start = torch.zeros(width) if start_D is None else start_D.cpu()
        self.vectors = nn.Parameter(start + 0.1 * noise * start.std().clamp_min(1e-3))

    def rows(self, keys: Sequence[Key]) -> torch.Tensor:
        """Vectors of these defects, B x k x D. Raises `GenerationError` on a name that was not learned."""
        for key in keys:
            if tuple(key) not in self.keys:
                known = ", ".join("/".join(each) for each in self.keys)
                raise GenerationError(f"defect '{key[0]}/{key[1]}' was not learned; this adapter knows {known}")
        return self.vectors[[self.keys.index(tuple(key)) for key in keys]]


def insert(prior: Prior, prompt: str, learned_BKD: torch.Tensor) -> Context:
    """Put the learned vectors where the `{}` of `prompt` stands and encode the whole sequence."""
    head, _, tail = prompt.partition("{}")
    return prior.embed((prior.tokenize(head) if head.strip() else [], prior.tokenize(tail) if tail.strip() else []), learned_BKD)
