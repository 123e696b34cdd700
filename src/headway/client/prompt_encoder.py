"""From texts to token ids: bounded before it costs, and off the event loop where it is long."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from headway.client.text_limit import TextLimit
from headway.client.text_pool import TextPool
from headway.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_TOKENIZED = 2**18  # characters that are tokenised for their own sake, if no longer prompt is taken; 0.2 s


class PromptEncoder:
    """Tokenises texts. limit: the most characters of a prompt. texts: where long work on texts is done."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        self.limit = TextLimit(tokenizer, max_model_len)
        self.texts = TextPool()
        self._tokenizer = tokenizer

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a text, of any number. Raises RequestError for more characters than are tokenised."""
        most = max(LONGEST_TOKENIZED, self.limit.characters)
        if len(text) > most:
            raise RequestError(f"the text has {len(text)} characters; at most {most} are tokenised at once")
        (token_ids,) = await self._encode([text], add_special_tokens)
        return token_ids

    async def encode_prompts(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """The token ids of the prompts of one client request. Raises RequestError for a text that cannot fit, before
        any is tokenised. Long texts are tokenised on another thread, so that the event loop goes on."""
        for text in texts:
            self.limit.check(len(text))
        return await self._encode(texts, add_special_tokens)

    async def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        encode = partial(self._tokenizer.encode, add_special_tokens=add_special_tokens, verbose=False)
        return await self.texts.run(sum(map(len, texts)) + len(texts), lambda: [encode(text) for text in texts])
