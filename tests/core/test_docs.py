"""Pages that are made from the code say what the code says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_contracts_is_what_the_contracts_say():
    made = runpy.run_path(str(DOCS / "contracts.py"))["page"]()
    assert made == (DOCS / "contracts.md").read_text("utf-8"), "run: python docs/contracts.py"


def test_the_table_of_rules_is_what_the_suite_says():
    made = runpy.run_path(str(DOCS / "rules.py"))["page"]()
    assert made == (DOCS / "rules.md").read_text("utf-8"), "run: python docs/rules.py"


def test_the_list_of_faults_is_what_the_self_test_plants():
    made = runpy.run_path(str(DOCS / "faults.py"))["page"]()
    assert made == (DOCS / "faults.md").read_text("utf-8"), "run: python docs/faults.py"


def test_the_figures_of_scale_are_what_the_formulas_say():
    made = runpy.run_path(str(DOCS / "scale.py"))["page"]()
    assert made == (DOCS / "scale.md").read_text("utf-8"), "run: python docs/scale.py"


def test_every_name_of_deepspeed_s_is_in_its_table():
    from accel import deepspeed

    table = (DOCS / "deepspeed.md").read_text("utf-8")
    missing = [name for name in deepspeed.__all__ if f"`{name}`" not in table]
    assert not missing
    assert all(hasattr(deepspeed, name) for name in deepspeed.__all__)
    assert len(Path(deepspeed.__file__).read_text().splitlines()) <= 150, "aliases only"
