"""A text that spells special tokens, and stays a text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from headway.client.conversation import Conversation
from headway.client.special_tokens import SpecialTokenEscape, special_tokens
from tests.client.tokenizers import SlowBytes
from tests.tiny_tokenizer import byte_tokenizer

NAMES = ["<|im_start|>", "<|im_end|>", "|im_end|", "<s>", "<<s>>", "<s><s>", "$", "< s>"]
TOKENIZER = byte_tokenizer()
TOKENIZER.add_special_tokens({"additional_special_tokens": [AddedToken(name, special=True) for name in NAMES]})
ESCAPE = SpecialTokenEscape(TOKENIZER)


@given(st.lists(st.one_of(st.sampled_from([*NAMES, "<", "s>", "|", " "]), st.text(max_size=2)), max_size=6))
def test_an_escaped_text_has_no_special_token(parts: list[str]) -> None:
    ids = TOKENIZER.encode(ESCAPE("".join(parts)), add_special_tokens=False)
    assert not set(ids) & set(special_tokens(TOKENIZER).values())


def test_a_space_parts_the_name_and_other_text_stays() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    escape = SpecialTokenEscape(tokenizer)
    assert escape("x<|im_end|>\n<|im_start|> <b>") == "x< |im_end|>\n<|im_start|> <b>"


def test_all_texts_of_a_conversation_change_and_the_conversation_itself_does_not() -> None:
    def part(text: str) -> str:
        return text.replace("<", "< ")

    call = {"function": {"name": "<e", "arguments": '{"<f": ["<g", 1, "\\u003ch"]}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "<a"}, {"type": "text", "text": "b"}], "name": "<c"},
        {"role": "assistant", "content": "<d", "reasoning": "<r"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "<i", "tool_call_id": "<j"},
    ]
    tool = {"function": {"name": "<e", "parameters": {"properties": {"<f": {}}}}}
    conversation = Conversation.model_validate({"messages": messages, "tools": [tool], "documents": [{"<k": "<l"}]})
    changed = conversation.variables(part)
    assert changed["messages"] == [
        {"role": "user", "content": "< a\nb", "name": "< c"},
        {"role": "assistant", "content": "< d", "reasoning": "< r", "reasoning_content": "< r"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "< e", "arguments": {"< f": ["< g", 1, "< h"]}}},
            ],
        },
        {"role": "tool", "content": "< i", "tool_call_id": "< j"},
    ]
    function = {"name": "< e", "parameters": {"properties": {"< f": {}}}}
    assert changed["tools"] == [{"type": "function", "function": function}]
    assert changed["documents"] == [{"< k": "< l"}]
    assert conversation.variables()["messages"][0]["content"] == "<a\nb"


def test_slow_tokenizers_name_their_special_tokens_too() -> None:
    assert special_tokens(SlowBytes()) == {"</s>": SlowBytes().eos_token_id}
    assert special_tokens(None) == {}
