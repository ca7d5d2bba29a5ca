"""Where the real rows lie that some tests read."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("KLQLIT_SHARED", Path(__file__).parents[3] / "shared")) / "data"
HH_PAIRS = SHARED / "hh-rlhf" / "harmless-base-test.jsonl.gz"
HH_PROMPTS = SHARED / "hh-rlhf" / "helpful-base-prompts.json"
TLDR = SHARED / "tldr" / "tldr-1945.csv.gz"

needs_real_rows = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real rows are not here: set KLQLIT_SHARED to the directory above their data/"
)
