"""Slots that the worker has still to give back: each PREEMPTED or ABORT task is answered by a -9 in its slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from headway.scheduler import QuarantinedSlot


@dataclass(frozen=True, slots=True)
class Owed:
    """A slot whose -9 has not come. request: FastDeploy's Request that was in it. aborts: by an ABORT task."""

    slot: QuarantinedSlot
    request: Any
    aborts: bool


class Acknowledgements:
    """Which requests wait for the worker's -9.

    The scheduling thread adds and takes. Other threads ask, and say that a client has been answered: the thread of the
    token processor must see that at once, or an aborted request would be answered twice.
    """

    def __init__(self) -> None:
        self._owed: dict[str, Owed] = {}
        self._answered: set[str] = set()

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._owed

    def __len__(self) -> int:
        return len(self._owed)

    def expect(self, request_id: str, owed: Owed) -> None:
        """A task was sent that the worker will answer with a -9."""
        assert request_id not in self._owed, "it is sent nothing before its last slot was given back"
        self._owed[request_id] = owed

    def take(self, request_id: str) -> Owed | None:
        """The worker has answered. None: nothing was owed."""
        return self._owed.pop(request_id, None)

    def drop_all(self) -> list[Owed]:
        """The worker has lost its tasks."""
        owed = list(self._owed.values())
        self._owed.clear()
        self._answered.clear()
        return owed

    def ids(self) -> list[str]:
        """The requests that wait."""
        return list(self._owed)

    def answer(self, request_id: str) -> None:
        """The client has its answer. Any thread."""
        self._answered.add(request_id)

    def forget_answer(self, request_id: str) -> None:
        """Nothing is owed for a request that was answered."""
        if request_id not in self._owed:
            self._answered.discard(request_id)

    def is_aborting(self, request_id: str) -> bool:
        """Whether the -9 is to be answered to the client, as the end of an aborted request. Any thread."""
        owed = self._owed.get(request_id)
        return owed is not None and owed.aborts and request_id not in self._answered

    def is_leaving(self, request_id: str) -> bool:
        """Whether the -9 frees the slot and says nothing to the client. Any thread."""
        return request_id in self._owed and not self.is_aborting(request_id)


class IdSet(Set[str]):
    """A set of request ids as FastDeploy's other threads see it. `discard` is a message to the scheduling thread.

    ids: those to look through. has: whether an id is in the set.
    """

    def __init__(
        self,
        ids: Callable[[], list[str]],
        has: Callable[[str], bool],
        discard: Callable[[str], None] | None = None,
    ) -> None:
        self._ids = ids
        self._has = has
        self._discard = discard

    @classmethod
    def _from_iterable(cls, it: Any) -> Any:
        return frozenset(it)

    def __contains__(self, request_id: object) -> bool:
        return isinstance(request_id, str) and self._has(request_id)

    def __iter__(self) -> Iterator[str]:
        return (request_id for request_id in self._ids() if self._has(request_id))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def discard(self, request_id: str) -> None:
        """Take an id out. Any thread."""
        if self._discard is not None:
            self._discard(request_id)
