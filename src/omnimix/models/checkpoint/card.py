"""What lies beside the merged weights: configuration, tokenizer, and the card that says what was merged and how."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from .reader import Checkpoint, read_json

if TYPE_CHECKING:
    from .stream import Plan

COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip


def companions(lead: Checkpoint, into: Path, dtype: str | None, settings: dict[str, Any] | None = None) -> None:
    """Copy configuration, tokenizer and, unread, the modelling code of the folder `lead` is in. settings: in place of
    its configuration."""
    if lead.folder is None:
        return
    code = sorted(path.name for path in lead.folder.glob("*.py"))
    for name in (*COPIED, *code):
        if (lead.folder / name).is_file():
            shutil.copyfile(lead.folder / name, into / name)
    config = lead.folder / "config.json"
    if config.exists():
        held = read_json(config, {})
        key = "dtype" if "dtype" in held else "torch_dtype"
        if settings is not None:
            held = settings | ({key: held[key]} if key in held else {})
        if dtype is not None:
            held[key] = dtype
        if dtype is not None or settings is not None:
            (into / "config.json").write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(config, into / "config.json")


def facts(plan: Plan, sources: Mapping[Path, str], written: Mapping[str, str]) -> dict[str, Any]:
    """What merge.json holds. sources, written: files of weights and their SHA-256."""
    inputs = []
    for one in plan.everyone:
        role = "base" if one is plan.base else "model"
        inputs.append({"model": one.label, "role": role, "files": {file.name: sources[file] for file in one.files}})
    return {
        "omnimix": __version__, **plan.recipe.facts(), "inputs": inputs, "files": dict(written),
        "tensors": len(plan.tensors), "bytes": plan.size, "evaluation": plan.evaluation,
    }  # fmt: skip


def write_card(plan: Plan, into: Path, sources: Mapping[Path, str], written: Mapping[str, str]) -> None:
    """merge.json for machines, README.md for people."""
    held = facts(plan, sources, written)
    (into / "merge.json").write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (into / "README.md").write_text(_page(plan, held), encoding="utf-8")


def _page(plan: Plan, held: dict[str, Any]) -> str:
    recipe = plan.recipe
    lines = ["---", "tags: [merge, omnimix]", "---", f"# A merge by {recipe.method}", ""]
    lines += _mixture(plan)
    lines += [f"{len(plan.tensors)} tensors, {plan.size / 1e9:.3g} GB, merged with omnimix {__version__}.", ""]
    lines += ["| from | role | options | file | SHA-256 |", "|---|---|---|---|---|"]
    models = 0
    for one in held["inputs"]:
        options = ""
        if one["role"] == "model":
            own = recipe.per_model[models] if recipe.per_model else {}
            options, models = ", ".join(f"{name} {value}" for name, value in own.items()), models + 1
        for i, (file, digest) in enumerate(one["files"].items()):
            first = (f"`{one['model']}`", one["role"], options) if i == 0 else ("", "", "")
            lines.append(f"| {' | '.join(first)} | {file} | `{digest}` |")
    options = ", ".join(f"{name} {value}" for name, value in held["options"].items())
    lines += ["", f"Options for all: {options or 'none'}. Result: {recipe.dtype or 'dtypes of the inputs'}.", ""]
    lines += ["| result | SHA-256 |", "|---|---|", *(f"| {f} | `{digest}` |" for f, digest in held["files"].items())]
    return "\n".join([*lines, "", *_evaluation(plan.evaluation), ""])


def _mixture(plan: Plan) -> list[str]:
    recipe = plan.recipe
    if recipe.experts_per_token is None:
        return []
    names = ", ".join(f"{i} `{one.label}`" for i, one in enumerate(plan.models))
    return [
        f"A mixture of experts: the feed-forward networks of {names}. A router in every layer chooses "
        f"{recipe.experts_per_token} for a token. Routers were drawn at random (seed {recipe.seed}) and have to be "
        f"trained before the model is of use. {recipe.method} merged the other matrices; vectors were averaged"
        f"{', and ' + ', '.join(recipe.average) if recipe.average else ''}.",
        "",
    ]


def _evaluation(held: Mapping[str, Any] | None) -> list[str]:
    if held is None:
        return ["It has not been evaluated."]
    better = "lower" if held["lower_is_better"] else "higher"
    lines = [f"Chosen by `{held['function']}` among {len(held['scores'])} models ({better} is better).", ""]
    lines += ["| model or operator | options | score |", "|---|---|---|"]
    for row in held["scores"]:
        options = ", ".join(f"{name} {value}" for name, value in row["options"].items())
        lines.append(f"| {row['name']} | {options} | {row['score']:.6g} |")
    return lines
