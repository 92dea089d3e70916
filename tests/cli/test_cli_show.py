import sys

import pytest
import torch

import omnimix as om
from omnimix.cli import main

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["omnimix", "show", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def size(path):
    with PIL.open(path) as image:
        return image.size


@pytest.fixture
def files(tmp_path):
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        PIL.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    return "red.png", "blue.png"


def test_two_image_files_over_lam(call, files, tmp_path):
    code, out, err = call("mixup,cutmix", *files, "-o", "sub/picture.png")
    assert (code, out) == (0, "")
    assert "Picture: sub/picture.png" in err
    wide, _ = size(tmp_path / "sub/picture.png")
    assert wide > 700
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["picture.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("selective-mixup",), "0 % (at random 50 %) of pairs are of one class"),
        (("c-mixup",), "the share of the sample itself"),
        (("c-mixup:place=hidden", "airfoil"), "100 % of steps mix hidden states, at block1"),
        (("midpoint-mixup", "digits"), "always 0.5"),
        (("mixup:k=3", "wine"), "met a partner"),
    ],
)
def test_methods_on_data_that_suit_them(call, tmp_path, arguments, said):
    code, _, err = call(*arguments, "-o", "p.png")
    assert code == 0, err
    assert said in err
    assert size(tmp_path / "p.png")[0] > 100


def test_a_table_of_the_user(call, tmp_path):
    lines = ["a,b,place,kind", *(f"{i % 7},{i % 11},{'xy'[i % 2]},{'uvw'[i % 3]}" for i in range(60))]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    code, _, err = call("lisa", "mine.csv", "--target", "kind", "--domain", "place", "-o", "p.png")
    assert code == 0, err
    assert "of one domain" in err


def hidden_lines(monkeypatch, call, *arguments):
    from omnimix.cli import show

    drawn = []
    monkeypatch.setattr(show, "_grid", lambda figure, lines: drawn.extend(lines))
    code, _, err = call(*arguments, "-o", "p.png")
    assert code == 0, err
    return drawn, err


def test_hidden_mixing_is_drawn_where_it_happens(monkeypatch, call):
    lines, err = hidden_lines(monkeypatch, call, "manifold-mixup", "digits")
    assert [line.name.replace("\n", " ") for line in lines] == [
        f"manifold-mixup at {place}" for place in ("input", "block1", "block2")
    ]
    assert "mean over channels" in err
    for line, side in zip(lines, (8, 4, 2), strict=True):
        images = [image for image, _ in line.cells]
        assert [tuple(image.shape) for image in images] == [(1, side, side)] * 5
        first, last = images[0], images[-1]
        for image, lam in zip(
            images, (1.0, 0.75, 0.5, 0.25, 0.0), strict=True
        ):  # the mean of a mix is the mix of means
            torch.testing.assert_close(image, lam * first + (1 - lam) * last)


def test_a_tap_without_maps_shows_the_pairs(monkeypatch, call):
    lines, _ = hidden_lines(monkeypatch, call, "manifold-mixup:taps=block3", "digits")
    assert {line.name for line in lines} == {"mixed at block3, which is no map"}
    assert all(len(line.cells) == 2 for line in lines)


REFUSES = {
    "adautomix": "learns how to mix along with the network",
    "automix": "learns how to mix along with the network",
    "erm": "mixes nothing",
    "mixstyle": "hidden states in a pass of its own",
    "regmix-regression": "give k as a number",
    "resampling": "mixes nothing",
    "samix": "learns how to mix along with the network",
}
"""What of the methods that mix samples cannot be drawn, and why."""


@pytest.mark.filterwarnings("ignore:alignmixup at")
def test_every_method_on_samples_is_drawn_or_says_why_not(monkeypatch, tmp_path):
    from omnimix.cli import show
    from omnimix.compare.report import style
    from omnimix.compare.spec import parse_specs
    from omnimix.core import registry
    from omnimix.core.task import Classification
    from omnimix.data import Source

    draw = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 32, 32, generator=draw)
    for i in range(4):  # noise alone is as salient here as there: a bright quarter each
        quarter = x[i, :, 16 * (i // 2) :, 16 * (i % 2) :][:, :16, :16].clone()
        x[i] *= 0.02
        x[i, :, 16 * (i // 2) :, 16 * (i % 2) :][:, :16, :16] = quarter.round()
    tiny = Source("tiny", x, torch.arange(4), Classification(4), "image")
    own, drawn = show._source, []
    monkeypatch.setattr(
        show, "_source", lambda spec, method, asked: tiny if image(spec.name) else own(spec, method, asked)
    )
    monkeypatch.setattr(style, "png", lambda out, figure, *size, **options: drawn.append(size))
    monkeypatch.setattr(show, "_grid", None)

    def image(name):
        return "image" in registry.info(name).inputs

    def lines_of(one, *rest, of=show._lines):
        lines = of(one, *rest)
        method = one.shown.method
        cells = [image for line in lines for image, _ in line.cells]
        assert lines, method
        assert all(line.cells for line in lines), method
        assert all(torch.isfinite(cell).all() for cell in cells), method
        assert any(not any(torch.equal(cell, x) for x in tiny.x) for cell in cells), (
            f"{method} draws samples as they are"
        )
        return lines

    monkeypatch.setattr(show, "_lines", lines_of)
    refused = {}
    for name in (name for name in registry.methods(level="samples") if registry.info(name).package == "omnimix"):
        before = len(drawn)
        try:
            (said,) = show.picture(parse_specs(name), show._Asked((), None, None, 1, 6), tmp_path / "p.png")
            assert said.startswith(name)
            assert len(drawn) == before + 1
        except ValueError as error:
            refused[name] = str(error)
    assert set(refused) == set(REFUSES), refused
    for name, reason in REFUSES.items():
        assert reason in refused[name]
        assert refused[name].startswith(name)
        assert "_Eye" not in refused[name]
        assert "\n" not in refused[name]


def test_only_what_changed_is_drawn_of_what_the_network_is_given(monkeypatch, call, files):
    for name in ("augmix", "recursivemix"):
        lines, err = hidden_lines(monkeypatch, call, name, *files)
        assert "a way of its own" in err
        samples, given = lines
        assert 0 < len(samples.cells) == len(given.cells) <= 5
        assert all(not torch.equal(a, b) for (a, _), (b, _) in zip(samples.cells, given.cells, strict=True))


def test_labels_that_the_network_moves_are_said(call, files):
    assert "before the forward pass" in call("sumix", *files, "-o", "p.png")[2]
    assert "not trained" in call("snapmix", *files, "-o", "p.png")[2]
    assert "in place of the input gradient" in call("puzzle-mix:blocks=2", *files, "-o", "p.png")[2]


def test_a_batch_that_is_mixed_jointly_is_drawn_as_it_is(monkeypatch, call, files):
    lines, _ = hidden_lines(monkeypatch, call, "co-mixup:blocks=2", *files)
    assert len(lines) == 1
    assert len(lines[0].cells) == len(files)
    for image, text in lines[0].cells:
        assert image.shape == lines[0].cells[0][0].shape
        assert abs(sum(float(part.split()[0]) for part in text.split(", ")) - 1) < 0.02


def test_quiet_says_nothing(call, files):
    assert call("mixup", *files, "-q", "-o", "p.png") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a method"),
        (("mixup", "--all"), "name a method"),
        (("mixpu",), "did you mean"),
        (("erm",), "mixes nothing"),
        (("resampling",), "mixes nothing"),
        (("regmix-regression",), "give k as a number"),
        (("mixup", "red.png"), "two images or more"),
        (("mixup", "gone.png", "red.png"), "gone.png cannot be read"),
        (("mixup", "digits", "wine"), "name one data set"),
        (("c-mixup", "digits"), "is for regression"),
        (("cutmix", "wine"), "needs image inputs"),
        (("lisa", "wine"), "domain"),
        (("mixup", "red.png", "blue.png", "-o", "picture.jpg"), ".png"),
        (("mixup,c-mixup", "wine"), "is for regression"),
        (("mixup,manifold-mixup", "wine"), "one at a time"),
    ],
)
def test_mistakes_are_one_message_and_status_2(call, files, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


class HalfAndHalf(om.Method):
    """Mixes in a way of its own."""

    def loss(self, model, batch, **streams):
        batch = om.Batch.of(batch)
        return self.task.mean_loss(model(0.5 * (batch.x + batch.x.flip(0))), batch.y)


@pytest.fixture
def plugin(monkeypatch):
    from omnimix.core import registry

    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    om.register("half-and-half", paper="a test")(HalfAndHalf)


def test_a_plug_in_that_mixes_by_itself(call, plugin, files):
    code, _, err = call("half-and-half", *files, "-o", "p.png")
    assert code == 0, err
    assert "a way of its own" in err


def test_all_is_a_folder_with_a_plain_line_a_method(call, tmp_path, monkeypatch):
    from omnimix.core import registry

    monkeypatch.setattr(registry, "methods", lambda *_: ["c-mixup", "erm", "lisa"])
    torch.manual_seed(0)
    code, out, err = call("--all", "-o", "gallery")
    assert (code, out) == (0, "")
    assert sorted(path.name for path in (tmp_path / "gallery").iterdir()) == ["c-mixup.png", "lisa.png"]
    assert "[2/3] erm mixes nothing" in err
    assert "\x1b" not in err
