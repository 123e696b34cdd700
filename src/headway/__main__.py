"""`python -m headway`: the command line."""

from __future__ import annotations

import sys

from headway.cli import main

sys.exit(main())
