"""Checkpoints on disk: what is read and refused, what is written, and that a killed merge goes on to the same bytes."""

import json
import os
import pickle
import random
import signal
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimix.models import checkpoint, merge
from omnimix.models.checkpoint.reader import sha256
from omnimix.models.merge import source

SHAPES = {
    "embed.weight": (11, 4),
    "layers.0.w": (6, 4),
    "layers.1.w": (6, 4),
    "layers.10.w": (6, 4),
    "scale": (),
    "none": (0, 3),
}


def values(seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=g).to(dtype) for name, shape in SHAPES.items()}
    return {**state, "positions": torch.arange(7), "mask": torch.tensor([True, False])}


def folder(path, state, shards=1, config=None, tokens=None):
    """As Hugging Face writes it."""
    path.mkdir(parents=True)
    names = list(state)
    if shards == 1:
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    else:
        places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
        for file in sorted(set(places.values())):
            held = {name: state[name] for name in names if places[name] == file}
            save_file(held, path / file, metadata={"format": "pt"})
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if tokens is not None:
        (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": []}))
    return path


CONFIG = {"architectures": ["Tiny"], "hidden_size": 4, "torch_dtype": "float32"}
TIED = {**CONFIG, "tie_word_embeddings": True}
TWO = "2 differ from the first, as"


@pytest.fixture
def pair(tmp_path):
    return [
        folder(tmp_path / f"m{i}", values(i), shards=3 - i, config=CONFIG, tokens={"a": 0, "b": 1}) for i in range(2)
    ]


def planned(paths, method="linear", base=None, *, how=None, dtype=None, **options):
    recipe = checkpoint.Recipe(method, tuple(map(str, paths)), base and str(base), how or {}, (), dtype)
    return checkpoint.plan_merge(recipe, **options)


def read(out):
    state = {}
    for file in sorted(out.glob("*.safetensors")):
        state |= load_file(file)
    return state


def files(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(
    ("method", "kind", "how"),
    [
        ("linear", merge.Linear(), {}),
        ("slerp", merge.Slerp(0.3), {"t": 0.3}),
        ("ties", merge.Ties(density=0.4), {"density": 0.4}),
        ("ties", merge.Ties(density=0.4, trim="tensor"), {"density": 0.4, "trim": "tensor"}),
        ("dare-ties", merge.DareTies(density=0.5, seed=3), {"density": 0.5, "seed": 3}),
        ("model-stock", merge.ModelStock(), {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_disk_is_as_in_memory(tmp_path, method, kind, how, dtype, monkeypatch):
    monkeypatch.setattr(source, "BLOCK", 10)
    states = [values(i, dtype) for i in range(3)]
    paths = [folder(tmp_path / f"m{i}", state, shards=i + 1) for i, state in enumerate(states)]
    base = kind.base == "required"
    plan = planned(paths[:2], method, paths[2] if base else None, how=how, shard_size=200)
    out = checkpoint.merge_checkpoints(plan, tmp_path / "deep" / "out")
    same(read(out), kind(states[:2], states[2] if base else None))
    assert not (tmp_path / "deep" / "out.partial").exists()


def test_what_is_written_beside_the_weights(pair, tmp_path):
    (pair[0] / "generation_config.json").write_text('{"eos_token_id": 1}')
    (pair[0] / "modeling_tiny.py").write_text("raise RuntimeError")
    (pair[0] / "secret.txt").write_text("no")
    out = checkpoint.merge_checkpoints(planned(pair, shard_size=200, dtype="bfloat16"), tmp_path / "out")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held = {file.name: load_file(file) for file in out.glob("*.safetensors")}
    assert len(held) > 1
    assert index["weight_map"] == {name: file for file, state in held.items() for name in state}
    assert index["metadata"]["total_size"] == sum(
        v.numel() * v.element_size() for s in held.values() for v in s.values()
    )
    assert json.loads((out / "config.json").read_text()) == {**CONFIG, "torch_dtype": "bfloat16"}
    for name in ("tokenizer.json", "generation_config.json", "modeling_tiny.py"):
        assert (out / name).read_bytes() == (pair[0] / name).read_bytes()
    assert not (out / "secret.txt").exists()
    card = json.loads((out / "merge.json").read_text())
    assert card["files"] == {name: sha256(out / name) for name in held}
    inputs = {(one["model"], file): digest for one in card["inputs"] for file, digest in one["files"].items()}
    assert inputs == {(str(p), f.name): sha256(f) for p in pair for f in p.glob("*.safetensors")}
    assert all(digest in (out / "README.md").read_text() for digest in [*inputs.values(), *card["files"].values()])
    with checkpoint.Checkpoint(out) as again:
        assert again.dtype("embed.weight") == torch.bfloat16
        assert torch.equal(again.block("layers.1.w", 3, 9), read(out)["layers.1.w"].reshape(-1)[3:9])


def test_the_layout_of_the_inputs_does_not_matter(tmp_path):
    states = [values(i) for i in range(2)]
    turned = [dict(reversed(state.items())) for state in states]
    one = [folder(tmp_path / f"a{i}", state, shards=2) for i, state in enumerate(states)]
    two = [folder(tmp_path / f"b{i}", state, shards=3) for i, state in enumerate(turned)]
    for method, how in (("dare-linear", {"seed": 1}), ("ties", {})):
        first, second = (
            checkpoint.merge_checkpoints(
                planned(p[:1], method, p[1], how=how, shard_size=300), tmp_path / f"{method}{i}"
            )
            for i, p in enumerate((one, two))
        )
        for file in first.glob("*.safetensors"):
            assert file.read_bytes() == (second / file.name).read_bytes()


def killed(plan, out, event):
    """Merge in a child process that dies by SIGKILL at its event-th write, half of it done; whether it was killed."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        count, write, rename, text = 0, os.pwrite, Path.rename, Path.write_text

        def at(partly):
            nonlocal count
            count += 1
            if count == event:
                partly()
                os.kill(os.getpid(), signal.SIGKILL)

        def pwrite(file, data, offset):
            at(lambda: write(file, data[: len(data) // 2], offset))
            return write(file, data, offset)

        def written(path, content, **options):
            at(lambda: text(path, content[: len(content) // 2], **options))
            return text(path, content, **options)

        def renamed(path, target):
            at(lambda: None)
            return rename(path, target)

        os.pwrite, Path.rename, Path.write_text = pwrite, renamed, written
        checkpoint.merge_checkpoints(plan, out)
        os._exit(0)
    except BaseException:  # the child must never go on into pytest
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("method", "how"), [("linear", {}), ("ties", {"density": 0.3}), ("dare-ties", {})])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(pair, tmp_path, method, how, monkeypatch):
    monkeypatch.setattr(source, "BLOCK", 16)
    models, base = (pair, None) if method == "linear" else (pair[:1], pair[1])

    def plan():
        return planned(models, method, base, how=how, shard_size=250)

    whole = files(checkpoint.merge_checkpoints(plan(), tmp_path / "whole"))
    draw, kills = random.Random(method), 0
    for trial in range(3):
        out = tmp_path / f"out{trial}"
        while killed(plan(), out, draw.randint(1, 15)):
            kills += 1
        assert files(checkpoint.merge_checkpoints(plan(), out)) == whole
        assert not (tmp_path / f"out{trial}.partial").exists()
    assert kills > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_single_moment_to_be_killed_at(pair, tmp_path):
    whole, event = files(checkpoint.merge_checkpoints(planned(pair, shard_size=300), tmp_path / "whole")), 1
    while killed(planned(pair, shard_size=300), tmp_path / f"out{event}", event):
        assert files(checkpoint.merge_checkpoints(planned(pair, shard_size=300), tmp_path / f"out{event}")) == whole
        event += 1
    assert event > 15


def test_a_stopped_merge_is_not_begun_anew_nor_mixed_with_another(pair, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []

    def stop(done, name):
        seen.append(name)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.merge_checkpoints(planned(pair, shard_size=300), out, stop)
    assert not out.exists()
    with pytest.raises(ValueError, match="unfinished merge of something else; delete it"):
        checkpoint.merge_checkpoints(planned(pair, "slerp", shard_size=300), out)
    touched = []
    real = checkpoint.stream._merged
    monkeypatch.setattr(
        checkpoint.stream, "_merged", lambda plan, name, found: touched.append(name) or real(plan, name, found)
    )
    checkpoint.merge_checkpoints(planned(pair, shard_size=300), out)
    assert not set(touched) & set(seen)
    touched.clear()
    checkpoint.merge_checkpoints(planned(pair, shard_size=300), out)  # made already
    assert touched == []
    with pytest.raises(ValueError, match="is there already; name a new folder"):
        checkpoint.merge_checkpoints(planned(pair, "slerp", shard_size=300), out)
    file = next(out.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="no longer as it was written"):
        checkpoint.merge_checkpoints(planned(pair, shard_size=300), out)


def test_finished_tensors_that_were_lost_are_made_again(pair, tmp_path):
    """As after a power cut: the journal is there, what it speaks of is not."""
    whole = files(checkpoint.merge_checkpoints(planned(pair, shard_size=300), tmp_path / "whole"))

    def stop(done, name):
        if name == "layers.1.w":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.merge_checkpoints(planned(pair, shard_size=300), tmp_path / "out", stop)
    for file in (tmp_path / "out.partial" / "result").glob("*.safetensors"):
        damaged(file, lambda data: bytes(len(data)))
    assert files(checkpoint.merge_checkpoints(planned(pair, shard_size=300), tmp_path / "out")) == whole


def damaged(path, change):
    data = path.read_bytes()
    path.write_bytes(change(data))


def header(data, change):
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    change(head)
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def overlap(head):
    head["layers.0.w"]["data_offsets"] = head["layers.1.w"]["data_offsets"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-5], "truncated: its header asks for"),
        (lambda data: data + b"0", "too long"),
        (lambda data: data[:6], "truncated, or no safetensors file: it has 6 bytes"),
        (lambda data: b"\xff" * 8 + data[8:], "announces a header of 18446744073709551615"),
        (lambda data: data[:8] + b"?" + data[9:], "header cannot be read"),
        (lambda data: header(data, lambda head: head["scale"].pop("dtype")), "entry of tensor 'scale' is incomplete"),
        (lambda data: header(data, lambda head: head["scale"].update(dtype="F4")), "has dtype 'F4'; known are"),
        (lambda data: header(data, lambda head: head["scale"].update(shape=[2])), r"shape \(2,\) needs 8 bytes, has 4"),
        (lambda data: header(data, overlap), "start at byte"),
    ],
)
def test_damaged_files_are_refused_with_their_name(tmp_path, change, message):
    path = folder(tmp_path / "m", values(0)) / "model.safetensors"
    damaged(path, change)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.Checkpoint(path.parent)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["weight_map"].update({"scale": "model-00009-of-00003.safetensors"}), "which is not there"),
        (lambda held: held["weight_map"].update({"scale": "../x.safetensors"}), "shards lie beside their index"),
        (
            lambda held: held["weight_map"].update(ghost="model-00001-of-00003.safetensors"),
            "'ghost' is in .* where it is not",
        ),
        (lambda held: held["weight_map"].update(scale="model-00003-of-00003.safetensors"), "it is in model-00002"),
        (lambda held: held["weight_map"].pop("scale"), "does not name tensor 'scale'"),
        (lambda held: held.pop("weight_map"), "has no weight_map"),
    ],
)
def test_a_wrong_index_is_refused(pair, change, message):
    index = pair[0] / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    change(held)
    index.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=message):
        checkpoint.Checkpoint(pair[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_and_nothing_appears(tmp_path, bad):
    state = values(1)
    state["layers.1.w"][2, 3] = bad
    paths = [folder(tmp_path / "a", values(0)), folder(tmp_path / "b", state)]
    message = rf"b: tensor 'layers.1.w' holds {bad} at entry 11"
    with pytest.raises(ValueError, match=message):
        checkpoint.check_values(planned(paths))
    with pytest.raises(ValueError, match=message):
        checkpoint.merge_checkpoints(planned(paths), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_read_only_when_asked_and_then_only_tensors(tmp_path):
    good, mark = tmp_path / "good.pt", tmp_path / "exploded"
    torch.save({"w": torch.ones(3)}, good)
    with pytest.raises(ValueError, match=r"is a pickle, which can run code .* pass --unpickle"):
        checkpoint.Checkpoint(good)
    assert checkpoint.Checkpoint(good, unpickle=True).block("w", 0, 3).tolist() == [1, 1, 1]
    for name, write in (
        ("bad.pt", lambda path: torch.save({"w": Bomb(mark)}, path)),
        ("worse.bin", lambda path: path.write_bytes(pickle.dumps(Bomb(mark)))),
    ):
        write(tmp_path / name)
        for allowed in (False, True):
            with pytest.raises(ValueError, match="is a pickle" if not allowed else "holds more than tensors"):
                checkpoint.Checkpoint(tmp_path / name, unpickle=allowed)
    assert not mark.exists()
    torch.save({"w": torch.ones(3), "step": 3}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="is no state dict"):
        checkpoint.Checkpoint(tmp_path / "state.pt", unpickle=True)
    torch.save({"w": torch.ones(3, dtype=torch.complex64)}, tmp_path / "complex.pt")
    with pytest.raises(ValueError, match=r"'w' is torch\.complex64"):
        checkpoint.Checkpoint(tmp_path / "complex.pt", unpickle=True)


def test_of_several_pickles_the_weights_are_taken(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    torch.save({"state": 1}, tmp_path / "optimizer.pt")
    assert checkpoint.Checkpoint(tmp_path, unpickle=True).names() == ["w"]
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(ValueError, match="holds 2 pickles; name the one with the weights"):
        checkpoint.Checkpoint(tmp_path, unpickle=True)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("other", "rows"),
    [
        ({"state": without(values(1), "scale")}, [("tensor", "scale", ("present", "missing"))]),
        ({"state": {**values(1), "extra": torch.ones(2)}}, [("tensor", "extra", ("missing", "present"))]),
        ({"state": {**values(1), "layers.0.w": torch.ones(6, 5)}}, [("shape", "layers.0.w", ("6x4", "6x5"))]),
        ({"state": {**values(1), "scale": torch.ones(()).half()}}, [("dtype", "scale", ("float32", "float16"))]),
        ({"config": TIED}, [("tied weights", "tie_word_embeddings", ("untied", "tied"))]),
        ({"config": {**CONFIG, "rope_theta": 5}}, [("config", "rope_theta", ("-", "5"))]),
        ({"config": {**CONFIG, "quantization_config": {"quant_method": "gptq"}}}, [
            ("quantised", "weights", ("no", "gptq")),
            ("config", "quantization_config", ("-", "{'quant_method': 'gptq'}")),
        ]),
        ({"tokens": {"a": 1, "b": 0}}, [("vocabulary", "tokens", ("2 tokens", f"2 tokens, {TWO} 'a'"))]),
        ({"tokens": {"a": 0, "c": 1}}, [("vocabulary", "tokens", ("2 tokens", f"2 tokens, {TWO} 'b'"))]),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_a_table(tmp_path, other, rows):
    given = {"state": values(1), "config": CONFIG, "tokens": {"a": 0, "b": 1}, **other}
    one = folder(tmp_path / "a", values(0), config=CONFIG, tokens={"a": 0, "b": 1})
    two = folder(tmp_path / "b", given["state"], config=given["config"], tokens=given["tokens"])
    with pytest.raises(checkpoint.Disagreement, match="do not fit together") as error:
        planned([one, two])
    assert [(row.kind, row.name, row.values) for row in error.value.rows] == rows
    assert error.value.remedy()


def test_what_may_be_overruled(tmp_path):
    one = folder(tmp_path / "a", values(0), config=CONFIG, tokens={"a": 0})
    two = folder(tmp_path / "b", values(1, torch.bfloat16), config={**CONFIG, "x": 1}, tokens={"b": 0})
    with pytest.raises(checkpoint.Disagreement) as error:
        planned([one, two])
    assert {row.kind for row in error.value.rows} == {"dtype", "config", "vocabulary"}
    for hint in ("--dtype", "--allow config", "--allow vocabulary"):
        assert hint in error.value.remedy()
    plan = planned([one, two], dtype="float32", allow=("config", "vocabulary"))
    out = checkpoint.merge_checkpoints(plan, tmp_path / "out")
    torch.testing.assert_close(
        read(out)["scale"], (values(0)["scale"] + values(1, torch.bfloat16)["scale"].float()) / 2
    )


def test_integer_buffers_are_copied_and_must_agree(tmp_path):
    paths = [folder(tmp_path / "a", values(0)), folder(tmp_path / "b", {**values(1), "positions": torch.arange(1, 8)})]
    with pytest.raises(ValueError, match="'positions' is int64, which is copied and not averaged"):
        checkpoint.check_values(planned(paths))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: passthrough\nmodels: [{model: a}]", "merge_method must be one of"),
        ("merge_method: linear", "must have 'models'"),
        ("merge_method: linear\nmodels: [{model: a}]\ntokenizer: {source: union}", "key must be one of"),
        ("merge_method: linear\nmodels: [{path: a}]", "must have 'model', a path"),
        ("merge_method: linear\nmodels: [{model: a, parameters: {density: 1}}]", "linear has no option 'density'"),
        ("merge_method: ties\nmodels: [{model: a}]", "ties needs a base model"),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: a}]\nparameters: {rescale: true}",
            "rescale: true is not had",
        ),
        ("merge_method: linear\nslices: [{sources: [{model: a, layer_range: [4, 8]}]}]", "one layer_range from 0"),
        ("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: [x]}", "a list must hold numbers"),
        ("- 1", "must hold 'merge_method'"),
        ("a: [", "is no YAML"),
    ],
)
def test_recipes_that_are_not_read_here_are_refused(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.read_recipe(file)
    assert str(file) in str(error.value)


def test_memory_does_not_grow_with_the_model(tmp_path):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory can be reset on Linux only")

    def peak(name, tensors):
        state = {f"w{i}": torch.zeros(2**22) for i in range(tensors)}
        paths = [folder(tmp_path / name / part, state, shards=2) for part in "ab"]
        del state
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        checkpoint.merge_checkpoints(
            planned(paths[:1], "ties", paths[1], how={"density": 0.5}), tmp_path / name / "out"
        )
        return memory("VmHWM") - before

    def memory(what):
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{what}:")[1].split()[0]) / 2**20

    small = peak("small", 2)  # 32 MiB a model
    assert peak("large", 10) < small + 32
