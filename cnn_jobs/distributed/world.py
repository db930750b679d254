"""This process' rank among all, by the variables of torchrun or a Kubernetes Job. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cnn_jobs.errors import RecipeError, UserError

PORT = 29500
RENDEZVOUS_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class World:
    """``size`` processes, of which this is number ``rank``; rank 0 is at ``address``:``port`` and records the run.

    ``local_rank`` of ``local_size`` on this machine. ``agent_store``: torchrun serves the store of the rendezvous;
    ``restart``: how often it has restarted the processes.
    """

    size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = PORT
    timeout_s: float = RENDEZVOUS_TIMEOUT_S
    agent_store: bool = False
    restart: int = 0

    @property
    def distributed(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1

    def check_batch(self, batch_size: int) -> None:
        """Raises ``RecipeError`` where a batch cannot be divided equally."""
        if batch_size % self.size:
            raise RecipeError(
                f"batch_size {batch_size} cannot be divided equally among {self.size} processes; it is the total of "
                "all: choose a multiple of their number"
            )

    @property
    def name(self) -> str:
        """For log lines, "" for a single process."""
        return f"rank {self.rank}" if self.distributed else ""


def default_size() -> int:
    """``WORLD_SIZE``, else 1. Raises ``UserError``."""
    return _number("WORLD_SIZE", 1)


def world_of(size: int, timeout_s: float = RENDEZVOUS_TIMEOUT_S) -> World:
    """This process among ``size``. Raises ``UserError`` where the environment does not identify it."""
    if size == 1:
        return World()
    if os.environ.get("WORLD_SIZE") and default_size() != size:
        raise UserError(f"--world-size is {size}, but WORLD_SIZE is {default_size()}; leave one of them out")
    variable = "RANK" if os.environ.get("RANK") else "JOB_COMPLETION_INDEX"
    if not os.environ.get(variable):
        raise UserError(
            f"--world-size is {size}, but neither RANK nor JOB_COMPLETION_INDEX identifies this process; "
            "start it with torchrun or an Indexed Job, or set RANK"
        )
    rank = _number(variable, 0)
    if rank >= size:
        raise UserError(f"{variable} is {rank}, but must be below the world size, {size}")
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(f"--world-size is {size}, but MASTER_ADDR is not set; set it to the host of rank 0")
    return World(
        size=size,
        rank=rank,
        local_rank=_number("LOCAL_RANK", 0),
        local_size=max(1, _number("LOCAL_WORLD_SIZE", 1)),
        address=os.environ["MASTER_ADDR"],
        port=_number("MASTER_PORT", PORT),
        timeout_s=timeout_s,
        agent_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        restart=_number("TORCHELASTIC_RESTART_COUNT", 0),
    )


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable) or str(otherwise)
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{variable} is '{text}', but must be a whole number")
    return int(text)
