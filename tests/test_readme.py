"""The README names all methods, and the evidence that it links is there (tests/test_docs.py runs its code)."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_every_method_is_in_the_table():
    import omnimix as om
    from omnimix.core.registry import info

    text = README.read_text()
    ours = [name for name in om.methods() if info(name).package == "omnimix"]
    assert [name for name in ours if f"`{name}`" not in text] == []


def test_the_evidence_it_links_is_there():
    folder = README.parent
    for path in set(re.findall(r"\]\((evidence/[\w-]+)\)", README.read_text())):
        for name in ("run.py", "result.json", "tables.md", "README.md"):
            assert (folder / path / name).is_file(), f"{path}/{name}"
