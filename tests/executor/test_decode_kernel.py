"""The compiled attention of decodes against its definition, and what happens where it cannot be had."""

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headway.executor import decode_kernel
from headway.executor.decode_kernel import DecodeKernel, _shares
from tests.executor.conftest import NUM_OUTPUT
from tests.executor.driver import Driver

BLOCK_SIZE = 4
HEADS, KEY_DIM, VALUE_DIM = 6, 8, 5
LENGTHS = (1, 3, 4, 5, 16, 90, 2, 33)  # of blocks begun, full, and of very unlike length


@pytest.fixture(params=[1, 2, 3], ids=lambda threads: f"{threads} threads")
def kernel(request: pytest.FixtureRequest) -> DecodeKernel:
    pytest.importorskip("numba")
    made = DecodeKernel.compiled(request.param)
    assert made is not None and made.num_threads == min(request.param, decode_kernel.numba.config.NUMBA_NUM_THREADS)
    return made


class Rows:
    """Rows of these lengths, whose keys lie in blocks in no order; whatever is not theirs is NaN."""

    def __init__(self, lengths: tuple[int, ...], key_heads: int) -> None:
        rng = np.random.default_rng(0)
        widths = [-(-length // BLOCK_SIZE) for length in lengths]
        self.keys = np.full((1 + sum(widths), BLOCK_SIZE, key_heads, KEY_DIM), np.nan, np.float32)
        self.values = np.full((1 + sum(widths), BLOCK_SIZE, key_heads, VALUE_DIM), np.nan, np.float32)
        self.slots = rng.permutation(len(lengths) + 2)[: len(lengths)].astype(np.int32)
        self.tables = np.full((len(lengths) + 2, max(widths) + 1), -1, np.int32)
        self.ends = np.array(lengths, np.int32)
        self.queries = rng.normal(size=(len(lengths), HEADS, KEY_DIM)).astype(np.float32)
        free = iter(rng.permutation(np.arange(1, 1 + sum(widths))))
        self.sequences = []
        for slot, length, width in zip(self.slots, lengths, widths, strict=True):
            blocks = [int(next(free)) for _ in range(width)]
            self.tables[slot, :width] = blocks
            keys = rng.normal(size=(length, key_heads, KEY_DIM)).astype(np.float32)
            values = rng.normal(size=(length, key_heads, VALUE_DIM)).astype(np.float32)
            for position in range(length):
                place = blocks[position // BLOCK_SIZE], position % BLOCK_SIZE
                self.keys[place], self.values[place] = keys[position], values[position]
            self.sequences.append((keys, values))

    def attend(self, kernel: DecodeKernel, firsts, softcap=None, sinks=None) -> np.ndarray:
        out = np.full((len(self.ends), HEADS, VALUE_DIM), np.nan, np.float32)
        kernel.attend(
            self.queries, self.keys, self.values, self.tables, self.slots, firsts, self.ends, out, softcap, sinks
        )
        return out

    def by_definition(self, firsts, softcap=None, sinks=None) -> np.ndarray:
        rows = []
        for query, first, (keys, values) in zip(self.queries, firsts, self.sequences, strict=True):
            repeats = HEADS // keys.shape[1]
            keys, values = (np.repeat(of[first:], repeats, axis=1).astype(np.float64) for of in (keys, values))
            scores = np.einsum("hd,khd->hk", query, keys)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores)
            total = weights.sum(axis=1) + (0 if sinks is None else np.exp(sinks))
            rows.append(np.einsum("hk,khd->hd", weights, values) / total[:, None])
        return np.stack(rows)


@pytest.mark.parametrize("key_heads", [6, 3, 1])
@pytest.mark.parametrize("window, softcap, with_sinks", [*itertools.product([None, 1, 7], [None, 1.5], [False, True])])
def test_every_row_sees_its_own_keys(kernel, key_heads, window, softcap, with_sinks):
    rows = Rows(LENGTHS, key_heads)
    firsts = np.zeros_like(rows.ends) if window is None else np.maximum(rows.ends - window, 0).astype(np.int32)
    sinks = np.linspace(-1, 2, HEADS).astype(np.float32) if with_sinks else None
    found = rows.attend(kernel, firsts, softcap, sinks)
    np.testing.assert_allclose(found, rows.by_definition(firsts, softcap, sinks), atol=1e-5)


def test_fewer_rows_than_threads_and_then_more_keys_than_before(kernel):
    for lengths in ((2,), (300, 2)):
        rows = Rows(lengths, 2)
        firsts = np.zeros_like(rows.ends)
        np.testing.assert_allclose(rows.attend(kernel, firsts), rows.by_definition(firsts), atol=1e-5)


@pytest.mark.parametrize("lengths", [(1,), (5, 5, 5, 5), (1000, 1, 1), (1, 1, 1000), (3,) * 17])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_cover_all_rows_and_none_has_more_than_its_part_and_a_row(lengths, count):
    seen = np.array(lengths, np.int32)
    bounds = _shares(seen, count)
    assert len(bounds) == count + 1 and bounds[0] == 0 and bounds[-1] == len(seen)
    assert (np.diff(bounds) >= 0).all()
    parts = [seen[begin:end].sum() for begin, end in itertools.pairwise(bounds)]
    assert max(parts) <= seen.sum() / count + seen.max()


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_model_says_the_same_with_it_and_without(name, backend, make_executor, reference):
    if backend == "numba":
        pytest.importorskip("numba")
    expected = reference(name)
    executor = make_executor(name, attention_backend=backend)
    driver = Driver(executor, executor.num_blocks)
    sequences = [driver.sequence(slot, prompt) for slot, prompt in enumerate(expected.prompts)]
    driver.run(sequences, NUM_OUTPUT)
    assert [sequence.output for sequence in sequences] == expected.outputs


class TestWhereItCannotBeHad:
    def test_without_numba_auto_takes_the_plain_way(self, make_executor, monkeypatch):
        monkeypatch.setattr(decode_kernel, "numba", None)
        assert make_executor()._model.attention.kernel is None

    def test_without_numba_asking_for_it_says_how_to_get_it(self, make_executor, monkeypatch):
        monkeypatch.setattr(decode_kernel, "numba", None)
        with pytest.raises(ValueError, match=r"attention_backend numba needs .*pip install 'headway\[cpu\]'"):
            make_executor(attention_backend="numba")

    def test_another_dtype_is_not_for_it(self, make_executor):
        with pytest.raises(ValueError, match=r"attention_backend numba needs float32 on a CPU.* torch.bfloat16 on cpu"):
            make_executor(attention_backend="numba", dtype="bfloat16")
        assert make_executor(dtype="bfloat16")._model.attention.kernel is None

    def test_torch_is_what_was_asked_for(self, make_executor):
        assert make_executor(attention_backend="torch")._model.attention.kernel is None

    def test_without_openmp_one_thread_computes(self, monkeypatch, caplog):
        pytest.importorskip("numba")

        def refuse(self):
            if self.num_threads > 1:
                raise ValueError("no threading layer could be loaded")

        monkeypatch.setattr(decode_kernel.numba.config, "NUMBA_NUM_THREADS", 4)
        monkeypatch.setattr(DecodeKernel, "_try", refuse)
        made = DecodeKernel.compiled(4)
        assert made is not None and made.num_threads == 1
        assert "no threading layer" in caplog.text

    @pytest.mark.parametrize("refuses", [False, True], ids=["a folder to keep it", "none"])
    def test_it_is_kept_where_there_is_a_folder_for_it(self, refuses: bool, tmp_path: Path):
        """In a process of its own, with the package copied, and nothing to write to but what it is given."""
        pytest.importorskip("numba")
        package = tmp_path / "package"
        package.mkdir()
        source = Path(decode_kernel.__file__)
        (package / "decode_kernel.py").write_text(source.read_text())
        kept = tmp_path / "kept"
        script = (
            "from numba.core import caching\n"
            + ("caching.CacheImpl._locator_classes = []\n" if refuses else "")
            + "import decode_kernel\n"
            "print(decode_kernel.DecodeKernel.compiled(1).num_threads)"
        )
        environment = {**os.environ, "PYTHONPATH": f"{package}:{source.parents[2]}", "NUMBA_CACHE_DIR": str(kept)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
        assert bool(list(kept.rglob("*.nbc"))) is not refuses


def test_a_full_disk_for_the_cache_means_without_it_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numba = pytest.importorskip("numba")
    for name in ("_attend", "_attend_shares"):  # what other tests use stays as it is
        monkeypatch.setattr(decode_kernel, name, getattr(decode_kernel, name).py_func)
    decode_kernel._compile(cache=True)
    cached = decode_kernel._attend

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "load", lambda *_: None)  # nothing is there yet
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    kernel = DecodeKernel.compiled(1)
    assert kernel is not None and decode_kernel._attend is not cached
    assert "cannot be cached" in caplog.text and "No space left on device" in caplog.text


def test_no_folder_for_the_cache_means_without_it_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numba = pytest.importorskip("numba")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.core.caching.CacheImpl, "__init__", full)
    assert decode_kernel._jit(lambda x: x, cache=True)(3) == 3
    assert "cannot be cached" in caplog.text
