"""Workers on a Ray cluster: one actor each, with a model of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from anomalydiffusion.core.errors import ConfigError, GenerationError
from anomalydiffusion.generation.crew import Draw, Records

__all__ = ["RayCrew"]


class RayCrew:
    """Actors on the cluster at `address` ("local": one of this machine's own, for the time of the crew).

    Each takes a graphics card where it needs a `card`, else `cpus` processors; `size` None = as many as fit. The package must be installed
    on every node, and each must see the run's folder under the same name. Raises `ConfigError` where Ray is not installed,
    `GenerationError` where the cluster cannot be reached or is too small.
    """

    def __init__(self, address: str, size: int | None, build: Callable[[], Draw], *, cpus: int = 1, card: bool = False) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--ray: Ray is not installed; pip install 'anomalydiffusion[ray]'") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray, self.began = ray, not ray.is_initialized()
        if self.began:
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                raise GenerationError(f"--ray {address}: cannot be reached ({error}); start it with 'ray start --head'") from error
        self.lost: tuple[type[BaseException], ...] = (
            ray.exceptions.RayActorError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
        )
        found = ray.cluster_resources()
        self.takes: dict[str, Any] = {"num_gpus": 1} if card else {"num_cpus": cpus}
        room = int(found.get("GPU", 0)) if card else int(found.get("CPU", 0)) // cpus
        self.size = size or max(1, room)
        if self.size > room:
            self.close()
            remedy = f"give --workers {room}" if room else "it has no graphics card: give --device cpu" if card else "add nodes"
            raise GenerationError(f"--ray {address}: has room for {room} workers, not {self.size}; {remedy}")
        self.build, self.actors = build, list[Any]()
        self.actors = [self._new() for _ in range(self.size)]

    def _new(self) -> Any:
        actor = self.ray.remote(_Actor).options(max_restarts=0, max_task_retries=0, **self.takes)
        return actor.remote(self.build, self.takes.get("num_cpus"))

    def submit(self, worker: int, tasks: Sequence[Any]) -> Future[Records]:
        future: Future[Records] = self.actors[worker].draw.remote(list(tasks)).future()
        return future

    def replace(self, worker: int) -> None:
        self.actors[worker] = self._new()

    def close(self) -> None:
        for actor in getattr(self, "actors", []):
            self.ray.kill(actor)
        if self.began:
            self.ray.shutdown()


class _Actor:
    """What runs on a node."""

    def __init__(self, build: Callable[[], Draw], threads: int | None) -> None:
        self.build, self.threads = build, threads
        self.run: Draw | None = None

    def draw(self, tasks: Sequence[Any]) -> Records:
        if self.run is None:  # here, so that what goes wrong is said as it is
            if self.threads:
                import torch

                torch.set_num_threads(self.threads)
            self.run = self.build()
        return self.run(tasks) if tasks else []
