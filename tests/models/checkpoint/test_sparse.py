"""Mixtures of experts made on disk: the same as those made in memory, in little memory, and loaded by transformers."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimix.models import checkpoint, merge
from omnimix.models.checkpoint.sparse import sparse_config
from omnimix.models.experts import mixture, to_mixtral

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 2}


def state(seed, layers=2, width=4, inner=6, dtype=torch.float32, vocabulary=11):
    """A Llama's names."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.q_proj.weight": (width, width), f"{at}.input_layernorm.weight": (width,)}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (width, inner)}
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}


def folder(path, held, **config):
    path.mkdir(parents=True)
    save_file(held, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    return path


def planned(paths, base=None, method="linear", how=None, k=2, average=(), **options):
    recipe = checkpoint.Recipe(method, tuple(map(str, paths)), base and str(base), how or {}, (), None, k, average)
    return checkpoint.plan_merge(recipe, **options)


def read(out):
    return {name: value for file in sorted(out.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.fixture
def three(tmp_path):
    return [folder(tmp_path / name, state(i), hidden_size=4) for i, name in enumerate(("a", "b", "z"))]


def test_where_everything_comes_from(three, tmp_path):
    a, b, z = (state(i) for i in range(3))
    out = checkpoint.merge_checkpoints(
        planned(three[:2], three[2], "ties", {"density": 0.5, "seed": 7}, average=("*embed*",), shard_size=400),
        tmp_path / "out",
    )
    held = read(out)
    for layer in (0, 1):
        mine, theirs = f"model.layers.{layer}.mlp", f"model.layers.{layer}.block_sparse_moe"
        for i, model in enumerate((a, b)):
            for name, part in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
                assert torch.equal(held.pop(f"{theirs}.experts.{i}.{name}.weight"), model[f"{mine}.{part}.weight"])
    g = torch.Generator().manual_seed(7)
    for layer in (0, 1):
        router = held.pop(f"model.layers.{layer}.block_sparse_moe.gate.weight")
        assert torch.equal(router, 0.02 * torch.randn(2, 4, generator=g))
    matrices = [name for name in held if "q_proj" in name]
    assert {*held} - {*matrices} == {name for name in a if "norm" in name or "embed" in name}
    parts = [{name: one[name] for name in matrices} for one in (a, b, z)]
    for name, value in merge.Ties(density=0.5)(parts[:2], parts[2]).items():  # trimmed over what is merged
        assert torch.equal(held.pop(name), value)
    for name, value in held.items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len({*index.values()}) > 1
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["num_local_experts"], config["num_experts_per_tok"]) == ("mixtral", 2, 2)
    assert "have to be trained" in (out / "README.md").read_text()
    card = json.loads((out / "merge.json").read_text())
    assert (card["experts_per_token"], card["router_seed"], card["average"]) == (2, 7, ["*embed*"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "merger", "how"),
    [
        ("ties", merge.Ties(density=0.3), {"density": 0.3}),
        ("dare-ties", merge.DareTies(seed=5), {"seed": 5}),
        ("linear", merge.Linear([1.0, 3.0]), {}),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_it_is_the_mixture_made_in_memory(method, merger, how, kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": kind == "qwen3"}
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    else:
        config = transformers.Qwen3Config(**sizes, head_dim=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_config(config).eval()
    g, models = torch.Generator().manual_seed(1), []
    for _ in range(2):
        models.append(copy.deepcopy(base))
        for value in models[-1].parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=g))
    paths = [tmp_path / name for name in ("a", "b", "base")]
    for one, path in zip((*models, base), paths, strict=True):
        one.save_pretrained(path)
    seed = how.get("seed", 0)
    made = mixture(base, models, merger, router=True, k=1, generator=torch.Generator().manual_seed(seed)).eval()
    own = ({"weight": 1.0}, {"weight": 3.0}) if method == "linear" else ()
    needed = merger.base == "required"
    recipe = checkpoint.Recipe(
        method, tuple(map(str, paths[:2])), str(paths[2]) if needed else None, how, own, experts_per_token=1
    )
    out = checkpoint.merge_checkpoints(checkpoint.plan_merge(recipe), tmp_path / "out")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    tokens = torch.randint(0, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(tokens).logits, made(tokens).logits, atol=1e-5, rtol=0)
    if kind == "llama":
        same = to_mixtral(made).state_dict()
        assert all(torch.equal(value, same[name]) for name, value in loaded.state_dict().items())


def test_a_stopped_one_goes_on_to_the_same_bytes(three, tmp_path):
    def files(out):
        return {path.name: path.read_bytes() for path in sorted(out.iterdir())}

    def plan():
        return planned(three[:2], three[2], "dare-ties", shard_size=300)

    whole, count = files(checkpoint.merge_checkpoints(plan(), tmp_path / "whole")), len(plan().tensors)
    for stop in range(1, count, 4):
        seen = []

        def told(done, name, seen=seen, stop=stop):
            seen.append(name)
            if len(seen) == stop:
                raise KeyboardInterrupt

        out = tmp_path / f"out{stop}"
        with pytest.raises(KeyboardInterrupt):
            checkpoint.merge_checkpoints(plan(), out, told)
        assert files(checkpoint.merge_checkpoints(plan(), out)) == whole
    assert checkpoint.merge_checkpoints(plan(), tmp_path / "whole") == tmp_path / "whole"  # made already


def test_memory_is_below_two_of_the_largest_tensor_a_model(tmp_path, monkeypatch):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory can be reset on Linux only")
    monkeypatch.setattr(merge.source, "BLOCK", 2**16)
    width = 1024
    held = state(0, layers=2, width=width, inner=2 * width, vocabulary=width)
    paths = [folder(tmp_path / name, held) for name in ("a", "z")]
    largest, everything = 8 * width**2 / 2**20, sum(value.nbytes for value in held.values()) / 2**20
    del held

    def memory(what):
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{what}:")[1].split()[0]) / 2**10

    plan = planned([paths[0], paths[0]], paths[1], "ties", {"density": 0.5})
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    checkpoint.merge_checkpoints(plan, tmp_path / "out")
    used, bound = memory("VmHWM") - before, 2 * largest * 3
    assert used < bound < everything, (used, bound, everything)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "gpt2"},
            r"model_type of config\.json\) must be one of 'llama', 'mistral', 'qwen3', got 'gpt2'",
        ),
        ({"attention_bias": True}, "mixtral has no biases"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "windows of different lengths"),
    ],
)
def test_kinds_that_have_no_mixture(tmp_path, config, message):
    path = folder(tmp_path / "a", state(0), **config)
    with pytest.raises(ValueError, match=message):
        planned([path], k=1)


def test_what_does_not_fit_is_refused(three, tmp_path):
    for change, message in (
        ({"model.layers.0.mlp.extra.weight": torch.ones(2, 2)}, "'model.layers.0.mlp.extra.weight' has no place"),
        ({"model.layers.0.mlp.up_proj.weight": None}, "layer 'model.layers.0' has no up_proj"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(4)}, "q_proj.bias' has no place in mixtral"),
    ):
        held = {name: value for name, value in {**state(0), **change}.items() if value is not None}
        path = folder(tmp_path / f"m{len(list(tmp_path.iterdir()))}", held)
        with pytest.raises(ValueError, match=message):
            planned([path], k=1)
    plain = folder(tmp_path / "plain", {"w.weight": torch.ones(2, 2)})
    for call, message in (
        (lambda: planned([plain], k=1), "has no feed-forward weights"),
        (lambda: planned(three, k=4), "experts_per_token must be at most the number of models, 3"),
        (lambda: planned(three, k=0), "experts_per_token must be an integer >= 1"),
        (lambda: planned(three, average=("lm_head*",)), r"pattern 'lm_head\*' fits no weight outside the experts"),
        (lambda: checkpoint.Recipe("linear", ("a",), average=("x",)), "give experts_per_token too"),
        (lambda: checkpoint.Recipe("linear", ("a",), None, {"seed": 1}), "linear has no option 'seed'"),
        (lambda: planned(three, how={"seed": -1}), "seed must be an integer >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    bad = state(1)
    bad["model.layers.1.mlp.down_proj.weight"][2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"bad: tensor 'model.layers.1.mlp.down_proj.weight' holds nan at entry 15"):
        checkpoint.check_values(planned([three[0], folder(tmp_path / "bad", bad, hidden_size=4)]))


def test_what_a_configuration_leaves_out_stays_what_it_was():
    made = sparse_config({"model_type": "llama", "num_attention_heads": 4, "auto_map": {}}, 3, 2)
    assert made["num_key_value_heads"] == 4
    assert (made["rope_theta"], made["rms_norm_eps"], made["sliding_window"]) == (10_000.0, 1e-6, None)
    assert "auto_map" not in made
    assert "rope_theta" not in sparse_config({"model_type": "mistral", "rope_parameters": {"rope_theta": 1.0}}, 2, 1)


def test_recipes_in_yaml(tmp_path):
    file = tmp_path / "recipe.yaml"
    text = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {seed: 3}\nexperts_per_token: 1\n"
    file.write_text(text + "average: ['*embed*']\n")
    recipe = checkpoint.read_recipe(file)
    assert (recipe.experts_per_token, recipe.average, recipe.seed) == (1, ("*embed*",), 3)
    for bad, message in (
        (text + "average: x", "average must be a list of patterns"),
        (text.replace("1", "[]"), "must be an integer"),
    ):
        file.write_text(bad)
        with pytest.raises(ValueError, match=message):
            checkpoint.read_recipe(file)
