import struct

import numpy as np
import pytest
import torch
from PIL import Image

from omnimix.data import load
from omnimix.data.shifted_digits import ANGLES, STYLES, rotate


@pytest.fixture
def folder(tmp_path):
    """120 small images in IDX files; the top left pixel holds the label."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 90), ("t10k", 30)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(100, 256, (count, 8, 8), dtype=np.uint8)
        images[:, 0, 0] = labels + 1
        for what, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
            (tmp_path / f"{name}-{what}-ubyte").write_bytes(head + values.tobytes())
    return tmp_path


def test_turning_is_counter_clockwise_and_keeps_the_image_at_zero():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 4] = 1  # on the right
    assert rotate(x, 90)[0, 0].argmax() == 2  # at the top
    assert torch.allclose(rotate(x, 0), x, atol=1e-6)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).rotate(30, Image.Resampling.BILINEAR)) / 255
    ours = rotate(torch.from_numpy(pixels / 255).float()[None, None], 30)[0, 0].numpy()
    assert np.abs(ours - wanted)[4:-4, 4:-4].max() < 0.03  # they differ at the edge, and Pillow rounds


def test_every_image_is_in_one_domain_whatever_the_run(folder):
    source = load(f"rotated-mnist:{folder}")
    assert source.domain_names == tuple(map(str, ANGLES))
    assert source.input_shape == (1, 8, 8)
    assert torch.bincount(source.domain).tolist() == [20] * 6
    plain = source.domain == 0
    labels = (source.take(torch.arange(len(source)))[plain, 0, 0, 0] * 255).round().long() - 1
    assert torch.equal(labels, source.y[plain])
    again, other = load(f"rotated-mnist:{folder}"), load(f"rotated-mnist:{folder}", data_seed=1)
    assert again.digest == source.digest != other.digest


def test_colours_follow_the_label_as_often_as_the_domain_says(folder):
    source = load(f"coloured-fashion-mnist:{folder}")
    x = source.take(torch.arange(len(source)))
    used = x.flatten(2).amax(2) > 0
    assert source.input_shape == (2, 8, 8)
    assert (used.sum(1) == 1).all()
    digit = (x[:, :, 0, 0].amax(1) * 255).round().long() - 1
    assert source.class_names == ("5-9", "0-4")
    assert set(source.y.tolist()) == {0, 1}
    assert 0.6 < ((digit < 5).long() == source.y).double().mean() < 0.9  # a quarter is flipped
    agree = used.long().argmax(1) == source.y
    shares = [agree[source.domain == d].double().mean().item() for d in range(3)]
    assert shares[0] > 0.7
    assert shares[1] > 0.6
    assert shares[2] < 0.3


def test_colours_of_mnist(real_data):
    source = load(f"coloured-mnist:{real_data('mnist')}")
    used = source.x.flatten(2).amax(2).gt(0).long().argmax(1)
    for domain, share in enumerate((0.9, 0.8, 0.1)):
        rows = source.domain == domain
        assert (used == source.y)[rows].double().mean().item() == pytest.approx(share, abs=0.01)
    assert source.y.double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_styles_are_gain_and_offset(folder):
    source = load(f"styled-mnist:{folder}")
    assert source.domain_names == tuple(STYLES)
    assert source.input_shape == (1, 14, 14)
    x = source.take(torch.arange(len(source)))
    for number, (gain, offset) in enumerate(STYLES.values()):
        own = (x[source.domain == number] - offset) / gain
        assert own.min() > -1e-6
        assert own.max() < 1 + 1e-5
        assert own.std() > 0.1
    # the same deal as that of turned images: the first domain holds the same labels in the same order
    assert load(f"styled-mnist:{folder}").digest == source.digest


def test_a_cap_comes_after_the_deal(folder):
    whole, some = load(f"rotated-mnist:{folder}"), load(f"rotated-mnist:{folder}", rows=10)
    own = {tuple(row) for row in whole.x.flatten(1).tolist()}
    assert all(tuple(row) in own for row in some.x.flatten(1).tolist())
    assert torch.bincount(some.domain).tolist() == [10] * 6
