"""`make model-check`: the models hold, their broken variants are caught, and a checker that cannot tell says so."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / "verification" / "check"
MODELS = sorted(CHECK.parent.glob("*.pml"))

STUCK, WRONG = "invalid end state", "assertion violated"
CAUGHT = {
    "mailbox.pml": {"NO_SECOND_LOOK": STUCK, "LOOK_FIRST": STUCK, "RING_FIRST": STUCK},
    "pd.pml": dict.fromkeys(
        (
            "WITHOUT_CONSUME",
            "CONSUME_BEFORE_LAST_READ",
            "CONSUME_IGNORES_INCARNATION",
            "CONSUME_IGNORES_GENERATION",
            "CONSUME_TWICE_VALID",
            "ANSWER_TO_ANOTHER_ASK",
            "LOST_ANSWER_COUNTS_AS_VALID",
            "PUBLISH_BEFORE_CONSUME",
            "CHUNKS_OF_TWO_GENERATIONS",
            "TIMEOUT_FREES_D_BLOCKS",
            "DONE_WHILE_WRITING",
            "SILENT_IF_STOPPED",
            "DUPLICATE_RECEIVE_DONE_FREES_TWICE",
            "LEASE_NEVER_EXPIRES",
            "ABORT_KEEPS_THE_LEASE",
            "UNWANTED_IS_FORGOTTEN",
            "LATE_RESULT_LENDS",
        ),
        WRONG,
    ),
    "query.pml": {
        "ACT_BEFORE_CLAIM": WRONG,
        "LOOK_THEN_TAKE": WRONG,
        "TIMEOUT_LEAVES_IT_OPEN": WRONG,
        "TIMEOUT_DESPITE_CLAIM": WRONG,
        "DEFERRED_CLAIMED_EARLY": STUCK,
        "CLAIMED_CELLS_FORGOTTEN": STUCK,
        "OUTCOME_LEAVES_IT_OPEN": WRONG,
        "LOOK_THEN_SET": WRONG,
        "ONLY_THE_SETTER_RINGS": STUCK,
        "LOOK_THEN_REGISTER": STUCK,
        "FAIL_THEN_FLAG": STUCK,
        "CELLS_STAY_REGISTERED": WRONG,
    },
}

with_spin = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("cc")), reason="Spin and a C compiler are not installed"
)


@with_spin
def test_the_models_hold_and_every_broken_variant_is_caught() -> None:
    done = subprocess.run([CHECK], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = iter(done.stdout.splitlines())
    for model, variants in CAUGHT.items():
        assert re.fullmatch(rf"{model}: no violation, [1-9]\d* states, stored", next(lines))
        for variant, objection in variants.items():
            assert next(lines) == f"{model} -D{variant}: caught ({objection})"
    assert list(lines) == []


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_a_model_lists_every_variant_it_has(model: Path) -> None:
    text = model.read_text()
    listed = set(re.findall(r"^ \*   -D([A-Z_]+)", text, re.MULTILINE))
    assert listed == set(re.findall(r"^#ifn?def ([A-Z_]+)", text, re.MULTILINE))
    assert listed == CAUGHT[model.name].keys()


def model(header: str, body: str) -> str:
    """One process; what its body does under -DBAD is up to it."""
    return f"/* A model.\n{header} */\nactive proctype one() {{\n{body}\n}}\n"


COUNT_TO_MILLIONS = "int i; do :: i < 1500000 -> i++ :: else -> break od"  # deeper than is searched
LISTED = " *   -DBAD   what is wrong with it\n"
WITH_BAD = "#ifdef BAD\n{}\n#else\nskip\n#endif"


@with_spin
@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (model(LISTED, WITH_BAD.format("assert(false)")), 0, "x.pml -DBAD: caught (assertion violated)"),
        (model(LISTED, WITH_BAD.format("false")), 0, "x.pml -DBAD: caught (invalid end state)"),
        (model(LISTED, WITH_BAD.format("skip")), 1, "x.pml -DBAD: NOT caught"),
        (model(LISTED, "assert(false)"), 1, "x.pml: VIOLATION (assertion violated)"),
        (model(LISTED, WITH_BAD.format("no Promela")), 2, "x.pml -DBAD: spin: "),
        (model(LISTED, WITH_BAD.format("c_code { no C }")), 2, "x.pml -DBAD: the checker did not run"),
        (model(LISTED, COUNT_TO_MILLIONS), 2, "x.pml: the search was not exhaustive"),
        (model("", "skip"), 2, "x.pml lists no broken variant"),
    ],
    ids=["caught", "caught stuck", "not caught", "violation", "not a model", "not C", "not exhaustive", "no variant"],
)
def test_only_an_objection_of_the_checker_counts_as_one(tmp_path: Path, text: str, code: int, said: str) -> None:
    check = shutil.copy(CHECK, tmp_path)
    (tmp_path / "x.pml").write_text(text)
    done = subprocess.run([check], capture_output=True, text=True, timeout=120)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr


def test_without_the_checker_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = subprocess.run([CHECK], capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == "model-check needs Spin and a C compiler: apt-get install spin gcc\n"
