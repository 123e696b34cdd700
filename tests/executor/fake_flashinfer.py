"""FlashInfer's wrappers by their documentation, in plain torch: what our code may rely on, and not how it is computed.

As with the real ones, a plan says everything about a step, lives in tensors of the wrapper's own, and is read by `run`;
with `use_cuda_graph` those tensors are the ones given at first, so that a captured `run` sees each new plan in them.
What is forbidden raises, as it does there.
"""

from __future__ import annotations

import math

import torch

LONGEST = 144  # keys that a row may see here, which the host has to know


class _Wrapper:
    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, backend="auto"):
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "NHD"
        assert backend == "fa2", "others have other rules"
        self._in_graph = use_cuda_graph
        self._plan = None

    def _keep(self, name, tensor, buffer=None):
        assert tensor.dtype == torch.int32 and tensor.dim() == 1
        if not self._in_graph:
            setattr(self, name, tensor.clone())
        else:
            kept = getattr(self, name)
            assert len(tensor) <= len(kept)
            kept[: len(tensor)].copy_(tensor)

    def _note(self, indptr, indices, last_page_len, heads, key_heads, head_dim, page_size, window_left, softcap,
              scale, q_dtype, kv_dtype):  # fmt: skip
        counts = indptr.diff()
        assert int(indptr[0]) == 0 and int(indptr[-1]) == len(indices) and bool((counts > 0).all())
        assert bool(((last_page_len >= 1) & (last_page_len <= page_size)).all())
        assert int(((counts - 1) * page_size + last_page_len).max()) <= LONGEST
        assert heads % key_heads == 0 and softcap >= 0 and window_left >= -1
        self._plan = (heads, key_heads, head_dim, page_size, window_left, softcap, scale, q_dtype, kv_dtype)

    def _attend(self, q, cache, query_starts, causal, return_lse):
        heads, key_heads, head_dim, page_size, window_left, softcap, scale, q_dtype, kv_dtype = self._plan
        keys, values = cache
        assert q.shape[1:] == (heads, head_dim) and q.is_contiguous() and q.dtype == q_dtype
        assert keys.shape[1:] == values.shape[1:] == (page_size, key_heads, head_dim)
        assert keys.dtype == values.dtype == kv_dtype
        starts, pages, last = self._indptr, self._indices, self._last_page_len
        # No number of this is read by the host, or a capture would keep it.
        token = torch.arange(len(q))
        row = torch.searchsorted(query_starts[1:], token, right=True)
        kv_len = (starts.diff() - 1) * page_size + last
        position = kv_len[row] - (query_starts[row + 1] - token) if causal else kv_len[row] - 1
        key = torch.arange(LONGEST)
        page = (starts[row][:, None] + key // page_size).clamp(max=len(pages) - 1)
        seen = (key < kv_len[row][:, None]) & (key <= position[:, None])
        if window_left >= 0:
            seen &= key >= position[:, None] - window_left
        where = pages[page].long() * page_size + key % page_size
        where = where.where(seen, 0)

        def take(tensor):  # [T, K, Hq, D]; what is not seen is not read either
            taken = tensor.flatten(0, 1)[where].float().masked_fill(~seen[:, :, None, None], 0)
            return taken.repeat_interleave(heads // key_heads, dim=2)

        scores = torch.einsum("thd,tkhd->thk", q.float(), take(keys)) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen[:, None], float("-inf"))
        out = torch.einsum("thk,tkhd->thd", scores.softmax(2), take(values)).to(q.dtype)
        return (out, scores.logsumexp(2) / math.log(2)) if return_lse else out


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, use_tensor_cores=False,
                 paged_kv_indptr_buffer=None, paged_kv_indices_buffer=None, paged_kv_last_page_len_buffer=None,
                 backend="auto"):  # fmt: skip
        super().__init__(float_workspace_buffer, kv_layout, use_cuda_graph, backend)
        assert use_tensor_cores, "else only some numbers of query heads can share a key head"
        if use_cuda_graph:
            assert len(paged_kv_indptr_buffer) == len(paged_kv_last_page_len_buffer) + 1
            self._indptr, self._indices = paged_kv_indptr_buffer, paged_kv_indices_buffer
            self._last_page_len = paged_kv_last_page_len_buffer

    def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, *,
             window_left=-1, logits_soft_cap=None, q_data_type="float16", kv_data_type=None,
             sm_scale=None):  # fmt: skip
        if self._in_graph:
            assert len(last_page_len) == len(self._last_page_len), "the batch size is fixed in cudagraph mode"
        for name, tensor in (("_indptr", indptr), ("_indices", indices), ("_last_page_len", last_page_len)):
            self._keep(name, tensor)
        self._note(indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, window_left,
                   logits_soft_cap or 0.0, sm_scale, q_data_type, kv_data_type)  # fmt: skip

    def run(self, q, paged_kv_cache, return_lse=False):
        assert len(q) == len(self._last_page_len)
        return self._attend(q, paged_kv_cache, torch.arange(len(q) + 1), causal=False, return_lse=return_lse)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def plan(self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
             head_dim_qk, page_size, *, causal=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
             q_data_type="float16", kv_data_type=None):  # fmt: skip
        assert len(qo_indptr) == len(paged_kv_indptr) == len(paged_kv_last_page_len) + 1
        self._causal = causal
        for name, tensor in (
            ("_query_starts", qo_indptr),
            ("_indptr", paged_kv_indptr),
            ("_indices", paged_kv_indices),
            ("_last_page_len", paged_kv_last_page_len),
        ):
            self._keep(name, tensor)
        self._note(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads, head_dim_qk,
                   page_size, window_left, logits_soft_cap or 0.0, sm_scale, q_data_type, kv_data_type)  # fmt: skip

    def run(self, q, paged_kv_cache, return_lse=False):
        assert len(q) == int(self._query_starts[-1])
        return self._attend(q, paged_kv_cache, self._query_starts, self._causal, return_lse)
