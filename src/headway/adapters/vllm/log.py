"""Loggers below vLLM's own, whose level, format and handlers then hold: others would be silent below WARNING."""

from __future__ import annotations

import logging


def logger_of(module: str) -> logging.Logger:
    """The logger of a module of this package."""
    return logging.getLogger(f"vllm.{module}")
