"""Anthropic's Messages API: /v1/messages and /v1/messages/count_tokens.

A body becomes a chat completion (`body.py`), so sampling, templates, tools and grammars are the same. The answer is
told in content blocks (`answer_blocks.py`) and in events with names (`face.py`). Errors on these paths have Anthropic's
form (`server/errors.py`).
"""
