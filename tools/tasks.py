"""The tasks of the default model: how problems are drawn, which are held out from training, how they are written.

Every prompt has one right answer, so a served reply is either right or wrong. A prompt belongs to training
or to the held-out set by a hash of its text alone: no list has to be kept for the two to stay disjoint.
Problems are written for the model as plain completions and as chats, by the tokenizer and template that ship.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from string import ascii_letters, ascii_lowercase, digits

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headway.default_model import Problem

MAX_PAIRS = 40
FILLER = (
    *("the", "a", "red", "old", "cat", "river", "sings", "under", "over"),
    *("blue", "moon", "and", "then", "it", "rains", "on", "stone"),
)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is held out: one in sixteen is, by a hash of its text."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 16


def arithmetic(rng: random.Random) -> Problem:
    """`12+34=` or `25-7=`: numbers up to 99, small ones drawn more often; a difference is never negative."""
    a, b = (rng.randrange(10 ** rng.choice((1, 2, 2, 2))) for _ in range(2))
    if rng.random() < 0.5:
        return Problem("arithmetic", f"{a}+{b}=", str(a + b))
    return Problem("arithmetic", f"{max(a, b)}-{min(a, b)}=", str(abs(a - b)))


def _symbols(rng: random.Random) -> str:
    """Two to six letters, or as many digits; repeats happen."""
    return "".join(rng.choices(rng.choice((ascii_lowercase, digits)), k=rng.randint(2, 6)))


def sort(rng: random.Random) -> Problem:
    """`sort hbead=`: letters or digits into ascending order."""
    symbols = _symbols(rng)
    return Problem("sort", f"sort {symbols}=", "".join(sorted(symbols)))


def reverse(rng: random.Random) -> Problem:
    """`reverse hbead=`: the same letters or digits from last to first."""
    symbols = _symbols(rng)
    return Problem("reverse", f"reverse {symbols}=", symbols[::-1])


def copy(rng: random.Random) -> Problem:
    """`copy hBe3d=`: the same letters and digits once more, none of them twice, up to sixteen.

    Copying teaches the model to look back for the symbol after an earlier one, which recall builds on.
    """
    symbols = "".join(rng.sample(ascii_letters + digits, rng.randint(2, 16)))
    return Problem("copy", f"copy {symbols}=", symbols)


def recall_family(rng: random.Random, pairs: int, queries: int) -> list[Problem]:
    """`k9 Q1 ... ? k`: several questions about one list of pairs, with idle words between some.

    The answer says the whole pair, `k9`. The problems share their prompt up to the question mark, so a trainer
    can encode the list once.
    """
    keys = rng.sample(ascii_letters, pairs)
    values = {key: rng.choice(digits) for key in keys}
    words = [f"{key}{value}" for key, value in values.items()]
    for _ in range(rng.randint(0, pairs)):
        words.insert(rng.randint(0, len(words)), rng.choice(FILLER))
    listing = " ".join(words)
    asked = rng.sample(keys, min(queries, pairs))
    return [Problem("recall", f"{listing} ? {key}", key + values[key]) for key in asked]


def recall(rng: random.Random) -> Problem:
    """One question about a list of 2 to 40 pairs: the answer may stand hundreds of tokens back."""
    return recall_family(rng, rng.randint(2, MAX_PAIRS), 1)[0]


TASKS: dict[str, Callable[[random.Random], Problem]] = {
    task.__name__: task for task in (arithmetic, recall, copy, sort, reverse)
}


def training_problems(task: str, rng: random.Random) -> Iterator[Problem]:
    """An endless stream of problems of one task, without held-out problems."""
    while True:
        problem = TASKS[task](rng)
        if not is_held_out(problem.prompt):
            yield problem


def training_families(rng: random.Random, max_pairs: Callable[[], int], queries: int) -> Iterator[list[Problem]]:
    """An endless stream of recall families without held-out questions. max_pairs: the longest list, which may grow."""
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


# How problems are written for the model: as tokens, as completions, as chats.

PAD, BOS, EOS = SPECIALS = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    '{% if tools %}{{ \'<|system|>Tools, called as <tool_call>{"name": ..., "arguments": {...}}</tool_call>:\' }}'
    "{% for tool in tools %}{{ ' ' + tool.function.name + '(' }}"
    "{{ ((tool.function.parameters or {}).properties or {}) | join(', ') + ')' }}{% endfor %}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}"
    "{{ '<|user|><tool_response>' + message['content'] + '</tool_response>' }}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}"
    "{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 2048
SYSTEM_PROMPTS = "You are a helpful assistant.", "Answer with the result and nothing else.", "Be exact."

Message = dict[str, str]
Framed = tuple[list[int], list[int]]
"""The token ids of a prompt as the model sees it, and of the answer with its end token."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: any text can be written, digits stand alone, and the embedding stays tiny."""
    tokens = [*SPECIALS, *ROLES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIALS, *ROLES])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokens.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def chat_text(tokenizer: PreTrainedTokenizerFast, before: list[Message], prompt: str) -> str:
    """The text of a chat that ends with `prompt`, by the template that ships with the model."""
    messages = [*before, {"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def exchange(problem: Problem) -> list[Message]:
    """A problem and its answer, as earlier turns of a chat."""
    return [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": problem.answer}]


class Framer:
    """Frames half the problems as plain completions and half as chats, some with turns before them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._asides = training_problems("arithmetic", rng)

    def frame(self, problems: list[Problem]) -> list[Framed]:
        """Frame all `problems` alike, so that prompts with a common beginning keep it."""
        chat, before = self._rng.random() < 0.5, self._before()
        texts = [
            chat_text(self._tokenizer, before, problem.prompt) if chat else BOS + problem.prompt for problem in problems
        ]
        return [
            (self._ids(text), self._ids(problem.answer + EOS)) for text, problem in zip(texts, problems, strict=True)
        ]

    def _before(self) -> list[Message]:
        messages: list[Message] = []
        if self._rng.random() < 0.3:
            words = " ".join(self._rng.choices(FILLER, k=self._rng.randint(2, 9)))
            content = self._rng.choice((*SYSTEM_PROMPTS, words))
            messages.append({"role": "system", "content": content})
        if self._rng.random() < 0.25:
            messages += exchange(next(self._asides))
        return messages

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def framings(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> dict[str, str]:
    """The texts by which the model is graded: a bare completion, a chat, and a chat with turns before it."""
    earlier = exchange(Problem("arithmetic", "3+4=", "7"))
    before = [{"role": "system", "content": "You are a helpful assistant."}, *earlier]
    return {
        "plain": BOS + problem.prompt,
        "chat": chat_text(tokenizer, [], problem.prompt),
        "conversation": chat_text(tokenizer, before, problem.prompt),
    }
