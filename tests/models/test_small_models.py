"""The models made from scratch: what their rows see, how they are kept, and where their sizes come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.data.toys import Clusters, Sentences
from stillhouse.models.call import logits_of
from stillhouse.models.toys import MLP, ConvNet, TinyLM


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", device=torch.device("cpu"))


@pytest.mark.parametrize("spec", [
    MLP(inputs=6, classes=3, depth=0), MLP(inputs=6, classes=3, dropout=0.5), ConvNet(channels=2, classes=3, width=6),
    TinyLM(vocabulary=9, tied=True), TinyLM(vocabulary=9, tied=False),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_the_same(run: Run, tmp_path: Path, spec: Any, dtype: torch.dtype):
    torch.manual_seed(0)
    module = spec.build(run).to(dtype)
    spec.save(module, tmp_path, run)
    assert [p.suffix for p in tmp_path.iterdir() if p.is_file()] == [".safetensors"]
    torch.manual_seed(1)
    loaded = spec.load(tmp_path, run)
    for name, value in module.state_dict().items():
        assert torch.equal(value.float(), loaded.state_dict()[name])
    if getattr(spec, "tied", False):
        assert loaded.head.weight is loaded.embedding.weight


def test_weights_of_another_size(run: Run, tmp_path: Path):
    small, big = MLP(inputs=6, classes=3, width=4), MLP(inputs=6, classes=3, width=5)
    small.save(small.build(run), tmp_path, run)
    with pytest.raises(RunError, match="do not fit MLP") as caught:
        big.load(tmp_path, run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spec", "data", "shape"), [
    (MLP(), Clusters(), (4, 4)), (TinyLM(), Sentences(), (4, 29)),
])  # fmt: skip
def test_sizes_come_from_the_data(run: Run, spec: Any, data: Any, shape: tuple[int, ...]):
    run.recipe = Recipe(id="r", student=spec, data=data, stages={})
    batch = run.sources()["train"].batch([0, 1, 2, 3], 0)
    logits = logits_of(spec.build(run), batch)
    assert (logits.shape[0], logits.shape[-1]) == (shape[0], shape[-1])


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (5, 4), (1, 1)])
def test_images_of_any_size(run: Run, size: int, depth: int):
    module = ConvNet(channels=3, classes=4, width=4, depth=depth).build(run)
    assert module(torch.rand(2, 3, size, size)).shape == (2, 4)


def test_the_number_of_heads_must_fit():
    with pytest.raises(ValueError, match="width must be a multiple of twice the heads, not 18 for 4 heads"):
        TinyLM(width=18, heads=4)


def language_model(run: Run) -> Any:
    torch.manual_seed(0)
    return TinyLM(vocabulary=29, width=16, depth=2, heads=2).build(run).double().eval()


def test_packed_documents_do_not_see_each_other(run: Run):
    """A row of several ragged documents gives each the logits that it has alone, wherever it lies in the row."""
    model = language_model(run)
    source = Sentences().load(run)["train"]
    batch = source.batch([0, 20, 40], 0)
    inputs = batch["inputs"]
    packed = model(**inputs).dense()
    seen = 0
    for row in range(3):
        for number in range(int(inputs["document"][row].max()) + 1):
            here = inputs["document"][row] == number
            alone = model(inputs["tokens"][row, here].unsqueeze(0)).dense()[0]
            assert torch.allclose(packed[row, here], alone, atol=1e-12)
            seen += 1
    assert seen > 5


def test_the_future_is_not_seen(run: Run):
    model = language_model(run)
    tokens = torch.randint(29, (1, 12))
    changed = tokens.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 29
    before, after = model(tokens).dense(), model(changed).dense()
    assert torch.equal(before[0, :7], after[0, :7]) and not torch.allclose(before[0, 7], after[0, 7])


def test_positions_are_relative(run: Run):
    model = language_model(run)
    tokens = torch.randint(29, (1, 12))
    position = torch.arange(12).unsqueeze(0)
    moved = model(tokens, position + 5).dense()
    assert torch.allclose(model(tokens, position).dense(), moved, atol=1e-4)  # the angles are float32
    assert not torch.allclose(model(tokens, position * 2).dense(), moved, atol=1e-2)


def test_weights_depend_on_the_seed_alone(run: Run):
    spec = replace(TinyLM(), vocabulary=9)

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in spec.build(run).parameters()])

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))
