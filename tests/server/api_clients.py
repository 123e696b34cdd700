"""The official clients of the APIs, in front of an application without a port."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import openai

from headway.client.answer_parser import AnswerParser
from headway.client.reasoning_parsers.think_tags import DeepSeekR1Reasoning
from headway.client.tool_parsers.hermes import HermesParser
from tests.server.conftest import Api
from tests.tiny_tokenizer import byte_ids, byte_tokenizer


def openai_client(api: Api) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=_http(api))


def anthropic_client(api: Api) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url="http://test", api_key="none", max_retries=0, http_client=_http(api))


def _http(api: Api) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(api.app, raise_app_exceptions=False))


def spelled(text: str) -> list[int]:
    """The answer of a fake engine that says this text."""
    return byte_ids(byte_tokenizer(), text)


def reads_calls(api: Api, *names: str, **options: Any) -> None:
    """The model thinks in tags, and calls tools of these names, as Qwen does."""

    def parser(body: Any, prompt: str = "") -> AnswerParser:
        return AnswerParser(reasoning=DeepSeekR1Reasoning(), tools=HermesParser(names), **options)

    api.app.state.service.answer_parser = parser
