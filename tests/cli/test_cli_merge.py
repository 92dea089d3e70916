import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimix.cli import main


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["omnimix", "merge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def states(n):
    g = torch.Generator().manual_seed(0)
    return [{"a.weight": torch.randn(4, 3, generator=g), "b.bias": torch.randn(3, generator=g)} for _ in range(n)]


@pytest.fixture
def models(tmp_path):
    for name, state in zip("abz", states(3), strict=True):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"architectures": ["Tiny"]}')
    return states(3)


def test_options_of_the_command_line(call, models, tmp_path):
    a, b, z = models
    code, out, err = call("linear", "a", "b", "--weight", "3,1", "-o", "out")
    assert (code, err) == (0, "")
    assert "2 tensors" in out
    assert "merged into out" in out
    merged = load_file("out/model.safetensors")
    torch.testing.assert_close(merged["a.weight"], 0.75 * a["a.weight"] + 0.25 * b["a.weight"])
    code, out, _ = call("task_arithmetic", "a", "b", "--base", "z", "--lambda", "0.5", "-o", "two", "--json")
    assert code == 0
    assert json.loads(out)["options"] == {"weight": 1.0, "lambda": 0.5, "normalize": False}
    expected = z["b.bias"] + 0.5 * (a["b.bias"] + b["b.bias"] - 2 * z["b.bias"])
    torch.testing.assert_close(load_file("two/model.safetensors")["b.bias"], expected)
    card = json.loads((tmp_path / "two" / "merge.json").read_text())
    assert [one["role"] for one in card["inputs"]] == ["base", "model", "model"]
    assert card["evaluation"] is None


def test_a_recipe_in_the_yaml_of_mergekit(call, models, tmp_path):
    recipe = (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.25}\ndtype: bfloat16\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    code, _, err = call("recipe.yaml", "-o", "out")
    assert (code, err) == (0, "")
    assert load_file("out/model.safetensors")["a.weight"].dtype == torch.bfloat16
    code, _, err = call("recipe.yaml", "a", "-o", "out2")
    assert code == 2
    assert "says what to merge" in err


def test_check_says_all_and_writes_nothing(call, models, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*"))
    code, out, _ = call("linear", "a", "b", "--check")
    assert code == 0
    assert "can be merged" in out
    other = {**models[1], "a.weight": torch.ones(4, 2), "extra": torch.ones(1)}
    save_file(other, tmp_path / "b" / "model.safetensors")
    code, out, err = call("linear", "a", "b", "--check", "--json")
    assert code == 2
    rows = json.loads(out)["differences"]
    assert [(row["kind"], row["name"], row["values"]) for row in rows] == [
        ("shape", "a.weight", ["4x3", "4x2"]),
        ("tensor", "extra", ["missing", "present"]),
    ]
    for said in ("the models do not fit together", "shape", "a.weight", "4x3", "4x2", "extra", "missing"):
        assert said in err
    save_file({**models[1], "b.bias": torch.tensor([1.0, float("nan"), 0])}, tmp_path / "b" / "model.safetensors")
    code, _, err = call("linear", "a", "b", "--check")
    assert code == 2
    assert "tensor 'b.bias' holds nan at entry 1" in err
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear", "a", "b"), "--out DIR is needed (or --check, which writes nothing)"),
        (("average", "a", "b", "-o", "o"), "METHOD must be one of linear, soup"),
        (("linear", "a", "b", "--weight", "1", "-o", "o"), "--weight must be one number a model: got 1 for 2"),
        (("linear", "a", "b", "--weight", "x,y", "-o", "o"), "--weight must be numbers with commas between"),
        (("linear", "a", "b", "--t", "0.5", "-o", "o"), "linear has no option 't'"),
        (("ties", "a", "b", "-o", "o"), "ties needs a base model"),
        (("linear", "a", "nowhere", "-o", "o"), "nowhere: there is no such file or folder"),
        (("linear", "a", "b", "-o", "z"), "z: is there already"),
        (("linear", "a", "b", "-o", "o", "--evaluate", "judge"), "an evaluation is FILE.py:function, got 'judge'"),
        (("linear,slerp", "a", "b", "-o", "o", "--density", "1", "--evaluate", "j.py:f"), "none of linear, slerp take"),
        (("linear", "a", "b", "--check", "--evaluate", "j.py:f"), "--evaluate merges: it needs --out DIR"),
    ],
)
def test_mistakes_end_in_one_message(call, models, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err


JUDGE = """
from pathlib import Path
from safetensors.torch import load_file

def distance(folder):
    Path("calls").open("a").write("x")
    want = 0.25 * load_file("a/model.safetensors")["a.weight"] + 0.75 * load_file("b/model.safetensors")["a.weight"]
    return float((load_file(Path(folder) / "model.safetensors")["a.weight"] - want).norm())

def agreement(folder):
    return -distance(folder)

def broken(folder):
    return "good"

def rows(folder):
    Path("calls").open("a").write("x")
    return load_file(Path(folder) / "model.safetensors")["a.weight"].sum(1)
"""


def test_evaluation_tries_operators_and_coefficients_and_keeps_the_best(call, models, tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    how = ("linear,slerp,task-arithmetic", "a", "b", "--base", "z", "--evaluate", "judge.py:distance", "--lower")
    code, _, err = call(*how, "--draws", "2", "-o", "out")
    assert code == 2
    assert "linear takes no base model" in err
    how = ("linear,slerp", "a", "b", "--evaluate", "judge.py:distance", "--lower", "--draws", "6")
    code, out, err = call(*how, "-o", "out", "--json")
    assert code == 0, err
    said = json.loads(out)["evaluation"]
    assert len(said["scores"]) == 2 + 2 * 7
    values = [row["score"] for row in said["scores"]]
    assert values == sorted(values)
    names = [row["name"] for row in said["scores"]]
    assert {name: names.count(name) for name in names} == {"a": 1, "b": 1, "linear": 7, "slerp": 7}
    best = next(row for row in said["scores"] if row["name"] in ("linear", "slerp"))
    want = 0.25 * models[0]["a.weight"] + 0.75 * models[1]["a.weight"]
    merged = load_file("out/model.safetensors")["a.weight"]
    assert float((merged - want).norm()) == pytest.approx(best["score"], abs=1e-5)
    card = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert card["evaluation"] == said
    assert f"| {best['name']} |" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "calls").read_text() == "x" * 16
    assert sorted(path.suffix for path in (tmp_path / "out.evaluation").iterdir()) == [".html", ".sqlite"]
    assert "linear" in (tmp_path / "out.evaluation" / "report.html").read_text()
    assert call(*how, "-o", "out")[0] == 0  # nothing is measured again
    assert (tmp_path / "calls").read_text() == "x" * 16


def test_a_stopped_evaluation_goes_on_and_another_direction_is_another_choice(call, models, tmp_path):
    stop = JUDGE.replace(
        'write("x")',
        'write("x")\n    if Path("stop").exists() and Path("calls").stat().st_size > 4: raise OSError("full")',
    )
    (tmp_path / "judge.py").write_text(stop)
    (tmp_path / "stop").touch()
    how = ("slerp", "a", "b", "--evaluate", "judge.py:agreement", "--draws", "5", "-o", "out")
    code, _, err = call(*how)
    assert code == 2
    assert "full" in err
    (tmp_path / "stop").unlink()
    code, _, err = call(*how)
    assert code == 0, err
    assert (tmp_path / "calls").read_text() == "x" * (2 + 6 + 1)
    code, _, err = call(*how[:3], "--evaluate", "judge.py:broken", "-o", "out3")
    assert code == 2
    assert "must return a number, got 'good'" in err


def test_an_adapter_and_a_value_for_every_example(call, models, tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "lora").mkdir()
    key = "base_model.model.a.lora"
    save_file({f"{key}_A.weight": torch.ones(1, 3), f"{key}_B.weight": torch.ones(4, 1)},
              tmp_path / "lora" / "adapter_model.safetensors")  # fmt: skip
    (tmp_path / "lora" / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 2}')
    how = ("task-arithmetic", "z+lora", "b", "--base", "z", "--evaluate", "judge.py:rows", "--draws", "0", "-o", "out")
    code, out, err = call(*how, "--json")
    assert code == 0, err
    scores = {row["name"]: row for row in json.loads(out)["evaluation"]["scores"]}
    wide = models[2]["a.weight"].sum(1) + 6
    assert scores["z+lora"]["score"] == pytest.approx(float(wide.mean()), abs=1e-4)
    both = wide + models[1]["a.weight"].sum(1) - models[2]["a.weight"].sum(1)
    assert scores["task-arithmetic"]["score"] == pytest.approx(float(both.mean()), abs=1e-4)
    low, high = scores["z+lora"]["ci95"]
    assert low < scores["z+lora"]["score"] < high
    torch.testing.assert_close(load_file("out/model.safetensors")["a.weight"].sum(1), both)
    assert "95 % interval" in (tmp_path / "out.evaluation" / "report.html").read_text()
    code, _, err = call(*how)
    assert code == 0, err
    assert (tmp_path / "calls").read_text() == "x" * 4


def test_a_mixture_of_experts(call, tmp_path):
    config = {"model_type": "llama", "num_attention_heads": 1}
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        at = "model.layers.0.mlp."
        held = {f"{at}{part}_proj.weight": torch.full((3, 3), float(i)) for part in ("gate", "up", "down")}
        save_file({"model.norm.weight": torch.full((3,), float(i)), **held}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    code, out, err = call("linear", "a", "b", "--experts-per-token", "1", "--seed", "3", "-o", "out")
    assert (code, err) == (0, "")
    assert "8 tensors" in out
    assert "have to be trained" in out
    held = load_file("out/model.safetensors")
    assert held["model.norm.weight"].tolist() == [0.5] * 3
    assert held["model.layers.0.block_sparse_moe.experts.1.w2.weight"].tolist() == [[1.0] * 3] * 3
    code, _, err = call("linear", "a", "b", "--experts-per-token", "0", "-o", "two")
    assert code == 2
    assert "experts_per_token must be an integer >= 1" in err
    code, _, err = call("linear", "a", "b", "--seed", "3", "-o", "two")
    assert code == 2
    assert "no option 'seed'" in err
