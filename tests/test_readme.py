"""The Python examples of the README run, in order, in one process."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    code = "\n".join([*blocks, 'from omnimix.testing import check_method\ncheck_method("gentle-mix")'])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


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
