"""Sampling, against computations one row at a time, and against the definitions."""

import math

import numpy as np
import pytest
import torch

from headway.executor import sampler
from headway.executor.sampler import Filters
from headway.executor.sampling_state import SamplingState
from headway.request import Request
from headway.sampling import SamplingParams
from headway.scheduler.batch import Admission

CPU = torch.device("cpu")
VOCAB = 50


@pytest.fixture(autouse=True, params=["on a CPU", "as on CUDA"])
def _as_on(request, monkeypatch) -> None:
    """Where the host may not look at values, the same is computed without."""
    if request.param == "as on CUDA":
        monkeypatch.setattr(sampler, "_host_may_look", lambda device: False)
        monkeypatch.setattr(sampler, "_TOP_P_FIRST_TRY", 4)  # else no vocabulary here is too large to sort


def logits_of(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def filters(*rows: tuple[int, float, float]) -> Filters:
    top_k, top_p, min_p = zip(*rows, strict=True)
    return Filters(np.array(top_k, np.int32), np.array(top_p, np.float32), np.array(min_p, np.float32))


def kept_by_definition(row: torch.Tensor, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Min-p, then top-k, then top-p over what is left, one token after the other."""
    probs = row.double().softmax(0).tolist()
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    left = [token for token in order if probs[token] >= min_p * probs[order[0]]]
    if top_k:
        left = left[:top_k]
    total, mass, kept = sum(probs[token] for token in left), 0.0, set()
    for token in left:
        if mass >= top_p * total and top_p < 1:
            break
        kept.add(token)
        mass += probs[token]
    return kept


CASES = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (7, 1.0, 0.0),
    (10**6, 1.0, 0.0),
    (0, 0.5, 0.0),
    (0, 0.999, 0.0),
    (0, 1e-6, 0.0),
    (0, 1.0, 0.1),
    (0, 1.0, 1.0),
    (5, 0.7, 0.0),
    (20, 0.9, 0.02),
    (3, 0.3, 0.5),
]


class TestFilters:
    def kept(self, logits: torch.Tensor, *rows: tuple[int, float, float]) -> list[set[int]]:
        kept = logits >= sampler.cutoffs(logits, filters(*rows))
        return [set(row.nonzero()[:, 0].tolist()) for row in kept]

    def test_each_row_keeps_what_the_definition_keeps(self):
        logits = logits_of(len(CASES))
        expected = [kept_by_definition(row, *case) for row, case in zip(logits, CASES, strict=True)]
        assert self.kept(logits, *CASES) == expected

    def test_a_row_keeps_the_same_alone_as_in_company(self):
        logits = logits_of(len(CASES))
        together = self.kept(logits, *CASES)
        alone = [self.kept(logits[row : row + 1], case)[0] for row, case in enumerate(CASES)]
        assert together == alone

    def test_equal_logits_are_kept_together(self):
        logits = torch.tensor([[2.0, 5.0, 2.0, 2.0, 1.0]])
        assert self.kept(logits, (2, 1.0, 0.0)) == [{0, 1, 2, 3}]
        assert self.kept(logits, (0, 0.9, 0.0)) == [{0, 1, 2, 3}]

    def test_a_nucleus_wider_than_the_first_try(self):
        logits = logits_of(2, vocab=5000) / 30  # nearly flat
        case = (0, 0.9, 0.0)
        expected = kept_by_definition(logits[0], *case)
        assert len(expected) > 1024
        found = self.kept(logits, case, (0, 0.1, 0.0))
        assert found[1] == kept_by_definition(logits[1], 0, 0.1, 0.0)
        assert len(found[0] ^ expected) <= 1  # float32 sums of thousands against float64

    def test_a_nucleus_within_the_top_k(self):
        logits = logits_of(3)
        cases = (4, 0.9, 0.0), (3, 0.5, 0.0), (2, 0.99, 0.0)
        assert self.kept(logits, *cases) == [kept_by_definition(row, *c) for row, c in zip(logits, cases, strict=True)]

    @pytest.mark.parametrize("top_p", [1e-7, 0.1, 0.5, 0.9, 0.999, 1 - 2**-24])
    def test_both_ways_to_find_a_nucleus_find_the_same(self, top_p):
        logits = logits_of(40, vocab=300)
        logits[::2, 50:] = float("-inf")
        logits[5] = 0.0
        mass = torch.full((40, 1), top_p)
        sorting, halving = sampler.nucleus_by_sorting(logits, mass, 300), sampler.nucleus_by_halving(logits, mass)
        kept = [(logits >= cutoff).sum(1) for cutoff in (sorting, halving)]
        assert int((kept[0] - kept[1]).abs().max()) <= (1 if top_p < 1 - 2**-23 else 300)  # sums are rounded
        assert int((kept[0] != kept[1]).sum()) <= (2 if top_p < 0.99 else 40)

    def test_tokens_forbidden_by_the_logits_are_not_kept(self):
        logits = logits_of(1)
        logits[0, 10:] = float("-inf")
        for case in CASES:
            tokens = {int(sampler.draw(logits, sampler.row_keys(*position(i)), filters(case))) for i in range(50)}
            assert max(tokens) < 10


def position(index: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    return np.array([seed], np.uint64), np.array([index], np.int32)


class TestNoise:
    def keys(self, seeds, positions) -> torch.Tensor:
        return torch.from_numpy(sampler.row_keys(np.array(seeds, np.uint64), np.array(positions, np.int32)))

    def test_it_is_a_function_of_seed_position_and_token(self):
        tokens = torch.arange(1000, dtype=torch.int32)
        rows = sampler.gumbel_noise(self.keys([1, 1, 2], [5, 6, 5])[:, None], tokens)
        alone = sampler.gumbel_noise(self.keys([2], [5])[:, None], tokens.flip(0)).flip(1)
        assert torch.equal(rows[2:], alone)
        assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])

    def test_it_does_not_change_between_versions(self):
        """Else a seed would give other answers after an update."""
        noise = sampler.gumbel_noise(
            self.keys([0, 2**64 - 1], [0, 131071]), torch.tensor([0, 151935], dtype=torch.int32)
        )
        assert noise.tolist() == pytest.approx([1.24993300, 1.33260727], abs=1e-5)
        assert sampler.derive_seed(0, 1) == 627405149472732430

    def test_it_is_finite_and_has_the_moments_of_a_gumbel_distribution(self):
        noise = sampler.gumbel_noise(self.keys([3] * 20, range(20))[:, None], torch.arange(50_000, dtype=torch.int32))
        assert bool(noise.isfinite().all())
        assert float(noise.mean()) == pytest.approx(0.57722, abs=0.005)
        assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.01)
        assert 12 < float(noise.max()) < 25 and float(noise.min()) < -2.3

    def test_neighbouring_seeds_positions_and_tokens_are_unrelated(self):
        tokens = torch.arange(100_000, dtype=torch.int32)
        rows = sampler.gumbel_noise(self.keys([0, 1, 0, 2**32], [0, 0, 1, 0])[:, None], tokens)
        assert float((torch.corrcoef(rows) - torch.eye(4)).abs().max()) < 0.02
        for shift in (1, 2, 256):
            pair = torch.stack([rows[0, shift:], rows[0, :-shift]])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02

    def test_seeds_of_requests_without_one_differ(self):
        seeds = {sampler.derive_seed(engine, uid) for engine in (0, 1, -1) for uid in range(1000)}
        assert len(seeds) == 3000


def test_noise_for_all_and_noise_for_few_choose_alike():
    logits = logits_of(30, vocab=2000)
    keys = torch.from_numpy(sampler.row_keys(np.arange(30).astype(np.uint64), np.arange(30)))
    cutoff = logits.topk(7, dim=1).values[:, -1:]
    assert torch.equal(sampler.noisy(logits, keys, cutoff), sampler.noisy_few(logits, keys, cutoff))


def test_draws_follow_the_distribution():
    """Chi-square over 20,000 positions of one seed: 99.9% quantile of 11 degrees of freedom is 31.3."""
    logits = logits_of(1, vocab=12) / 2
    count = 20_000
    keys = sampler.row_keys(np.full(count, 99, np.uint64), np.arange(count))
    for case, bound in (((0, 1.0, 0.0), 31.3), ((6, 1.0, 0.0), 20.5), ((0, 0.8, 0.0), 31.3)):
        tokens = sampler.draw(logits.expand(count, -1), keys, filters(*[case] * count))
        kept = sorted(kept_by_definition(logits[0], *case))
        expected = logits[0, kept].softmax(0) * count
        found = torch.bincount(tokens, minlength=12)
        assert int(found[kept].sum()) == count
        assert float(((found[kept] - expected) ** 2 / expected).sum()) < bound


class Slots:
    """A sampling state, and requests put into it."""

    def __init__(self, num_slots: int = 8, engine_seed: int = 0) -> None:
        self.state = SamplingState(num_slots, VOCAB, engine_seed, CPU)

    def admit(self, slot: int, params: SamplingParams, prompt=(1, 2, 3), output=(), stop_token_ids=(), uid=1) -> None:
        request = Request(
            uid=uid,
            request_id=str(uid),
            prompt=np.array(prompt, np.int32),
            sampling=params,
            max_tokens=100,
            stop_token_ids=tuple(stop_token_ids),
        )
        self.state.admit(Admission(slot, request, np.array([*prompt, *output], np.int32), 0))

    def sample(self, logits: torch.Tensor, slots: list[int], positions: list[int] | None = None):
        where = positions if positions is not None else [3] * len(slots)
        return self.state.sample(logits.clone(), np.array(slots, np.int32), np.array(where, np.int32))

    def tokens(self, *args, **kwargs) -> list[int]:
        return self.sample(*args, **kwargs).tokens.tolist()


class TestSlots:
    def test_temperature_zero_takes_the_most_likely(self):
        slots = Slots()
        for slot in range(3):
            slots.admit(slot, SamplingParams(temperature=0, top_k=3, top_p=0.1, seed=1))
        logits = logits_of(3)
        assert slots.tokens(logits, [2, 0, 1]) == logits.argmax(1).tolist()

    def test_a_temperature_too_small_to_divide_by_is_greedy(self):
        slots = Slots()
        slots.admit(0, SamplingParams(temperature=1e-30))
        logits = logits_of(1)
        assert slots.tokens(logits, [0]) == logits.argmax(1).tolist()

    def test_greedy_and_drawn_rows_mix(self):
        slots = Slots()
        slots.admit(0, SamplingParams(temperature=0))
        for slot in (1, 2, 3):
            slots.admit(slot, SamplingParams(temperature=5.0, seed=slot))
        logits = logits_of(1).expand(4, -1)
        mixed = slots.tokens(logits, [1, 0, 3, 2])
        assert mixed[1] == int(logits[0].argmax())
        assert [slots.tokens(logits[:1], [slot])[0] for slot in (1, 3, 2)] == [mixed[0], mixed[2], mixed[3]]
        assert len(set(mixed)) > 2

    def test_a_draw_depends_on_seed_and_position_only(self):
        params = SamplingParams(temperature=1.5, top_p=0.9, seed=-5)
        logits = logits_of(6)
        alone, crowd = Slots(), Slots(engine_seed=3)
        alone.admit(0, params, uid=1)
        for slot in range(6):
            crowd.admit(slot, params if slot == 4 else SamplingParams(top_k=slot, seed=slot), uid=slot)
        for where in range(3, 40):
            expected = alone.tokens(logits[2:3], [0], [where])[0]
            assert crowd.tokens(logits, [0, 1, 4, 3, 2, 5], [9, 9, where, 9, 9, 9])[2] == expected

    def test_temperature_flattens(self):
        slots = Slots()
        logits = logits_of(1)
        for slot, temperature in enumerate((0.1, 1.0, 50.0)):
            slots.admit(slot, SamplingParams(temperature=temperature, seed=0))
        distinct = [len({slots.tokens(logits, [slot], [where])[0] for where in range(100)}) for slot in range(3)]
        assert distinct[0] <= 3 < distinct[1] < 30 < distinct[2]

    def test_half_precision_logits_are_taken(self):
        slots = Slots()
        slots.admit(0, SamplingParams(temperature=0, repetition_penalty=1.1))
        logits = logits_of(1).bfloat16()
        assert slots.tokens(logits, [0]) == logits.argmax(1).tolist()


class TestPenalties:
    """Repetition counts prompt and output, presence and frequency the output alone."""

    PROMPT, OUTPUT = (4, 4, 9), (7, 7, 7, 4)

    def chosen(self, logits: torch.Tensor, params: dict, output=OUTPUT) -> torch.Tensor:
        """The logits after the edits, seen through greedy choices: what is subtracted until another token wins."""
        slots = Slots()
        slots.admit(0, SamplingParams(temperature=0, max_tokens=100, **params), self.PROMPT, output)
        edited = logits.clone()
        slots.state._edit(edited, np.array([0], np.int32), np.array([7], np.int32))
        return edited

    def test_repetition(self):
        logits = logits_of(1)
        logits[0, 4], logits[0, 7], logits[0, 9] = 3.0, -2.0, 0.5
        expected = logits.clone()
        expected[0, 4], expected[0, 7], expected[0, 9] = 2.0, -3.0, 0.5 / 1.5
        torch.testing.assert_close(self.chosen(logits, {"repetition_penalty": 1.5}), expected)

    def test_presence(self):
        logits = logits_of(1)
        expected = logits.clone()
        expected[0, [4, 7]] -= 0.7
        torch.testing.assert_close(self.chosen(logits, {"presence_penalty": 0.7}), expected)

    def test_frequency(self):
        logits = logits_of(1)
        expected = logits.clone()
        expected[0, 4] -= 0.25
        expected[0, 7] -= 0.75
        torch.testing.assert_close(self.chosen(logits, {"frequency_penalty": 0.25}), expected)

    def test_all_together_after_the_bias(self):
        logits = torch.zeros(1, VOCAB)
        params = {
            "repetition_penalty": 2.0,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.25,
            "logit_bias": {7: 6.0, 30: 1.0},
        }
        expected = torch.zeros(1, VOCAB)
        expected[0, 7] = 6.0 / 2 - 0.5 + 3 * 0.25
        expected[0, 30] = 1.0
        expected[0, 4] = 0 - 0.5 + 0.25
        torch.testing.assert_close(self.chosen(logits, params), expected)

    def test_history_grows_with_every_token_and_rows_do_not_mix(self):
        slots = Slots()
        params = SamplingParams(temperature=0, frequency_penalty=1.0, max_tokens=100)
        logits = torch.zeros(1, VOCAB)
        logits[0, [10, 20]] = torch.tensor([2.5, 1.0])
        for slot in (5, 2):
            slots.admit(slot, params)
        slots.admit(3, SamplingParams(temperature=0))
        seen = [slots.tokens(logits.expand(2, -1), [5, 3]) for _ in range(4)]
        assert seen == [[10, 10], [10, 10], [20, 10], [10, 10]]  # 2.5, 1.5, 0.5 against 1.0, then 0.5 against 0.0
        assert slots.tokens(logits, [2]) == [10]

    def test_readmission_rebuilds_the_history_from_the_tokens(self):
        params = SamplingParams(temperature=0, frequency_penalty=1.0, repetition_penalty=1.2, max_tokens=100)
        logits = logits_of(1) / 3
        steady, moved = Slots(), Slots(num_slots=10)
        steady.admit(0, params)
        moved.admit(0, params)
        output: list[int] = []
        for step in range(12):
            if step in (4, 9):
                moved.admit(0, SamplingParams())
                moved.admit(step, params, output=output)
            slot = max([0, *(s for s in (4, 9) if s <= step)])
            where = [3 + step]
            token = steady.tokens(logits, [0], where)[0]
            assert moved.tokens(logits, [slot], where)[0] == token
            output.append(token)
        assert len(set(output)) > 3

    def test_a_history_ends_with_its_request(self):
        slots = Slots()
        params = SamplingParams(temperature=0, frequency_penalty=2.0, repetition_penalty=2.0, max_tokens=100)
        logits = logits_of(1).abs()
        best = int(logits.argmax())
        slots.admit(0, params, prompt=(best,), output=(best, best))
        assert slots.tokens(logits, [0]) != [best]
        slots.admit(0, params, prompt=((best + 1) % VOCAB,))
        assert slots.tokens(logits, [0]) == [best]

    def test_only_slots_with_penalties_hold_a_history_and_give_it_back(self):
        slots = Slots(num_slots=64)
        for slot in range(64):
            slots.admit(slot, SamplingParams())
        assert len(slots.state._histories._counts) == 0
        for turn in range(10):
            for slot in range(4):
                slots.admit(slot, SamplingParams(presence_penalty=1.0 if (slot + turn) % 2 else 0.0))
        assert len(slots.state._histories._counts) == 4
        for slot in range(9):
            slots.admit(slot, SamplingParams(presence_penalty=1.0), prompt=(slot,))
        assert len(set(slots.state._history_rows[:9])) == 9


class TestBiasAndMinTokens:
    def test_a_bias_is_added_for_its_slot_only_and_leaves_with_it(self):
        slots = Slots()
        logits = logits_of(1)
        worst, best = int(logits.argmin()), int(logits.argmax())
        slots.admit(0, SamplingParams(temperature=0, logit_bias={worst: 100.0}))
        slots.admit(1, SamplingParams(temperature=0, logit_bias={best: -100.0}))
        slots.admit(2, SamplingParams(temperature=0))
        second = int(logits.topk(2).indices[0, 1])
        assert slots.tokens(logits.expand(3, -1), [0, 1, 2]) == [worst, second, best]
        slots.admit(0, SamplingParams(temperature=0))
        assert slots.tokens(logits, [0]) == [best]

    def test_stop_tokens_are_masked_until_so_many_tokens_are_there(self):
        slots = Slots()
        logits = logits_of(1)
        first, second, third = logits.topk(3).indices[0].tolist()
        params = SamplingParams(temperature=0, min_tokens=4)
        slots.admit(0, params, prompt=(1, 2, 3), stop_token_ids=(first, second, VOCAB + 5))
        found = [slots.tokens(logits, [0], [where])[0] for where in range(3, 9)]
        assert found == [third] * 4 + [first] * 2

    def test_without_stop_tokens_there_is_nothing_to_mask(self):
        slots = Slots()
        slots.admit(0, SamplingParams(temperature=0, min_tokens=4))
        logits = logits_of(1)
        assert slots.tokens(logits, [0]) == [int(logits.argmax())]


class TestLogprobs:
    def test_only_rows_that_asked_are_reported_as_many_as_the_largest_asked_for(self):
        slots = Slots()
        for slot, wanted in enumerate((None, 0, 3, None, 1)):
            slots.admit(slot, SamplingParams(temperature=1.0, seed=slot, logprobs=wanted, presence_penalty=1.0))
        logits = logits_of(5)
        sampled = slots.sample(logits, [0, 1, 2, 3, 4])
        log_probs = logits.log_softmax(1)
        assert sampled.logprob_rows.tolist() == [1, 2, 4]
        report = sampled.logprobs
        assert report.top.shape == report.top_ids.shape == (3, 3)
        for index, row in enumerate((1, 2, 4)):
            token = int(sampled.tokens[row])
            assert float(report.chosen[index]) == pytest.approx(float(log_probs[row, token]))
            assert int(report.ranks[index]) == 1 + int((log_probs[row] > log_probs[row, token]).sum())
            assert report.top_ids[index].tolist() == log_probs[row].topk(3).indices.tolist()
            assert report.top[index].tolist() == pytest.approx(log_probs[row].topk(3).values.tolist())

    def test_without_a_request_that_asks_for_them_there_are_none(self):
        slots = Slots()
        slots.admit(0, SamplingParams())
        assert slots.sample(logits_of(1), [0]).logprobs is None

    def test_a_vocabulary_smaller_than_asked_for(self):
        report = sampler.log_probabilities(logits_of(1, vocab=4).log_softmax(1), torch.tensor([0]), 20)
        assert report.top.shape == (1, 4)
