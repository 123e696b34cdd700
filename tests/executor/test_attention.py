"""Attention over scattered blocks, against attention over plain sequences, one after the other."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from headway.executor import attention as attention_module
from headway.executor.attention import PagedAttention, paged_attention
from headway.executor.attention_plan import AttentionPlan, PlanSettings, token_positions
from headway.executor.decode_kernel import DecodeKernel
from headway.executor.kv_tensors import KVTensors, LayerShape, bytes_per_block
from headway.executor.transfer import HostArrays
from headway.scheduler.batch import Batch

CPU = torch.device("cpu")
BLOCK = 4
DECODES = (1, 2, 5, 8, 9, 30, 31, 64)  # positions of decoded tokens
CHUNKS = ((0, 1), (0, 7), (3, 6), (16, 4), (20, 13), (0, 40))  # position, length


def make_batch(decodes, chunks) -> Batch:
    rows = [(position, 1) for position in decodes] + list(chunks)
    positions, counts = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    nothing = np.empty(0, np.int32)
    return Batch(
        step_id=1,
        num_decodes=len(decodes),
        num_tokens=int(counts.sum()),
        slots=np.arange(len(rows), dtype=np.int32)[::-1].copy(),
        positions=positions,
        num_new_tokens=counts,
        samples=np.ones(len(rows), np.bool_),
        table_slots=nothing,
        table_columns=nothing,
        table_blocks=nothing,
    )


def by_definition(query, keys, values, position, window, softcap, sinks):
    """One sequence: query [Hq, Q, D] from `position` on; keys, values [Hk, K, D]."""
    groups = len(query) // len(keys)
    keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
    scores = query @ keys.transpose(1, 2) * query.shape[2] ** -0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    where = torch.arange(position, position + query.shape[1])[:, None]
    key = torch.arange(keys.shape[1])
    hidden = key > where if window is None else (key > where) | (key <= where - window)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)], dim=2)
    return scores.softmax(2)[..., : keys.shape[1]] @ values


@pytest.mark.parametrize("tile", [3, 256])
@pytest.mark.parametrize(
    "padding, group_keys, threads", [(0.0, 1, 0), (0.3, 64, 0), (10.0, 10**9, 0), (0.0, 1, 1), (0.0, 1, 3)]
)
@pytest.mark.parametrize("window, softcap, with_sinks", [*itertools.product([None, 1, 6], [None, 2.0], [False, True])])
def test_every_row_sees_its_own_past(window, softcap, with_sinks, padding, group_keys, threads, tile, monkeypatch):
    monkeypatch.setattr(attention_module, "_QUERY_TILE", tile)
    torch.manual_seed(0)
    heads, shape = 4, LayerShape(key_heads=2, key_dim=8, value_heads=2, value_dim=6)
    batch = make_batch(DECODES, CHUNKS)
    kv = KVTensors({0: shape}, num_blocks=200, block_size=BLOCK, dtype=torch.float32, device=CPU)
    for cache in kv.layers[0]:
        cache[1:] = float("nan")  # left by earlier owners
    # Tables full of garbage, but for the blocks that each row owns.
    tables = np.full((len(batch), 40), 199, np.int32)
    free = random.Random(0).sample(range(1, 190), 189)
    ends = batch.positions + batch.num_new_tokens
    keys = [torch.randn(2, int(end), 8) for end in ends]
    values = [torch.randn(2, int(end), 6) for end in ends]
    for row, end in enumerate(ends):
        blocks = [free.pop() for _ in range(-(-end // BLOCK))]
        tables[batch.slots[row], : len(blocks)] = blocks
        past = np.arange(batch.positions[row])
        slots = torch.from_numpy(np.array(blocks)[past // BLOCK] * BLOCK + past % BLOCK)
        kv.write(0, slots, keys[row][:, past].transpose(0, 1), values[row][:, past].transpose(0, 1))
        if len(past) % BLOCK:  # the sequence that began this block wiped the rest of it
            kv.clear(torch.arange(int(slots[-1]) + 1, (int(slots[-1]) // BLOCK + 1) * BLOCK))
    queries = [torch.randn(heads, int(count), 8) for count in batch.num_new_tokens]
    sinks = torch.randn(heads) if with_sinks else None

    paged = PagedAttention(max_model_len=160)
    paged.kv = kv
    arrays = HostArrays()
    paged.kernel = DecodeKernel.compiled(threads) if threads else None
    settings = PlanSettings(
        block_size=BLOCK,
        windows=frozenset({window}),
        device=CPU,
        gathers_decodes=not threads,
        padding=padding,
        group_keys=group_keys,
    )
    plan = AttentionPlan(batch, tables, settings, arrays)
    arrays.send(CPU)
    paged.begin_step(plan)
    new = [
        (key[:, -query.shape[1] :], value[:, -query.shape[1] :])
        for key, value, query in zip(keys, values, queries, strict=True)
    ]
    module = nn.Module()
    module.layer_idx = 0
    paged.bind(module)
    found, _ = paged_attention(
        module,
        torch.cat(queries, dim=1)[None],
        torch.cat([key for key, _ in new], dim=1)[None],
        torch.cat([value for _, value in new], dim=1)[None],
        None,
        sliding_window=window,
        softcap=softcap,
        s_aux=sinks,
    )
    expected = [
        by_definition(query, key, value, int(position), window, softcap, sinks).transpose(0, 1)
        for query, key, value, position in zip(queries, keys, values, batch.positions, strict=True)
    ]
    torch.testing.assert_close(found[0], torch.cat(expected), atol=1e-5, rtol=1e-5)


class TestPlan:
    def plan(self, batch: Batch, tables: np.ndarray, padding=0.0, group_keys=10**9, window=None) -> AttentionPlan:
        arrays = HostArrays()
        settings = PlanSettings(
            block_size=BLOCK,
            windows=frozenset({window}),
            device=CPU,
            gathers_decodes=True,
            padding=padding,
            group_keys=group_keys,
        )
        plan = AttentionPlan(batch, tables, settings, arrays)
        arrays.send(CPU)
        return plan

    def test_tokens_go_to_the_slots_that_the_tables_name(self):
        batch = make_batch([5], [(3, 3)])  # slots 1 and 0
        plan = self.plan(batch, np.array([[7, 8], [3, 9]], np.int32))
        assert token_positions(batch).tolist() == [5, 3, 4, 5]
        assert plan.places.tensor.tolist() == [9 * BLOCK + 1, 7 * BLOCK + 3, 8 * BLOCK, 8 * BLOCK + 1]

    def test_blocks_begun_and_not_filled_are_wiped_behind_the_last_token(self):
        batch = make_batch([5, 8, 3], [(0, 4), (2, 4), (0, 5)])  # slots 5 to 0
        tables = np.arange(1, 19, dtype=np.int32).reshape(6, 3)
        plan = self.plan(batch, tables)
        begun = [tables[4, 2] * BLOCK + offset for offset in (1, 2, 3)]  # the decode at 8 begins a block
        begun += [tables[1, 1] * BLOCK + offset for offset in (2, 3)]  # the chunk 2..6 begins its second block
        begun += [tables[0, 1] * BLOCK + offset for offset in (1, 2, 3)]  # so does the chunk 0..5
        assert sorted(plan.unwritten.tensor.tolist()) == sorted(begun)

    def test_rows_of_similar_length_share_a_group(self):
        batch = make_batch([3, 40, 79, 78, 75, 41], [])
        tables = np.ones((6, 20), np.int32)
        rows = [group.rows.tensor.tolist() for group in self.plan(batch, tables).groups[None]]
        assert rows == [[2, 3, 4], [1, 5], [0]]
        assert len(self.plan(batch, tables, padding=1.0).groups[None]) == 1
        assert [group.size for group in self.plan(batch, tables, group_keys=40 * BLOCK).groups[None]] == [2, 1, 2, 1]
        assert len(self.plan(batch, tables, group_keys=0).groups[None]) == 6

    def test_a_window_gathers_no_more_than_it_shows(self):
        batch = make_batch([79], [(70, 8)])
        plan = self.plan(batch, np.arange(1, 41, dtype=np.int32).reshape(2, 20), window=5)
        assert plan.groups[5][0].blocks.tensor.tolist() == [39, 40]  # of slot 1: positions 75 to 79
        assert plan.chunks[5][0].blocks.tensor.tolist() == [17, 18, 19, 20]  # of slot 0: from 66 on


def test_bytes_of_a_block_count_every_layer():
    layers = {0: LayerShape(2, 16, 2, 16), 1: LayerShape(1, 24, 1, 12)}
    assert bytes_per_block(layers, 16, torch.float16) == 16 * 2 * (64 + 36)


def test_a_window_beyond_the_longest_request_is_none():
    paged = PagedAttention(max_model_len=100)
    assert [paged.window(size) for size in (None, 0, 99, 100, 4096)] == [None, None, 99, None, None]
