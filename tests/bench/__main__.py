# SPDX-License-Identifier: Apache-2.0
"""Run the measurements of this directory, or one of them: ``python -m tests.bench [NAME [WORD…]]``.

Every module here has ``measure(*words)``, which yields the lines of ``_rows``: one JSON object each, on standard
output. What else there is to say (what could not be measured, and why) goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    wanted, words = (argv[:1], argv[1:]) if argv else (names, [])
    for name in wanted:
        if name not in names:
            print(f"there is no measurement {name!r}; there are: {', '.join(names)}", file=sys.stderr)
            return 2
        for row in importlib.import_module(f"tests.bench.{name}").measure(*words):
            print(json.dumps({"bench": name, **row}), flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
