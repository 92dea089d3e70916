from dataclasses import replace

import numpy as np
import pytest
import torch

from omnimix.compare.protocol import PROTOCOLS, Hold, Splits, adjust, choose, prepare, split
from omnimix.compare.spec import Spec, create
from omnimix.core.task import Classification, Regression
from omnimix.data import Source, flip_labels, load


def regression(rows=100, **extra):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(rows, 3, generator=g) * torch.tensor([1.0, 50.0, 0.1])
    return Source("toy", x, 7 + 3 * x[:, 0], Regression(1), "table", **extra)


def classes(counts=(50, 30, 20), **extra):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x = torch.rand(len(y), 2, generator=torch.Generator().manual_seed(0))
    names = tuple("abc"[: len(counts)])
    return Source("toy", x, y, Classification(len(counts)), "table", class_names=names, **extra)


def default(source):
    return choose("default", source)


def test_the_parts_cover_all_rows_once_and_depend_on_the_seed_only():
    source = regression(101)
    parts = split(default(source), source, 3)
    assert [len(p) for p in parts] == [61, 20, 20]
    assert torch.cat(parts).sort().values.equal(torch.arange(101))
    assert all(a.equal(b) for a, b in zip(parts, split(default(source), source, 3), strict=True))
    assert not parts.test.equal(split(default(source), source, 4).test)


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_split_in_equal_proportions(seed):
    source = classes()
    parts = split(default(source), source, seed)
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        counts = torch.bincount(source.y[part], minlength=3)
        assert (counts - share * torch.tensor([50, 30, 20])).abs().max() <= 1.5


def test_official_test_rows_are_kept_and_validation_comes_from_training():
    source = classes(official={"train": torch.arange(0, 100, 2), "test": torch.arange(1, 100, 2)})
    parts = split(default(source), source, 0)
    assert parts.test.equal(source.official["test"])
    assert torch.cat((parts.train, parts.valid)).sort().values.equal(source.official["train"])
    assert (len(parts.train), len(parts.valid)) == (38, 12)
    given = replace(source, official={**source.official, "valid": torch.tensor([1, 3])}, digest="")
    assert split(default(given), given, 0).valid.equal(torch.tensor([1, 3]))


def test_digits_and_c_mixup_have_the_sizes_of_their_cards():
    digits, airfoil, no2 = load("digits"), load("airfoil"), load("no2")
    assert [len(p) for p in split(choose("default", digits), digits, 0)] == [400, 397, 1000]
    assert [len(p) for p in split(choose("c-mixup", airfoil), airfoil, 0)] == [1003, 300, 200]
    assert [len(p) for p in split(choose("c-mixup", no2), no2, 0)] == [200, 200, 100]
    budget = choose("c-mixup", airfoil).budget
    assert (budget.epochs, budget.batch_size, budget.lr, budget.drop_last, budget.select) == (
        100,
        16,
        1e-2,
        True,
        "best",
    )
    protocol = choose("c-mixup", no2)
    budget = protocol.budget
    assert (budget.optimizer, budget.lr, budget.batch_size, budget.epochs) == ("adam", 1e-2, 32, 100)
    method = create(Spec("c-mixup"), protocol.methods["c-mixup"])
    assert (method.pairing.bandwidth, method.ratio.alpha, method.place) == (1.2, 2, "input")
    pilot = choose("default", digits).budget
    assert (pilot.epochs, pilot.batch_size, pilot.lr, pilot.select) == (200, 50, 1e-3, "last")


def test_protocols_are_refused_where_they_have_no_meaning():
    with pytest.raises(ValueError, match="no protocol 'c-mix'"):
        choose("c-mix", regression())
    with pytest.raises(ValueError, match="built-in data sets airfoil, no2, not for 'toy'"):
        choose("c-mixup", regression())
    with pytest.raises(ValueError, match="too few"):
        split(default(regression(3)), regression(3), 0)
    small = replace(regression(50), name="airfoil")
    with pytest.raises(ValueError, match="needs 1503 rows"):
        split(PROTOCOLS["c-mixup"]["airfoil"], small, 0)


def test_a_users_file_with_the_name_of_a_built_in_set_goes_by_its_kind(tmp_path):
    path = tmp_path / "digits.csv"
    path.write_text("a,y\n" + "".join(f"{i % 7}.5,{i / 3}\n" for i in range(30)))
    mine = load(path, target="y")
    assert mine.name == "digits"
    assert choose("default", mine) is PROTOCOLS["default"]["table"]
    with pytest.raises(ValueError, match="built-in data sets airfoil"):
        choose("c-mixup", replace(regression(), name="airfoil"))


def test_what_the_user_asks_for_replaces_the_protocols_own():
    protocol = default(regression())
    changed = adjust(protocol, net="mlp:hidden=8", epochs=3, batch=7, lr=0.5)
    assert (changed.network, changed.budget.epochs, changed.budget.batch_size, changed.budget.lr) == (
        "mlp:hidden=8", 3, 7, 0.5,
    )  # fmt: skip
    assert adjust(protocol) == protocol


def test_standard_scaling_looks_at_training_rows_only():
    source = regression()
    parts = Splits(torch.arange(60), torch.arange(60, 80), torch.arange(80, 100))
    data = prepare(default(source), source, parts)
    assert torch.allclose(data.train.x.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(data.train.x.std(0, unbiased=False), torch.ones(3), atol=1e-5)
    mean, deviation = source.x[:60].mean(0), source.x[:60].std(0, unbiased=False)
    assert torch.allclose(data.test.x, (source.x[80:] - mean) / deviation, atol=1e-5)


def test_c_mixup_splits_as_its_reference_code_does():
    source = load("airfoil")
    parts = split(choose("c-mixup", source), source, 1)
    order = np.random.RandomState(1).permutation(1503)
    assert sorted(order[:1003].tolist()) == parts.train.tolist()
    assert sorted(order[1303:].tolist()) == parts.test.tolist()


def test_c_mixup_scales_by_the_extremes_of_all_rows_and_leaves_labels_alone():
    source = load("airfoil")
    protocol = choose("c-mixup", source)
    data = prepare(protocol, source, split(protocol, source, 0))
    x = torch.cat((data.train.x, data.valid.x, data.test.x))
    assert x.amin(0).tolist() == [0.0] * 5
    assert x.amax(0).tolist() == [1.0] * 5
    assert data.target_scale is None
    assert data.train.y.mean() > 100


def test_standardised_targets_come_back_in_raw_units():
    source = regression()
    parts = split(default(source), source, 0)
    data = prepare(default(source), source, parts)
    offset, spread = data.target_scale
    assert data.train.y.mean().abs() < 1e-5
    assert torch.allclose(offset + spread * data.test.y, source.y[parts.test], atol=1e-4)


def test_label_noise_changes_training_and_validation_labels_only():
    source = classes((500, 500))
    protocol = default(source)
    parts = split(protocol, source, 0)
    noisy = prepare(protocol, source, parts, 0.4, 1)
    labels, chosen = flip_labels(source.y, 2, 0.4, torch.Generator().manual_seed(1))
    for part, rows in ((noisy.train, parts.train), (noisy.valid, parts.valid)):
        assert part.y.equal(labels[rows])
        assert part.y[~chosen[rows]].equal(source.y[rows][~chosen[rows]])
    assert noisy.test.y.equal(source.y[parts.test])
    assert noisy.train.y.equal(prepare(protocol, source, parts, 0.4, 1).train.y)
    assert not noisy.train.y.equal(prepare(protocol, source, parts, 0.4, 2).train.y)


def test_the_noise_of_a_row_does_not_depend_on_what_is_held_out():
    source = replace(classes((60, 60)), domain=torch.arange(120) % 3, domain_names=("a", "b", "c"), digest="")
    protocol, seen = choose("domains", source), []
    for out in range(3):
        parts = split(protocol, source, 0, Hold((out,)))
        data, found = prepare(protocol, source, parts, 0.5, 1), torch.full((120,), -1)
        found[parts.train], found[parts.valid] = data.train.y, data.valid.y
        seen.append(found)
    for one, other in ((0, 1), (1, 2)):
        both = (seen[one] >= 0) & (seen[other] >= 0)
        assert both.sum() == 40
        assert seen[one][both].equal(seen[other][both])
    assert (seen[0][seen[0] >= 0] != source.y[seen[0] >= 0]).any()


def test_large_images_are_scaled_batch_by_batch(monkeypatch):
    x = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = Source("toy", x, torch.arange(40) % 2, Classification(2), "image", class_names=("a", "b"))
    protocol = default(source)
    parts = split(protocol, source, 0)
    whole = prepare(protocol, source, parts).train
    monkeypatch.setattr("omnimix.compare.protocol.IN_MEMORY", 0)
    lazy = prepare(protocol, source, parts).train
    assert whole.in_memory
    assert not lazy.in_memory
    assert len(lazy) == len(whole)
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(lazy.take(rows)[0], whole.take(rows)[0])
