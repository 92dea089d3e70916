"""`omnimix show`: a picture of what methods do, on images over lam, on tables as points between their parents."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import app, console, progress, user_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from ..compare.pictures import Shown, Step
    from ..compare.spec import Spec
    from ..core.method import Method, Mix
    from ..core.recipe import Mixed
    from ..data import Source
    from ..train.parts import Part

LAMS = (1.0, 0.75, 0.5, 0.25, 0.0)
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
ROWS = 240
"""Samples of a table that are drawn and paired."""
SIDE = 96
"""Images are made no larger than that before their hidden maps are mixed, which may cost the square of their places."""
SEEN = 160
"""No larger than that where a network looks at them before they are mixed."""
FEW = 8
"""Images that are drawn where all of them have to be made."""
MANY = 8
"""Methods that join more samples than that mix them jointly: their batch is drawn, not one of its rows over lam."""
PHOTOS = "photos"
"""The name of the two photographs that come with scikit-learn."""


@app.command()
def show(
    methods: Annotated[str, typer.Argument(help="With commas: mixup,cutmix:alpha=0.5.")] = "",
    data: Annotated[
        list[str] | None,
        typer.Argument(help="A built-in data set, a file or folder, or image files. Default: one that suits."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write; with --all, a folder.")] = Path(
        "mixing.png"
    ),
    all_methods: Annotated[bool, typer.Option("--all", help="A picture of every method, into the folder OUT.")] = False,
    target: Annotated[str | None, typer.Option(help="The column to predict, for tables.")] = None,
    domain: Annotated[str | None, typer.Option(help="The column whose values are domains.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of images, a line each (of one method).")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Another seed shows other draws.")] = 6,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Draw what methods do to samples: over lam for images, as mixed points for tables.

    Several methods share one picture of images, a line each.
    """
    with user_errors():
        from ..compare.spec import Spec, parse_specs
        from ..core import registry

        if bool(methods) == all_methods:
            raise ValueError("name a method (omnimix show mixup), or say --all; `omnimix methods` lists them")
        asked = _Asked(tuple(data or ()), target, domain, pairs, seed)
        messages = console(stderr=True)

        def say(text: str) -> None:
            if not quiet:
                messages.print(text, markup=False, soft_wrap=True)

        if not all_methods:
            for line in picture(parse_specs(methods), asked, out):
                say(line)
            say(f"Picture: {out}")
            return
        names = registry.methods()
        done = 0.0
        live = progress(lambda: done, len(names), messages, unit="pictures")
        with nullcontext(lambda said: None) if quiet else live as tell:
            for name in names:
                path = out / f"{name}.png"
                try:
                    picture((Spec(name),), asked, path)
                    said = str(path)
                except ValueError as error:
                    said = str(error)
                    if messages.is_terminal:  # where the line of progress does not stay
                        say(said)
                done += 1
                tell(name if messages.is_terminal else said)


@dataclass(frozen=True)
class _Asked:
    """What to show a method on."""

    data: tuple[str, ...]
    target: str | None
    domain: str | None
    pairs: int
    seed: int


def picture(specs: tuple[Spec, ...], asked: _Asked, out: Path) -> list[str]:
    """Write the picture of methods; returns what to say about it. ValueError for what cannot be shown."""
    from ..compare.report.samples import how_much, sentence
    from ..compare.report.style import png

    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png, got {str(out)!r}")
    seen = [_see(spec, asked) for spec in specs]
    if len(seen) > 1 and not all(one.image for one in seen):
        raise ValueError("only methods on images share a picture; show those on tables one at a time")
    out.parent.mkdir(parents=True, exist_ok=True)
    if seen[0].image:
        lines = [line for one in seen for line in _lines(one, asked.pairs if len(seen) == 1 else 1, asked.seed)]
        wide = max(len(line.cells) for line in lines)
        tall = sum(min(2, line.cells[0][0].shape[-2] / line.cells[0][0].shape[-1]) for line in lines)
        texts = sum(0.13 + 0.15 * max(text.count("\n") + 1 for _, text in line.cells) for line in lines)
        png(out, lambda figure: _grid(figure, lines), 1.92 * wide + 0.4, 1.92 * tall + texts, dpi=80)
    else:
        png(out, lambda figure: _points(figure, seen[0]), 7, 5)
    own = any(step.seen is not None for one in seen for step in one.shown.steps)
    said = [sentence(one.shown) if own or not one.image else how_much(one.shown) + _hidden(one) for one in seen]
    return [f"{one.shown.method}: {text}" for one, text in zip(seen, said, strict=True)]


def _hidden(one: _Seen) -> str:
    """How hidden states are drawn, labels that wait for the forward pass, and what a network looks at."""
    from ..samples.saliency import CenterSurround

    mixes = [step.mix for step in one.shown.steps if step.mix is not None]
    if any((mix.labels is not None and mix.labels.after) or mix.labels_from_output for mix in mixes):
        return "; drawn: the labels before the forward pass, which moves them in training"
    if any("network" in mix.operation.needs for mix in mixes):
        if any(isinstance(getattr(mix.operation, "saliency", None), CenterSurround) for mix in mixes):
            return "; drawn: contrast to the surroundings in place of the input gradient of a trained network"
        return "; drawn: where a network looks that is not trained"
    places = {step.recipe.place for step in one.shown.steps if step.recipe is not None}
    return "" if places <= {"input"} else "; drawn: the mean over channels, mixed in an untrained network"


@dataclass(frozen=True)
class _Seen:
    """A method, watched on data. network: with which, not trained."""

    shown: Shown
    network: nn.Module
    image: bool
    classes: tuple[str, ...]
    features: tuple[str, ...]
    target: str
    domains: tuple[str, ...]


def _see(spec: Spec, asked: _Asked) -> _Seen:
    from ..compare.jobs import check, parts
    from ..compare.pictures import Shown, watch
    from ..compare.spec import create
    from ..core import registry
    from ..core.method import Mix
    from ..networks import create as create_network
    from ..samples.saliency import CenterSurround, InputGradient
    from ..train.parts import Data

    method = create(spec)
    source = _source(spec, method, asked)
    check(spec, dict(spec.parameters), source)
    image = source.kind == "image"
    part = _part(source, asked.seed)
    looking = [one.operation for one in parts(method) if isinstance(one, Mix) and "network" in one.operation.needs]
    if image and looking:
        part = replace(part, x=_no_larger(part.x, SEEN))
    for operation in looking:
        if isinstance(getattr(operation, "saliency", None), InputGradient):  # it is flat before training
            operation.saliency = CenterSurround()  # type: ignore[attr-defined]
    data = Data(part, None, None, source.task)
    suits = ("vit" if registry.info(spec.name).network == "attention" else "small-cnn") if image else "mlp"
    network = create_network(
        suits, tuple(part.x.shape[1:]) if image else source.input_shape, source.task.outputs, seed=0
    )
    told = method.mixer is not None or hasattr(method, "methods")  # others make all that the network is given
    draws = (128 if told else FEW) if image else 1024
    try:
        steps = watch(method, network, data, batch_size=min(32, len(data.train)), draws=draws, seed=asked.seed)
    except ValueError as error:
        raise ValueError(f"{spec} cannot be shown without training: {str(error).partition(';')[0]}") from error
    if all(step.recipe is None and step.seen is None for step in steps):
        raise ValueError(f"{spec} mixes nothing: it trains on samples as they are, so there is nothing to show")
    target = ", ".join(source.target_names[:1])
    return _Seen(
        Shown(str(spec), data, steps),
        network,
        image,
        source.class_names,
        source.feature_names,
        target,
        source.domain_names,
    )


def _source(spec: Spec, method: Method, asked: _Asked) -> Source:
    """The data to show a method on: those asked for, or some that suit it."""
    import torch

    from ..core import registry
    from ..core.method import Mix
    from ..core.pairing import InTable
    from ..core.task import Classification, Regression
    from ..data import Source, load

    if asked.data and all(name.lower().endswith(SUFFIXES) for name in asked.data):
        return _image_files(asked.data)
    if asked.data not in ((), (PHOTOS,)):
        if len(asked.data) > 1:
            raise ValueError(f"name one data set, or two or more image files, got {' '.join(asked.data)}")
        return load(asked.data[0], target=asked.target, domain=asked.domain)
    card, draw = registry.info(spec.name), torch.Generator().manual_seed(0)
    if not asked.data and "classification" not in card.tasks:
        x = 6 * torch.rand(ROWS, 1, generator=draw)
        y = torch.sin(1.5 * x[:, 0]) + 0.3 * x[:, 0] + 0.15 * torch.randn(ROWS, generator=draw)
        return Source("wave", x, y, Regression(1), "table", feature_names=("x",), target_names=("y",))
    selects = isinstance(method, Mix) and isinstance(method.pairing, InTable)
    if not asked.data and selects and card.inputs == ("any",):
        moons = load("two-moons")
        domain = torch.randint(2, (len(moons),), generator=draw)
        x = moons.x + domain.unsqueeze(1) * torch.tensor([0.6, 1.6])  # type: ignore[operator]
        return replace(moons, x=x, domain=domain, domain_names=("here", "there"), digest="")
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(photo).permute(2, 0, 1).float() / 255 for photo in load_sample_images().images[::-1]]
    squares, names = [_no_larger(photo[:, :420, 110:530], 210) for photo in photos], ["flower", "temple"]
    if isinstance(method, Mix) and method.pairing.k > 2:  # of two, most of those who meet would be one
        squares += [photos[0][:, 105:315, 215:425], photos[1][:, 20:230, 130:340]]
        names += ["petals", "roof"]
    x, y = torch.stack(squares), torch.arange(len(squares))
    return Source(PHOTOS, x, y, Classification(len(y)), "image", class_names=tuple(names))


def _image_files(paths: tuple[str, ...]) -> Source:
    """A class an image, brought to the size of the first."""
    import numpy as np
    import torch

    from ..core.task import Classification
    from ..data import Source
    from ..data.source import DataError, require

    image = require("PIL.Image")
    if len(paths) < 2:
        raise ValueError(f"mixing takes two images or more, got only {paths[0]}")

    def read(path: str) -> Any:
        try:
            with image.open(path) as opened:
                return opened.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path} cannot be read as an image ({error})") from error

    pixels = [read(path) for path in paths]
    pixels = [one.resize(pixels[0].size) for one in pixels]
    x = torch.from_numpy(np.stack([np.asarray(one) for one in pixels])).permute(0, 3, 1, 2)
    names = tuple(dict.fromkeys(Path(path).stem for path in paths))
    names = names if len(names) == len(paths) else tuple(paths)
    return Source("images", x, torch.arange(len(x)), Classification(len(x)), "image", class_names=names)


def _part(source: Source, seed: int) -> Part:
    """Some of the rows, tables standardised."""
    import torch

    from ..train.parts import Part

    most = len(source) if source.name == PHOTOS else ROWS if source.kind == "table" else 64
    rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    x = source.take(rows)
    if source.kind == "table" and x.shape[1] > 2:
        x = source.scaler(rows)(x)
    return Part(x, source.y[rows], None if source.domain is None else source.domain[rows])


@dataclass(frozen=True)
class _Line:
    """A line of images with a text each."""

    name: str
    cells: list[tuple[Tensor, str]]


def _lines(one: _Seen, count: int, seed: int) -> list[_Line]:
    """Pairs of images over lam, at every place where the method mixes; for others what the network is given."""

    from ..compare.pictures import changed_rows

    steps, name = one.shown.steps, one.shown.method
    given: list[tuple[tuple[Tensor, str], tuple[Tensor, str]]] = []
    for step in steps:
        if step.seen is not None:  # versions lie below each other
            given += [
                ((step.batch.x[i % len(step.batch)], "sample"), (step.seen[i], "to the network"))
                for i in changed_rows(step.seen, step.batch)
            ]
    if given:
        own, seen = zip(*given[: len(LAMS)], strict=True)
        return [_Line(name, list(own)), _Line("", list(seen))]
    pairs: dict[Mix, dict[tuple[int, ...], tuple[Step, int]]] = {}
    for step in steps:
        if step.mix is not None and step.recipe is not None:
            found = pairs.setdefault(step.mix, {})
            for row in (~step.recipe.unmixed).nonzero().flatten().tolist():
                found.setdefault(tuple(step.batch.index[step.recipe.partner[row]].tolist()), (step, row))  # type: ignore[index]
    inputs_only = all(mix.places == ("input",) for mix in pairs)
    lines = list[_Line]()
    for mix in sorted(pairs, key=lambda mix: mix.places != ("input",)):
        # A line is enough for each of several parts and places.
        joint = any(step.recipe is not None and step.recipe.partner.shape[1] > MANY for step, _ in pairs[mix].values())
        few = 1 if len(pairs) > 1 or len(mix.places) > 1 or joint else count
        for who in sorted(pairs[mix], key=lambda who: (-len(set(who)), who))[:few]:
            step, row = pairs[mix][who]
            lines += _line(one, mix, step, row, seed, name if inputs_only else None)
    return lines


def _line(one: _Seen, mix: Mix, step: Step, row: int, seed: int, name: str | None) -> list[_Line]:
    """A pair over lam, a line for each place of the part `mix`; a batch that is mixed jointly as it is."""
    from ..compare.pictures import draws_of, over_lam
    from ..compare.report.samples import label_names

    assert step.recipe is not None
    partner = step.recipe.partner[row]
    x, names = step.batch.x[partner], label_names(step.batch.y[partner], one.classes, one.shown.data)
    if len(partner) > MANY and (mixed := step.mixed) is not None:
        return [_Line(one.shown.method, [_of_batch(mixed, i, one) for i in range(min(len(LAMS), len(step.batch)))])]
    lam, found = draws_of(mix), list[_Line]()
    lams = LAMS if float(lam.max() - lam.min()) > 1e-6 else (float(lam[0]),)
    for place in mix.places:
        states = x if place == "input" else _map_at(place, one.network, x)
        if states is None:
            found.append(_Line(f"mixed at {place}, which is no map", list(zip(x, names, strict=True))))
            continue
        mixes = over_lam(mix, states, lams, seed, step.batch.y[partner], place)
        images = [image for image, _ in mixes] if place == "input" else _as_images([h for h, _ in mixes])
        texts = [_text(share.tolist(), names) for _, share in mixes]
        where = f"{one.shown.method}\nat {place}" if name is None else name
        found.append(_Line(where, list(zip(images, texts, strict=True))))
    return found


def _of_batch(mixed: Mixed, row: int, one: _Seen) -> tuple[Tensor, str]:
    """A row of a batch that is mixed jointly, and whose labels it has."""
    from ..compare.report.samples import label_names

    share, partner = mixed.recipe.label_share[row], mixed.recipe.partner[row]
    names = label_names(mixed.y[partner], one.classes, one.shown.data)
    kept = [i for i in range(len(share)) if share[i] > 0]
    return mixed.x[row], _text([float(share[i]) for i in kept], [names[i] for i in kept])


def _text(share: list[float], names: list[str]) -> str:
    """0.62 cat, 0.38 dog; two to a line."""
    from ..compare.report.samples import parts_of

    parts = parts_of(share, names).split("\n")
    return ",\n".join(", ".join(parts[i : i + 2]) for i in range(0, len(parts), 2))


def _no_larger(x: Tensor, side: int) -> Tensor:
    """Images (..., C, H, W), averaged down to at most `side` along the longer axis."""
    import torch.nn.functional as F

    small = min(1.0, side / max(x.shape[-2:]))
    if small == 1:
        return x
    smaller = F.interpolate(x.reshape(-1, *x.shape[-3:]), scale_factor=small, mode="area")
    return smaller.view(*x.shape[:-2], *smaller.shape[-2:])


def _map_at(place: str, network: nn.Module, x: Tensor) -> Tensor | None:
    """The hidden maps (K, C, H, W) of images (K, ...) at a tap; None where it gives something else."""
    import torch

    from ..core.split import evaluating, observe

    x = _no_larger(x, SIDE)
    with torch.no_grad(), evaluating(network), observe(network, place) as seen:
        network(x)
    h = seen[place]
    return h if h.ndim == 4 and min(h.shape[-2:]) > 1 else None


def _as_images(maps: list[Tensor]) -> list[Tensor]:
    """The mean over channels of every map (C, H, W) in [0, 1] over all of them; drawn large, they show their cells."""
    import torch

    means = torch.stack(maps).mean(dim=1, keepdim=True)
    return list((means - means.min()) / (means.max() - means.min()).clamp_min(1e-12))


def _grid(figure: Figure, lines: list[_Line]) -> None:
    from ..compare.report.samples import show_image
    from ..compare.report.style import plain

    wide = max(len(line.cells) for line in lines)
    for row, line in zip(figure.subplots(len(lines), wide, squeeze=False), lines, strict=True):
        for axes, (image, text) in zip(row, line.cells, strict=False):
            show_image(axes, image, text, 9)
        for axes in row[len(line.cells) :]:
            axes.set_axis_off()
        row[0].set_ylabel(plain(line.name), fontsize=13)


def _points(figure: Figure, one: _Seen) -> None:
    from ..compare.report.samples import scatter
    from ..compare.report.style import plain

    axes = figure.add_subplot()
    scatter(axes, one.shown, one.classes, one.features, one.target, one.domains)
    axes.set_title(plain(f"{one.shown.method}: {axes.get_title(loc='left')}"))
