"""lm-eval on tasks of our own, beside its own `hf` backend: `tools/lm_eval_check.py` runs and compares both.

It starts a server of its own, without a key, as lm-eval shows no key where it asks for the tokenizer.
"""

import os
import subprocess

import pytest


@pytest.mark.shows("completions")
@pytest.mark.shows("log probabilities")
@pytest.mark.shows("loglikelihood")
@pytest.mark.shows("stop strings")
@pytest.mark.shows("many at once")
@pytest.mark.timeout(900)
def test_it_has_the_numbers_of_its_own_backend() -> None:
    check = [os.environ["HEADWAY_CLIENTS_PYTHON"], "tools/lm_eval_check.py"]
    subprocess.run([*check, "--python", os.environ["HEADWAY_CLIENTS_LM_EVAL"]], check=True, timeout=840)
