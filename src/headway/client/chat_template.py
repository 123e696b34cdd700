"""Makes a prompt from a conversation, for `LLM.chat` and for the server."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headway.client.conversation import Conversation
from headway.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULT, _WITH_TOOLS = "default", "tool_use"  # names that transformers gives to the templates chosen by default
_VARIABLES = {"tools", "documents", "reasoning_effort"}  # fields of a conversation that are variables of the template
_WRITTEN_HERE = {"messages", "conversations"}  # variables that transformers' renderer sets itself


class ChatTemplate:
    """Renders conversations with a chat template.

    tokenizer: has the template of the model, or several templates with names; they are read for each conversation.
    model: the name of the model in error messages.
    template: used instead of the tokenizer's default: a file, the text of a template, or the name of a template of the
        tokenizer.

    Templates run in transformers' sandbox: they cannot reach Python's internals or change their arguments. But their
    time and memory have no limit, so the caller decides whose templates to accept.

    Raises ValueError for a `template` that does not exist or is not valid.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: str, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._template = None if template is None else self._load(template)

    def render(self, conversation: Conversation, change: Callable[[str], str] | None = None) -> str:
        """The text of the prompt, with special tokens written out: tokenise it without adding special tokens.

        change: is applied to every text that the template gets of messages, tools and documents.

        Raises RequestError if there is no template, if its name is unknown, if `chat_template_kwargs` sets a name that
        is no variable, if there are documents that the template does not use, and if the template raises an error; the
        message is that of the template.
        """
        self._check_variables(conversation)
        template = self.text_for(conversation)
        if conversation.documents and "documents" not in template:
            raise RequestError("documents are not supported by this model's chat template: write them into a message")
        return self._write(conversation, template, change)

    def text_for(self, conversation: Conversation) -> str:
        """The template that a conversation is rendered with. Raises RequestError as `render`."""
        kwargs = conversation.chat_template_kwargs or {}
        with_tools = bool(conversation.tools) or kwargs.get("tools") is not None
        return self._choose(conversation.chat_template, with_tools=with_tools)

    @property
    def text(self) -> str | None:
        """The template for a conversation that names none; None: there is none."""
        return self._template or self._named().get(_DEFAULT)

    def texts(self) -> list[str]:
        """The templates that may be used for conversations that bring none."""
        return list(self._named().values()) if self._template is None else [self._template]

    def has(self, name: str) -> bool:
        """Whether `name` is the name of one of the model's own templates."""
        return name in self._named()

    def _write(self, conversation: Conversation, template: str, change: Callable[[str], str] | None = None) -> str:
        from jinja2 import TemplateSyntaxError

        variables = conversation.variables(change)
        try:
            text = self._tokenizer.apply_chat_template(
                variables.pop("messages"),
                chat_template=template,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                tokenize=False,
                **variables,
            )
        except TemplateSyntaxError as error:
            raise RequestError(
                f"the chat template is broken, whatever the messages are (line {error.lineno}: {_said(error)}): start "
                f"model {self._model!r} with another (--chat-template)"
            ) from error
        except Exception as error:  # a template is a program and may raise anything, often to refuse chat messages
            raise RequestError(f"the chat template does not take this conversation: {_said(error)}") from error
        return str(text)

    def _choose(self, given: str | None, *, with_tools: bool) -> str:
        """The text of the template to use. given: the `chat_template` of the request."""
        named = self._named()
        if given is not None:
            if given in named:
                return named[given]
            if _is_text(given):
                return given
            raise RequestError(f"chat_template {given!r:.100} is neither {self._known()}, nor the text of a template")
        if self._template is not None:
            return self._template
        if with_tools and _WITH_TOOLS in named:
            return named[_WITH_TOOLS]
        if _DEFAULT in named:
            return named[_DEFAULT]
        if named:
            raise RequestError(
                f"model {self._model!r} has several chat templates and none called {_DEFAULT!r}: choose one of "
                f"{', '.join(sorted(named))} (chat_template)"
            )
        raise RequestError(
            f"model {self._model!r} has no chat template: give one (chat_template, --chat-template), or send a prompt "
            "instead of messages"
        )

    def _load(self, template: str) -> str:
        named = self._named()
        if template in named:
            text = named[template]
        elif _is_text(template):
            text = template
        else:
            text = self._read(template)
        self._check_syntax(text, template)
        return text

    def _read(self, file: str) -> str:
        try:
            path = Path(file).expanduser()
            if not path.is_file():
                raise ValueError(
                    f"chat_template {file!r} is neither {self._known()}, nor a file, nor the text of a template"
                )
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read chat_template {file!r:.100}: {error}") from error
        if not _is_text(text):
            raise ValueError(f"chat_template {file!r} is a file without a template: there is no brace in it")
        return text

    def _check_syntax(self, text: str, given: str) -> None:
        """Raise ValueError now, and not in every request, if a template has a syntax error. The template may refuse
        the greeting that it is tried with."""
        from jinja2 import TemplateSyntaxError

        greeting = Conversation.model_validate({"messages": [{"role": "user", "content": "hi"}]})
        try:
            self._write(greeting, text)
        except RequestError as error:
            if isinstance(error.__cause__, TemplateSyntaxError):
                raise ValueError(f"chat_template {given!r:.100} is no valid template: {error.__cause__}") from error

    def _named(self) -> dict[str, str]:
        """The tokenizer's templates by name; a single template has the name "default"."""
        own = self._tokenizer.chat_template
        if own is None:
            return {}
        if isinstance(own, str):
            return {_DEFAULT: own}
        if isinstance(own, Mapping):
            return dict(own)
        return {item["name"]: item["template"] for item in own}

    def _known(self) -> str:
        names = ", ".join(sorted(self._named())) or "there is none"
        return f"the name of one of the model's templates ({names})"

    def _check_variables(self, conversation: Conversation) -> None:
        variables = conversation.chat_template_kwargs
        if not variables:
            return
        set_here = {*inspect.signature(self._tokenizer.apply_chat_template).parameters, *_WRITTEN_HERE} - _VARIABLES
        for name in variables:
            given = name in Conversation.model_fields and (
                name not in _VARIABLES or getattr(conversation, name) is not None
            )
            if given:
                raise RequestError(f"chat_template_kwargs must not set {name!r}: give it beside chat_template_kwargs")
            if name in set_here:
                raise RequestError(f"chat_template_kwargs must not set {name!r}: it is no variable of a template")


def _is_text(template: str) -> bool:
    """Whether this can be the text of a template: a text without a brace has no place for the chat messages."""
    return "{" in template


def _said(error: Exception) -> str:
    """The text of an error. The errors of jinja and transformers explain themselves; others get their type before
    it."""
    from jinja2 import TemplateError

    text = str(error).strip()
    known = isinstance(error, TemplateError | ValueError) and text
    return text if known else f"{type(error).__name__}: {text}".removesuffix(": ")
