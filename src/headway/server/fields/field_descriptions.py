"""What each field of a request is, in a sentence, for the document at /openapi.json and the page at /docs.

docs/request-fields.md says more: what is refused, and what is ignored.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from headway.client.field_rules import Unsupported
from headway.server.fields.protocol import Ignored

_REFUSED = "Not served here: a value that asks for anything is refused."
_IGNORED = "Taken, and changes no answer."

TEXTS = {
    # prompts
    "model": "The name of the model that is served, or left out.",
    "prompt": "What is to be continued, or cut into tokens.",
    "messages": "The conversation so far, the oldest message first.",
    "input": "A text, or the items of the conversation so far.",
    "instructions": "A system message before all others.",
    "system": "A system message before all others, as a text or as blocks of text.",
    "tokens": "Token ids whose text is wanted.",
    "add_special_tokens": "Whether the tokenizer adds its own special tokens, such as the begin of a text.",
    "add_generation_prompt": "Whether the chat template begins the answer.",
    "continue_final_message": "Whether the answer goes on with the last message, instead of a new one.",
    "chat_template": "The name of a template of the model; a text needs --trust-request-chat-template.",
    "chat_template_kwargs": "More variables for the chat template.",
    "documents": "Documents for the chat template.",
    "truncate_prompt_tokens": "The prompt keeps so many tokens; -1: as many as leave room for one more.",
    "truncation_side": "left keeps the end of the prompt, right its start.",
    "truncation": "auto: the prompt loses its oldest items if it is too long; disabled: it is refused.",
    # tokens
    "n": "Answers to each prompt.",
    "best_of": "Must be equal to n.",
    "temperature": "How freely tokens are drawn; 0: always the most likely token.",
    "top_p": "Only the most likely tokens, with this probability together, are drawn from.",
    "top_k": "Only so many of the most likely tokens are drawn from; 0 or -1: all.",
    "min_p": "Only tokens with this share of the probability of the most likely one are drawn from.",
    "presence_penalty": "Makes tokens that are in the answer already less likely.",
    "frequency_penalty": "Makes tokens less likely, the more often they are in the answer.",
    "repetition_penalty": "Above 1: makes tokens of the prompt and of the answer less likely.",
    "logit_bias": "Token ids, each with what is added to its logit.",
    "seed": "The same seed gives the same tokens, whatever else runs.",
    "bad_words": "Words that do not come up.",
    "allowed_token_ids": "The only tokens that come up.",
    "thinking_token_budget": "After so many tokens of thinking its end is written; -1: no limit.",
    # ends
    "max_tokens": "The most tokens of an answer.",
    "max_completion_tokens": "The most tokens of an answer.",
    "max_output_tokens": "The most tokens of an answer, thinking included.",
    "min_tokens": "No answer ends before so many tokens.",
    "stop": "Texts that end the answer.",
    "stop_sequences": "Texts that end the answer.",
    "stop_token_ids": "Tokens that end the answer.",
    "ignore_eos": "Whether the answer goes on after the model's own end.",
    "include_stop_str_in_output": "Whether the answer has the text that ended it.",
    "repetition_detection": "Ends an answer that repeats itself.",
    # forms
    "response_format": "The form of the answer: text, json_object or json_schema.",
    "structured_outputs": "The form of the answer: one of json, json_object, regex, choice, grammar, structural_tag.",
    "guided_json": "The older name of structured_outputs.json.",
    "guided_regex": "The older name of structured_outputs.regex.",
    "guided_choice": "The older name of structured_outputs.choice.",
    "guided_grammar": "The older name of structured_outputs.grammar.",
    "text": "The form of the answer.",
    "output_config": "The form of the answer, and how much the model thinks.",
    # tools and thinking
    "tools": "Functions that the model may call.",
    "tool_choice": "Whether the model may, must or must not call a function, or which one.",
    "parallel_tool_calls": "Whether the model may call several functions at once.",
    "max_tool_calls": "The most calls of tools of the server's own, of which there are none.",
    "reasoning": "How much the model thinks.",
    "reasoning_effort": "How much the model thinks, where its chat template knows of it.",
    "include_reasoning": "Whether the answer has what the model thought.",
    "thinking": "Whether the model thinks, and for how many tokens.",
    # what the answer tells
    "logprobs": "Log-probabilities of the tokens; in completions: of so many alternatives.",
    "top_logprobs": "Alternatives of each token in the log-probabilities.",
    "prompt_logprobs": "Log-probabilities of the prompt's tokens, with so many alternatives.",
    "echo": "Whether the answer begins with the prompt.",
    "include": "More that the response has: message.output_text.logprobs.",
    "skip_special_tokens": "Whether special tokens are left out of the text.",
    "spaces_between_special_tokens": "Either value: a tokenizer's own text has no such spaces.",
    "return_token_ids": "Whether the answer has its token ids, and once those of the prompt.",
    "return_tokens_as_token_ids": "Whether log-probabilities name tokens by their ids, token_id:7.",
    "return_token_strs": "Whether the answer has the text of each token too.",
    # the request
    "stream": "Whether the answer comes token by token, as server-sent events.",
    "stream_options": "What a stream tells besides; only with stream.",
    "priority": "Requests with a lower number go first.",
    "cache_control": "Taken, and changes no answer: equal beginnings of prompts are found without a mark.",
    "cache_salt": "Prefixes of prompts are shared only between requests of one salt.",
    "request_id": "The id of the answer; it must not be in use.",
    "thread": "Refused by name: no message is stored here, and clients send the whole conversation then.",
    "kv_transfer_params": "Where the KV of the prompt is, or that it is to be lent: see docs/disaggregation.md.",
}


def describe_fields(document: dict[str, Any], bodies: tuple[type[BaseModel], ...]) -> None:
    """Write into an OpenAPI document what each field of these bodies is."""
    for body in bodies:
        described = document["components"]["schemas"][body.__name__]["properties"]
        for name, field in body.model_fields.items():
            schema = described[field.alias or name]
            if any(isinstance(rule, Unsupported) for rule in field.metadata):
                schema["description"] = _REFUSED
            elif name in Ignored.model_fields:
                schema["description"] = _IGNORED
            else:
                schema["description"] = TEXTS[name]
