"""One of several processes that `torchrun` or `accelerate launch` began; the first of them writes, the others compute."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Launched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """What the launcher told this process: how many there are, and which it is, from 0."""

    count: int = 1
    rank: int = 0

    @classmethod
    def here(cls) -> Launched:
        return cls(count=int(os.environ.get("WORLD_SIZE", "1")), rank=int(os.environ.get("RANK", "0")))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def meet(self, *, cpu: bool) -> None:
        """Wait until every process has come this far; on graphics cards each has its own from the first time on."""
        if self.count > 1:
            _joined(cpu).wait_for_everyone()


@cache
def _joined(cpu: bool) -> PartialState:
    """What ties this process to the others, as long as it lives; its threads would abort a process that ends without letting go."""
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    atexit.register(state.destroy_process_group)
    return state
