"""Options that several commands share, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from headway.commands.command import COMMON, MODEL_ARGUMENT
from headway.config import KV_SECRET_VARIABLE, EngineConfig
from headway.sampling import SamplingParams

if TYPE_CHECKING:
    from headway.llm import LLM

MAX_TOKENS = 256  # the default for an answer

_MODEL = "Local folder or hub id of the model; tiny-random:llama, :qwen3, :gemma2, :mixtral: a random one."
_OWN_MODEL = "Headway's own small model"
_METAVARS = {
    "role": "ROLE",
    "kv_transport": "WAY",
    "kv_events_config": "JSON",
    "reserve": "RULE",
    "victim": "RULE",
}  # where the list of choices would be too wide
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
# What a new user sets first; the rest of the options is in panels after them.
_FIRST = frozenset(
    {
        *("model", "device", "dtype", "max_model_len", "max_num_seqs", "kv_cache_memory_gb"),
        *("gpu_memory_utilization", "served_model_name"),
    }
)
_NO = "no_"  # prefix of the flag for a field that is true by default
_BOTH = ("async_scheduling",)  # fields with a flag for each value, as users of other engines know them

Command = Callable[..., Any]
Options = dict[str, inspect.Parameter]


def _option(
    name: str, kind: Any, default: Any, text: str, *, panel: str, shown: str | bool = True, **more: Any
) -> inspect.Parameter:
    # Flags are written out: typer would add a --no- form to each, and a column for these forms to every help.
    flag = name.replace("_", "-")
    declared = [f"--{flag}/--no-{flag}" if name in _BOTH else f"--{flag}"] if kind is bool else []
    option = typer.Option(*declared, help=text, rich_help_panel=panel, show_default=shown, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


_ENGINE_WORDS: dict[str, tuple[str, str | bool]] = {  # field of EngineConfig -> help, what to show as its default
    "model": (_MODEL, _OWN_MODEL),
    "tokenizer": ("Local folder or hub id of the tokenizer.", "the model's"),
    "revision": ("Revision of a hub model.", "the newest"),
    "trust_remote_code": ("Run code that comes with the model.", False),
    "served_model_name": ("Name under which the API serves the model.", "MODEL as given"),
    "scheduler": ("v0: static allocation; v1: dynamic, one lock; v2: dynamic, lock-free.", "v2"),
    "role": ("Phases of a request that this engine computes: mixed (both), prefill or decode.", True),
    "device": ("cpu, cuda, cuda:1 ...; auto is CUDA if there is a GPU, else cpu.", True),
    "dtype": ("float32, bfloat16 or float16; auto is the dtype of the checkpoint.", True),
    "attention_backend": (
        "torch, numba (a compiled kernel for float32 on a CPU) or flashinfer (half precision on CUDA); auto is the "
        "fastest of these that is installed and fits.",
        True,
    ),
    "tensor_parallel_size": ("Processes that the model is cut over, each with a device of its own.", True),
    "enforce_eager": ("Run decodes without CUDA graphs.", False),
    "max_num_seqs": ("The most requests that run at once.", True),
    "max_num_batched_tokens": ("The most tokens that one step computes, over all requests.", True),
    "max_model_len": ("The most tokens of one request, prompt and output together.", "the model's"),
    "block_size": ("Tokens in one KV block; a power of two.", True),
    "num_blocks": ("Number of KV blocks.", "what fits the memory below"),
    "kv_cache_memory_gb": ("Memory for the KV cache on a CPU, in GiB.", True),
    "gpu_memory_utilization": ("Share of the GPU's memory to use.", True),
    "enable_prefix_caching": ("Turn off prefix caching.", False),
    "max_waiting": ("The most requests that may wait; further requests are refused.", True),
    "async_scheduling": ("Schedule the next step while the present one computes.", True),
    "step_timeout": ("Seconds until the engine gives up a step that does not end.", True),
    "seed": ("Seed for requests that bring none.", True),
    "kv_listen": ("HOST:PORT where other engines may read the KV that this engine lends.", "nothing is lent"),
    "kv_peers": (
        "HOST:PORT,... of the engines whose KV this engine may pull, as they call themselves; NAME=HOST:PORT for an "
        "engine that is reached at another address.",
        "none",
    ),
    "kv_secret": (f"Secret that the engines share; better given by the environment ({KV_SECRET_VARIABLE}).", "none"),
    "kv_transport": ("auto (shared memory on one host, else tcp), shared-memory, nixl (an extra) or tcp.", True),
    "kv_events_config": (
        "JSON: publish for routers which blocks the prefix cache holds, as vLLM does "
        "('{\"enable_kv_cache_events\": true}').",
        "nothing is published",
    ),
}
_SCHEDULING_WORDS: dict[str, tuple[str, str | bool]] = {
    "enable_output_caching": ("Do not cache generated tokens.", False),
    "reserve": (
        "KV blocks that admission keeps free for running requests: ratio (a share of their remaining tokens), blocks "
        "(a fixed number each), none.",
        True,
    ),
    "max_bypass": ("How often other requests may pass a request that waits for blocks.", True),
    "ageing_seconds": ("Seconds of waiting that count as one level of priority.", "never"),
    "enable_priority_preemption": ("Never preempt a request for one of higher priority.", False),
    "victim": ("Request to preempt: least-waste (fewest tokens to compute again) or last-in-line.", True),
    "max_num_partial_prefills": ("The most prompts that are partly computed at once.", "no limit"),
    "long_prefill_token_threshold": (
        "A prompt with more remaining tokens is long: it gets at most this many tokens of a step while other prompts "
        "can use the rest. 0: no prompt is long.",
        "half of a step",
    ),
    "max_long_partial_prefills": ("The most long prompts that are partly computed at once.", True),
    "deterministic": ("Cut every prompt at the same places, whatever else runs.", False),
    "deterministic_chunk_size": ("With --deterministic, cut prompts at multiples of this number of tokens.", True),
    "encoder_cache_size": ("Encoder tokens of images and videos to keep.", "one step's"),
    "num_speculative_tokens": ("Draft tokens per decoding request.", True),
    "preprocess_timeout": ("Seconds that the preparation of a request may take.", True),
    "reservation_timeout": ("Seconds until a reserved slot that is not used is released.", True),
    "hold_timeout": ("Seconds to hold the slot after a room check.", True),
    "send_timeout": ("Seconds that sending KV from prefill to decode may take.", True),
    "lend_timeout": ("Seconds until lent KV blocks come back, if the decode engine does not ask for more.", True),
    "receive_timeout": ("Seconds until a prompt whose KV does not come is computed here.", True),
    "max_lent_blocks": ("The most KV blocks that are lent; then the oldest that no engine wants goes.", "the pool"),
    "max_receiving_blocks": ("The most KV blocks that KV of other engines is on the way to.", "the pool"),
}


def _engine_options() -> Options:
    """An option for each field of EngineConfig, with its name, type and default. The help is from the tables above."""
    declared = {field.name: field.default for field in fields(EngineConfig)}
    kinds = get_type_hints(EngineConfig)
    options = {}
    for panel, words in (("Engine", _ENGINE_WORDS), ("Scheduling", _SCHEDULING_WORDS)):
        for field, (text, shown) in words.items():
            name, default = field, declared[field]
            if default is True and field not in _BOTH:  # a flag turns a default around
                name, default = _NO + field, False
            metavar = _METAVARS.get(name)
            options[name] = _option(
                name,
                kinds[field],
                default,
                text,
                panel=COMMON if field in _FIRST else panel,
                shown=shown,
                metavar=metavar,
                hidden=field in _NOT_SHOWN,
            )
    return options


def _engine_config(**values: Any) -> EngineConfig:
    values.pop(MODEL_ARGUMENT, None)  # `Command` has put it into `model`
    settings = {name: value for name, value in values.items() if not name.startswith(_NO)}
    off: dict[str, Any] = {name.removeprefix(_NO): not value for name, value in values.items() if name.startswith(_NO)}
    return EngineConfig(**settings, **off)


def _sampling_options() -> Options:
    panel = "Sampling"
    words: dict[str, tuple[Any, str]] = {
        "temperature": (float | None, "Randomness of the choice; 0 always takes the most likely token."),
        "top_p": (float | None, "Choose among the most likely tokens that add up to this probability."),
        "top_k": (int | None, "Choose among this many most likely tokens."),
        "min_p": (float | None, "Leave out tokens less likely than this share of the most likely one."),
        "repetition_penalty": (float | None, "Above 1: avoid tokens of the prompt and of the answer so far."),
    }
    options = {
        name: _option(name, kind, None, text, panel=COMMON if name == "temperature" else panel, shown="the model's")
        for name, (kind, text) in words.items()
    }
    return {
        "max_tokens": _option(
            "max_tokens",
            int,
            MAX_TOKENS,
            "The most tokens of an answer. (`LLM` and /v1/completions stop at 16 unless asked for more.)",
            panel=COMMON,
        ),
        **options,
        "stop": _option(
            "stop",
            list[str],
            [],
            "End the answer before this text; may be given several times.",
            panel=panel,
            metavar="TEXT",
        ),
        "ignore_eos": _option(
            "ignore_eos", bool, False, "Go on after the model's end-of-sequence token.", panel=panel, shown=False
        ),
    }


def _given(**sampling: Any) -> dict[str, Any]:
    """The sampling parameters given on the command line, checked before a model is loaded."""
    given = {name: value for name, value in sampling.items() if value is not None}
    SamplingParams(**given)
    return given


def takes(parameter: str, build: Callable[..., Any], options: Options) -> Callable[[Command], Command]:
    """A decorator that replaces a command's parameter by options. `build` makes the parameter from the options."""

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
_OF_EACH_ENGINE = (
    "role",
    "kv_listen",
    "kv_peers",
    "kv_secret",
    "kv_events_config",
)  # what a group decides for each of its engines
ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="The same as --model MODEL.", show_default=False)
]
_MODEL_ARGUMENT = inspect.Parameter(
    MODEL_ARGUMENT, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ModelArgument
)

# These decorators pass a parameter `config`: EngineConfig. The model is an option; but where the words of the command
# line are prompts, it is the first argument too.
takes_engine = takes("config", _engine_config, _ENGINE)
takes_model_and_engine = takes("config", _engine_config, {**_ENGINE, MODEL_ARGUMENT: _MODEL_ARGUMENT})
takes_model_and_engine_of_group = takes(
    "config",
    _engine_config,
    {
        **{name: option for name, option in _ENGINE.items() if name not in _OF_EACH_ENGINE},
        MODEL_ARGUMENT: _MODEL_ARGUMENT,
    },
)
# This decorator passes a parameter `given`: the fields of SamplingParams that the user gave.
takes_sampling = takes("given", _given, _sampling_options())


ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="TEMPLATE",
        help="Chat template: a file, the text itself, or the name of a template in the tokenizer.",
        show_default="the model's",
    ),
]
ToolCallParserOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel="Tools and reasoning",
        help="The form in which the model calls tools: hermes, llama3_json, mistral ... (docs/tools.md).",
        show_default="what the chat template tells",
    ),
]
ReasoningParserOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel="Tools and reasoning",
        help="The form in which the model thinks before it answers: deepseek_r1, qwen3 (docs/tools.md).",
        show_default="all text is the answer",
    ),
]


def load_llm(config: EngineConfig, chat_template: str | None = None) -> LLM:
    """Load the model. The import is here, as it takes seconds and other commands do without."""
    from headway.llm import LLM

    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    return LLM(chat_template=chat_template, **settings)
