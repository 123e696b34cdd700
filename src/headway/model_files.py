"""Finds the files of a model, checks them and reads its limits, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway import default_model, tiny_random
from headway.checkpoint import CONFIG, check_folder, quantisation, read_json
from headway.config import EngineConfig
from headway.end_of_sequence import end_of_sequence_id
from headway.error_text import first_line, one_line
from headway.generation_defaults import check_eos_token_ids, default_sampling, read_generation_config
from headway.model_limits import ModelLimits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Names that configs use for the number of positions of the model; the first name present counts.
_LENGTH_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "model_max_length",
)
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
    "tekken.json",
)
_WEIGHTS = ("*.safetensors", "*.bin")
_DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")  # config, tokenizer, chat template, model code


@dataclass(frozen=True)
class ModelFiles:
    """A decoder-only language model on disk.

    path: the local folder; of a hub id, its snapshot folder.
    name: the name under which it is served.
    limits: max_model_len: the user's, else that of the model. eos_token_ids: from the generation config, else from the
        config; and the tokenizer's; sorted.
    default_sampling: temperature, top_p, top_k, min_p, repetition_penalty and max_tokens, as far as the generation
        config of the model has them; max_tokens is its max_new_tokens, a limit for every request of the server.
    quantisation: the method by which the weights are quantised, or None.
    tokenizer: the folder or hub id of the tokenizer.
    """

    path: Path
    name: str
    hf_config: PretrainedConfig
    limits: ModelLimits
    default_sampling: dict[str, Any]
    tokenizer: str
    trust_remote_code: bool = False
    quantisation: str | None = None

    @classmethod
    def resolve(cls, config: EngineConfig) -> ModelFiles:
        """Find the model that `config` names, and read its configuration. A model with a hub id is downloaded.

        Raises ValueError, with a message of one line, for a model that is not found or cannot be served.
        """
        path = _find(config)
        method = quantisation(path)
        hf_config = _read_config(path, config.trust_remote_code)
        _check_causal(hf_config, path)
        text_config = hf_config.get_text_config()
        for inner in (hf_config, text_config):
            check_eos_token_ids(getattr(inner, "eos_token_id", None), path / CONFIG)
        max_model_len = _max_model_len(text_config, config.max_model_len, path)
        _check_rope(text_config, max_model_len, path)
        generation = read_generation_config(path)
        tokenizer = config.tokenizer or str(path)
        vocab_size = int(text_config.vocab_size)
        eos_token_ids = set(_eos_token_ids(generation, hf_config, text_config))
        own_end = end_of_sequence_id(tokenizer)
        if own_end is not None and own_end < vocab_size:
            eos_token_ids.add(own_end)
        return cls(
            path=path,
            name=config.served_model_name or config.model or default_model.NAME,
            hf_config=hf_config,
            limits=ModelLimits(
                vocab_size=vocab_size,
                max_model_len=max_model_len,
                eos_token_ids=tuple(sorted(eos_token_ids)),
            ),
            default_sampling=default_sampling(generation),
            tokenizer=tokenizer,
            trust_remote_code=config.trust_remote_code,
            quantisation=method,
        )

    def kv_files(self) -> list[Path]:
        """The files that the KV of a prompt depends on: the configuration and the weights."""
        return [self.path / CONFIG, *(path for pattern in _WEIGHTS for path in self.path.glob(pattern))]

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of the files that the weights are read from."""
        kinds = (list(self.path.glob(pattern)) for pattern in _WEIGHTS)
        return sum(file.stat().st_size for file in next((kind for kind in kinds if kind), []))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model. Raises ValueError if there is none or it cannot be read."""
        return load_tokenizer(self.tokenizer, trust_remote_code=self.trust_remote_code)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of this folder or hub id. Raises ValueError if there is none or it cannot be read."""
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ValueError(
            f"cannot load a tokenizer from {name!r}: it has none of {', '.join(_TOKENIZER_FILES)}: copy "
            "the tokenizer's files there, or name another folder or hub id (tokenizer, --tokenizer)"
        )
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # the types of errors depend on the kind of tokenizer and on its version
        raise ValueError(f"cannot load a tokenizer from {name!r}: {one_line(error)}") from error
    if loaded.chat_template is None:  # transformers reads this older file for processors only
        loaded.chat_template = read_json(folder / "chat_template.json").get("chat_template")
    return loaded


def auto_class(config: PretrainedConfig) -> Any:
    """The class of transformers whose from_pretrained and from_config make the model that generates text. A model that
    takes images too comes whole, with its text model inside. Raises ValueError if there is none for this kind."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto

    if type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING or _has_causal_code(config):
        return AutoModelForCausalLM
    if type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ValueError(
        f"the installed transformers has no class that generates text for the kind {config.model_type!r} (config.json: "
        "model_type): only models that answer a text with a text are served"
    )


def _has_causal_code(config: PretrainedConfig) -> bool:
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def _find(config: EngineConfig) -> Path:
    if config.model is None:
        path = default_model.PATH
    elif tiny_random.is_name(config.model):
        path = tiny_random.folder(config.model)
    else:
        path = Path(config.model).expanduser()
        if not path.exists():
            path = _download(config.model, config.revision)
    if not path.is_dir():
        gguf = " in the GGUF format of llama.cpp, which is not read" if path.suffix == ".gguf" else ""
        raise ValueError(f"model {config.model!r} is a file{gguf}; a folder with config.json and weights is needed")
    check_folder(path)
    return path


def _download(model: str, revision: str | None) -> Path:
    if "://" in model:
        hub_id = "/".join(model.split("://", 1)[1].split("/")[1:3])
        raise ValueError(
            f"model {model!r} is a URL; name a local folder or a hub id, {hub_id or 'ORG/NAME'} for instance"
        )
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model:
        raise ValueError(f"model folder {model!r} does not exist")
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(model, revision=revision, allow_patterns=[*_DESCRIPTION, _WEIGHTS[0]]))
        if not any(path.glob(_WEIGHTS[0])):  # an old repository, with weights in the other format only
            path = Path(snapshot_download(model, revision=revision, allow_patterns=[*_DESCRIPTION, _WEIGHTS[1]]))
    except Exception as error:  # the client raises its own types, types of its HTTP library, and OSError
        raise ValueError(
            f"model {model!r} is neither a local folder nor a hub model that could be fetched: {first_line(error)}"
        ) from error
    return path


def _read_config(path: Path, trust_remote_code: bool) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    content = read_json(path / CONFIG)
    kind = content.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"cannot read the config of model {str(path)!r}: config.json names no model_type")
    if kind not in CONFIG_MAPPING and not trust_remote_code:
        if content.get("auto_map"):
            raise ValueError(
                f"model {str(path)!r} ({kind}) brings code of its own (config.json: auto_map): look at it, and if you "
                "trust it, set trust_remote_code (--trust-remote-code)"
            )
        raise ValueError(
            f"cannot read the config of model {str(path)!r}: model_type {kind!r:.100} is not known to the installed "
            "transformers: update transformers, if the model is newer"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        config.get_text_config()
    except Exception as error:  # configs validate themselves, each with error types of its own
        raise ValueError(f"cannot read the config of model {str(path)!r}: {one_line(error)}") from error
    return config


def _check_causal(config: PretrainedConfig, path: Path) -> None:
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"architectures in {str(path / CONFIG)!r} must be a list of names, got {names!r:.100}")
    what = f"model {str(path)!r} ({', '.join(names) or config.model_type})"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{what} is an encoder-decoder; only decoder-only language models are supported")
    if names and not _has_causal_code(config) and not any(name.endswith(_CAUSAL_SUFFIXES) for name in names):
        raise ValueError(f"{what} is not a causal language model")
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if vocab_size is None:
        raise ValueError(f"{what} has no vocab_size in its config: it is not a language model")
    if not isinstance(vocab_size, int) or not 0 < vocab_size < 1 << 31:
        raise ValueError(f"vocab_size in {str(path / CONFIG)!r} must be a number of tokens, got {vocab_size!r:.100}")


def _max_model_len(config: PretrainedConfig, wanted: int | None, path: Path) -> int:
    values = (getattr(config, name, None) for name in _LENGTH_FIELDS)
    limit = next((value for value in values if isinstance(value, int) and value > 0), None)
    if wanted is None:
        if limit is None:
            raise ValueError(f"the config of model {str(path)!r} names no longest length: set max_model_len")
        return limit
    if wanted < 2:
        raise ValueError(f"max_model_len must be at least 2, got {wanted}")
    if limit is not None and wanted > limit:
        raise ValueError(f"max_model_len ({wanted}) exceeds what model {str(path)!r} was made for ({limit})")
    return wanted


def _check_rope(config: PretrainedConfig, max_model_len: int, path: Path) -> None:
    """Refuse rotary embeddings whose frequencies depend on the longest position of a forward.

    One forward computes requests of all lengths. A long request would change the results of a short request beside it.
    """
    for rope in _rope_settings(config):
        kind = rope.get("rope_type", rope.get("type"))
        if kind == "dynamic":
            raise ValueError(
                f"model {str(path)!r} has dynamic NTK rope scaling, which depends on the longest request of a batch: "
                "not supported"
            )
        if kind == "longrope":
            boundary = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if not isinstance(boundary, int) or max_model_len > boundary:
                raise ValueError(
                    f"model {str(path)!r} has longrope scaling, which depends on the longest request of a batch beyond "
                    f"{boundary} tokens: max_model_len is {max_model_len}, set it to at most {boundary}"
                )


def rope_types(config: PretrainedConfig) -> set[str]:
    """The kinds of rotary positions that a text config names."""
    return {str(rope.get("rope_type", rope.get("type", "default"))) for rope in _rope_settings(config)}


def _rope_settings(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for field in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, field, None)
        if isinstance(settings, Mapping):
            # Some models keep one set per layer type: {"sliding_attention": {...}, "full_attention": {...}}
            found += [settings, *(value for value in settings.values() if isinstance(value, Mapping))]
    return found


def _eos_token_ids(
    generation: Mapping[str, Any], config: PretrainedConfig, text_config: PretrainedConfig
) -> tuple[int, ...]:
    for value in (
        generation.get("eos_token_id"),
        getattr(config, "eos_token_id", None),
        getattr(text_config, "eos_token_id", None),
    ):
        if value is not None:
            return tuple(sorted({int(token) for token in (value if isinstance(value, list) else [value])}))
    return ()
