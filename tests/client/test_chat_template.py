"""One renderer behind `LLM.chat` and the server: the same messages make the same prompt, or the same refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerFast

from headway import LLM, RequestError, SamplingParams
from headway.client.chat_template import ChatTemplate
from headway.client.conversation import Conversation
from headway.server.routes.api import create_app
from headway.wire.to_engine import AddGroup
from tests.echo_model import use_echo_model, write_echo_model
from tests.server.fakes import MODEL, fake_client
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_tokenizer

USER = {"role": "user", "content": "fox"}
RAG = "{% for d in documents or [] %}[{{ d.text }}]{% endfor %}{{ messages[-1].content }}"
NAMED = {"default": CHAT_TEMPLATE, "rag": RAG, "tool_use": "{{ tools[0].name }}:{{ messages[-1].content }}"}
SHORT = SamplingParams(temperature=0, max_tokens=1)


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def refuses(reason: str) -> str:
    return "{{ raise_exception('" + reason + "') }}"


# -- the two faces


class Faces:
    """`LLM.chat` and /v1/chat/completions, with one tokenizer's templates; each gives prompt ids or an error's text."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._client, self._link = fake_client()
        app = create_app(self._client, llm.files.name, trust_request_chat_template=True, strict_fields=True)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://test")

    def use(self, templates: str | dict[str, str] | None) -> None:
        self._llm.tokenizer.chat_template = self._client.tokenizer.chat_template = templates

    def by_llm(self, body: dict[str, Any]) -> list[int] | str:
        body = dict(body)
        messages = body.pop("messages") or [[]]  # an empty list is no conversations, and not an empty one
        try:
            (output,) = self._llm.chat(messages, SHORT, use_tqdm=False, **body)
        except RequestError as error:
            return str(error).removeprefix("conversation 0: ")
        return list(output.prompt_token_ids or [])

    async def by_server(self, body: dict[str, Any]) -> list[int] | str:
        response = await self._http.post("/v1/chat/completions", json={**body, "max_tokens": 1})
        if response.status_code != 200:
            assert response.status_code == 400 and not self._link.sent
            return str(response.json()["error"]["message"])
        ((add,),) = (group.requests for group in self._link.sent_of(AddGroup))
        return add.prompt.tolist()

    async def by_tokenize(self, body: dict[str, Any]) -> list[int] | str:
        answer = (await self._http.post("/tokenize", json=body)).json()
        return answer["tokens"] if "tokens" in answer else str(answer["error"]["message"])

    async def close(self) -> None:
        await self._http.aclose()
        await self._client.shutdown()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        use_echo_model(patch)
        with LLM(str(write_echo_model(tmp_path_factory.mktemp("echo"))), max_num_seqs=2) as llm:
            yield llm


@pytest.fixture
async def faces(llm: LLM) -> AsyncIterator[Faces]:
    faces = Faces(llm)
    yield faces
    await faces.close()
    llm.tokenizer.chat_template = CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"messages": [USER]}, "<|user|>fox<|assistant|>"),
        ({"messages": [{"role": "user", "content": [text("fox")]}]}, "<|user|>fox<|assistant|>"),
        ({"messages": [{"role": "user", "content": [text("a"), text("b")]}]}, "<|user|>a\nb<|assistant|>"),
        ({"messages": [{"role": "user", "content": []}]}, "<|user|><|assistant|>"),
        ({"messages": [USER, {"role": "assistant"}]}, "<|user|>fox<|assistant|><|assistant|>"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "<|user|>fox<|assistant|><|assistant|>"),
        ({"messages": [USER, {"role": "assistant", "content": "x", "tool_calls": []}]},
         "<|user|>fox<|assistant|>x<|assistant|>"),
        ({"messages": [{**USER, "name": "me"}], "chat_template": "{{ messages[0].name }}"}, "me"),
        ({"messages": [USER], "add_generation_prompt": False}, "<|user|>fox"),
        ({"messages": [USER, {"role": "assistant", "content": "The "}], "add_generation_prompt": False,
          "continue_final_message": True}, "<|user|>fox<|assistant|>The "),
        ({"messages": [USER], "chat_template": "{{ mood }}", "chat_template_kwargs": {"mood": "good"}}, "good"),
        ({"messages": [USER], "chat_template": "rag",
          "chat_template_kwargs": {"documents": [{"text": "D"}]}}, "[D]fox"),
        ({"messages": [USER], "chat_template_kwargs": {"tools": [{"name": "T"}]}}, "T:fox"),
        ({"messages": [USER], "chat_template": "default"}, "<|user|>fox<|assistant|>"),
        ({"messages": [USER], "chat_template": "rag", "documents": [{"text": "D"}]}, "[D]fox"),
        ({"messages": [USER], "chat_template": "default", "documents": []}, "<|user|>fox<|assistant|>"),
        ({"messages": [USER], "tools": [{"function": {"name": "T"}}],
          "chat_template": "{# <tool_call> #}{{ tools | map(attribute='function.name') | join }}"}, "T"),
        ({"messages": [USER], "tools": [], "chat_template": "default"}, "<|user|>fox<|assistant|>"),
        ({"messages": [USER], "reasoning_effort": "none", "chat_template": "{{ enable_thinking }}"}, "False"),
        ({"messages": [USER], "reasoning_effort": "low",
          "chat_template": "{{ enable_thinking }} {{ reasoning_effort }}"}, "True low"),
        ({"messages": [USER], "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False},
          "chat_template": "{{ enable_thinking }}"}, "False"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "i", "content": "7"}],
          "chat_template": "{{ messages[1].tool_call_id }}{{ messages[1].content }}"}, "i7"),
    ],
)  # fmt: skip
async def test_the_same_conversation_is_the_same_prompt(faces: Faces, body: dict[str, Any], prompt: str) -> None:
    faces.use(NAMED)
    expected = byte_tokenizer().encode(prompt, add_special_tokens=False)
    assert faces.by_llm(body) == expected
    assert await faces.by_server(body) == expected
    assert await faces.by_tokenize(body) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "content parts of type 'image_url' are not served, whatever the model takes"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "needs the field 'text'"),
        ({"messages": [{"role": "user", "content": [{**text("a"), "x": 1}]}]}, "unknown field 'x'"),
        ({"messages": [{"role": "user", "content": ["a"]}]},
         "messages[0].content[0]: Input should be an object, got 'a'"),
        ({"messages": [{**USER, "annotations": 3}]}, "messages[0].annotations: Input should be a list, got 3"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: Input should be a valid string, got 3"),
        ({"messages": [{"role": "user"}]}, "a message of role 'user' needs content"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role: Input should be"),
        ({"messages": [{"content": "a"}]}, "the field 'messages[0].role' is required"),
        ({"messages": []}, "messages is empty: a conversation needs at least one message"),
        ({"messages": [USER, "a"]}, "messages[1] must be a mapping with a role and a content, got 'a'"),
        ({"messages": [{**USER, "mood": 1}]}, "unknown field 'messages[0].mood'"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
         "the field 'messages[1].tool_calls[0].function' is required"),
        ({"messages": [USER], "continue_final_message": True},
         "continue_final_message needs add_generation_prompt to be false"),
        ({"messages": [USER], "chat_template_kwargs": {"tokenize": True}},
         "chat_template_kwargs must not set 'tokenize': it is no variable of a template"),
        ({"messages": [USER], "chat_template_kwargs": {"messages": []}},
         "chat_template_kwargs must not set 'messages': give it beside chat_template_kwargs"),
        ({"messages": [USER], "chat_template_kwargs": {"conversations": []}}, "must not set 'conversations'"),
        ({"messages": [USER], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
         "chat_template_kwargs must not set 'chat_template': give it beside chat_template_kwargs"),
        ({"messages": [USER], "documents": [{"text": "D"}], "chat_template": "default"},
         "documents are not supported by this model's chat template"),
        ({"messages": [USER], "tools": [{"function": {"name": "T"}}], "chat_template_kwargs": {"tools": []}},
         "chat_template_kwargs must not set 'tools': give it beside chat_template_kwargs"),
        ({"messages": [USER], "chat_template": "raq"},
         "chat_template 'raq' is neither the name of one of the model's templates (default, rag, tool_use), nor the "
         "text of a template"),
        ({"messages": [USER], "chat_template": refuses("one\\ntwo")},
         "the chat template does not take this conversation: one\ntwo"),
        ({"messages": [USER], "chat_template": "{{ nothing.at_all }}"}, "'nothing' is undefined"),
        ({"messages": [USER], "chat_template": "{% if %}"}, "Expected an expression, got 'end of statement block'"),
        ({"messages": [USER], "chat_template": "{{ 1 / 0 }}"}, "ZeroDivisionError: division by zero"),
        ({"messages": [USER], "chat_template": "{{ ''.__class__.__mro__ }}"}, "unsafe"),
        ({"messages": [USER], "chat_template": "{{ messages.append(1) }}"}, "unsafe"),
        ({"messages": [USER], "chat_template": "{% for i in range(10 ** 9) %}{% endfor %}"}, "OverflowError"),
    ],
)  # fmt: skip
async def test_what_one_face_refuses_the_other_refuses_in_the_same_words(
    faces: Faces, body: dict[str, Any], message: str
) -> None:
    faces.use(NAMED)
    said = faces.by_llm(body)
    assert isinstance(said, str) and message in said
    assert await faces.by_server(body) == said
    assert await faces.by_tokenize(body) == said


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (None, "has no chat template: give one"),
        ({"rag": RAG, "b": RAG}, "several chat templates and none called 'default': choose one of b, rag"),
        (refuses("roles must alternate"), "roles must alternate"),
    ],
    ids=["none", "no default", "refuses"],
)
async def test_both_faces_say_what_is_wrong_with_the_models_template(
    faces: Faces, templates: Any, message: str
) -> None:
    faces.use(templates)
    said = faces.by_llm({"messages": [USER]})
    assert isinstance(said, str) and message in said
    assert await faces.by_server({"messages": [USER]}) == said


# -- the template that is set


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(CHAT_TEMPLATE)


def written(template: ChatTemplate, **options: Any) -> str:
    return template.render(Conversation.model_validate({"messages": [USER], **options}))


def test_a_template_is_set_by_file_by_text_or_by_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0].content }} from a file\n")
    assert written(ChatTemplate(tokenizer, MODEL, str(file))) == "fox from a file"
    assert written(ChatTemplate(tokenizer, MODEL, "{{ messages[0].role }}")) == "user"
    tokenizer.chat_template = NAMED
    rag = ChatTemplate(tokenizer, MODEL, "rag")
    assert written(rag) == "fox"
    assert written(rag, chat_template="default") == "<|user|>fox<|assistant|>", "and a request chooses another"


def test_names_may_come_as_a_list(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = [{"name": name, "template": template} for name, template in NAMED.items()]
    assert written(ChatTemplate(tokenizer, MODEL), chat_template="rag") == "fox"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no/such/file", r"'no/such/file' is neither the name of one of the model's templates \(default\), nor a file"),
        ("x" * 300, "cannot read chat_template"),
        ("{% if %}", "'{% if %}' is no valid template: Expected an expression"),
    ],
)
def test_a_template_that_cannot_be_had_is_refused_at_once(
    tokenizer: PreTrainedTokenizerFast, given: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(tokenizer, MODEL, given)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"just words", "without a template"), (b"{{ 1 }}\xff", "cannot read"), (b"{% if %}", "no valid template")],
)
def test_a_file_without_a_template_is_refused_by_its_name(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "t"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        ChatTemplate(tokenizer, MODEL, str(file))
    assert str(file)[:90] in str(caught.value)


def test_a_template_may_refuse_what_it_is_tried_with(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(tokenizer, MODEL, refuses("a system message comes first"))
    with pytest.raises(RequestError, match="a system message comes first"):
        written(template)
