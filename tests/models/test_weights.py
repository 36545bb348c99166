"""Arithmetic of weights against plain tensors, ties, refusals, and files that are written in safetensors' own layout."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from language import Folders, keep, llama, run_of, tokenizer_of
from stillhouse.core.run import RunError
from stillhouse.data.toys import Sentences
from stillhouse.models import weights
from stillhouse.models.toys import TinyLM
from stillhouse.models.weights import (
    Change,
    Moved,
    Noise,
    Stored,
    Summed,
    cosines,
    difference,
    merged,
    moved,
    norms,
    write_like,
)


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {"a": torch.randn(3, 4, generator=draw).to(dtype), "b": torch.randn(5, generator=draw).to(dtype)}
    return made | {"count": torch.tensor(7)}


def test_sums_by_hand() -> None:
    x, y, z = state(1), state(2), state(3)
    total = merged({"x": x, "y": y, "z": z}, {"x": 0.5, "y": 0.2, "z": 0.3})
    for name in ("a", "b"):
        torch.testing.assert_close(total[name], 0.5 * x[name] + 0.2 * y[name] + 0.3 * z[name])
    assert total["count"] == 7
    delta = difference(x, y)
    assert set(delta) == {"a", "b"}  # whole numbers have no direction
    torch.testing.assert_close(delta["a"], x["a"] - y["a"])
    torch.testing.assert_close(moved(z, delta, 0.7)["b"], z["b"] + 0.7 * (x["b"] - y["b"]))
    assert norms(delta)["a"] == pytest.approx(float((x["a"] - y["a"]).pow(2).sum().sqrt()))


def test_identities_bit_for_bit() -> None:
    x, y = state(1), state(2)
    y["a"][0, 0] = -0.0
    y["b"][0] = math.inf
    for same in (
        moved(y, difference(x, x), 0.0),
        moved(y, difference(y, x), 0.0),
        merged({"x": x, "y": y}, {"x": 0, "y": 1}),
    ):
        for name, value in y.items():
            assert same[name].numpy().tobytes() == value.numpy().tobytes(), name  # -0.0 too
    torch.testing.assert_close(moved(y := state(2), difference(x, y), 1.0)["a"], x["a"])


def test_bfloat16_is_accumulated_in_float32() -> None:
    """Many small parts that bfloat16 would lose one after the other."""
    big, small = {"w": torch.full((4,), 256.0, dtype=torch.bfloat16)}, {"w": torch.full((4,), 256.0, dtype=torch.bfloat16)}
    models = {"big": big, **{f"s{i}": {"w": small["w"] / 256} for i in range(4)}}
    total = merged(models, {"big": 1.0, **{f"s{i}": 1.0 for i in range(4)}})["w"]
    assert total.dtype == torch.bfloat16 and (total == 260).all()  # 256 + 1 rounds to 256 in bfloat16
    assert difference(big, models["s0"])["w"].dtype == torch.float32
    wide = {"w": torch.ones(2, dtype=torch.float64)}
    assert difference(wide, wide)["w"].dtype == torch.float64


def test_cosines() -> None:
    a, b = difference(state(1), state(2)), difference(state(3), state(4))
    found = cosines(a, b)
    for name in a:
        expected = torch.nn.functional.cosine_similarity(a[name].flatten().double(), b[name].flatten().double(), dim=0)
        assert found[name] == pytest.approx(float(expected))
    assert cosines(a, a)["a"] == pytest.approx(1.0)
    assert cosines(a, {k: -2 * v for k, v in a.items()})["b"] == pytest.approx(-1.0)
    assert math.isnan(cosines(a, {k: 0 * v for k, v in a.items()})["b"])


def test_noise_has_the_norm_of_every_tensor_and_no_direction() -> None:
    delta = Change(state(1), state(2))
    noise = dict(Noise(delta, 3))
    assert norms(noise) == pytest.approx(norms(delta))
    assert not torch.equal(noise["a"], delta["a"])
    assert all(torch.equal(noise[k], Noise(delta, 3)[k]) and not torch.equal(noise[k], Noise(delta, 4)[k]) for k in noise)


def test_tied_tensors_are_one(tmp_path: Path) -> None:
    run = run_of(tmp_path, TinyLM(width=8, depth=1), data=Sentences())
    a, b = (run.recipe.student.build(run) for _ in range(2))
    for model in (a, b):
        torch.nn.init.normal_(model.embedding.weight)
    delta = difference(a.state_dict(), b.state_dict())
    assert "embedding.weight" in delta and "head.weight" not in delta
    made = moved(b.state_dict(), delta)
    assert made["head.weight"].data_ptr() == made["embedding.weight"].data_ptr()
    torch.testing.assert_close(made["head.weight"], a.head.weight.data)
    made = merged({"a": a.state_dict(), "b": b.state_dict()}, {"a": 0.5, "b": 0.5})
    assert made["head.weight"].data_ptr() == made["embedding.weight"].data_ptr()


def test_what_does_not_match_is_one_line() -> None:
    x = state(1)
    with pytest.raises(RunError, match="not of one architecture: 'b' is in x only"):
        merged({"x": x, "y": {"a": x["a"], "count": x["count"]}}, {"x": 0.5, "y": 0.5})
    with pytest.raises(RunError, match=r"'a' is \[3, 4\] and \[4, 3\]"):
        merged({"x": x, "y": {**x, "a": x["a"].T}}, {"x": 0.5, "y": 0.5})
    with pytest.raises(RunError, match="'count' holds whole numbers, which x and y do not share"):
        merged({"x": x, "y": {**x, "count": torch.tensor(8)}}, {"x": 0.5, "y": 0.5})
    with pytest.raises(RunError, match="needs one weight for each"):
        Summed({"x": x}, {"x": 0.5, "y": 0.5})
    with pytest.raises(RunError, match="'b' of the difference has no partner"):
        Moved({"a": x["a"]}, difference(x, x))
    with pytest.raises(RunError, match="no partner of its shape"):
        moved({"a": x["a"].T, "b": x["b"]}, difference(x, x))


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Any]:
    """Two Llamas of one architecture, the first in shards, the second in one bfloat16 file; and the tokenizer."""
    tokenizer = tokenizer_of()
    llama(seed=1).save_pretrained(tmp_path / "one", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "one")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 2
    return tmp_path / "one", keep(llama(seed=2).bfloat16(), tokenizer, tmp_path / "two"), tokenizer


def test_a_folder_in_a_folder_out(pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = {"one": Stored(pair[0]), "two": Stored(pair[1])}
    total = Summed(models, {"one": 0.25, "two": 0.75})
    write_like(tmp_path / "out", models["one"], total)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    a, b = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).state_dict() for p in pair[:2])
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, 0.25 * a[name] + 0.75 * b[name])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == pair[2].get_vocab()
    names = {p.name for p in pair[0].iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    for path in (tmp_path / "out").glob("*.safetensors"):  # as the library itself would have written it
        again = load_file(path)
        assert again.keys() == load_file(pair[0] / path.name).keys()
        save_file(again, tmp_path / "again.safetensors", metadata={"format": "pt"})
        assert path.stat().st_size == (tmp_path / "again.safetensors").stat().st_size


def test_writing_a_folder_again_gives_the_same_bytes(pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    for place in pair[:2]:
        model, out = Stored(place), tmp_path / f"again_{place.name}"
        write_like(out, model, Moved(model, Change(model, model), 0.0))
        for path in place.glob("*.safetensors"):
            assert (out / path.name).read_bytes() == path.read_bytes()


def test_stored_equals_loaded(folders: Folders) -> None:
    model = Stored(folders.student)
    reference = load_file(folders.student / "model.safetensors")
    assert set(model) == set(reference) and len(model) == len(reference)
    assert all(torch.equal(model[k], v) and model.shape(k) == tuple(v.shape) for k, v in reference.items())


def test_a_merge_holds_a_tensor_of_each_not_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {f"w{i}": torch.randn(256, 1024) for i in range(16)}  # 16 tensors of 1 MiB
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
        save_file(big, tmp_path / name / "model.safetensors")
    held, most = 0, 0
    alive: list[Any] = []

    def read(self: Stored, name: str) -> torch.Tensor:
        nonlocal most
        value = original(self, name).clone()
        alive.append(__import__("weakref").ref(value))
        most = max(most, sum(ref() is not None for ref in alive))
        return value

    original = Stored.__getitem__
    monkeypatch.setattr(weights.Stored, "__getitem__", read)
    models = {name: Stored(tmp_path / name) for name in ("x", "y", "z")}
    tracemalloc.start()
    write_like(tmp_path / "out", models["x"], Summed(models, {"x": 0.2, "y": 0.3, "z": 0.5}))
    assert tracemalloc.get_traced_memory()[1] < 2**20  # what Python itself holds: no copy of the bytes
    tracemalloc.stop()
    assert most <= 3 and held == 0
    torch.testing.assert_close(load_file(tmp_path / "out" / "model.safetensors")["w3"], big["w3"])


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no weights as safetensors"):
        Stored(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(RunError, match="cut short, or no safetensors file"):
        Stored(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="hold the same tensor"):
        Stored(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="merge them into the model first"):
        Stored(tmp_path)
