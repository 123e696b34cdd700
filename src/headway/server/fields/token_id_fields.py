"""The fields of a body that ask for token ids in the answer."""

from __future__ import annotations

from headway.client.conversation import StrictModel


class TokenIdFields(StrictModel):
    """Completions and chat completions have these fields.

    return_token_ids: the answer has the token ids of the prompt and of each choice.
    return_tokens_as_token_ids: logprobs name a token "token_id:7" and not by its text.
    """

    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
