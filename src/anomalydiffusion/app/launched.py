"""One of several processes that `torchrun` or `accelerate launch` began: they learn together, or draw a part each."""

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
    """What the launcher told this process: how many there are, and which it is, from 0, of all and of those on its machine."""

    count: int = 1
    rank: int = 0
    place: int = 0

    @classmethod
    def here(cls) -> Launched:
        count, rank, place = (int(os.environ.get(name, least)) for name, least in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")))
        return cls(count=count, rank=rank, place=place)

    @property
    def shard(self) -> str:
        """The part of the work that is this process's, as `--shard` says it."""
        return f"{self.rank + 1}/{self.count}"

    def own(self, device: str) -> str:
        """The graphics card that is this process's, where its machine has one for each; any other device as it is."""
        return f"cuda:{self.place}" if self.count > 1 and device == "cuda" else device

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
