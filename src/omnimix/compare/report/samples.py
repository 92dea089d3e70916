"""What methods do to samples, drawn: mixed images, mixed points between their parents, and who is mixed with whom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from ...core.recipe import Recipe
from ...train.parts import Data
from ..pictures import Pairs, Shown, chance, same
from .style import COLOURS, GREY, INK, Draw, plain

CELLS = 20
"""Classes or domains beyond which a matrix of pairs is not drawn."""
MARKS = ("o", "^", "s", "v", "P", "X")
"""Of the domains."""
_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff00", "#0072b2"])


def show_image(axes: Axes, image: Tensor, title: str = "", size: float = 10) -> None:
    """An image (C, H, W) in [0, 1]; channels beyond the third are left out, two are shown as one."""
    shown = image.detach().float().clamp(0, 1)
    shown = shown[:3] if len(shown) >= 3 else shown[:1].expand(3, *shown.shape[1:])
    axes.imshow(shown.permute(1, 2, 0).numpy(), interpolation="none" if max(shown.shape[1:]) < 64 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(plain(title), fontsize=size, loc="center")


def parts_of(share: Sequence[float], names: Sequence[str], between: str = "\n", width: int = 14) -> str:
    """0.62 cat, 0.38 dog; shares of one name are added."""
    total: dict[str, float] = {}
    for part, name in zip(share, names, strict=True):
        name = f"“{name}”" if name.isdigit() else name if len(name) <= width else name[: width - 1] + "…"
        total[name] = total.get(name, 0.0) + part
    return between.join(f"{part:.2f} {name}" for name, part in total.items())


def label_names(y: Tensor, names: Sequence[str], data: Data) -> list[str]:
    """What labels (R,) or (R, D) are called: class names, or values in raw units."""
    if y.is_floating_point():
        return [f"({value:.3g})" for value in raw(y, data)]
    return [names[int(i)] if names else str(int(i)) for i in y]


def raw(y: Tensor, data: Data) -> list[float]:
    """The first target of every row (R,) or (R, D) in its own units."""
    value = y.double()
    if data.target_scale is not None:
        offset, scale = (torch.as_tensor(part, dtype=torch.float64) for part in data.target_scale)
        value = offset + scale * value
    return [float(v) for v in value.reshape(len(y), -1)[:, 0]]


def examples(
    shown: Shown,
    names: Sequence[str],
    features: Sequence[str] = (),
    target: str = "",
    domains: Sequence[str] = (),
    count: int = 6,
) -> Draw | None:
    """The first mixed samples of a method; None where nothing is mixed, or images only in hidden layers."""
    x = shown.data.train.take(torch.zeros(1, dtype=torch.long))[0]
    if isinstance(x, Tensor) and x.ndim == 4:
        images = list(islice(_mixed_images(shown, names), count))
        return (lambda figure: _grid(figure, images)) if images else None
    if isinstance(x, Tensor) and x.ndim == 2 and any(step.recipe is not None for step in shown.steps):
        return lambda figure: scatter(figure.add_subplot(), shown, names, features, target, domains)
    return None


def _mixed_images(shown: Shown, names: Sequence[str]):  # type: ignore[no-untyped-def]
    """(image, text) of a mixed sample from each batch in turn."""
    for step in shown.steps:
        if step.seen is not None:
            yield step.seen[-1], "as given to\nthe network"
        mixed = step.mixed
        if mixed is None or not isinstance(mixed.x, Tensor):
            continue
        inside = (~mixed.recipe.unmixed & (mixed.recipe.lam < 1)).nonzero().flatten()
        for row in inside[:1].tolist():
            share, partner = mixed.recipe.label_share[row], mixed.recipe.partner[row]
            yield mixed.x[row], parts_of(share.tolist(), label_names(mixed.y[partner], names, shown.data))


def _grid(figure: Figure, images: Sequence[tuple[Tensor, str]], columns: int = 3) -> None:
    lines = -(-len(images) // columns)
    for axes, (image, text) in zip(figure.subplots(lines, columns, squeeze=False).flat, images, strict=False):
        show_image(axes, image, text)
    for axes in figure.axes[len(images) :]:
        axes.set_axis_off()


class Plane:
    """Where rows of a table lie in a picture: their first two principal axes, or the first one and the target."""

    def __init__(self, data: Data, features: Sequence[str] = (), target: str = "") -> None:
        x = data.train.x.double()
        self.data, self.real = data, data.task.name == "regression"
        self.centre, wanted = x.mean(dim=0), 1 if self.real else 2
        if x.shape[1] <= wanted:
            self.axes, self.centre = torch.eye(x.shape[1], dtype=x.dtype), torch.zeros_like(self.centre)
            names = list(features) or [f"x{i + 1}" for i in range(x.shape[1])]
        else:
            self.axes = torch.linalg.svd(x - self.centre, full_matrices=False).Vh[:wanted].T
            names = [f"{nth} principal axis of the inputs" for nth in ("first", "second")]
        self.names = [*names[:wanted], target or "target"] if self.real else [*names, ""][:2]

    def __call__(self, x: Tensor, y: Tensor) -> Any:
        """(R, 2) places of inputs x (R, D) with targets y."""
        flat = (x.double() - self.centre) @ self.axes
        if self.real or flat.shape[1] == 1:
            second = torch.tensor(raw(y, self.data)) if self.real else torch.zeros(len(x))
            flat = torch.stack((flat[:, 0], second.double()), dim=1)
        return flat.numpy()


def scatter(
    axes: Axes,
    shown: Shown,
    names: Sequence[str],
    features: Sequence[str] = (),
    target: str = "",
    domains: Sequence[str] = (),
    count: int = 30,
) -> None:
    """Training rows, and mixed points joined to their parents; where hidden states are mixed, the parents only."""
    data = shown.data
    part, plane = data.train, Plane(data, features, target)
    some = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:400]
    groups = torch.zeros(len(some), dtype=torch.long) if part.domain is None else part.domain[some]
    for group in torch.unique(groups).tolist():
        rows = some[groups == group]
        place = plane(part.x[rows], part.y[rows])
        axes.scatter(
            place[:, 0],
            place[:, 1],
            c=_shade(part.y[rows], data),
            s=16,
            marker=MARKS[group % len(MARKS)],
            alpha=0.35,
            lw=0,
        )
    drawn, places = 0, set[str]()
    for step in shown.steps:
        if step.recipe is None or drawn >= count:
            continue
        mixed, recipe = step.mixed, step.recipe
        places.add(recipe.place)
        for row in (~recipe.unmixed).nonzero().flatten()[:2].tolist():
            partner = recipe.partner[row]
            parents = plane(step.batch.x[partner], step.batch.y[partner])
            if mixed is None:
                axes.plot(*parents.T, "-", lw=0.9, color=INK, alpha=0.6)
            else:
                _join(axes, plane, mixed.x[row], step.batch.y[partner], mixed.recipe, row, parents, data)
            drawn += 1
    _legend(axes, data, names, domains, groups)
    hidden = sorted(places - {"input"})
    title = f"lines join partners that are mixed at {', '.join(hidden)}" if hidden else "mixed points, joined to both"
    axes.set(xlabel=plain(plane.names[0]), ylabel=plain(plane.names[1]), title=title if drawn else "nothing is mixed")


def _legend(axes: Axes, data: Data, names: Sequence[str], domains: Sequence[str], groups: Tensor) -> None:
    """The classes by colour, the domains by mark."""
    if data.task.name != "regression" and 1 < len(names) <= len(COLOURS):
        for shade, name in zip(COLOURS, names, strict=False):
            axes.scatter([], [], color=shade, s=16, label=plain(name))
    if groups.any():
        for group in sorted(set(groups.tolist())):
            name = domains[group] if domains else f"domain {group + 1}"
            axes.scatter([], [], color=GREY, s=16, marker=MARKS[group % len(MARKS)], label=plain(name))
    if axes.get_legend_handles_labels()[1]:
        axes.figure.legend(loc="outside lower center", ncols=4, fontsize=9, handletextpad=0.1)


def _join(
    axes: Axes, plane: Plane, x: Tensor, y: Tensor, recipe: Recipe, row: int, parents: np.ndarray, data: Data
) -> None:
    share = recipe.label_share[row]
    target = y.double().reshape(len(y), -1).mul(share.double().unsqueeze(1)).sum(dim=0, keepdim=True)
    point = plane(x.unsqueeze(0), target)[0]
    for parent in parents:
        axes.plot(*np.stack((point, parent)).T, "-", lw=0.7, color=INK, alpha=0.5, zorder=2)
    axes.scatter(
        point[0], point[1], color=[_mixed_shade(y, share, target, data)], s=34, edgecolor=INK, lw=0.8, zorder=3
    )


def _shade(y: Tensor, data: Data) -> Any:
    """Colours (R, 3) of targets: a hue a class, dark to light for real values."""
    if data.task.name == "regression":
        every = np.array(raw(data.train.y, data))
        return _viridis()(Normalize(every.min(), every.max())(np.array(raw(y, data))))[:, :3]
    ids = y.argmax(dim=1) if y.ndim == 2 else y
    return np.array([to_rgb(COLOURS[int(i) % len(COLOURS)]) for i in ids])


def _mixed_shade(y: Tensor, share: Tensor, target: Tensor, data: Data) -> Any:
    if data.task.name == "regression":
        return _shade(target, data)[0]
    weight = (share / share.sum()).double().numpy()
    return np.clip((weight[:, None] * _shade(y, data)).sum(axis=0), 0, 1)


def _viridis() -> Colormap:
    from matplotlib import colormaps

    return colormaps["viridis"]


def who(shown: Shown, names: Sequence[str], domains: Sequence[str]) -> Draw | None:
    """Who was mixed with whom: classes, distances of real labels, domains; None where nothing of it can be drawn."""
    pairs = Pairs.of(shown.steps)
    train, task = shown.data.train, shown.data.task
    draws: list[tuple[float, object]] = []
    if pairs.label is not None and task.name == "regression":
        draws.append((1.2, lambda axes: _distances(axes, pairs, shown.data)))
    elif pairs.label is not None and not pairs.label.is_floating_point() and task.outputs <= CELLS:
        listed = list(names) or [str(i) for i in range(task.outputs)]
        draws.append((1, lambda axes: _matrix(axes, pairs.label, listed, "class")))
    if pairs.domain is not None and train.domain is not None and 1 < len(domains) <= CELLS:
        draws.append((1, lambda axes: _matrix(axes, pairs.domain, domains, "domain")))
    if not draws:
        return None

    def draw(figure: Figure) -> None:
        row = figure.subplots(1, len(draws), squeeze=False, width_ratios=[width for width, _ in draws])[0]
        for axes, (_, one) in zip(row, draws, strict=True):
            one(axes)  # type: ignore[operator]

    return draw


def _matrix(axes: Axes, pairs: Tensor | None, names: Sequence[str], what: str) -> None:
    assert pairs is not None
    size = len(names)
    share = (pairs[:, 0] * size + pairs[:, 1]).bincount(minlength=size * size).view(size, size).double() / len(pairs)
    cells = 100 * share.numpy()
    top = max(float(cells.max()), 200 / size**2)  # even shares are of middle strength
    axes.pcolormesh(cells, cmap=_HEAT, vmin=0, vmax=top, edgecolors=GREY, lw=0.3)
    for row, column in np.ndindex(*cells.shape) if size <= 10 else ():
        text = f"{cells[row, column]:.1f}" if size > 4 else f"{cells[row, column]:.0f}"
        colour = "white" if cells[row, column] > 0.7 * top else INK
        place = column + 0.5, row + 0.5
        axes.text(*place, text, ha="center", va="center", fontsize=8.5 if size > 6 else 10, color=colour)
    ticks = [name if len(name) <= 9 else name[:8] + "…" for name in map(plain, names)]
    long = max(map(len, ticks)) * size > 24
    axes.set_xticks(np.arange(size) + 0.5, ticks, rotation=90 if long else 0, fontsize=9)
    axes.set_yticks(np.arange(size) + 0.5, ticks, fontsize=9)
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_aspect("equal")
    axes.set(xlabel=f"{what} of the partner", ylabel=f"{what} of the sample", title="% of pairs")


def _distances(axes: Axes, pairs: Pairs, data: Data) -> None:
    assert pairs.label is not None
    values = np.array(raw(pairs.label.flatten(), data)).reshape(-1, 2)
    everyone = np.array(raw(data.train.y, data))
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(len(everyone), (4000,), generator=generator).numpy() for _ in range(2))
    chance_gap = np.abs(everyone[first] - everyone[second])
    gap, edges = np.abs(values[:, 0] - values[:, 1]), np.linspace(0, np.quantile(chance_gap, 0.99) or 1.0, 25)
    for distances, colour, filled, text in (
        (gap, COLOURS[0], True, "this method"),
        (chance_gap, GREY, False, "chance"),
    ):
        height = np.histogram(distances, edges)[0] / len(distances)
        axes.stairs(100 * height, edges, fill=filled, color=colour, alpha=0.6 if filled else 1, lw=1.6, label=text)
    axes.legend()
    axes.set(xlabel="distance between the labels of a pair", ylabel="% of pairs", title="Label distance of pairs")


def sentence(shown: Shown) -> str:
    """What a method did to how many samples, in words."""
    if shown.why:
        return f"It cannot be shown without training: {shown.why}"
    pairs, train = Pairs.of(shown.steps), shown.data.train
    if any(step.seen is not None for step in shown.steps):
        return "It mixes in a way of its own; the pictures show what it gives to the network."
    if pairs.unmixed == pairs.count:
        return "It mixes nothing: the network is given training samples as they are."
    found = [f"{100 * (1 - pairs.unmixed / pairs.count):.0f} % of {pairs.count} samples met a partner"]
    if pairs.label is not None and not pairs.label.is_floating_point():
        found.append(f"{_against(pairs.label, train.y)} of pairs are of one class")
    if pairs.domain is not None and train.domain is not None:
        found.append(f"{_against(pairs.domain, train.domain)} of one domain")
    return "; ".join([*found, how_much(shown)]) + "."


def how_much(shown: Shown) -> str:
    """Where a method mixes, and how much."""
    recipes = [step.recipe for step in shown.steps if step.recipe is not None]
    hidden, found = [recipe.place for recipe in recipes if recipe.place != "input"], list[str]()
    if hidden:
        names = " or ".join(sorted(set(hidden)))
        found.append(f"{100 * len(hidden) / len(recipes):.0f} % of steps mix hidden states, at {names}")
    low, high = torch.cat([r.lam for r in recipes]).double().quantile(torch.tensor([0.25, 0.75]).double()).tolist()
    always = high - low < 1e-6
    drawn = f"always {low:.2g}" if always else f"between {low:.2f} and {high:.2f} in half of the draws"
    return "; ".join([*found, f"the share of the sample itself is {drawn}"])


def _against(pairs: Tensor, ids: Tensor) -> str:
    return f"{100 * same(pairs):.0f} % (at random {100 * chance(ids):.0f} %)"
