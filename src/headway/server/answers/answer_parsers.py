"""How the answers of a server's model are read, and made to be readable: tools, and reasoning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headway.client.answer_parser import AnswerParser
from headway.client.chat_template import ChatTemplate
from headway.client.reasoning_parsers import ReasoningParser, reasoning_parser
from headway.client.special_tokens import special_tokens
from headway.client.tool_parsers import TOOL_PARSERS, ToolParser, tool_parser, tool_parser_of
from headway.client.tool_parsers.call_grammar import json_or_calls, text_with_calls
from headway.client.tool_parsers.forced import NamedCall, RequiredCalls
from headway.client.tools import Tool
from headway.sampling import SamplingParams
from headway.server.errors import ApiError
from headway.server.fields.protocol import ChatCompletionRequest
from headway.structured_outputs import StructuredOutputs
from headway.thinking_tokens import ThinkingTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAY_THINK = "enable_thinking"  # a template with this variable is of a model that thinks unless told not to


class AnswerParsers:
    """Makes the parsers of answers, and the sampling that their forms need.

    templates: the model's chat templates: they tell the form of calls, if `tool_call_parser` does not.
    tool_call_parser, reasoning_parser: names of parsers. Without a reasoning parser all text is content.
    auto_tool_choice: the server must be able to read calls that the model makes of its own accord.

    Raises ValueError for an unknown name, and for `auto_tool_choice` if neither name nor template tells the form.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        templates: ChatTemplate,
        *,
        tool_call_parser: str | None = None,
        auto_tool_choice: bool = False,
        reasoning_parser_name: str | None = None,
    ) -> None:
        self._templates = templates
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._tools = None if tool_call_parser is None else tool_parser(tool_call_parser)
        self._reasoning = None if reasoning_parser_name is None else reasoning_parser(reasoning_parser_name)
        if auto_tool_choice and self._tools is None and all(map(_unknown, templates.texts())):
            raise ValueError(
                "--enable-auto-tool-choice needs --tool-call-parser: the model's chat template tells no form of calls "
                f"that is known here; choose one of {', '.join(sorted(TOOL_PARSERS))}"
            )

    @property
    def read_reasoning(self) -> bool:
        """Whether what the model thinks is told apart from what it says."""
        return self._reasoning is not None

    def new(self, body: ChatCompletionRequest, prompt: str) -> AnswerParser:
        """A parser for one answer. prompt: what the chat template made of the body."""
        return AnswerParser(
            reasoning=None if self._reasoning is None else self._reasoning(prompt),
            tools=self._tool_parser(body),
            show_reasoning=body.include_reasoning is not False,
            parallel=body.parallel_tool_calls is not False,
            hidden=() if body.skip_special_tokens is False else self.shown(body),
        )

    def shown(self, body: ChatCompletionRequest) -> Sequence[str]:
        """The special tokens that the text of the answer must show, since parsers look for them."""
        markers: list[str] = []
        if self._reasoning is not None:
            markers += (self._reasoning.opening, self._reasoning.closing)
        if body.use_of_tools == "auto":
            markers += self._form_of(body).markers
        return [marker for marker in markers if marker in self._special]

    def sampling(self, body: ChatCompletionRequest, sampling: SamplingParams, prompt: str) -> SamplingParams:
        """The sampling with the form that the body's tools ask for, and with what is known of the reasoning: a form
        begins behind it. Raises ApiError if there is no parser for what the body asks for, RequestError for a schema
        that cannot be used."""
        form = self._form(body, sampling.structured_outputs)
        structured = sampling.structured_outputs if form is None else StructuredOutputs(**form)
        if structured is not None and not structured.starts_after:
            structured = replace(structured, starts_after=self._end_of_reasoning(body, prompt))
        if structured is not sampling.structured_outputs:
            sampling = replace(sampling, structured_outputs=structured)
        if sampling.thinking_token_budget is not None and self._reasoning is not None:
            sampling = replace(sampling, thinking=self._thinking(self._reasoning))
        return sampling

    def _tool_parser(self, body: ChatCompletionRequest) -> ToolParser | None:
        match body.use_of_tools:
            case "none":
                return None
            case "named":
                assert body.called_tool is not None
                return NamedCall([body.called_tool.function.name], new_id=self._new_id(body))
            case "required":
                return RequiredCalls(_names(body), new_id=self._new_id(body))
        return self._form_of(body)(_names(body))

    def _form(self, body: ChatCompletionRequest, given: StructuredOutputs | None) -> dict[str, Any] | None:
        """The form of the whole answer, as the arguments of `StructuredOutputs`; None: as given. given: what the body
        asks for beside tools."""
        tools = body.tools or []
        parallel = body.parallel_tool_calls is not False
        match body.use_of_tools:
            case "named":
                assert body.called_tool is not None
                return {"json": body.called_tool.schema_of_arguments, "disable_any_whitespace": True}
            case "required":
                schema = RequiredCalls.schema(_schemas(tools), parallel=parallel)
                return {"json": schema, "disable_any_whitespace": True}
            case "auto":
                return self._auto_form(body, given)
        return None

    def _auto_form(self, body: ChatCompletionRequest, given: StructuredOutputs | None) -> dict[str, Any] | None:
        form = self._form_of(body)  # refuses a model whose calls cannot be read
        tools = body.tools or []
        if given is None:
            if not any(tool.function.strict for tool in tools):
                return None
            tag = text_with_calls(
                form,
                {
                    tool.function.name: tool.schema_of_arguments if tool.function.strict else {"type": "object"}
                    for tool in tools
                },
            )
        elif given.kind in ("json", "json_object"):  # it may call tools, and answers in this form when it calls none
            schema = json.loads(given.text) if given.kind == "json" else {"type": "object"}
            tag = json_or_calls(form, _schemas(tools), schema, parallel=body.parallel_tool_calls is not False)
        else:
            return None
        return None if tag is None else {"structural_tag": tag}

    def _form_of(self, body: ChatCompletionRequest) -> type[ToolParser]:
        """The parser of the calls that the model makes of its own accord."""
        form = self._tools or tool_parser_of(self._templates.text_for(body))
        if form is None:
            raise ApiError(
                400,
                'tool_choice "auto" needs a tool parser: start the server with --enable-auto-tool-choice and '
                f"--tool-call-parser ({', '.join(sorted(TOOL_PARSERS))}), or ask for a call (tool_choice "
                '"required", or a tool)',
                param="tool_choice",
            )
        return form

    def _new_id(self, body: ChatCompletionRequest) -> Any:
        form = self._tools or tool_parser_of(self._templates.text_for(body)) or ToolParser
        return form.new_id

    def _end_of_reasoning(self, body: ChatCompletionRequest, prompt: str) -> tuple[int, ...]:
        reasoning = self._reasoning
        if reasoning is None:
            return ()
        inside = reasoning.state_of(prompt)
        if inside is None:
            inside = reasoning.begins_inside or _MAY_THINK in self._templates.text_for(body)
        return self._ids(reasoning.closing) if inside else ()

    def _thinking(self, reasoning: type[ReasoningParser]) -> ThinkingTokens:
        start = () if reasoning.begins_inside else self._ids(reasoning.opening)
        return ThinkingTokens(start=start, end=self._ids(reasoning.closing))

    def _ids(self, marker: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(marker, add_special_tokens=False))


def _unknown(template: str) -> bool:
    return tool_parser_of(template) is None


def _names(body: ChatCompletionRequest) -> list[str]:
    return [tool.function.name for tool in body.tools or ()]


def _schemas(tools: Sequence[Tool]) -> dict[str, Any]:
    return {tool.function.name: tool.schema_of_arguments for tool in tools}
