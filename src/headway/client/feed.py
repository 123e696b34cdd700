"""The answers of one client request on their way into the engine.

A request may ask for thousands of answers. They go to the engine in slices, one per turn of the event loop, and at most
a window of them is inside at a time: so a large request neither holds up the loop nor fills the engine's queue, in
which the requests of others need a place too.

Of several answers to a prompt whose KV another engine has, the first goes alone: it pulls, and when it has begun, the
others find the prompt in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from headway.request import NewRequest, Transfer
from headway.sampling import MAX_N

SLICE = 64  # answers


def window(max_num_seqs: int) -> int:
    """The most answers of one client request inside the engine: as many again as run, so that the engine never waits
    for the next ones; more than the answers of any prompt, so that a prompt gets in whole."""
    return max(2 * max_num_seqs, SLICE + MAX_N)


class Feed:
    """Hands the answers of `requests` over, in order, the longest prompt first: if the limits refuse any prompt, they
    refuse that one, before anything is computed.

    register: makes the answers of a request. send: sends a slice; `take` must be called with the engine's word on it.
    window: the most answers inside. confirm: the engine is to say that it has taken even a single answer.
    """

    def __init__(
        self,
        requests: Sequence[NewRequest],
        register: Callable[[NewRequest], list[NewRequest]],
        send: Callable[[list[NewRequest]], None],
        window: int,
        *,
        confirm: bool = False,
    ) -> None:
        longest = max(range(len(requests)), key=lambda index: len(requests[index].prompt))
        self._requests = deque([requests[longest], *requests[:longest], *requests[longest + 1 :]])
        self._register = register
        self._send = send
        self._window = window
        self._answers: deque[NewRequest] = deque()  # registered; the engine does not have these
        self._slice: list[NewRequest] = []  # sent; the engine has not said yet how many it took
        self._num_inside = 0
        self.num_answers = sum(request.sampling.n for request in requests)
        self.confirms = confirm or self.num_answers > 1  # whether the engine says that it takes a slice
        self.num_waiting = self.num_answers  # neither taken nor in the slice
        self.begun = False  # whether the engine has taken any answer
        self.leader: int | None = None  # the uid of an answer that goes alone; the others wait for `follow`
        self._leads = self.num_answers > 1 and self._requests[0].transfer is Transfer.PULL

    @property
    def slice_uid(self) -> int | None:
        """The uid of the first answer of the slice that waits for the engine's word; None: there is no such slice."""
        return self._slice[0].uid if self._slice else None

    def advance(self) -> None:
        """Send the next slice if the engine has answered for the last one, and the window has room."""
        if self._slice or not self.num_waiting or self.leader is not None:
            return
        if self._window - self._num_inside < min(SLICE, self.num_waiting):
            return
        while self._requests and len(self._answers) < SLICE:
            self._answers += self._register(self._requests.popleft())
        size = 1 if self._leads else min(SLICE, len(self._answers))
        self._slice = [self._answers.popleft() for _ in range(size)]
        self.num_waiting -= size
        if self._leads:
            self._leads, self.leader = False, self._slice[0].uid
        self._send(self._slice)

    def take(self, count: int | None = None) -> None:
        """The engine took the first `count` answers of the slice, None: all; the others wait again."""
        count = len(self._slice) if count is None else count
        back = self._slice[count:]
        self._answers.extendleft(reversed(back))
        self._slice = []
        self._num_inside += count
        self.num_waiting += len(back)
        self.begun = self.begun or count > 0

    def follow(self) -> None:
        """The answer that went alone has begun, or is over: the others may go."""
        self.leader = None

    def ended(self, count: int) -> None:
        """So many answers that the engine had taken are over."""
        self._num_inside -= count
