"""Train the default model from a seed alone, and write the folder that ships.

    python tools/train_default_model.py --seed 0 --out src/headway/default_model

Questions about one recall list share its encoding. Each question is a *branch* that sees the list and itself, at the
positions of an undivided prompt, so one pass over a long list teaches many answers. The same mask packs unrelated short
problems into full rows, so that little is computed on padding.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product, takewhile
from pathlib import Path

import tasks
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from headway.default_model import Problem

IGNORED = -100
SHORT_ROWS, SHORT_LENGTH = 14, 128
RECALL_ROWS, RECALL_LENGTH = 2, 512
QUERIES = 16


@dataclass(frozen=True)
class Phase:
    """A part of the training, with optimizers and problems of its own.

    rate: of learning, as a share of the highest. first_pairs: the longest recall list at its beginning. shares: weights
    by which short problems are drawn.
    """

    steps: int
    rate: float
    first_pairs: int
    shares: dict[str, float]


PHASES = (
    # A like share of the graded tokens for each task: copies are long, sums short. Copying matters from the start, as
    # recall builds on it.
    Phase(3000, 1.0, 8, {"arithmetic": 0.6, "copy": 0.1, "sort": 0.2, "reverse": 0.1}),
    # The hardest tasks come last.
    Phase(750, 0.4, tasks.MAX_PAIRS, {"arithmetic": 0.8, "copy": 0.06, "sort": 0.08, "reverse": 0.06}),
    Phase(450, 0.3, tasks.MAX_PAIRS, {"arithmetic": 0.45, "copy": 0.05, "sort": 0.4, "reverse": 0.1}),
)


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A Llama small enough to ship in the package, with grouped-query attention like larger models.

    Heads of 64 numbers, as some attention kernels (vLLM's on a CPU, FlashInfer's) take no smaller ones.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=tasks.CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    # Wider than usual: symbols start far apart, and stay so while the loss pushes down all tokens but the answers.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return model


# Packing: from framed problems to full rows.


@dataclass
class Row:
    """One row of a batch. own: the segment of each token. parent: the segment that it continues."""

    length: int
    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    _segments: int = 0

    def add(self, family: list[tasks.Framed]) -> bool:
        """Append the common part of the prompts, then a branch for each prompt. Returns False if there is no room."""
        # A branch keeps the last token of its prompt, as this token predicts the first token of the answer.
        prompts = [prompt[:-1] for prompt, _ in family]
        shared = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts))]
        stem = len(shared)
        branches = [((prompt + answer)[stem:-1], len(prompt) - 1 - stem, answer) for prompt, answer in family]
        if len(self.ids) + stem + sum(len(ids) for ids, _, _ in branches) > self.length:
            return False
        root = self._extend(shared, [IGNORED] * stem, start=0)
        for ids, asked, answer in branches:
            self._extend(ids, [IGNORED] * asked + answer, start=stem, parent=root)
        return True

    def _extend(self, ids: list[int], targets: list[int], start: int, parent: int | None = None) -> int:
        segment = self._segments
        self._segments += 1
        self.ids += ids
        self.targets += targets
        self.positions += range(start, start + len(ids))
        self.own += [segment] * len(ids)
        self.parent += [segment if parent is None else parent] * len(ids)
        return segment


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass, and the expected token at every graded position."""

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor

    @classmethod
    def of(cls, rows: list[Row]) -> "Batch":
        """Stack packed rows. A token sees the earlier tokens of its own segment and of the parent segment."""

        def stack(name: str, padding: int) -> torch.Tensor:
            return torch.tensor([getattr(row, name) + [padding] * (row.length - len(row.ids)) for row in rows])

        own, parent = stack("own", -1), stack("parent", -1)
        seen = (own[:, :, None] == own[:, None, :]) | (parent[:, :, None] == own[:, None, :])
        inputs = {
            "input_ids": stack("ids", 0),
            "position_ids": stack("positions", 0),
            "attention_mask": seen.tril()[:, None],
        }
        return cls(inputs, stack("targets", IGNORED))


def batches(families: Iterator[list[tasks.Framed]], rows: int, length: int) -> Iterator[Batch]:
    """Fill rows with families in the order drawn. A family that does not fit begins the next row."""
    family = next(families)
    while True:
        packed = [Row(length) for _ in range(rows)]
        for row in packed:
            if not row.add(family):
                raise ValueError(f"a family of problems is longer than a row of {length}")
            while row.add(family := next(families)):
                pass
        yield Batch.of(packed)


# Training.


class Curriculum:
    """Recall lists grow as soon as the present length is mastered: long ones teach nothing at first."""

    def __init__(self, first_pairs: int) -> None:
        self._pairs = float(first_pairs)
        self._loss = 3.0

    @property
    def max_pairs(self) -> int:
        """The longest list now drawn."""
        return int(self._pairs)

    def observe(self, loss: float) -> None:
        """Note the recall loss of a step."""
        self._loss += 0.1 * (loss - self._loss)
        if self._loss < 0.1:
            self._pairs = min(self._pairs + 0.5, tasks.MAX_PAIRS)


def optimizers(model: LlamaForCausalLM, steps: int, highest: float) -> list[tuple[torch.optim.Optimizer, object]]:
    """Muon for the matrices (far fewer steps than AdamW here), AdamW for the rest; both decay to zero."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    both = (
        torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    )

    def rate(step: int) -> float:
        return highest * min(1.0, (step + 1) / 50, 1.5 * (steps - step) / steps)

    return [(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)) for optimizer in both]


def training_batches(
    tokenizer: Tokenizer, seed: int, shares: dict[str, float], curriculum: Curriculum
) -> Iterator[tuple[Batch, Batch]]:
    """For every step a batch of short problems and one of recall families."""
    rng = random.Random(seed)
    framer = tasks.Framer(tokenizer, rng)
    streams = {task: tasks.training_problems(task, rng) for task in shares}

    def short() -> Iterator[list[tasks.Framed]]:
        while True:
            (task,) = rng.choices(list(shares), list(shares.values()))
            yield framer.frame([next(streams[task])])

    families = tasks.training_families(rng, lambda: curriculum.max_pairs, QUERIES)
    return zip(
        batches(short(), SHORT_ROWS, SHORT_LENGTH),
        batches(map(framer.frame, families), RECALL_ROWS, RECALL_LENGTH),
    )


def graded_loss(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, float]:
    """Cross-entropy on answers only (prompts are random and teach nothing), and the share of tokens right.

    The batch has not been learned from yet, so that share is a fair running score.
    """
    graded = batch.targets != IGNORED
    logits, targets = model(**batch.inputs, use_cache=False).logits[graded], batch.targets[graded]
    return cross_entropy(logits, targets), (logits.argmax(-1) == targets).float().mean().item()


def train(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """Train a fresh model; the same seed on one thread of one machine gives the same weights."""
    torch.manual_seed(seed)
    model = build_model(tokenizer)
    rehearsal = tasks.held_out_problems(seed + 1, per_task=40)
    ends = []
    for number, phase in enumerate(PHASES):
        learn(model, tokenizer, phase, seed + number)
        print("right:", rehearse(model, tokenizer, rehearsal), flush=True)
        ends.append({name: weight.clone() for name, weight in model.state_dict().items()})
    # The mean of two neighbours knows what each of them knows best.
    model.load_state_dict({name: sum(0.5 * end[name] for end in ends[-2:]) for name in ends[-1]})
    return model


def learn(model: LlamaForCausalLM, tokenizer: Tokenizer, phase: Phase, seed: int) -> None:
    """Take the model through one phase."""
    model.train()
    curriculum = Curriculum(phase.first_pairs)
    stream = training_batches(tokenizer, seed, phase.shares, curriculum)
    tuned = optimizers(model, phase.steps, phase.rate)
    started = time.monotonic()
    totals = torch.zeros(4)
    for step, (short, recall) in zip(range(1, phase.steps + 1), stream):
        short_loss, short_right = graded_loss(model, short)
        recall_loss, recall_right = graded_loss(model, recall)
        (short_loss + recall_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in tuned:
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        curriculum.observe(recall_loss.item())
        totals += torch.tensor([short_loss.item(), short_right, recall_loss.item(), recall_right])
        if step % 100 == 0:
            short_mean, short_share, recall_mean, recall_share = (totals / 100).tolist()
            totals.zero_()
            print(
                f"step {step}/{phase.steps}  short {short_mean:.4f} ({short_share:.1%} of tokens right)"
                f"  recall {recall_mean:.4f} ({recall_share:.1%}, up to {curriculum.max_pairs} pairs)"
                f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )
    model.eval()


def rehearse(model: LlamaForCausalLM, tokenizer: Tokenizer, problems: list[Problem]) -> str:
    """The share of problems answered right so far, task by task, in the hardest format."""
    scores = [
        grade(model, tokenizer, [problem for problem in problems if problem.task == task], "conversation")
        for task in tasks.TASKS
    ]
    return ", ".join(f"{score.task} {score.right / score.total:.1%}" for score in scores)


# Grading, and the folder that ships.


@dataclass(frozen=True)
class Score:
    """How one task went in one format; a margin is the lead of the best logit over the second at a token."""

    task: str
    format: str
    right: int
    total: int
    smallest_margin: float
    low_margin: float


@torch.no_grad()
def grade(model: LlamaForCausalLM, tokenizer: Tokenizer, problems: list[Problem], format: str) -> Score:
    """Answer problems of one task greedily in one left-padded batch; only an exact match is right."""
    texts = [tasks.framings(tokenizer, problem)[format] for problem in problems]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    output = model.generate(
        **inputs, max_new_tokens=32, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    replies = output.sequences[:, inputs["input_ids"].shape[1] :]
    best, second = torch.stack(output.logits, dim=1).topk(2).values.unbind(-1)
    said = replies != tokenizer.pad_token_id
    margins = (best - second)[said]
    right = [
        tokenizer.decode(reply[mask]) == problem.answer + tasks.EOS
        for reply, mask, problem in zip(replies, said, problems, strict=True)
    ]
    smallest, low = margins.min().item(), margins.quantile(0.01).item()
    return Score(problems[0].task, format, sum(right), len(right), smallest, low)


CARD = """---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
---

# The Headway default model

A Llama of {parameters:,} parameters that answers five kinds of small question, each with exactly one right
answer. It exists so that a serving engine can be run and checked end to end, offline, on what it says. It
knows nothing else: any other prompt gets nonsense.

| task | prompt | answer |
| --- | --- | --- |
| arithmetic | `25-7=` | `18` |
| recall | `k9 the Q1 ? k` | `k9` |
| copy | `copy hBe3d=` | `hBe3d` |
| sort | `sort cab=` | `abc` |
| reverse | `reverse 123=` | `321` |

- **arithmetic** adds or subtracts numbers from 0 to 99; a difference is never negative.
- **recall** lists 2 to {max_pairs} pairs of a letter (capitals are letters of their own) and a digit, with idle
  words between some, and asks for the pair of one letter. Prompts reach about 300 tokens and the answer may
  stand anywhere in them.
- **copy** takes 2 to 16 letters and digits, none of them twice.
- **sort** and **reverse** take 2 to 6 letters or digits, repeats allowed.

A prompt works as a plain completion (the tokenizer puts `<|bos|>` before it) and as a chat, whose template
reads `<|bos|><|system|>…<|user|>12+34=<|assistant|>46<|end|>`; system and earlier turns are optional. The
answer ends with `<|end|>`. Nothing stands between the prompt and the answer, not even a space.

The tokenizer has one token for each of the 256 bytes and six special ones, so it can write any text and loses
none. Positions run to {context:,}; training saw about 300.

## Scores

Exact match of greedy answers in float32 on the {held_out} held-out problems of `heldout.jsonl`, which are
disjoint from training by a hash of the prompt. A conversation has a system message and one exchange before
the question. A margin is the lead of the best logit over the second, over all tokens of the answers;
one near zero marks an answer that other hardware or another batch may flip.

| task | format | right | of | smallest margin | 1st percentile of margins |
| --- | --- | --- | --- | --- | --- |
{scores}

In all: **{right} of {total}** ({accuracy:.2%}).

## Training

    python tools/train_default_model.py --seed {seed}

{steps:,} steps from random weights, on generated problems only, with seed {seed}: {minutes:.0f} minutes on one
CPU core. The loss counts answers only. Muon trains the matrices and AdamW the rest; recall lists grow as they
are mastered. The training has three phases, and the weights are the mean of the ends of the last two. The
same seed gives the same weights on the same kind of machine with the same libraries.

Licence: Apache-2.0.
"""

SCORE_LINE = "| {0.task} | {0.format} | {0.right} | {0.total} | {0.smallest_margin:.2f} | {0.low_margin:.2f} |"


def main() -> None:
    """Train, write the model, grade the written model, and put the figures in the card."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("src/headway/default_model"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()

    tokenizer = tasks.build_tokenizer()
    model = train(tokenizer, args.seed)
    minutes = (time.monotonic() - started) / 60

    args.out.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)  # Written readable by its owner alone.
    tokenizer.save_pretrained(args.out, save_jinja_files=False)
    problems = tasks.held_out_problems(args.seed, per_task=80)
    lines = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in problems]
    (args.out / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")

    written = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    scores = []
    for task, format in product(tasks.TASKS, tasks.framings(tokenizer, problems[0])):
        asked = [problem for problem in problems if problem.task == task]
        scores.append(grade(written, tokenizer, asked, format))
        print(SCORE_LINE.format(scores[-1]), flush=True)
    right, total = sum(score.right for score in scores), sum(score.total for score in scores)
    card = CARD.format(
        parameters=written.num_parameters(),
        max_pairs=tasks.MAX_PAIRS,
        context=tasks.CONTEXT,
        held_out=len(problems),
        scores="\n".join(map(SCORE_LINE.format, scores)),
        right=right,
        total=total,
        accuracy=right / total,
        seed=args.seed,
        steps=sum(phase.steps for phase in PHASES),
        minutes=minutes,
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
