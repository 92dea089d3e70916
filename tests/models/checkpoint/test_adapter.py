"""MODEL+ADAPTER: low-rank changes that are added while a checkpoint is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimix.models import checkpoint


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def base(tmp_path):
    state = {"layers.0.q_proj.weight": noise(6, 5), "layers.0.norm.weight": noise(6, seed=1)}
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"architectures": ["Tiny"]}')
    return state


def adapter(folder, up, down, layer="layers.0.q_proj", **config):
    folder.mkdir()
    key = f"base_model.model.{layer}"
    save_file(
        {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


def merged(out, *models, base=None, method="linear", **options):
    plan = checkpoint.plan_merge(checkpoint.Recipe(method, tuple(map(str, models)), base and str(base), options))
    return load_file(checkpoint.merge_checkpoints(plan, out) / "model.safetensors")


def test_the_change_is_added_whatever_the_blocks(base, tmp_path, monkeypatch):
    up, down = noise(6, 2, seed=2), noise(2, 5, seed=3)
    adapter(tmp_path / "lora", up, down)
    want = base["layers.0.q_proj.weight"] + 2 * up @ down
    with checkpoint.Checkpoint(f"{tmp_path}/base+{tmp_path}/lora") as held:
        for start, stop in ((0, 30), (3, 4), (7, 22), (29, 30), (5, 10)):
            block = held.block("layers.0.q_proj.weight", start, stop)
            torch.testing.assert_close(block, want.reshape(-1)[start:stop])
        assert torch.equal(held.block("layers.0.norm.weight", 0, 6), base["layers.0.norm.weight"])
    one = merged(tmp_path / "one", f"{tmp_path}/base+{tmp_path}/lora")
    torch.testing.assert_close(one["layers.0.q_proj.weight"], want)
    card = json.loads((tmp_path / "one" / "merge.json").read_text())["inputs"][0]
    assert [*card["files"]] == ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"]
    half = merged(tmp_path / "half", f"{tmp_path}/base+{tmp_path}/lora", base=tmp_path / "base",
                  method="task-arithmetic", **{"lambda": 0.5})  # fmt: skip
    torch.testing.assert_close(half["layers.0.q_proj.weight"], base["layers.0.q_proj.weight"] + up @ down)


def test_a_small_change_of_a_bfloat16_model_is_not_rounded_away(base, tmp_path):
    save_file({name: torch.ones_like(value).bfloat16() for name, value in base.items()},
              tmp_path / "base" / "model.safetensors")  # fmt: skip
    up, down = torch.full((6, 2), 2e-4), torch.ones(2, 5)  # together 8e-4, a tenth of a step of bfloat16 at 1
    paths = [f"{tmp_path}/base+{adapter(tmp_path / name, up, down)}" for name in ("a", "b")]
    far = merged(tmp_path / "far", *paths, base=tmp_path / "base", method="task-arithmetic", **{"lambda": 10.0})
    assert (far["layers.0.q_proj.weight"].float() - 1.016).abs().max() < 0.004


def test_weights_that_are_stored_transposed(base, tmp_path):
    up, down = noise(5, 2, seed=2), noise(2, 6, seed=3)  # of a layer from 6 to 5, its weight is (6, 5)
    adapter(tmp_path / "lora", up, down, fan_in_fan_out=True, use_rslora=True)
    want = base["layers.0.q_proj.weight"] + 4 / 2**0.5 * (up @ down).T
    found = merged(tmp_path / "one", f"{tmp_path}/base+{tmp_path}/lora")
    torch.testing.assert_close(found["layers.0.q_proj.weight"], want)


def test_a_plus_in_the_name_of_a_folder_and_what_is_refused(base, tmp_path):
    (tmp_path / "base").rename(tmp_path / "a+b")
    assert checkpoint.Checkpoint(tmp_path / "a+b").adapter is None
    start = tmp_path / "a+b"
    good = adapter(tmp_path / "good", noise(6, 2), noise(2, 5))
    assert [*checkpoint.Checkpoint(f"{start}+{good}").changes] == ["layers.0.q_proj.weight"]
    wide = adapter(tmp_path / "wide", noise(6, 2), noise(2, 7))
    other = adapter(tmp_path / "other", noise(6, 2), noise(2, 5), layer="layers.9.q_proj")
    kind = adapter(tmp_path / "kind", noise(6, 2), noise(2, 5), peft_type="LOHA")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    for path, message in (
        (wide, r"the change of 'layers.0.q_proj.weight' is \(6, 7\), the weight \(6, 5\)"),
        (other, "changes 'layers.9.q_proj.weight', which .* does not have"),
        (kind, "peft_type 'LOHA' is no LoRA"),
        (tmp_path / "empty", "holds no adapter_model.safetensors"),
        (start, "is no adapter, it has no adapter_config.json"),
        (tmp_path / "nowhere", "is no adapter"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoint.Checkpoint(f"{start}+{path}")
    with pytest.raises(ValueError, match=r"write MODEL\+ADAPTER"):
        checkpoint.Checkpoint(good)
