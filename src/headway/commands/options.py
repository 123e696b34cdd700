"""Options that several commands share, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from headway.config import EngineConfig
from headway.sampling import SamplingParams

if TYPE_CHECKING:
    from headway.llm import LLM

MAX_TOKENS = 256  # of an answer, if nothing is said

_MODEL = "Local folder or hub id of the model."
_OWN_MODEL = "the one that comes with Headway"
_METAVARS = {"role": "ROLE", "reserve": "RULE", "victim": "RULE"}  # where the choices would leave no room
# Fields that no command has a use for yet (no connector, no preprocessor, no draft model): taken, but not shown.
_NOT_SHOWN = frozenset(
    {
        "encoder_cache_size",
        "num_speculative_tokens",
        "preprocess_timeout",
        "reservation_timeout",
        "hold_timeout",
        "send_timeout",
    }
)
_NO = "no_"  # before the name of a field that is true by itself
_BOTH = ("async_scheduling",)  # fields that people know by a flag for either value

Command = Callable[..., Any]
Options = dict[str, inspect.Parameter]


def _option(
    name: str, kind: Any, default: Any, text: str, *, panel: str, shown: str | bool = True, **more: Any
) -> inspect.Parameter:
    # Flags are written out: typer would add a --no- form to each, and a column for those to every help.
    flag = name.replace("_", "-")
    declared = [f"--{flag}/--no-{flag}" if name in _BOTH else f"--{flag}"] if kind is bool else []
    option = typer.Option(*declared, help=text, rich_help_panel=panel, show_default=shown, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


_ENGINE_WORDS: dict[str, tuple[str, str | bool]] = {  # field of EngineConfig -> help, what to show as its default
    "model": (_MODEL, _OWN_MODEL),
    "tokenizer": ("Local folder or hub id of the tokenizer.", "the model's"),
    "revision": ("Revision of a hub model.", "the newest"),
    "trust_remote_code": ("Run code that comes with the model.", False),
    "served_model_name": ("What to call the model.", "as it was given"),
    "scheduler": ("v0: static allocation; v1: dynamic, one lock; v2: dynamic, lock-free.", "v2"),
    "role": ("Phases of a request to compute: mixed (both), prefill or decode.", True),
    "device": ("cpu, cuda, cuda:1 ...; auto takes CUDA where there is one.", True),
    "dtype": ("float32, bfloat16 or float16; auto is the checkpoint's.", True),
    "attention_backend": (
        "torch, numba (a compiled kernel for float32 on a CPU) or flashinfer (half precision on CUDA); auto takes the "
        "best it can have.",
        True,
    ),
    "enforce_eager": ("Run decodes without CUDA graphs.", False),
    "max_num_seqs": ("Requests that run at once.", True),
    "max_num_batched_tokens": ("Tokens that one step computes, over all requests.", True),
    "max_model_len": ("Tokens of the longest request, prompt and output together.", "the model's"),
    "block_size": ("Tokens in a block of the KV cache; a power of two.", True),
    "num_blocks": ("Blocks of the KV cache.", "what fits the memory below"),
    "kv_cache_memory_gb": ("Memory for the KV cache on a CPU.", True),
    "gpu_memory_utilization": ("Share of the GPU's memory to use.", True),
    "enable_prefix_caching": ("Compute equal beginnings of prompts each time anew.", False),
    "max_waiting": ("Requests that may queue before more are refused.", True),
    "async_scheduling": ("Schedule a step while the one before it computes.", True),
    "step_timeout": ("Seconds after which a step of the device is given up.", True),
    "seed": ("For random choices of requests that bring no seed.", True),
}
_SCHEDULING_WORDS: dict[str, tuple[str, str | bool]] = {
    "enable_output_caching": ("Let no other request find what one has generated.", False),
    "reserve": (
        "ratio, blocks or none: what admission leaves to those that decode, by what is to come or in blocks.",
        True,
    ),
    "max_bypass": ("How often requests that fit may pass one that waits for blocks.", True),
    "ageing_seconds": ("Waiting so long is worth one level of priority.", "never"),
    "enable_priority_preemption": ("Let nobody displace running requests of lower priority.", False),
    "victim": ("Whom to preempt: least-waste (the fewest tokens to compute again) or last-in-line.", True),
    "max_num_partial_prefills": ("Prompts that may be part-way computed at once.", "as many as run"),
    "long_prefill_token_threshold": (
        "Prompts with more tokens than this left are long, and take no more than this of a step that others can use; "
        "0: none is.",
        "half of a step",
    ),
    "max_long_partial_prefills": ("Long prompts that may be part-way computed at once.", True),
    "deterministic": ("Cut prompts at fixed places, whatever else runs.", False),
    "deterministic_chunk_size": ("Those places are multiples of so many tokens.", True),
    "encoder_cache_size": ("Encoder tokens of images and videos to keep.", "those of one step"),
    "num_speculative_tokens": ("Draft tokens for each decoding request.", True),
    "preprocess_timeout": ("Seconds for the preparation of a request.", True),
    "reservation_timeout": ("Seconds until a slot held for prefill or decode elsewhere is given up.", True),
    "hold_timeout": ("The same, where decode has only been asked whether there is room.", True),
    "send_timeout": ("Seconds for KV on its way from prefill to decode.", True),
}


def _engine_options() -> Options:
    """EngineConfig's fields: names, types and defaults are read from it; the words stand above."""
    declared = {field.name: field.default for field in fields(EngineConfig)}
    kinds = get_type_hints(EngineConfig)
    options = {}
    for panel, words in (("Engine", _ENGINE_WORDS), ("Scheduling", _SCHEDULING_WORDS)):
        for field, (text, shown) in words.items():
            name, default = field, declared[field]
            if default is True and field not in _BOTH:  # a flag is for what is not so by itself
                name, default = _NO + field, False
            metavar = _METAVARS.get(name)
            options[name] = _option(
                name,
                kinds[field],
                default,
                text,
                panel=panel,
                shown=shown,
                metavar=metavar,
                hidden=field in _NOT_SHOWN,
            )
    return options


def _engine_config(**values: Any) -> EngineConfig:
    settings = {name: value for name, value in values.items() if not name.startswith(_NO)}
    off: dict[str, Any] = {name.removeprefix(_NO): not value for name, value in values.items() if name.startswith(_NO)}
    return EngineConfig(**settings, **off)


def _sampling_options() -> Options:
    panel = "Sampling (what is not given is up to the model's own settings)"
    words: dict[str, tuple[Any, str]] = {
        "temperature": (float | None, "0 always takes the likeliest token."),
        "top_p": (float | None, "Choose among the likeliest tokens that make up this share."),
        "top_k": (int | None, "Choose among this many likeliest tokens."),
        "min_p": (float | None, "Leave out tokens less likely than this share of the likeliest."),
        "repetition_penalty": (float | None, "Above 1: shun tokens that were there before."),
    }
    options = {name: _option(name, kind, None, text, panel=panel) for name, (kind, text) in words.items()}
    return {
        "max_tokens": _option("max_tokens", int, MAX_TOKENS, "Tokens of an answer.", panel=panel),
        **options,
        "stop": _option(
            "stop", list[str], [], "End the answer before this; may be repeated.", panel=panel, metavar="TEXT"
        ),
        "ignore_eos": _option("ignore_eos", bool, False, "Go on where the model would end.", panel=panel, shown=False),
    }


def _given(**sampling: Any) -> dict[str, Any]:
    """The sampling parameters that were given, checked before a model is loaded."""
    given = {name: value for name, value in sampling.items() if value is not None}
    SamplingParams(**given)
    return given


def _takes(parameter: str, build: Callable[..., Any], options: Options) -> Callable[[Command], Command]:
    """Replace a command's parameter by options, from which `build` makes it."""

    def decorate(command: Command) -> Command:
        def run(**arguments: Any) -> Any:
            arguments[parameter] = build(**{name: arguments.pop(name) for name in options})
            return command(**arguments)

        own = inspect.signature(command, eval_str=True).parameters
        merged = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.items() if name != parameter]
        run.__signature__ = inspect.Signature([*merged, *options.values()])  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


_ENGINE = _engine_options()
_MODEL_ARGUMENT = inspect.Parameter(
    "model",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help=_MODEL, show_default=_OWN_MODEL),
    ],
)

# Commands so decorated have a parameter `config`: EngineConfig; the model is an option, or the first argument.
takes_engine = _takes("config", _engine_config, _ENGINE)
takes_model_and_engine = _takes("config", _engine_config, {**_ENGINE, "model": _MODEL_ARGUMENT})
# Commands so decorated have a parameter `given`: the SamplingParams fields that were given.
takes_sampling = _takes("given", _given, _sampling_options())


ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="TEMPLATE",
        help="Chat template: a file, the text itself, or the name of one of the tokenizer's.",
        show_default="the model's",
    ),
]


def load_llm(config: EngineConfig, chat_template: str | None = None) -> LLM:
    """Load the model, which takes the imports that other commands can do without."""
    from headway.llm import LLM

    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    return LLM(chat_template=chat_template, **settings)
