"""A student cut from its teacher: the cut it announces, the same for every arm, and a folder that anybody can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from language import Folders, keep, model_of, run_of, tokenizer_of
from stillhouse.core.recipe import to_plain
from stillhouse.core.run import RunError
from stillhouse.core.stage import Subjects
from stillhouse.data.toys import Sentences
from stillhouse.models.hub import HubLM, layers_of, load_model
from stillhouse.models.shrink import Shrink, influential_layers, shrink_of

TOKENS = torch.arange(3, 23).view(2, 10)


def cut(folders: Folders, folder: Path, **wish: Any) -> tuple[Any, Any, Shrink]:
    spec = Shrink(of=HubLM(path=str(folders.teacher)), **wish)
    run = run_of(folder, spec, data=Sentences())
    return spec.build(run).eval(), run, spec


@torch.no_grad()
@pytest.mark.parametrize(
    "wish",
    [{"layers": 2}, {"width": 24}, {"ffn": 40}, {"layers": 3, "width": 20, "ffn": 30}, {"keep": (0, 3)}],
    ids=str,
)
def test_what_is_saved_is_what_was_cut(folders: Folders, tmp_path: Path, wish: dict[str, Any]) -> None:
    module, run, spec = cut(folders, tmp_path / "run", **wish)
    assert len(layers_of(module)) == len(wish.get("keep", ())) or wish.get("layers", 4)
    assert module.config.hidden_size == wish.get("width", 32)
    assert layers_of(module)[0].mlp.up_proj.weight.shape == (wish.get("ffn", 64), wish.get("width", 32))  # type: ignore[union-attr]
    spec.save(module, tmp_path / "out", run)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == len(layers_of(module))
    torch.testing.assert_close(loaded(TOKENS).logits, module(TOKENS).dense(), rtol=1e-5, atol=1e-5)
    made = loaded.generate(TOKENS[:1], max_new_tokens=3, do_sample=False)  # with the cache: layer numbers are right
    assert made.shape[1] > TOKENS.shape[1]


@torch.no_grad()
def test_the_layers_that_stay_are_the_teachers(folders: Folders, tmp_path: Path) -> None:
    module, run, _ = cut(folders, tmp_path, keep=(0, 2, 3))
    teacher = load_model(str(folders.teacher))
    for mine, theirs in zip(layers_of(module), (0, 2, 3), strict=True):
        assert torch.equal(mine.mlp.up_proj.weight, teacher.model.layers[theirs].mlp.up_proj.weight)  # type: ignore[union-attr]
    assert run.load_json("cut")["layers"] == [0, 2, 3]


@torch.no_grad()
def test_channels_that_stay_are_the_teachers(folders: Folders, tmp_path: Path) -> None:
    module, run, _ = cut(folders, tmp_path, width=20)
    channels = run.load_json("cut")["channels"]
    teacher = load_model(str(folders.teacher))
    assert len(set(channels)) == 20
    assert torch.equal(module.model.get_input_embeddings().weight, teacher.get_input_embeddings().weight[:, channels])
    assert module.model.get_output_embeddings().weight is module.model.get_input_embeddings().weight


@torch.no_grad()
def test_influence_drops_the_layer_that_does_nothing(folders: Folders, tmp_path: Path) -> None:
    module = HubLM(path=str(folders.teacher)).build(run_of(tmp_path, None)).eval()
    idle: Any = layers_of(module)[2]
    idle.mlp.down_proj.weight.zero_()
    idle.self_attn.o_proj.weight.zero_()
    before = module(TOKENS).dense()
    assert influential_layers(module, [{"tokens": TOKENS}], 3) == [0, 1, 3]
    assert influential_layers(module, [{"tokens": TOKENS}], 1) != []
    assert torch.equal(module(TOKENS).dense(), before)  # looking changes nothing


def test_even_layers_keep_both_ends(folders: Folders, tmp_path: Path) -> None:
    for number, (layers, kept) in enumerate([(2, [0, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (1, [0])]):
        _, run, _ = cut(folders, tmp_path / str(number), layers=layers, choose="even")
        assert run.load_json("cut")["layers"] == kept


@torch.no_grad()
def test_the_choice_is_made_once(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, run, spec = cut(folders, tmp_path, layers=2, width=24)
    monkeypatch.setattr("stillhouse.models.shrink.influential_layers", lambda *_: pytest.fail("chosen again"))
    again = spec.build(run).eval()
    start = Subjects(run, ("start",)).load("start")
    for other in (again, start):
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_wishes_in_one_string(folders: Folders) -> None:
    of = HubLM(path=str(folders.teacher))
    assert shrink_of(of, "layers=10,width=384,ffn=1024,choose=even") == Shrink(
        of=of, layers=10, width=384, ffn=1024, choose="even"
    )
    assert shrink_of(of, "keep=0+2+5").keep == (0, 2, 5)
    assert to_plain(shrink_of(of, "layers=2"))["of"]["path"] == str(folders.teacher)
    for wrong in ("", "layers=ten", "depth=3", "layers", "choose=odd,layers=2", "keep=a+b", "rows=2"):
        with pytest.raises(RunError, match="shrink:layers=10"):
            shrink_of(of, wrong)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"layers": 9}, "9 of 4 layers"), ({"layers": 0}, "0 of 4"), ({"keep": (0, 7)}, "from 0 to 3"),
        ({"keep": (1, 1)}, "each once"), ({"width": 64}, "width=64 of 32"), ({"ffn": 0}, "ffn=0"),
        ({"width": 19}, "18 or 20"),
    ],
)  # fmt: skip
def test_impossible_wishes(folders: Folders, tmp_path: Path, wish: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says):
        cut(folders, tmp_path, **wish)


def test_narrowing_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    keep(model_of(transformers.Gemma2Config, head_dim=16), tokenizer_of(), tmp_path / "gemma")
    spec = Shrink(of=HubLM(path=str(tmp_path / "gemma")), width=24)
    with pytest.raises(RunError, match="Llama-like"):
        spec.build(run_of(tmp_path / "run", spec, data=Sentences()))
    spec = Shrink(of=spec.of, layers=2)
    assert len(layers_of(spec.build(run_of(tmp_path / "run2", spec, data=Sentences())))) == 2
