"""Requests that can never be served."""

from __future__ import annotations

from headway.config import SchedulerConfig
from headway.request import Request


def never_fits(config: SchedulerConfig, request: Request) -> str | None:
    """Why this request can never be served, naming value and limit; None if it can.

    A request that passes is served in the end, whatever else runs: a prefill can always have `smallest_chunk_budget`
    tokens in a step, which takes it past every span, and the encoder cache can hold one span at a time.
    """
    num_prompt, limit = len(request.prompt), config.max_model_len
    if num_prompt < 1:
        return "the prompt has no tokens, it needs at least 1"
    if request.max_tokens < 1:
        return f"max_tokens must be at least 1, got {request.max_tokens}"
    if num_prompt + request.max_tokens > limit:
        return f"prompt ({num_prompt} tokens) + max_tokens ({request.max_tokens}) exceed max_model_len ({limit})"
    return _span_never_fits(config, request)


def _span_never_fits(config: SchedulerConfig, request: Request) -> str | None:
    """The same, of the spans alone."""
    place = 0
    for i, span in enumerate(request.spans):
        if span.length < 1:
            return f"span {i} must be at least 1 token long, got {span.length}"
        if not span.digest:
            return f"span {i} has an empty digest: images must be told apart by it"
        if span.start < place:
            return (
                f"span {i} starts at {span.start}, before {place}, where {'the one before it' if i else 'the prompt'} "
                + ("ends" if i else "starts")
            )
        if span.end > len(request.prompt):
            return f"span {i} ends at {span.end}, past the prompt ({len(request.prompt)} tokens)"
        if span.length > config.smallest_chunk_budget:
            return (
                f"span {i} has {span.length} tokens and must fit in one step; with all other slots decoding a step has "
                f"room for {config.smallest_chunk_budget}. Raise max_num_batched_tokens or lower max_num_seqs"
            )
        if not 0 <= span.num_encoder_tokens <= config.encoder_budget:
            return (
                f"span {i} takes {span.num_encoder_tokens} tokens of the encoder cache, "
                f"which holds 0 to {config.encoder_budget} (encoder_cache_size)"
            )
        place = span.end
    return None
