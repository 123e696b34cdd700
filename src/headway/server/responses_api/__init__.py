"""OpenAI's Responses API: /v1/responses.

A body becomes a chat completion (`body.py`), so sampling, templates, tools and grammars are the same. The answer is
told in items (`answer_items.py`) and in events with names and numbers (`face.py`). Nothing is stored between requests.
"""
