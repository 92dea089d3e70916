import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.networks import create
from omnimix.samples.operation import AugMix, augmix, jensen_shannon
from omnimix.samples.operation.augmix import OPERATIONS, augment


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def images(rows=12, size=(18, 26)):
    """Smooth images of different contrast, whole numbers 0..255."""
    coarse = torch.rand(rows, 3, 4, 5, generator=draw())
    smooth = F.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (255 * smooth * torch.rand(rows, 1, 1, 1, generator=draw(1))).round()


def by_pil(name, image, level, sign):
    pil = pytest.importorskip("PIL.Image")
    from PIL import ImageOps

    picture = pil.fromarray(image.permute(1, 2, 0).byte().numpy())
    width, height = picture.size
    if name == "autocontrast":
        done = ImageOps.autocontrast(picture)
    elif name == "equalize":
        done = ImageOps.equalize(picture)
    elif name == "posterize":
        done = ImageOps.posterize(picture, 4 - int(level * 4 / 10))
    elif name == "solarize":
        done = ImageOps.solarize(picture, 256 - int(level * 256 / 10))
    elif name == "rotate":
        done = picture.rotate(sign * int(level * 3), resample=pil.Resampling.BILINEAR)
    else:
        matrix = {
            "shear_x": (1, sign * level * 0.03, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, sign * level * 0.03, 1, 0),
            "translate_x": (1, 0, sign * int(level * width / 30), 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, sign * int(level * height / 30)),
        }[name]
        done = picture.transform(picture.size, pil.Transform.AFFINE, matrix, resample=pil.Resampling.BILINEAR)
    return torch.from_numpy(np.array(done)).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pil(name):
    x = images()
    level, sign = 10 * torch.rand(12, generator=draw(2)), torch.arange(12) % 2 * 2 - 1
    ours = augment(x, torch.full((12,), OPERATIONS.index(name)), level, sign)
    expected = torch.stack([by_pil(name, i, float(v), int(s)) for i, v, s in zip(x, level, sign, strict=True)])
    assert (ours - expected).abs().max() <= 1  # one grey level, where rounding goes either way
    assert (ours != expected).float().mean() < 0.03
    assert (ours != x).any()


def test_every_image_gets_its_own_operation():
    x = images(9)
    level, sign = torch.full((9,), 5.0), torch.ones(9, dtype=torch.long)
    together = augment(x, torch.arange(9), level, sign)
    for n in range(9):
        assert torch.equal(together[n], augment(x[n : n + 1], torch.tensor([n]), level[:1], sign[:1])[0])
    assert torch.equal(augment(x, torch.full((9,), -1), level, sign), x)
    flat = torch.full((9, 3, 5, 7), 90.0)  # one grey: nothing to stretch
    for name in ("autocontrast", "equalize"):
        assert torch.equal(augment(flat, torch.full((9,), OPERATIONS.index(name)), level, sign), flat)


def test_versions_are_mixes_within_the_range():
    x = images() / 255
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    centre, spread = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    plain = augmix(x, mean=(0, 0, 0), std=(1, 1, 1), generator=draw(1))
    assert plain.min() >= 0
    assert plain.max() <= 1
    assert (plain != x).flatten(1).any(dim=1).all()
    normalised = augmix((x - centre) / spread, mean=mean, std=std, generator=draw(1))
    torch.testing.assert_close(normalised * spread + centre, plain, atol=1e-5, rtol=0)
    assert torch.equal(augmix(x, generator=draw(1)), augmix(x, generator=draw(1)))
    assert not torch.equal(augmix(x, generator=draw(1)), augmix(x, generator=draw(2)))
    black = torch.zeros(2, 3, 6, 7)
    torch.testing.assert_close(augmix(black, generator=draw()), black)


def test_the_range_is_that_of_the_batch_unless_given():
    x = images()
    x[0, :, 0, 0], x[1, :, 0, 0] = 0.0, 255.0
    x, slope = x / 255, torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    given = augmix(x, mean=(0, 0, 0), std=(1, 1, 1), generator=draw(1))
    torch.testing.assert_close(augmix(slope * x - 3, generator=draw(1)), slope * given - 3)


def test_jensen_shannon():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    assert float(jensen_shannon(p.log().unsqueeze(1))) == pytest.approx(0.0404648, abs=1e-6)
    same = torch.randn(1, 4, 5, generator=draw()).expand(3, 4, 5)
    torch.testing.assert_close(jensen_shannon(same), torch.zeros(4), atol=1e-6, rtol=0)
    far = torch.full((3, 1, 3), -1e4)
    far[[0, 1, 2], 0, [0, 1, 2]] = 0
    assert float(jensen_shannon(far)) == pytest.approx(math.log(3), abs=1e-5)


def test_the_loss_is_clean_cross_entropy_and_consistency_in_one_pass():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create("small-cnn", (3, 8, 8), 4)
    x, y, task = torch.randn(6, 3, 8, 8, generator=draw()), torch.arange(6) % 4, om.Classification(4)
    method = AugMix(weight=5.0).setup(model, task, generator=draw(1))
    versions = AugMix().setup(model, task, generator=draw(1)).versions(x)
    assert torch.equal(versions[:6], x)
    output = model(versions)
    p = output.view(3, 6, 4).softmax(dim=2)
    mean = p.mean(dim=0).log()
    divergence = sum(F.kl_div(mean, q, reduction="batchmean") for q in p) / 3
    torch.testing.assert_close(method.loss(model, (x, y)), F.cross_entropy(output[:6], y) + 5 * divergence)


@pytest.mark.parametrize(("name", "value"), [("severity", 0.0), ("severity", 11.0), ("width", 0), ("weight", 0.0)])
def test_refusals(name, value):
    with pytest.raises(ValueError, match=name):
        AugMix(**{name: value})


def test_refused_images():
    for x, options, word in (
        (torch.rand(2, 5), {}, "images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {}, "floating"),
        (torch.rand(2, 3, 4, 4), {"mean": (0, 0, 0)}, "together"),
        (torch.rand(2, 3, 4, 4), {"mean": (0, 0), "std": (1, 1)}, "channels"),
    ):
        with pytest.raises(ValueError, match=word):
            augmix(x, **options)
