"""How families of metrics are named and labelled."""

PREFIX = "headway"
ALIAS = "vllm"
LABELS = ("model_name", "engine")
