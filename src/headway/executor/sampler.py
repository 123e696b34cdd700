"""Choosing the next token from logits: pure functions over all rows at once.

The order is that of vLLM: edits of the logits (see `sampling_state`), then temperature, min-p, top-k, top-p, then the
draw.

The draw is the Gumbel-max trick: the token with the largest `logit + noise` is a sample of the softmax. The noise of a
token is a hash of (seed, position, token id) alone. So the same seed gives the same token in any batch, any row, and
after a preemption. Rounding of the logits does depend on the batch; as each token has its own noise, rounding matters
only in a near tie. For the same reason the filters keep or drop equal logits together.

The host never waits for a CUDA device here: no computation depends on values that the host would have to fetch. On a
CPU such values cost nothing, and are used to compute less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.executor.transfer import to_device

_GOLDEN_64 = np.uint64(0x9E3779B97F4A7C15)
_GOLDEN_32 = 0x9E3779B9 - (1 << 32)
_MIX_32 = (0x7FEB352D, 0x846CA68B - (1 << 32))
_TOP_P_FIRST_TRY = 1024  # most rows reach their top_p within this many tokens; sorting all tokens is slow
_BITS_OF_ONE = 30  # the float32 1.0, as an integer, is below 2^30


def _host_may_look(device: torch.device) -> bool:
    """Whether the host can read values without waiting for the device."""
    return device.type == "cpu"


@dataclass(frozen=True, slots=True)
class Filters:
    """The tokens that each row of a batch keeps; each array has a value per row.

    top_k: int32, 0 keeps all. top_p, min_p: float32, 1 and 0 keep all.
    """

    top_k: NDArray[np.int32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]

    @property
    def keep_all(self) -> bool:
        return not (self.top_k.any() or (self.top_p < 1).any() or self.min_p.any())


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of R rows: the chosen token's [R], its rank [R] (1 is the most likely), the K most likely
    tokens [R, K], and their log-probabilities [R, K], most likely first."""

    chosen: Tensor
    ranks: Tensor
    top_ids: Tensor
    top: Tensor


def draw(logits: Tensor, keys: NDArray[np.int32], filters: Filters) -> Tensor:
    """Draw one token per row. logits: float32 [R, V], temperature applied. keys: int32 [R, 2], from `row_keys`.
    Returns int64 [R]."""
    device_keys = to_device(keys, logits.device)
    if filters.keep_all:
        return most_likely(noisy(logits, device_keys))
    cutoff = cutoffs(logits, filters)
    noise = noisy_few if _host_may_look(logits.device) else noisy
    return most_likely(noise(logits, device_keys, cutoff))


def noisy(logits: Tensor, keys: Tensor, cutoff: Tensor | None = None) -> Tensor:
    """logits [R, V] with noise; logits below `cutoff` [R, 1] become -inf. keys: int32 [R, 2]."""
    token_ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    scores = logits + gumbel_noise(keys[:, None], token_ids)
    return scores if cutoff is None else scores.masked_fill_(logits < cutoff, float("-inf"))


def noisy_few(logits: Tensor, keys: Tensor, cutoff: Tensor) -> Tensor:
    """`noisy`, computed for kept logits only: fewer numbers, but the host must know how many."""
    rows, tokens = (logits >= cutoff).nonzero(as_tuple=True)
    scores = torch.full_like(logits, float("-inf"))
    scores[rows, tokens] = logits[rows, tokens] + gumbel_noise(keys[rows], tokens.to(torch.int32))
    return scores


def most_likely(logits: Tensor) -> Tensor:
    """The token with the largest logit of each row, the first of equals. logits: float32 [R, V]. Returns int64 [R]."""
    if logits.device.type == "cpu":  # there torch's argmax does not use vectors, and takes 13 times as long
        return torch.from_numpy(logits.numpy().argmax(axis=1))
    return logits.argmax(dim=1)


def cutoffs(logits: Tensor, filters: Filters) -> Tensor:
    """The smallest logit that each row keeps, float32 [R, 1]. logits: float32 [R, V]."""
    device, vocab_size = logits.device, logits.shape[1]
    cutoff = torch.full((len(logits), 1), float("-inf"), device=device)
    if filters.min_p.any():
        share = to_device(filters.min_p, device)[:, None]
        cutoff = logits.amax(dim=1, keepdim=True) + share.log()
    limited = np.flatnonzero(filters.top_k)
    if len(limited):
        top_k = np.minimum(filters.top_k[limited], vocab_size).astype(np.int64)
        rows, last = to_device(limited, device), to_device(top_k - 1, device)[:, None]
        kth = logits[rows].topk(int(top_k.max()), dim=1).values.gather(1, last)
        cutoff[rows] = torch.maximum(cutoff[rows], kth)
    nucleus = np.flatnonzero(filters.top_p < 1)
    if len(nucleus):
        rows, top_p = to_device(nucleus, device), to_device(filters.top_p[nucleus], device)[:, None]
        left = logits[rows].masked_fill(logits[rows] < cutoff[rows], float("-inf"))
        limits = filters.top_k[nucleus]
        most_left = vocab_size if (limits == 0).any() else min(int(limits.max()), vocab_size)
        by_sorting = most_left <= _TOP_P_FIRST_TRY or _host_may_look(device)
        found = nucleus_by_sorting(left, top_p, most_left) if by_sorting else nucleus_by_halving(left, top_p)
        cutoff[rows] = torch.maximum(cutoff[rows], found)
    return cutoff


def nucleus_by_sorting(logits: Tensor, top_p: Tensor, most_left: int) -> Tensor:
    """The logit of the last token that a mass of `top_p` [R, 1] needs, most likely tokens first. [R, 1].

    most_left: the most tokens above -inf in a row, not counting tokens equal to the last of these.
    """
    total = logits.logsumexp(dim=1, keepdim=True)
    width = min(_TOP_P_FIRST_TRY, most_left)
    while True:
        likely = logits.topk(width, dim=1).values
        mass = (likely - total).exp().cumsum(dim=1)
        if width == most_left or bool((mass[:, -1:] >= top_p).all()):
            break
        width = most_left
    needed = (mass < top_p).sum(dim=1, keepdim=True)  # tokens that do not suffice; the next token completes the mass
    return likely.gather(1, needed.clamp_(max=width - 1))


def nucleus_by_halving(logits: Tensor, top_p: Tensor) -> Tensor:
    """The result of `nucleus_by_sorting`, by bisecting the least kept probability, one bit of its float at a time."""
    probabilities = logits.softmax(dim=1)
    bits = probabilities.view(torch.int32)  # as integers, floats of at least 0 keep their order
    low = torch.zeros_like(bits[:, :1])
    high = bits.amax(dim=1, keepdim=True)
    for _ in range(_BITS_OF_ONE):
        middle = low + ((high - low + 1) >> 1)
        enough = probabilities.where(bits >= middle, 0).sum(dim=1, keepdim=True) >= top_p
        low, high = middle.where(enough, low), high.where(enough, middle - 1)
    return logits.masked_fill(bits < low, float("inf")).amin(dim=1, keepdim=True)


def row_keys(seeds: NDArray[np.uint64], positions: NDArray[np.integer]) -> NDArray[np.int32]:
    """Hash each row's seed and the position of the token to be drawn. int32 [R, 2]."""
    keys = _mix_64(_mix_64(seeds) + positions.astype(np.uint64))
    return keys.view(np.int32).reshape(-1, 2)


def derive_seed(engine_seed: int, uid: int) -> int:
    """The seed of a request without a seed of its own."""
    words = np.array([engine_seed & (2**64 - 1), uid & (2**64 - 1)], dtype=np.uint64)
    return int(_mix_64(_mix_64(words[:1]) ^ words[1:])[0])


def _mix_64(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: one step of its counter, then its finaliser. A bijection of 64-bit words."""
    words = words + _GOLDEN_64
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def gumbel_noise(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise for each pair of key and token. keys: int32 [..., 2]; token_ids: int32, broadcasts against
    keys[..., 0]. Returns float32 of the broadcast shape.

    Two rounds of a 32-bit integer mixer; each round takes in one word of the key. Integer arithmetic wraps alike on
    every device.
    """
    bits = (token_ids * _GOLDEN_32) ^ keys[..., 0]
    scratch = torch.empty_like(bits)
    _mix_32(bits, scratch)
    bits += keys[..., 1]
    _mix_32(bits, scratch)
    # 31 bits to (0, 1): finest near 0, which gives the largest noise, and below 1, which would give infinity.
    uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix_32(words: Tensor, scratch: Tensor) -> None:
    """Mix int32 words in place: xor with its own shift, multiply, xor, multiply, xor. A bijection."""
    for shift, factor in ((16, _MIX_32[0]), (15, _MIX_32[1]), (16, 1)):
        torch.bitwise_right_shift(words, shift, out=scratch)
        scratch &= (1 << (32 - shift)) - 1  # the shift of a signed word copies the sign bit
        words ^= scratch
        if factor != 1:
            words *= factor


def log_probabilities(log_probs: Tensor, tokens: Tensor, count: int) -> TokenLogprobs:
    """Report `tokens` int64 [R] and the `count` most likely of `log_probs` float32 [R, V]."""
    chosen = log_probs.gather(1, tokens[:, None])
    top, top_ids = log_probs.topk(min(count, log_probs.shape[1]), dim=1)
    return TokenLogprobs(chosen=chosen[:, 0], ranks=(log_probs > chosen).sum(dim=1) + 1, top_ids=top_ids, top=top)
