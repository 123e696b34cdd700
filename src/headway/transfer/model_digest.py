"""Tells models apart: KV of one model is of no use to another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_WHOLE = 2**20  # bytes; larger files are sampled
_SAMPLES, _SAMPLE_BYTES = 256, 4096


def model_digest(files: Iterable[Path]) -> str:
    """A digest of these files, in hex: of names, sizes, and contents. Of large files 256 samples of 4 KiB are read:
    other weights differ everywhere. Raises OSError for a file that cannot be read."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for index in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
