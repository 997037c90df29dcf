"""Pages that are made from the code say what the code says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_contracts_is_what_the_contracts_say():
    made = runpy.run_path(str(DOCS / "contracts.py"))["page"]()
    assert made == (DOCS / "contracts.md").read_text("utf-8"), "run: python docs/contracts.py"
