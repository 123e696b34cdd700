"""The place of a process among the ranks, and what the ranks exchange beside the sums inside a forward."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist
from torch import Tensor

from headway.executor.weights import local_part
from headway.model_files import ModelFiles
from headway.transfer.model_digest import model_digest

_LOOPBACK = "lo"
_SKEW = timedelta(minutes=30)  # that ranks may differ in reading their weights; steps have a watchdog of their own


class Rank:
    """Rank `number` of `size`, on `device`. The process belongs to the group from here on, until `leave`.

    meeting: a file descriptor, see `meeting_place`. Waits for the other ranks. Raises ValueError if torch.distributed
    is in use in this process already.
    """

    def __init__(self, number: int, size: int, meeting: int, device: torch.device) -> None:
        if dist.is_initialized():
            raise ValueError(
                "torch.distributed is in use in this process already: one process holds one model with a "
                "tensor_parallel_size above 1"
            )
        self.number, self.size, self.device = number, size, device
        os.environ["LOCAL_RANK"] = str(number)  # transformers takes the device by it
        if device.type == "cpu" and sys.platform == "linux":  # names of hosts do not always lead to this host
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.FileStore(f"/proc/self/fd/{meeting}", size),
            rank=number,
            world_size=size,
            timeout=_SKEW,
            device_id=device if device.type == "cuda" else None,
        )

    def least(self, number: int) -> int:
        """The least of the numbers that the ranks bring. All ranks must ask."""
        found = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def share(self, tokens: Tensor) -> None:
        """Rank 0 tells the others `tokens`, int64; in place. All ranks must take part."""
        dist.broadcast(tokens, src=0)

    def leave(self) -> None:
        """Leave the group. Idempotent."""
        if dist.is_initialized():
            dist.destroy_process_group()


def meeting_place() -> int:
    """Memory in which the ranks find each other, as a file descriptor to be inherited: no port that could be in use,
    and no file that could stay."""
    return os.memfd_create("headway-ranks")


def device_of(device: torch.device, number: int) -> torch.device:
    """The device of rank `number`. device: of the configuration."""
    return torch.device("cuda", number) if device.type == "cuda" else device


def makes(files: ModelFiles) -> dict[str, str]:
    """What must be the same in all ranks: programs, and the model."""
    return {
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("headway", "torch", "transformers")},
        f"model {str(files.path)!r}": model_digest(files.kv_files()),
    }


def check_same(number: int, mine: dict[str, str], of_rank_0: dict[str, str]) -> None:
    """Raises ValueError if rank `number` is made of something else than rank 0."""
    if different := [name for name in sorted({*mine, *of_rank_0}) if mine.get(name) != of_rank_0.get(name)]:
        name = different[0]
        raise ValueError(
            f"rank {number} has {name} {mine.get(name)}, and rank 0 has {of_rank_0.get(name)}: all ranks must be of "
            "the same programs and the same model"
        )


def weight_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the parts that this rank holds."""
    held = {part.data_ptr(): part.nbytes for part in (local_part(tensor) for tensor in tensors)}
    return sum(held.values())
