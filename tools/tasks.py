"""The tasks of the default model: how problems are drawn, and which of them training must never see.

Every prompt has one right answer, so a served reply is either right or wrong. A prompt belongs to training
or to the held-out set by a hash of its text alone: no list has to be kept for the two to stay disjoint.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from string import ascii_lowercase, digits

from headway.default_model import Problem

MAX_PAIRS = 40
FILLER = "the a red old cat river sings under over blue moon and then it rains on stone".split()


def is_held_out(prompt: str) -> bool:
    """One prompt in sixteen is held out, whoever draws it and whenever."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 16


def arithmetic(rng: random.Random) -> Problem:
    """`12+34=` or `7-25=`: numbers up to 99, small ones drawn more often; a difference may be negative."""
    a, b = (rng.randrange(10 ** rng.choice((1, 2, 2, 2))) for _ in range(2))
    op = rng.choice("+-")
    return Problem("arithmetic", f"{a}{op}{b}=", str(a + b if op == "+" else a - b))


def _symbols(rng: random.Random) -> str:
    """Two to eight letters, or as many digits; repeats happen."""
    return "".join(rng.choices(rng.choice((ascii_lowercase, digits)), k=rng.randint(2, 8)))


def sort(rng: random.Random) -> Problem:
    """`sort hbead=`: letters or digits into ascending order."""
    symbols = _symbols(rng)
    return Problem("sort", f"sort {symbols}=", "".join(sorted(symbols)))


def reverse(rng: random.Random) -> Problem:
    """`reverse hbead=`: the same letters or digits from last to first."""
    symbols = _symbols(rng)
    return Problem("reverse", f"reverse {symbols}=", symbols[::-1])


def count(rng: random.Random) -> Problem:
    """`count 7 to 11=`: the one task with a long answer, up to thirty numbers."""
    first = rng.randrange(98)
    last = rng.randint(first + 1, min(99, first + 29))
    return Problem("count", f"count {first} to {last}=", " ".join(map(str, range(first, last + 1))))


def recall_family(rng: random.Random, pairs: int, queries: int) -> list[Problem]:
    """`a7=93 k2=10 ... ? k2=`: several questions about one list of pairs, with idle words between some.

    The problems share their prompt up to the question mark, so a trainer can encode the list once.
    """
    keys = rng.sample([letter + digit for letter in ascii_lowercase for digit in digits], pairs)
    values = {key: f"{rng.randrange(10, 100)}" for key in keys}
    words = [f"{key}={value}" for key, value in values.items()]
    for _ in range(rng.randint(0, pairs // 3)):
        words.insert(rng.randint(0, len(words)), rng.choice(FILLER))
    listing = " ".join(words)
    asked = rng.sample(keys, min(queries, pairs))
    return [Problem("recall", f"{listing} ? {key}=", values[key]) for key in asked]


def recall(rng: random.Random) -> Problem:
    """One question about a list of 2 to 40 pairs: the answer may stand hundreds of tokens back."""
    return recall_family(rng, rng.randint(2, MAX_PAIRS), 1)[0]


TASKS: dict[str, Callable[[random.Random], Problem]] = {
    task.__name__: task for task in (arithmetic, recall, sort, reverse, count)
}


def training_problems(task: str, rng: random.Random) -> Iterator[Problem]:
    """Problems of one task without end, none of them held out."""
    while True:
        problem = TASKS[task](rng)
        if not is_held_out(problem.prompt):
            yield problem


def training_families(rng: random.Random, max_pairs: Callable[[], int], queries: int) -> Iterator[list[Problem]]:
    """Recall families without end, rid of held-out questions; `max_pairs` lets a curriculum grow them."""
    while True:
        family = recall_family(rng, rng.randint(2, max_pairs()), queries)
        if kept := [problem for problem in family if not is_held_out(problem.prompt)]:
            yield kept


def held_out_problems(seed: int, per_task: int) -> list[Problem]:
    """`per_task` different held-out problems of every task, the recall prompts evenly spread in length."""
    rng = random.Random(f"held out {seed}")
    problems: list[Problem] = []
    for make in TASKS.values():
        found: dict[str, Problem] = {}
        while len(found) < per_task:
            problem = make(rng)
            if is_held_out(problem.prompt):
                found[problem.prompt] = problem
        problems += found.values()
    return problems
