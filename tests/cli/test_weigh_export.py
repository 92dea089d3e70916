import json

from typer.testing import CliRunner

from omnimix.cli import weigh, weigh_export  # noqa: F401  (adds the verb)
from omnimix.cli.console import app
from omnimix.corpora import Mixture

run = CliRunner().invoke


def test_a_mixture_becomes_a_file_of_a_trainer(tmp_path):
    Mixture({"web": 0.75, "code": 0.25, "mail": 0}).save(tmp_path / "mixture.json")
    (tmp_path / "paths.json").write_text('{"web": "/d/web", "code": "/d/code"}')
    wanted = [
        "weigh",
        "export",
        str(tmp_path / "mixture.json"),
        "--to",
        "megatron",
        "--paths",
        str(tmp_path / "paths.json"),
    ]
    done = run(app, [*wanted, "-o", str(tmp_path / "blend.txt"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "out": str(tmp_path / "blend.txt"), "format": "megatron", "unit": "sequences", "dropped": ["mail"]
    }  # fmt: skip
    assert (tmp_path / "blend.txt").read_text() == "0.75 /d/web 0.25 /d/code\n"
    again = run(app, [*wanted, "-o", str(tmp_path / "blend.txt")])
    assert again.exit_code == 2
    assert "exists already" in again.output


def test_what_is_missing_is_said(tmp_path):
    Mixture({"web": 0.75, "code": 0.25}).save(tmp_path / "m.json")
    (tmp_path / "bad.json").write_text('{"web": -1}')
    for more, message in (
        (["--to", "nonsense"], "--to"),
        (["--to", "hf"], "mean tokens"),
        (["--to", "hf", "--tokens", str(tmp_path / "bad.json")], "'web'"),
        (["--to", "megatron", "--sizes", str(tmp_path / "bad.json")], "axolotl alone"),
        (["--to", "axolotl", "--tokens", str(tmp_path / "m.json")], "must have a number"),
    ):
        done = run(app, ["weigh", "export", str(tmp_path / "m.json"), *more, "-o", str(tmp_path / "out")])
        assert done.exit_code == 2, (more, done.output)
        assert message in done.output
        assert not (tmp_path / "out").exists()
