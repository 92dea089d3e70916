"""Merging on disk: gigabytes per second and peak memory, beside mergekit in one run, and memory from 1 GB to 4 GB.

`python benchmarks/merge.py [--gb 4] [--peer-path FOLDER]`: a synthetic pair of sharded bfloat16 checkpoints of a small
Llama's names and a base are made in a temporary folder (about three times --gb, and as much again for results), merged
linearly and by TIES, each in a process of its own. FOLDER: where `pip install --target FOLDER mergekit` put the peer;
without it, or where it cannot be imported, only our side is shown. Speed is that of the bytes of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HIDDEN, INNER, VOCABULARY, HEADS = 2048, 5632, 32_000, 16
LAYER_BYTES = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER + 2 * HIDDEN)
SHARD = 2_000_000_000

CHILD = """
import resource, sys, time
start = time.perf_counter()
{load}
ready = time.perf_counter()
{merge}
end = time.perf_counter()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("RESULT", ready - start, end - ready, int(peak.split()[1]) * 1024)
"""
OURS = {
    "load": "from omnimix.models import checkpoint",
    "merge": "checkpoint.merge_checkpoints(checkpoint.plan_merge(checkpoint.read_recipe({recipe!r})), {out!r})",
}
THEIRS = {
    "load": "from mergekit.config import MergeConfiguration\nfrom mergekit.merge import run_merge\n"
    "from mergekit.options import MergeOptions\nimport yaml",
    "merge": "run_merge(MergeConfiguration.model_validate(yaml.safe_load(open({recipe!r}))), {out!r}, "
    "options=MergeOptions(copy_tokenizer=False, lazy_unpickle=True, low_cpu_memory=True))",
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(layers):
        at = f"model.layers.{i}"
        found |= {f"{at}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        found |= {f"{at}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        found |= {f"{at}.mlp.down_proj.weight": (HIDDEN, INNER)}
        found |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write(folder: Path, layers: int, seed: int) -> int:
    """A sharded checkpoint of random values; its bytes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed)
    pool = torch.randn(2**22, generator=g).bfloat16()
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    size = total = 0
    for name, shape in shapes(layers).items():
        own = 2 * torch.Size(shape).numel()
        if groups[-1] and size + own > SHARD:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size, total = size + own, total + own
    places = {}
    for i, group in enumerate(groups, start=1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        state = {}
        for name, shape in group.items():
            n = torch.Size(shape).numel()
            start = int(torch.randint(2**20, (1,), generator=g))
            state[name] = pool[start:].repeat(-(-n // (len(pool) - start)))[:n].reshape(shape)
            places[name] = file
        save_file(state, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCABULARY,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return total


def measured(who: dict[str, str], recipe: Path, out: Path, peer: str | None, limit: float) -> tuple[float, int] | str:
    """Seconds of the merge without the imports, and peak resident bytes; or why not."""
    code = CHILD.format(load=who["load"], merge=who["merge"].format(recipe=str(recipe), out=str(out)))
    paths = [*([peer] if peer else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"took longer than {limit:g} s"
    finally:
        shutil.rmtree(out, ignore_errors=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode or not said:
        return (done.stderr.strip().splitlines() or ["no result"])[-1]
    return float(said[0].split()[2]), int(said[0].split()[3])


def recipes(folder: Path, base: Path, a: Path, b: Path) -> dict[str, Path]:
    """In mergekit's YAML, read by both."""
    text = {
        "linear": f"merge_method: linear\nmodels:\n- {{model: {a}, parameters: {{weight: 0.3}}}}\n"
        f"- {{model: {b}, parameters: {{weight: 0.7}}}}\ndtype: bfloat16\n",
        "ties": f"merge_method: ties\nbase_model: {base}\nmodels:\n"
        f"- {{model: {a}, parameters: {{weight: 1.0, density: 0.5}}}}\n"
        f"- {{model: {b}, parameters: {{weight: 1.0, density: 0.5}}}}\ndtype: bfloat16\n",
    }
    for name, recipe in text.items():
        (folder / f"{name}.yaml").write_text(recipe)
    return {name: folder / f"{name}.yaml" for name in text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0, help="of one checkpoint")
    parser.add_argument("--peer-path", help="folder that mergekit was installed into")
    parser.add_argument("--folder", help="where to write; default the system's temporary folder")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one merge at most")
    parser.add_argument("--merges", nargs="+", default=["linear", "ties"])
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, torch {torch.__version__}")
    print(f"{'GB':>5} {'merge':8} {'who':9} {'seconds':>8} {'GB/s':>6} {'peak MiB':>9}", flush=True)
    for gb in dict.fromkeys((min(1.0, args.gb), args.gb)):
        layers = max(1, round((gb * 1e9 - 4 * VOCABULARY * HIDDEN) / LAYER_BYTES))
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            folder = Path(temporary)
            base, a, b = (folder / name for name in ("base", "a", "b"))
            total = max([write(path, layers, seed) for seed, path in enumerate((base, a, b))])
            listed = recipes(folder, base, a, b)
            for name in args.merges:
                recipe = listed[name]
                for who, parts in (("omnimix", OURS), ("mergekit", THEIRS)):
                    for _ in range(args.repeats):
                        found = measured(
                            parts, recipe, folder / "out", args.peer_path if who == "mergekit" else None, args.limit
                        )
                        if isinstance(found, str):
                            print(f"{total / 1e9:5.2f} {name:8} {who:9} not measured: {found}", flush=True)
                            continue
                        seconds, peak = found
                        speed = total / 1e9 / seconds
                        print(
                            f"{total / 1e9:5.2f} {name:8} {who:9} {seconds:8.1f} {speed:6.2f} {peak / 2**20:9.0f}",
                            flush=True,
                        )
                        time.sleep(0.1)


if __name__ == "__main__":
    main()
