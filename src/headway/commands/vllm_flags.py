"""What becomes of each flag of `vllm serve`, so that a vLLM user changes one word on the command line.

The flags themselves are in vllm_serve_flags.json, as vLLM 0.33.0 has them (tools/vllm_flags.py writes the file). A flag
has one of four fates. A value that is vLLM's own default asks for nothing, and passes whatever the fate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

VERSION = "0.33.0"
Takes = Literal[0, 1, "?", "+"]
ON, OFF = "True", "False"  # values of flags that take none


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of vLLM. off: the names that turn it off. takes: how many values. default: as text; None: there is none,
    or an object."""

    names: tuple[str, ...]
    off: tuple[str, ...] = ()
    takes: Takes = 1
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """An option of ours does it. values: vLLM's words for values, and ours. unit: vLLM's number / ours."""

    ours: str
    words: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    unit: int = 1


@dataclass(frozen=True, slots=True)
class Holds:
    """It is so already. words: what holds. values: that hold; others are refused. instead: option of ours for a
    value."""

    words: str
    values: tuple[str, ...] = (ON,)
    instead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ignored:
    """It changes no answer, and does nothing here: a warning says so. words: why."""

    words: str


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be done. words: why, and what to do."""

    words: str


Fate = Taken | Holds | Ignored | Refused


def _each(fate: Fate, names: str) -> dict[str, Fate]:
    return dict.fromkeys(names.split(), fate)


def _same(names: str) -> dict[str, Fate]:
    return {name: Taken(f"--{name}") for name in names.split()}


_PARALLEL = "one engine has one device; start one server per device, and a router before them"
_LORA = "LoRA adapters are not served; merge the adapter into the model"
_MEDIA = "prompts are text alone"
_QUANTIZED = "weights are served as the checkpoint has them (docs/models.md)"
_DRAFTS = "no draft model is run"
_PARSERS = "parsers come with Headway; see --tool-call-parser and --reasoning-parser"
_GRAPHS = "decodes run in CUDA graphs of their own choice of sizes; --enforce-eager turns them off"
_OFFLOAD = "weights and KV stay on the device"
_STATE = "models with a state (Mamba, linear attention) are not served"
_KERNELS = "kernels are chosen by --attention-backend"
_TRACING = "there are no traces; /metrics has the times of requests"
_LOADING = "weights are read from safetensors in one way"

_FATES: dict[str, Fate] = {
    # the same option, by the same name
    **_same("host port api-key ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs ssl-ciphers root-path"),
    **_same("allow-credentials allowed-origins allowed-methods allowed-headers disable-fastapi-docs"),
    **_same("uvicorn-log-level disable-access-log-for-endpoints chat-template trust-request-chat-template"),
    **_same("tokenizer trust-remote-code seed revision enforce-eager block-size gpu-memory-utilization"),
    **_same("max-num-batched-tokens max-num-seqs async-scheduling kv-events-config"),
    **_same("disable-log-stats log-level api-server-count data-parallel-size"),
    **_same("enable-auto-tool-choice tool-call-parser reasoning-parser"),
    "dtype": Taken("--dtype", values={"half": "float16", "float": "float32"}),
    "max-model-len": Taken("--max-model-len", "auto and -1: the model's length", values={"auto": "", "-1": ""}),
    "served-model-name": Taken("--served-model-name", "the first name is in answers, further ones are --model-alias"),
    "long-prefill-token-threshold": Taken("--long-prefill-token-threshold", values={"0": ""}),
    "attention-backend": Taken("--attention-backend", values={"FLASHINFER": "flashinfer", "TORCH_SDPA": "torch"}),
    # the same option, by another name
    "model": Taken("MODEL", "named once: as an argument, or so"),
    "config": Taken("--config", "a YAML file of flags; the command line wins"),
    "num-gpu-blocks-override": Taken("--num-blocks"),
    "kv-cache-memory-bytes": Taken("--kv-cache-memory-gb", "in GiB, on a CPU", unit=2**30),
    "max-num-queued-reqs": Taken("--max-waiting"),
    "shutdown-timeout": Taken("--shutdown-grace"),
    # what holds already
    "enable-prefix-caching": Holds("the prefix cache is on", (ON,), {OFF: "--no-enable-prefix-caching"}),
    "enable-chunked-prefill": Holds("long prompts are computed in chunks, always"),
    "disable-uvicorn-access-log": Holds("requests are not logged", (ON,), {OFF: "--access-log"}),
    "enable-log-requests": Holds("prompts are never logged; --access-log logs requests", (OFF,)),
    "enable-request-id-headers": Holds("X-Request-Id comes back always", (ON, OFF)),
    "enable-prompt-tokens-details": Holds("usage has the cached tokens, always", (ON, OFF)),
    "enable-server-load-tracking": Holds("/load counts requests, always", (ON, OFF)),
    "enable-tokenizer-info-endpoint": Holds("/tokenizer_info is there, always", (ON, OFF)),
    "scheduling-policy": Holds("requests go by their priority, and then by their time", ("fcfs", "priority")),
    "load-format": Holds("weights are read from safetensors", ("auto", "safetensors", "hf")),
    "distributed-executor-backend": Holds("one device needs no other processes", ("uni", "mp")),
    "disable-custom-all-reduce": Holds("one device has nothing to reduce", (ON, OFF)),
    "model-impl": Holds("models are those of transformers", ("auto", "transformers")),
    "runner": Holds("models generate text", ("auto", "generate")),
    "tokenizer-mode": Holds("tokenizers are those of transformers", ("auto", "hf")),
    "config-format": Holds("configurations are those of transformers", ("auto", "hf")),
    "generation-config": Holds("defaults of sampling come from the model's generation_config.json", ("auto",)),
    "max-logprobs": Holds("the most logprobs of a token is 20", tuple(map(str, range(21)))),
    "logprobs-mode": Holds("logprobs are those of the model, before sampling", ("raw_logprobs",)),
    "pipeline-parallel-size": Holds(_PARALLEL, ("1",)),
    "tensor-parallel-size": Holds(_PARALLEL, ("1",)),
    "language-model-only": Holds(_MEDIA, (ON, OFF)),
    "exclude-tools-when-tool-choice-none": Holds('with tool_choice "none" the model sees no tools', (ON,)),
    "kv-cache-dtype": Holds("the KV cache has the dtype of the model", ("auto",)),
    # what changes no answer, and does nothing here
    **_each(
        Ignored(_GRAPHS),
        "cudagraph-capture-sizes max-cudagraph-capture-size compilation-config optimization-level cudagraph-metrics",
    ),
    **_each(
        Ignored(_KERNELS),
        "kernel-config monokernel enable-flashinfer-autotune moe-backend linear-backend sparse-indexer-topk-backend "
        "gdn-prefill-backend kda-prefill-backend kda-decode-backend attention-config ir-op-priority "
        "disable-cascade-attn mamba-backend mamba-ssu-algorithm performance-mode",
    ),
    **_each(
        Ignored(_LOADING),
        "safetensors-load-strategy safetensors-prefetch-num-threads safetensors-prefetch-block-size ignore-patterns "
        "use-tqdm-on-load pt-load-map-location max-parallel-loading-workers",
    ),
    **_each(
        Ignored("one device has no neighbours"),
        "master-addr master-port distributed-timeout-seconds cpu-distributed-timeout-seconds dcp-comm-backend "
        "dcp-q-replicate dcp-kv-cache-interleave-size cp-kv-cache-interleave-size data-parallel-address "
        "data-parallel-rpc-port data-parallel-backend data-parallel-supervisor-port dp-supervisor-probe-interval-s "
        "dp-supervisor-probe-timeout-s dp-supervisor-probe-failure-threshold all2all-backend dp-sync-interval "
        "disable-nccl-for-dp-synchronization enable-nccl-comm-suspend expert-placement-strategy eplb-config "
        "dbo-decode-token-threshold dbo-prefill-token-threshold ray-workers-use-nsight enable-shm-tensor-arena",
    ),
    **_each(
        Ignored("the log has its own form; see --log-format"),
        "max-log-len enable-log-outputs enable-log-deltas log-error-stack aggregate-engine-logging "
        "enable-logging-iteration-details logging-config log-config-file jit-monitor-mode "
        "jit-monitor-verbose fail-on-environ-validation",
    ),
    **_each(
        Ignored("/metrics has Headway's numbers, which are the same whatever the flags"),
        "show-hidden-metrics-for-version kv-cache-metrics kv-cache-metrics-sample custom-histogram-buckets "
        "enable-mfu-metrics enable-per-request-metrics per-request-spec-decode-metrics",
    ),
    **_each(Ignored("bounds on requests are fixed"), "h11-max-incomplete-event-size h11-max-header-count"),
    **_each(
        Ignored("the prefix cache has its own rules"),
        "prefix-caching-hash-algo prefix-cache-retention-interval prefix-match-unit watermark "
        "scheduler-reserve-full-isl prefill-schedule-interval swa-bounded-replay disable-hybrid-kv-cache-manager "
        "long-prefill-token-threshold-adaptive use-fp64-gumbel",
    ),
    **_each(
        Ignored("there is no such file, process or cache here"),
        "response-role fingerprint-mode fingerprint-value renderer-num-workers stream-interval watchdog-config "
        "enable-offline-docs enable-flash-late-interaction cohere-is-reasoning-model cohere-format "
        "anthropic-disabled-thinking-effort structured-outputs-config reasoning-config sleep-mode-backend "
        "sleep-mode-offload-cudagraph sleep-preserve-parameter-names enable-cumem-allocator",
    ),
    # what cannot be done
    **_each(
        Refused(_PARALLEL),
        "headless nnodes node-rank device-ids decode-context-parallel-size prefill-context-parallel-size "
        "data-parallel-rank data-parallel-start-rank data-parallel-size-local data-parallel-hybrid-lb "
        "data-parallel-external-lb data-parallel-multi-port-external-lb enable-hc-sp enable-expert-parallel "
        "enable-batch-sharded-sampling enable-ep-weight-filter enable-dbo ubatch-size enable-elastic-ep "
        "elastic-ep-max-dp-size enable-eplb numa-bind numa-bind-nodes numa-bind-cpus enable-fault-tolerance "
        "fault-tolerance-config enable-scale-out",
    ),
    **_each(
        Refused(_LORA),
        "lora-modules enable-lora max-loras max-cpu-loras max-lora-rank lora-dtype enable-tower-connector-lora "
        "fully-sharded-loras "
        "lora-target-modules default-mm-loras specialize-active-lora enable-mixed-moe-lora-format "
        "enable-moe-shared-loras max-lora-cls-labels",
    ),
    **_each(
        Refused(_MEDIA),
        "trust-request-mm-kwargs allowed-local-media-path allowed-media-domains limit-mm-per-prompt enable-mm-embeds "
        "media-io-kwargs mm-processor-kwargs mm-processor-cache-gb mm-processor-cache-type mm-hasher-algorithm "
        "mm-shm-cache-max-object-size-mb mm-encoder-only mm-encoder-tp-mode mm-encoder-attn-backend "
        "mm-encoder-attn-dtype mm-encoder-fp8-scale-path mm-encoder-fp8-scale-save-path "
        "mm-encoder-fp8-scale-save-margin interleave-mm-strings skip-mm-profiling video-pruning-rate "
        "video-pruning-method mm-tensor-ipc mm-processor-device mm-ipc-gpu-memory-gb mm-device-do-normalize "
        "disable-chunked-mm-input ec-transfer-config ec-manager-config enable-prompt-embeds "
        "chat-template-content-format",
    ),
    **_each(
        Refused(_QUANTIZED),
        "quantization quantization-config allow-deprecated-quantization kv-cache-dtype-skip-layers",
    ),
    **_each(
        Refused(_DRAFTS),
        "speculative-config spec-method spec-model spec-tokens diffusion-config",
    ),
    **_each(Refused(_PARSERS), "tool-parser-plugin reasoning-parser-plugin tool-strict-level tool-server"),
    **_each(
        Refused(_OFFLOAD),
        "kv-offloading-size kv-offloading-backend offload-backend cpu-offload-gb cpu-offload-params "
        "offload-group-size offload-num-in-group offload-prefetch-step offload-params enable-sleep-mode "
        "kv-sharing-fast-prefill engram-config weight-transfer-config",
    ),
    **_each(
        Refused(_STATE),
        "enable-mamba-cache-stochastic-rounding mamba-cache-philox-rounds mamba-cache-dtype mamba-ssm-cache-dtype "
        "mamba-block-size mamba-cache-mode enable-mamba-shared-prefix-checkpoint replayssm-buffer-len use-replayssm",
    ),
    **_each(
        Refused(_TRACING),
        "otlp-traces-endpoint collect-detailed-traces enable-layerwise-nvtx-tracing profiler-config "
        "enable-trace-replay",
    ),
    **_each(
        Refused("code of others does not run inside Headway"),
        "middleware logits-processors io-processor-plugin worker-cls worker-extension-cls scheduler-cls "
        "model-class-overrides additional-config",
    ),
    **_each(
        Refused("write it into the configuration of the model: a copy of its folder with a changed config.json"),
        "hf-config-path hf-overrides override-generation-config disable-sliding-window model-loader-extra-config",
    ),
    **_each(Refused("the model has one revision; see --revision"), "code-revision tokenizer-revision"),
    "hf-token": Refused("a token on the command line can be seen by others (ps): set HF_TOKEN"),
    "download-dir": Refused("models lie in the cache of the hub: set HF_HUB_CACHE"),
    "enable-ssl-refresh": Refused("certificates are read once: start the server again when they change"),
    "uds": Refused("the server listens at --host and --port"),
    **_each(Refused("there is no gRPC here: HTTP alone"), "grpc grpc-port"),
    "sse-keep-alive-interval": Refused("streams have no lines but those with tokens"),
    **_each(
        Refused("send it in each request"),
        "default-chat-template-kwargs reasoning-effort-map return-tokens-as-token-ids enable-force-include-usage",
    ),
    **_each(Refused("models generate text; embeddings and scores need another server"), "convert pooler-config"),
    **_each(
        Refused("clients send texts and get texts"),
        "tokens-only skip-tokenizer-init enable-return-routed-experts return-sampling-mask aux-output-config",
    ),
    **_each(
        Refused("--max-num-seqs, --max-num-batched-tokens and --max-waiting bound the load"),
        "max-num-scheduled-tokens max-num-active-seqs max-num-queued-tokens",
    ),
    "watermark-config": Refused("answers are not watermarked"),
    "kv-transfer-config": Refused(
        "KV between engines has options of its own, --role, --kv-listen and --kv-peers; or start `headway pd`"
    ),
}

# Flags that earlier versions had, and that command lines still bring.
_EARLIER: dict[str, tuple[Takes, Fate]] = {
    "swap-space": (1, Ignored("a preempted request is computed again, and swapped nowhere")),
    "num-scheduler-steps": (1, Ignored("the next step is scheduled while the present one computes")),
    "use-v2-block-manager": (0, Holds("there is one block manager")),
    "disable-frontend-multiprocessing": (0, Ignored("the API and the engine have a process each")),
    "disable-async-output-proc": (0, Ignored("outputs are processed beside the steps")),
    "max-seq-len-to-capture": (1, Ignored(_GRAPHS)),
    "cuda-graph-sizes": ("+", Ignored(_GRAPHS)),
    "guided-decoding-backend": (1, Ignored("grammars are compiled by xgrammar")),
    "enable-reasoning": (0, Ignored("--reasoning-parser is enough")),
    "preemption-mode": (1, Holds("a preempted request is computed again", ("recompute",))),
    "task": (1, Holds("models generate text", ("auto", "generate"))),
    "worker-use-ray": (0, Refused(_PARALLEL)),
    "speculative-model": (1, Refused(_DRAFTS)),
    "rope-scaling": (1, Refused("write it into the config.json of the model")),
    "rope-theta": (1, Refused("write it into the config.json of the model")),
}


@cache
def flags() -> dict[str, Flag]:
    """The flags of vLLM by their first name, without its hyphens."""
    rows: list[dict[str, Any]] = json.loads(Path(__file__).with_name("vllm_serve_flags.json").read_text())
    known = [Flag(tuple(row["names"]), tuple(row["off"]), row["takes"], row["default"]) for row in rows]
    known += [Flag((f"--{name}",), takes=takes) for name, (takes, _) in _EARLIER.items()]
    return {flag.names[0].removeprefix("--"): flag for flag in known}


FATES: Mapping[str, Fate] = {**_FATES, **{name: fate for name, (_, fate) in _EARLIER.items()}}
