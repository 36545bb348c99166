"""Hugging Face models: their logits are the model's own, packing leaks nothing, folders load anywhere, errors are clear."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from language import TOKENS, Folders, keep, llama, model_of, run_of, tokenizer_of
from stillhouse.cli import door
from stillhouse.core.recipe import Recipe, RecipeError
from stillhouse.core.run import RunError
from stillhouse.core.stage import Train, execute
from stillhouse.data.tokens import Document, Packed
from stillhouse.data.toys import Sentences
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models import hub
from stillhouse.models.call import cast, logits_of
from stillhouse.models.hub import CausalLM, HubLM, Lora, document_mask
from stillhouse.objectives.divergences import cross_entropy

ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, {}),
    "untied": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
    "gemma2": (transformers.Gemma2Config, {"final_logit_softcapping": 3.0, "head_dim": 16}),
    "cohere": (transformers.CohereConfig, {"logit_scale": 0.0625}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 4.0}),
}


def random_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, TOKENS, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(llama())


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_logits_are_the_models_own(name: str) -> None:
    config, settings = ARCHITECTURES[name]
    model, tokens = model_of(config, layers=2, **settings), random_tokens(2, 9)
    torch.testing.assert_close(CausalLM(model)(tokens).dense(), model(tokens).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # gemma2 has an attention of its own, to which masks are added
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    config, settings = ARCHITECTURES[name]
    model = CausalLM(model_of(config, layers=2, **settings))
    lengths = [5, 9, 1, 4]
    documents = [random_tokens(1, n, seed=n) for n in lengths]
    packed = Packed((tuple(Document(d[0].tolist(), [True] * d.shape[1], 0) for d in documents),), 32).batch([0], 0)
    together = logits_of(model, packed).dense()[0]
    apart = torch.cat([model(d).dense()[0] for d in documents])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_documents_beyond_a_sliding_window_are_refused() -> None:
    model = CausalLM(model_of(transformers.Gemma2Config, layers=2, sliding_window=4, head_dim=16))
    short, long = (Document([5] * n, [True] * n, 0) for n in (4, 5))
    batch = Packed(((short, short),), 32).batch([0], 0)
    alone = model.model(torch.tensor([[5] * 4])).logits[0]
    torch.testing.assert_close(logits_of(model, batch).dense()[0, 4:], alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(RunError, match="--length 4"):
        logits_of(model, Packed(((short, long),), 32).batch([0], 0))


@torch.no_grad()
def test_padding_on_the_right_changes_nothing(model: CausalLM) -> None:
    rows = tuple((Document(random_tokens(1, n, seed=n)[0].tolist(), [True] * n, 0),) for n in (3, 8))
    batch = Packed(rows, 8).batch([0, 1], 0)
    both = logits_of(model, batch).dense()
    assert document_mask(batch["inputs"]["document"]) is None  # plain causal attention is enough
    for row, n in ((0, 3), (1, 8)):
        alone = model(batch["inputs"]["tokens"][row : row + 1, :n]).dense()[0]
        torch.testing.assert_close(both[row, :n], alone, rtol=1e-5, atol=1e-5)
    mixed = Packed(((*rows[0], *rows[0]), rows[1]), 8).batch([0, 1], 0)  # here the mask is needed, padding included
    assert torch.isfinite(logits_of(model, mixed).dense()).all()


@torch.no_grad()
def test_a_saved_model_loads_anywhere(model: CausalLM, tmp_path: Path) -> None:
    run, tokens = run_of(tmp_path / "run", None), random_tokens(2, 7)
    keep(llama(), tokenizer_of(), tmp_path / "from")
    spec = HubLM(path=str(tmp_path / "from"))
    spec.save(spec.build(run), tmp_path / "to", run)
    for loaded in (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "to"),
        spec.load(tmp_path / "to", run).model,
    ):
        assert torch.equal(loaded(tokens).logits, model.model(tokens).logits)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "to").chat_template
    assert not list((tmp_path / "to").glob("*.bin"))


def test_casting_keeps_the_rotary_frequencies(model: CausalLM) -> None:
    changed = cast(CausalLM(llama()), torch.bfloat16)
    assert {p.dtype for p in changed.parameters()} == {torch.bfloat16}
    before, after = (dict(m.named_buffers())["model.model.rotary_emb.inv_freq"] for m in (model, changed))
    assert torch.equal(before, after)


def test_lora_trains_its_adapters_and_is_merged_when_saved(folders: Folders, tmp_path: Path) -> None:
    spec = HubLM(path=str(folders.student), lora=Lora(rank=2))
    recipe = Recipe(
        id="lora", student=spec, data=Sentences(),
        stages={"train": Train(method=Supervised(), steps=3, batch=4)},
    )  # fmt: skip
    run = run_of(tmp_path / "run", spec)
    module = spec.build(run)
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n for n in trained)
    with torch.no_grad():
        for name, param in module.named_parameters():
            if "lora_B" in name:
                param.normal_(generator=torch.Generator().manual_seed(0))
    tokens = random_tokens(1, 6)
    with_adapters = module.eval()(tokens).dense().detach()
    before = spec.load(folders.student, run)(tokens).dense().detach()
    assert (with_adapters - before).abs().max() > 0.1
    spec.save(module, tmp_path / "merged", run)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
    torch.testing.assert_close(with_adapters, merged, rtol=1e-3, atol=1e-3)
    execute(recipe, run)
    start, end = hub.load_model(str(folders.student)), hub.load_model(str(run.path("train")))
    assert torch.equal(start.get_input_embeddings().weight, end.get_input_embeddings().weight)
    assert not torch.equal(start.model.layers[0].mlp.up_proj.weight, end.model.layers[0].mlp.up_proj.weight)


def test_gradient_checkpointing_changes_no_gradient(folders: Folders, tmp_path: Path) -> None:
    ends = []
    for again in (False, True):
        stage = Train(method=Supervised(), steps=2, batch=4, checkpointing=again)
        recipe = Recipe(id="c", student=HubLM(path=str(folders.student)), data=Sentences(), stages={"train": stage})
        run = run_of(tmp_path / str(again), None)
        execute(recipe, run)
        ends.append(hub.load_model(str(run.path("train"))).state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-6, atol=1e-6)


def test_checkpointing_recomputes(folders: Folders, tmp_path: Path) -> None:
    module = HubLM(path=str(folders.student)).build(run_of(tmp_path, None)).train()
    calls: list[int] = []
    module.decoder.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[union-attr,index]
    module.gradient_checkpointing_enable()
    tokens = random_tokens(1, 6)
    cross_entropy(module(tokens), tokens).sum().backward()
    assert len(calls) == 2


# -- what goes wrong -----------------------------------------------------------------------------------------------


def refused(path: str | Path, what: Any = hub.load_model) -> str:
    with pytest.raises(RunError) as caught:
        what(str(path))
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "no model folder" in refused(tmp_path / "nothing")
    assert "neither here nor in the hub's local cache" in refused("nobody/nothing-of-this-name")
    assert "no file" in refused(tmp_path / "model.gguf")
    assert "pip install" in refused("package:no_such_package")


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for what in (hub.load_model, hub.load_config, hub.load_tokenizer):
        assert "config.json" in refused(tmp_path, what)


def test_damaged_files(folders: Folders, tmp_path: Path) -> None:
    for name, content in (("model.safetensors", b"\0" * 40), ("config.json", b"{"), ("tokenizer.json", b"{")):
        broken = tmp_path / name.replace(".", "_")
        shutil.copytree(folders.student, broken)
        (broken / name).write_bytes(content)
        what = hub.load_tokenizer if name == "tokenizer.json" else hub.load_model
        assert "cannot load" in refused(broken, what)


def test_weights_that_are_not_all_there(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders.student, tmp_path / "deeper")
    config = json.loads((tmp_path / "deeper/config.json").read_text())
    (tmp_path / "deeper/config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    assert "not complete" in refused(tmp_path / "deeper")


def test_weights_of_another_size(folders: Folders, tmp_path: Path) -> None:
    shutil.copytree(folders.student, tmp_path / "wider")
    config = json.loads((tmp_path / "wider/config.json").read_text())
    (tmp_path / "wider/config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    refused(tmp_path / "wider")


def test_a_gguf_file_without_the_package_or_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    refused(tmp_path / "model.gguf")

    def absent(file: Path) -> Path:
        raise ImportError("requires GGUF>=0.10.0 to be installed.")

    monkeypatch.setattr(hub, "_converted", absent)
    assert "pip install 'stillhouse[hf]'" in refused(tmp_path / "model.gguf")


def test_a_data_type_that_is_none(folders: Folders) -> None:
    recipe = Recipe(id="x", student=HubLM(path=str(folders.student)), data=None, stages={})
    with pytest.raises(RecipeError, match="bfloat16"):
        door.override(recipe, ["student.dtype=float8"])


def test_transformers_is_not_there(monkeypatch: pytest.MonkeyPatch, folders: Folders) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(hub.importlib, "import_module", absent)
    assert "pip install 'stillhouse[hf]'" in refused(folders.student)
