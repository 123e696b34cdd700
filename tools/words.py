"""Finds pronouns where a noun belongs: "requests that decode" tells more than a pronoun, and translates better.

    python tools/words.py [FILE ...]          by default the whole repository

Prints `file:line: words` for each banned word or pair of words. Case does not matter. The parts of an identifier count
as words (`held_for_nobody`), and a pair is found across a line break too. In tests/ only the first four words count.

Of CHANGELOG.md only the newest section is read, and nothing of what benchmarks wrote. This file and its test are
left out, since they must name the words.

Exit status: 0 if there is none; 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "lab", "docs", "tools", "examples", "verification", "tests")
FILES = ("*.md", "Makefile", ".ci/run", "pyproject.toml")
SUFFIXES = {".py", ".md", ".pml", ".sh", ".toml", ""}
LEFT_OUT = {"tools/words.py", "tests/test_words.py"}

PERSONS = "whoever whomever nobody somebody"
MORE_PERSONS = "anybody everybody anyone someone everyone"
PAIRS = (("those", "ones", "one"), ("that", "who", "which", "whose"))

# What may stand between the two words of a pair: white space, the comment sign of the next line, the seam of two string
# literals. No full stop, and no comma: "of those, which is" begins a new thought.
_GAP = r"(?:[\s_]|[#*|](?=\s)|[\"']\s+f?[\"'])+"


def _pattern(words: str, pairs: bool) -> re.Pattern[str]:
    found = "|".join(words.split())
    if pairs:
        first, second = ("|".join(words) for words in PAIRS)
        found += f"|(?:{first}){_GAP}(?:{second})"
    return re.compile(rf"(?<![A-Za-z])(?:{found})(?![A-Za-z])", re.IGNORECASE)


EVERYTHING = _pattern(f"{PERSONS} {MORE_PERSONS}", pairs=True)
IN_TESTS = _pattern(PERSONS, pairs=False)


def banned(text: str, pattern: re.Pattern[str] = EVERYTHING) -> Iterator[tuple[int, str]]:
    """The banned words of a text, in order: (line, from 1, where they begin; the words)."""
    for match in pattern.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        words = re.findall("[A-Za-z]+", match[0])
        yield line, f"{words[0]} {words[-1]}" if len(words) > 1 else words[0]


def checked_files(root: Path) -> Iterator[Path]:
    """The files that must be free of banned words, sorted within each folder."""
    for pattern in FILES:
        yield from sorted(root.glob(pattern))
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            data = name.startswith("docs/benchmarks/results") or "__pycache__" in name
            if path.is_file() and path.suffix in SUFFIXES and not data and name not in LEFT_OUT:
                yield path


def in_file(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """The banned words of one file under `root`."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = "\n## ".join(text.split("\n## ")[:2])
    in_tests = path.resolve().is_relative_to(root / "tests")
    return banned(text, IN_TESTS if in_tests else EVERYTHING)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    named = [Path(name) for name in (sys.argv[1:] if argv is None else argv)]
    num_found = 0
    for path in named or checked_files(root):
        for line, words in in_file(path, root):
            shown = path.relative_to(root) if path.is_relative_to(root) else path
            print(f"{shown}:{line}: {words}")
            num_found += 1
    if num_found:
        print(f"{num_found} times a pronoun where a noun belongs (tools/words.py)", file=sys.stderr)
    return 1 if num_found else 0


if __name__ == "__main__":
    sys.exit(main())
