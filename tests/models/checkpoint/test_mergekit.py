"""Whole merges of tiny Llama folders against mergekit 0.1.5: sums, sums of squares and sums by place it gave.

Its models were made by the formula in `value` and merged by its own command with these recipes. DARE ran there with our
masks and without its rescaling, which is by the ratio of norms: the factor 1 / density was given as its lambda.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimix.models import checkpoint

SHAPES = {
    "lm_head.weight": (20, 8),
    "model.embed_tokens.weight": (20, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.k_proj.weight": (8, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.v_proj.weight": (8, 8),
    "model.layers.1.input_layernorm.weight": (8,),
    "model.layers.1.mlp.down_proj.weight": (8, 12),
    "model.layers.1.mlp.gate_proj.weight": (12, 8),
    "model.layers.1.mlp.up_proj.weight": (12, 8),
    "model.layers.1.post_attention_layernorm.weight": (8,),
    "model.layers.1.self_attn.k_proj.weight": (8, 8),
    "model.layers.1.self_attn.o_proj.weight": (8, 8),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
    "model.layers.1.self_attn.v_proj.weight": (8, 8),
    "model.layers.2.input_layernorm.weight": (8,),
    "model.layers.2.mlp.down_proj.weight": (8, 12),
    "model.layers.2.mlp.gate_proj.weight": (12, 8),
    "model.layers.2.mlp.up_proj.weight": (12, 8),
    "model.layers.2.post_attention_layernorm.weight": (8,),
    "model.layers.2.self_attn.k_proj.weight": (8, 8),
    "model.layers.2.self_attn.o_proj.weight": (8, 8),
    "model.layers.2.self_attn.q_proj.weight": (8, 8),
    "model.layers.2.self_attn.v_proj.weight": (8, 8),
    "model.norm.weight": (8,),
}


def value(shape, place, model):
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    found = torch.sin(1.3 * j + 0.7 * place)
    if model:
        found = found + 0.3 * torch.sin(2.1 * j + model * 1.1 + 0.5 * place) * torch.cos(0.37 * j * model)
    return found.reshape(shape).float()


def listed(*parameters):
    """Models m1, m2, ... with their parameters, as mergekit's YAML has them."""
    lines = [f"- {{model: m{i}, parameters: {json.dumps(own)}}}" for i, own in enumerate(parameters, start=1)]
    return "\n".join(["models:", *lines, ""])


HALVES = [{"weight": 0.4, "density": 0.5}, {"weight": 0.6, "density": 0.5}]
RECIPES = {
    "linear": "merge_method: linear\n" + listed({"weight": 0.5}, {"weight": 0.3}, {"weight": 0.7}),
    "linear-raw": "merge_method: linear\nparameters: {normalize: false}\n" + listed({"weight": 0.5}, {"weight": 0.3}),
    "slerp": "merge_method: slerp\nbase_model: m1\nparameters:\n  t:\n"
    "  - {filter: self_attn, value: [0, 0.5, 1]}\n  - {filter: mlp, value: 0.25}\n  - value: 0.6\n" + listed({}, {}),
    "task": "merge_method: task_arithmetic\nbase_model: m0\nparameters: {lambda: 0.8}\n"
    + listed({"weight": 0.4}, {"weight": 0.6}, {"weight": -0.2}),
    "ties": "merge_method: ties\nbase_model: m0\nparameters: {lambda: 1.2, int8_mask: true}\n"
    + listed({"weight": 1.0, "density": 0.5}, {"weight": 0.5, "density": 0.7}, {"weight": 0.8, "density": 0.4}),
    "ties-plain": "merge_method: ties\nbase_model: m0\n" + listed(*[{"weight": 1.0}] * 3),
    "stock": "merge_method: model_stock\nbase_model: m0\n" + listed({}, {}, {}),
    "dare-linear": "merge_method: dare_linear\nbase_model: m0\n" + listed(*HALVES),
    "dare-ties": "merge_method: dare_ties\nbase_model: m0\n" + listed(*HALVES),
}
SAID = {
    "linear": {
        "lm_head.weight": (-0.21527316, 80.435543, -138.7496),
        "model.layers.1.self_attn.q_proj.weight": (0.11664841, 33.168818, -32.596319),
        "model.layers.2.mlp.down_proj.weight": (-0.5485945, 48.444734, -67.888961),
        "model.norm.weight": (0.30739301, 3.388698, -2.4241196),
    },
    "linear-raw": {
        "lm_head.weight": (-0.10298681, 51.235954, -117.22811),
        "model.layers.1.self_attn.q_proj.weight": (0.062335456, 21.810762, -22.283779),
        "model.layers.2.mlp.down_proj.weight": (-0.47644373, 31.554613, -51.245414),
        "model.norm.weight": (0.30272233, 2.1573579, -1.4168562),
    },
    "slerp": {
        "lm_head.weight": (-0.12731959, 80.93106, -143.52254),
        "model.layers.1.self_attn.q_proj.weight": (0.10929047, 35.263281, -26.495165),
        "model.layers.2.mlp.down_proj.weight": (-0.62669993, 50.207858, -64.738182),
        "model.norm.weight": (0.3085036, 3.3858368, -2.1077874),
    },
    "task": {
        "lm_head.weight": (-0.11115758, 79.050973, -140.26269),
        "model.layers.1.self_attn.q_proj.weight": (0.13852864, 34.155259, -25.426306),
        "model.layers.2.mlp.down_proj.weight": (-0.57560835, 49.166578, -62.679343),
        "model.norm.weight": (0.35472375, 3.6747187, -2.0530317),
    },
    "ties": {
        "lm_head.weight": (1.7827026, 88.446004, 140.63398),
        "model.layers.1.self_attn.q_proj.weight": (1.1849529, 37.762203, -6.8662187),
        "model.layers.2.mlp.down_proj.weight": (-0.81113222, 53.842692, 10.121976),
        "model.norm.weight": (0.051478222, 2.4346899, -2.194563),
    },
    "ties-plain": {
        "lm_head.weight": (0.35593513, 80.496866, -92.115728),
        "model.layers.1.self_attn.q_proj.weight": (0.50001988, 36.040426, -26.165854),
        "model.layers.2.mlp.down_proj.weight": (-0.72162128, 50.192866, -58.517457),
        "model.norm.weight": (0.080499351, 3.0696446, -2.6044106),
    },
    "stock": {
        "lm_head.weight": (-0.16930634, 79.69966, -132.07412),
        "model.embed_tokens.weight": (0.19331042, 79.733327, -100.75516),
        "model.layers.0.mlp.up_proj.weight": (-0.46302602, 48.043889, 32.351356),
        "model.norm.weight": (0.36906882, 3.986328, -2.4290591),
    },
    "dare-linear": {
        "lm_head.weight": (-0.32333504, 81.043202, 6.5359613),
        "model.layers.1.self_attn.q_proj.weight": (0.33163346, 37.106317, -4.1736167),
        "model.layers.2.mlp.down_proj.weight": (0.72860872, 50.062688, -86.574756),
        "model.norm.weight": (0.29383011, 3.1556393, -0.92219126),
    },
    "dare-ties": {
        "lm_head.weight": (-0.5832625, 80.39833, 1.9203027),
        "model.layers.1.self_attn.q_proj.weight": (0.23312858, 37.903363, -8.2864341),
        "model.layers.2.mlp.down_proj.weight": (-0.019927818, 49.495208, -137.03326),
        "model.norm.weight": (0.26796927, 3.1192104, -0.92219126),
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for model in range(4):
        (folder / f"m{model}").mkdir()
        tensors = {name: value(shape, place, model) for place, (name, shape) in enumerate(SHAPES.items())}
        save_file(tensors, folder / f"m{model}" / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", RECIPES)
def test_merges_are_those_of_mergekit(method, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    (tmp_path / "recipe.yaml").write_text(RECIPES[method])
    plan = checkpoint.plan_merge(checkpoint.read_recipe(tmp_path / "recipe.yaml"), shard_size=2000)
    out = checkpoint.merge_checkpoints(plan, tmp_path / "out")
    merged = {}
    for file in out.glob("*.safetensors"):
        merged |= load_file(file)
    assert merged.keys() == SHAPES.keys()
    for name, said in SAID[method].items():
        flat = merged[name].double().reshape(-1)
        found = torch.stack([flat.sum(), (flat**2).sum(), (flat * torch.arange(len(flat))).sum()])
        torch.testing.assert_close(found, torch.tensor(said, dtype=torch.float64), atol=2e-5, rtol=1e-6)
