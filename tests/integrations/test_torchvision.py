import collections
from importlib import import_module

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

import omnimix as om

pytest.importorskip("torchvision")
import PIL.Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from omnimix.core.pairing import InBatch
from omnimix.core.ratio import Constant
from omnimix.integrations.torchvision import CutMix, Mix, MixUp

G = torch.Generator().manual_seed(0)
X = torch.rand(7, 3, 12, 10, generator=G)
Y = torch.arange(7) % 4
Pair = collections.namedtuple("Pair", "image label")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Roll(InBatch):
    """torchvision's partners: the row before."""

    def partners(self, batch, generator):
        return torch.arange(len(batch)).roll(1).unsqueeze(1)


def both(name, lam, monkeypatch, **options):
    """torchvision's transform and ours, with the same share, partners and (for the box) centre."""
    theirs = getattr(v2, name)(**options)
    monkeypatch.setattr(theirs, "_dist", type("Fixed", (), {"sample": lambda self, _: torch.tensor(lam)})())
    ours = getattr(om.integrations.torchvision, name)(**options)
    ours.method.pairing, ours.method.ratio = Roll(), Constant(lam)
    if name == "CutMix":
        monkeypatch.setattr(torch, "randint", lambda high, *_, size=None, **k: torch.tensor([high // 3]))
        monkeypatch.setattr(
            import_module("omnimix.samples.operation.cutmix"),
            "integers",
            lambda high, *_, **k: torch.tensor([high // 3]),
        )
    return theirs, ours


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, atol=1e-6)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == b


ONE_HOT = torch.nn.functional.one_hot(Y, 4)
VIDEO = tv_tensors.Video(torch.rand(7, 2, 3, 12, 10, generator=G))
SAMPLES = {
    "list": [X, Y],
    "tuple": (X, Y),
    "named tuple": Pair(X, Y),
    "one-hot integers": (X, ONE_HOT),
    "soft doubles": (X, torch.softmax(torch.rand(7, 4, generator=G), 1).double()),
    "dict": {"image": X, "labels": Y, "path": ["a"] * 7, "size": torch.ones(7)},
    "key that contains label": {"image": X, "a_Label": Y, "Labels": Y + 0},
    "dict second": (X, {"id": torch.arange(7), "label": Y}),
    "more entries": (X, Y, torch.ones(7, 3, 12, 10), None, "text", 3),
    "image": (tv_tensors.Image(X), Y, torch.ones(7, 3, 12, 10)),
    "two images": {"a": tv_tensors.Image(X), "b": {"c": tv_tensors.Image(X[:, :1])}, "labels": Y},
    "two dtypes": {"a": tv_tensors.Image(X), "b": tv_tensors.Image(X.double()), "labels": Y},
    "video": {"a": tv_tensors.Image(X), "b": VIDEO, "labels": Y},
    "half": (X.half(), Y),
}


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
@pytest.mark.parametrize("case", SAMPLES)
def test_structure_types_and_values_are_those_of_torchvision(name, case, monkeypatch):
    theirs, ours = both(name, 0.7, monkeypatch, num_classes=4)
    sample = SAMPLES[case]
    before = default_collate([sample[0]]) if case == "list" else None
    if case == "half":
        expected, found = theirs(*sample), ours(*sample)
        assert found[0].dtype == torch.float16
        assert torch.allclose(expected[0], found[0], atol=2e-3)
        return
    same(theirs(sample), ours(sample))
    if before is not None:
        assert torch.equal(before[0], X)


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_a_labels_getter_gets_the_whole_input(name, monkeypatch):
    theirs, ours = both(name, 0.4, monkeypatch, num_classes=4, labels_getter=lambda sample: sample["deep"]["target"])
    sample = {"image": X, "deep": {"target": Y}}
    same(theirs(sample), ours(sample))


def test_bytes_are_pasted_as_torchvision_does(monkeypatch):
    theirs, ours = both("CutMix", 0.4, monkeypatch, num_classes=4)
    sample = ((255 * X).byte(), Y)
    same(theirs(*sample), ours(*sample))
    with pytest.raises(ValueError, match="floating point"):
        MixUp(num_classes=4)(*sample)


def test_images_of_different_sizes_share_no_mask():
    sample = {"a": tv_tensors.Image(X), "b": tv_tensors.Image(X[:, :, ::2]), "labels": Y}
    assert MixUp(num_classes=4)(sample)["b"].shape == (7, 3, 6, 10)
    with pytest.raises(ValueError, match=r"different sizes alike, got \[\(6, 10\), \(12, 10\)\]"):
        CutMix(num_classes=4)(sample)


def test_images_of_one_sample_get_one_mask():
    sample = {"a": tv_tensors.Image(X), "b": tv_tensors.Image(X.double()), "labels": Y}
    for name in ("cutmix", "fmix"):
        found = Mix(name, num_classes=4, per_sample=True, generator=generator())(sample)
        assert torch.equal(found["a"], found["b"].float())


def test_labels_before_images_are_no_image():
    found = MixUp(num_classes=4, generator=generator())({"labels": Y, "image": X})
    assert found["labels"].shape == (7, 4)
    assert not torch.equal(found["image"], X)


def test_inputs_are_left_alone_and_the_generator_decides():
    x, y = X.clone(), Y.clone()
    first = MixUp(num_classes=4, generator=generator(3))(x, y)
    again = MixUp(num_classes=4, generator=generator(3))(x, y)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    same(first, again)
    assert not torch.equal(first[0], MixUp(num_classes=4, generator=generator(4))(x, y)[0])


@pytest.mark.parametrize("name", ["mixup", "cutmix", "fmix", "midpoint-mixup"])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_methods_by_name_in_a_compose_and_as_collate_function(name, rows):
    samples = list(TensorDataset(X[:rows], Y[:rows]))
    mix = Mix(name, num_classes=4)
    for collate in (v2.Compose([default_collate, mix]), mix.collate):
        x, target = collate(samples)
        assert x.shape == (rows, 3, 12, 10)
        assert target.shape == (rows, 4)
        assert torch.allclose(target.sum(dim=1), torch.ones(rows))


def test_labels_follow_the_pixels():
    flat = Y.float().view(-1, 1, 1, 1).expand(7, 1, 12, 10)
    for name in ("mixup", "cutmix", "fmix"):
        x, target = Mix(name, num_classes=4, generator=generator(1), per_sample=True)(flat, Y)
        assert torch.allclose(x.mean(dim=(1, 2, 3)), target @ torch.arange(4.0), atol=1e-5)
        assert len(target.max(dim=1).values.unique()) > 2


def test_a_step_that_does_not_mix_gives_soft_labels():
    x, target = Mix("cutmix", probability=0.0, num_classes=4)(X, Y)
    assert torch.equal(x, X)
    assert torch.equal(target, ONE_HOT.float())


def test_real_labels_are_mixed_without_classes():
    y = torch.rand(7, generator=generator(2))
    x, target = MixUp(generator=generator())(y.view(-1, 1, 1, 1).expand(7, 1, 2, 2), y)
    assert torch.allclose(x[:, 0, 0, 0], target)
    assert target.shape == (7,)


def test_workers_draw_differently():
    twice = TensorDataset(X[:4].repeat(2, 1, 1, 1), Y[:4].repeat(2))
    loader = DataLoader(twice, 4, collate_fn=MixUp(num_classes=4).collate, num_workers=2)
    (first, _), (second, _) = list(loader)
    assert not torch.equal(first, second)


def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    for name in ("mixup", "cutmix", "fmix"):
        cpu = Mix(name, num_classes=4, generator=generator(5))(X, Y)
        gpu = Mix(name, num_classes=4, generator=generator(5))(X.cuda(), Y.cuda())
        assert gpu[0].device.type == gpu[1].device.type == "cuda"
        same(cpu, tuple(value.cpu() for value in gpu))


BOX = tv_tensors.BoundingBoxes(torch.zeros(7, 4), format="XYXY", canvas_size=(12, 10))


@pytest.mark.parametrize(
    ("sample", "options", "message"),
    [
        ((X, Y), {}, "num_classes = None: it is needed for class ids"),
        ((X, Y.float()), {"num_classes": 4}, "are real-valued, but num_classes = 4"),
        ((X, ONE_HOT), {"num_classes": 5}, "have 4 classes, but num_classes = 5"),
        ((X, Y + 4), {"num_classes": 4}, r"class ids must lie in 0\.\.3"),
        ((X, X), {"num_classes": 4}, "must be class ids"),
        ((X, Y[:5]), {"num_classes": 4}, "7 images or videos, but 5 labels"),
        ((X[0], Y), {"num_classes": 4}, "mix after default_collate"),
        ((X, "cat"), {"num_classes": 4}, "the default labels_getter needs"),
        ((X,), {"num_classes": 4}, "the default labels_getter needs"),
        ({"image": X, "target": Y}, {"num_classes": 4}, "contains 'label'"),
        ({"labels": Y}, {"num_classes": 4}, "no image or video"),
        ({"image": X, "labels": [1, 2]}, {"num_classes": 4}, "must be a tensor, got list"),
        ((X, Y), {"num_classes": 4, "labels_getter": None}, "must be a tensor, got NoneType"),
        ((X, Y), {"num_classes": 4, "labels_getter": lambda s: s[1] + 0}, "a tensor of the input itself"),
        ((X, Y, PIL.Image.new("L", (2, 2))), {"num_classes": 4}, "does not mix PIL images"),
        ((X, Y, BOX), {"num_classes": 4}, "bounding boxes"),
    ],
)
def test_wrong_inputs_are_refused(sample, options, message):
    with pytest.raises(ValueError, match=message):
        MixUp(**options)(sample)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixxup", {}, "did you mean"),
        ("mixup", {"labels_getter": "first"}, "labels_getter must be"),
        ("mixup", {"alpha": -1}, "alpha must be a number >= 0"),
        ("mixup", {"generator": 3}, "generator must be a torch.Generator"),
        *((name, {}, "more than a mixing") for name in ("erm", "regmixup", "manifold-mixup", "c-mixup", "lisa")),
    ],
)
def test_wrong_arguments_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        Mix(name, **options)


def test_it_says_what_it_is():
    assert repr(MixUp(num_classes=4)) == "MixUp('mixup', num_classes=4)"
