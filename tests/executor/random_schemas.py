"""JSON schemas drawn at random, of the keywords that a grammar keeps to."""

from __future__ import annotations

import random
from typing import Any


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """Every answer of it ends within some 150 bytes, if white space does."""
    kinds = ["string", "integer", "boolean", "null", "number", "enum", "const", "pattern"]
    if depth:
        kinds += ["object", "object", "array", "anyOf"]
    match rng.choice(kinds):
        case "string":
            return {"type": "string", "maxLength": rng.randint(0, 6)}
        case "integer":
            low = rng.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 100)}
        case "number":
            return {"enum": [0.5, -1e3, 7]}  # a number has no last digit
        case "enum":
            return {"enum": rng.sample(["a", 'q"', "ü\n", 3, None, True, [1], {"a": "b"}], rng.randint(1, 4))}
        case "const":
            return {"const": rng.choice(["x", 17, False, {"k": [1, "z"]}])}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-c]{1,4}$", "^(yes|no)$", r"^\d{3}-\d{2}$"])}
        case "object":
            names = rng.sample(["a", "b b", "c", "ö", 'd"'], rng.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": [name for name in names if rng.random() < 0.6],
                "additionalProperties": False,
            }
        case "array":
            least = rng.randint(0, 1)
            return {
                "type": "array",
                "items": random_schema(rng, depth - 1),
                "minItems": least,
                "maxItems": least + rng.randint(0, 2),
            }
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
        case kind:
            return {"type": kind}
