"""Low-rank adapters: products are merged, not factors."""

import pytest
import torch

from omnimix.models import merge
from omnimix.models.merge.lora import LowRank, adapter, concatenate, extract, merge_adapters, truncate


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_mean_of_products_is_not_the_product_of_means():
    one = LowRank(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]]))
    two = LowRank(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 1.0]]))
    mean = concatenate([{"w": one}, {"w": two}])["w"]
    assert torch.equal(mean.dense(), torch.diag(torch.tensor([0.5, 0.5])))
    assert torch.equal((one.up + two.up) / 2 @ ((one.down + two.down) / 2), torch.full((2, 2), 0.25))


def test_concatenation_is_the_dense_sum_and_truncation_drops_singular_values():
    parts = [LowRank(noise(6, 2, seed=i), noise(2, 5, seed=i + 9)) for i in range(3)]
    joined = concatenate([{"w": part} for part in parts], [0.5, -1.0, 2.0])["w"]
    dense = 0.5 * parts[0].dense() - parts[1].dense() + 2 * parts[2].dense()
    torch.testing.assert_close(joined.dense(), dense, atol=1e-5, rtol=1e-5)
    assert joined.down.shape == (6, 5)
    values = torch.linalg.svdvals(dense)
    for rank in (1, 3, 9):
        kept, error = truncate(joined, rank)
        assert torch.linalg.matrix_rank(kept.dense()) <= rank
        assert error == pytest.approx(float((values[rank:] ** 2).sum()), abs=1e-4)
        assert float(((kept.dense() - dense) ** 2).sum()) == pytest.approx(error, abs=1e-4)
    change, error = extract(dense + 1, torch.ones(6, 5), 5)
    torch.testing.assert_close(change.dense(), dense, atol=1e-4, rtol=1e-4)
    assert error == pytest.approx(0, abs=1e-6)
    model, base = noise(6, 5).bfloat16(), noise(6, 5, seed=1).bfloat16()  # whose difference bfloat16 cannot hold
    torch.testing.assert_close(extract(model, base, 5)[0].dense(), model.float() - base.float(), atol=1e-5, rtol=0)


def test_an_adapter_as_it_is_written():
    down, up = noise(4, 5), noise(6, 4, seed=1)
    key = "base_model.model.layers.0.q_proj"
    tensors = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    for config, scale in (
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 12}}, 3.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"proj": 4, r"layers\.\d+\.[qk]_proj": 12}}, 3.0),
        ({"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian"}, 2.0),
    ):
        (name, change), = adapter(tensors, config).items()  # fmt: skip
        assert name == "layers.0.q_proj.weight"
        torch.testing.assert_close(change.dense(), scale * up @ down)
    for bad, config, message in (
        (tensors, {"use_dora": True}, "use_dora"),
        ({f"{key}.lora_A.weight": down}, {}, r"needs a lora_B of shape \(out, 4\), got None"),
        ({f"{key}.lora_B.weight": up}, {}, "has no lora_A beside it"),
        (tensors, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' belongs to a base"),
        (tensors, {"alpha_pattern": {"(": 1}}, "alpha_pattern holds no regular expression"),
        ({**tensors, "head.weight": up}, {}, "'head.weight' is no lora_A or lora_B"),
    ):
        with pytest.raises(ValueError, match=message):
            adapter(bad, config)


def test_merging_adapters_is_merging_the_dense_models():
    base = {"w": noise(6, 5), "v": noise(3, seed=4), "step": torch.tensor(3)}
    parts = [{"w": LowRank(noise(6, 2, seed=i), noise(2, 5, seed=i + 9))} for i in range(2)]
    models = [{**base, "w": base["w"] + part["w"].dense()} for part in parts]
    for merger in (merge.TaskArithmetic([0.5, 0.5]), merge.Ties(density=0.5, trim="tensor"), merge.DareLinear(seed=2)):
        merged, dense = merge_adapters(base, parts, merger), merger(models, base)
        torch.testing.assert_close(merged["w"], dense["w"], atol=1e-6, rtol=1e-6)
        assert torch.equal(merged["v"], base["v"])
    with pytest.raises(ValueError, match="adapter 0 changes 'x', which the base does not have"):
        merge_adapters(base, [{"x": parts[0]["w"]}], merge.TaskArithmetic())
    with pytest.raises(ValueError, match="one number an adapter: got 1 for 2"):
        concatenate(parts, [1.0])
