"""python run_checks.py

Runs every `check_*` of the modules below. Prints one line of JSON: by name, null, or how the check failed.
"""

from __future__ import annotations

import json
import traceback

import checks_control
import checks_refusals
import checks_reports

failures: dict[str, str | None] = {}
for module in (checks_control, checks_refusals, checks_reports):
    for name, check in list(vars(module).items()):
        if name.startswith("check_"):
            try:
                check()
                failures[name] = None
            except Exception:
                failures[name] = traceback.format_exc()
print(json.dumps(failures))
