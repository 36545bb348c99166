"""ERNIE-Tiny: the loss against loops, P, the layer map, whose pieces teach when, and Hugging Face's own hidden states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from language import LINES, run_of, tokenizer_of, write_jsonl
from stillhouse.core.engine import Loop, fit
from stillhouse.core.optim import Optim
from stillhouse.core.run import RunError
from stillhouse.core.teacher import TeacherMismatch
from stillhouse.data.labelled import LibraryTopics
from stillhouse.data.unlabelled import LibraryTexts, Texts
from stillhouse.methods.language.ernie_tiny import Latent, MaskedWords, recipe
from stillhouse.models.encoder import TinyEncoder, inside
from stillhouse.models.text import HubClassifier, NGrams
from stillhouse.teachers.encoder import EncoderTeacher

DATA = LibraryTopics(each=12)
BIG, SMALL = TinyEncoder(width=16, depth=4, heads=4), TinyEncoder(width=12, depth=2, heads=2)


def begun(folder: Path, method: Any, big: Any = BIG, small: Any = SMALL) -> tuple[Any, Any, Any]:
    run = run_of(folder, small, data=DATA)
    run.teachers = {"tuned": EncoderTeacher(model=big).build(run)}
    run.source = run.sources()["train"]
    torch.manual_seed(1)
    return run, method.setup(small.build(run), run), run.source.batch(range(6), 0)


def test_the_loss_by_loops(tmp_path: Path) -> None:
    method = Latent(latent=0.7, soft=0.5, hard=0.3)
    run, s, batch = begun(tmp_path, method)
    (made,) = method.step(s, batch, run)
    mine, theirs = inside(s.student, batch), inside(run.teachers["tuned"].module, batch)
    expected = torch.zeros(())
    for b, mask in enumerate(batch["inputs"]["attention_mask"].bool()):
        n = int(mask.sum())
        assert mask[:n].all()
        for own, other in ((0, 0), (1, 2), (2, 4)):  # m(l) = l * 4 / 2
            h, t = s.projection(mine.hidden[own][b, :n]), theirs.hidden[other][b, :n]
            expected = expected + 0.7 * sum((x - y) ** 2 for x, y in zip(h.flatten(), t.flatten(), strict=True)) / h.numel()
        for own, other in ((1, 2), (2, 4)):
            a = mine.scores[own - 1][b, :, :n, :n].mean(0)  # 2 heads and 4: means over heads
            t = theirs.scores[other - 1][b, :, :n, :n].mean(0)
            expected = expected + 0.7 * ((a - t) ** 2).sum() / n**2
        p, q = theirs.logits[b].softmax(-1), mine.logits[b].softmax(-1)
        expected = expected + 0.5 * (p * (p / q).log()).sum() - 0.3 * q[batch["labels"][b]].log()
    torch.testing.assert_close(made.loss, expected, rtol=1e-4, atol=1e-4)
    assert made.count == 6 and made.loss.requires_grad
    slopes = torch.autograd.grad(made.loss, [s.student.words.weight, s.projection.weight])
    assert all(slope.abs().max() > 0 for slope in slopes)


def test_texts_without_labels_teach_all_but_the_label(tmp_path: Path) -> None:
    method = Latent(soft=1.0, hard=1.0)
    run, s, batch = begun(tmp_path, method)
    blind = {**batch, "labels": torch.full_like(batch["labels"], -1)}
    (made,) = method.step(s, blind, run)
    (soft,) = Latent(soft=1.0).step(s, batch, run)
    torch.testing.assert_close(made.loss, soft.loss)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    method = Latent(soft=1.0)
    run, s, batch = begun(tmp_path, method, small=BIG)
    assert not hasattr(s, "projection")  # equal widths
    s.student.load_state_dict(run.teachers["tuned"].module.state_dict())
    (made,) = method.step(s, batch, run)
    assert made.loss.item() == pytest.approx(0.0, abs=1e-4)
    assert Latent(latent=0.0).setup(SMALL.build(run), run).groups().keys() == {"student"}


def test_the_first_map_is_the_best_there_is(tmp_path: Path) -> None:
    """The least-squares fit: no other linear map comes nearer on the texts that it was fitted on."""
    method = Latent(fit=6)
    run, s, batch = begun(tmp_path, method)
    (made,) = method.step(s, batch, run)
    plain = float(made.logs["hidden"])
    real = batch["inputs"]["attention_mask"].bool()
    mine, theirs = inside(s.student.eval(), batch), inside(run.teachers["tuned"].module, batch)
    x = torch.cat([mine.hidden[i][real] for i in range(3)]).detach().double().numpy()
    y = torch.cat([theirs.hidden[i][real] for i in (0, 2, 4)]).double().numpy()
    import numpy as np

    best, *_ = np.linalg.lstsq(x, y, rcond=None)
    found = s.projection.weight.detach().double().numpy().T
    assert np.square(x @ found - y).sum() == pytest.approx(np.square(x @ best - y).sum(), rel=5e-3)  # the ridge
    assert np.square(x @ found - y).sum() < 0.95 * np.square(y).sum()
    with torch.no_grad():
        s.projection.weight.add_(0.1 * torch.randn_like(s.projection.weight))
    (worse,) = method.step(s, batch, run)
    assert float(worse.logs["hidden"]) > plain


def test_splitting_a_batch_changes_nothing(tmp_path: Path) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    for parts in (1, 4):
        for method in (Latent(soft=1.0, hard=1.0), MaskedWords(share=0.5)):
            run, s, _ = begun(tmp_path / f"{parts}{type(method).__name__}", method)
            run.horizon = 2
            loop = Loop(method, s, run, Optim(name="sgd", lr=0.05, momentum=0.0))
            fit(loop, run.source, steps=2, size=8, accumulate=parts)
            ends.append({f"{type(method).__name__}.{k}": v for k, v in s.state_dict().items()})
    for whole, split in zip(ends[:2], ends[2:], strict=True):
        for name, value in whole.items():
            torch.testing.assert_close(value, split[name], rtol=1e-4, atol=1e-5)


def test_the_stages_are_the_papers() -> None:
    stages = recipe("small").stages
    assert list(stages) == ["pretrain", "tune", "general", "enhanced", "adapt", "train", "audit"]
    told = {n: (stages[n].method.teacher, stages[n].method.soft, stages[n].method.hard) for n in list(stages)[2:6]}
    assert told == {
        "general": ("general", 0, 0),
        "enhanced": ("tuned", 0, 0),
        "adapt": ("tuned", 0, 0),
        "train": ("tuned", 1, 1),
    }
    assert [stages[n].data is None for n in told] == [False, False, True, True]  # general texts, then the task's
    assert [getattr(stages[n].student, "stage", None) for n in told] == [None, "general", "enhanced", "adapt"]
    totals = {sum(m.stages[n].steps for n in m.stages if n in told) for m in
              (recipe("small"), recipe("small", ("train",)), recipe("small", ("general", "train")))}  # fmt: skip
    assert len(totals) == 1


def test_general_texts_are_none_that_are_judged_on(tmp_path: Path) -> None:
    run = run_of(tmp_path, SMALL, data=DATA)
    source = LibraryTexts(limit=100_000).load(run)["train"]
    judged = {row["text"] for name in ("valid", "test") for row in DATA.rows(run)[name]}
    assert len(source) > 500 and not judged & set(source.texts) and (source.labels == -1).all()
    assert judged & set(LibraryTexts(limit=100_000).texts(run))  # they would have been there
    write_jsonl(tmp_path / "mine.jsonl", [{"text": "one"}, {"text": "one"}, {"text": " "}, {"text": "two"}])
    assert Texts(path=str(tmp_path / "mine.jsonl")).texts(run) == ["one", "two"]
    with pytest.raises(RunError, match="no row .* has a text in 'body'"):
        Texts(path=str(tmp_path / "mine.jsonl"), column="body").texts(run)


def test_what_it_refuses(tmp_path: Path) -> None:
    run, *_ = begun(tmp_path, Latent())
    with pytest.raises(RunError, match="no teacher 'other'; the recipe has tuned"):
        Latent(teacher="other").setup(SMALL.build(run), run)
    with pytest.raises(RunError, match="the student has 6 layers and its teacher only 4"):
        Latent().setup(TinyEncoder(width=16, depth=6).build(run), run)
    with pytest.raises(TeacherMismatch, match="different tokens"):
        EncoderTeacher(model=TinyEncoder(vocabulary=99)).build(run)
    with pytest.raises(RunError, match="cannot be pre-trained here"):
        MaskedWords().setup(NGrams(classes=2).build(run), run)


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def hub(folder: Path, config: Any, **settings: Any) -> str:
    from transformers import AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(config(vocab_size=300, pad_token_id=1, **settings)).save_pretrained(folder)
    tokenizer_of(LINES).save_pretrained(folder)
    return str(folder)


def bert(folder: Path, layers: int, width: int = 16) -> str:
    from transformers import BertConfig

    return hub(folder, BertConfig, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32)


def test_hooks_see_what_the_library_itself_gives(tmp_path: Path) -> None:
    """Hidden states as `output_hidden_states`, and scores whose softmax is `output_attentions`; DistilBERT too."""
    from transformers import DistilBertConfig

    places = [
        bert(tmp_path / "bert", 3),
        hub(tmp_path / "distil", DistilBertConfig, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
    ]
    for place in places:
        run = run_of(tmp_path / f"run{len(place)}", HubClassifier(path=place, length=24), data=DATA)
        net: Any = run.recipe.student.build(run).eval()
        batch = run.sources()["train"].batch(range(4), 0)
        seen = inside(net, batch)
        net.model.set_attn_implementation("eager")
        with torch.no_grad():
            said = net.model(**batch["inputs"], output_hidden_states=True, output_attentions=True)
        assert len(seen.hidden) == 4 and len(seen.scores) == 3
        hidden_places = batch["inputs"]["attention_mask"].bool()
        for mine, theirs in zip(seen.hidden, said.hidden_states, strict=True):
            torch.testing.assert_close(mine[hidden_places], theirs[hidden_places], rtol=1e-3, atol=1e-4)
        off = (~hidden_places)[:, None, None]
        for mine, theirs in zip(seen.scores, said.attentions, strict=True):
            attended = mine.masked_fill(off, -math.inf).softmax(-1).transpose(1, 2)[hidden_places]
            torch.testing.assert_close(attended, theirs.transpose(1, 2)[hidden_places], rtol=1e-3, atol=1e-4)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules() if isinstance(m, nn.Linear))


def test_a_users_teacher_and_student(tmp_path: Path, still: Any) -> None:
    """From the command line: their fine-tuned classifier, their pre-trained model, their smaller student, their texts."""
    rows = [{"text": f"{LINES[i % 6]} {i}", "label": "ab"[i % 2]} for i in range(60)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    (tmp_path / "general.txt").write_text("\n".join(f"{line} again {i}" for i in range(5) for line in LINES))
    big, small = bert(tmp_path / "big", 4), bert(tmp_path / "small", 2, width=8)
    run = run_of(tmp_path / "make", HubClassifier(path=big, length=16, classes=2), data=DATA)
    (tmp_path / "tuned").mkdir()
    run.recipe.student.build(run).model.save_pretrained(tmp_path / "tuned")
    tokenizer_of(LINES).save_pretrained(tmp_path / "tuned")
    shown = still("show", "ernie_tiny", "--scale", "paper", "--yaml")
    assert shown.exit_code == 0
    Path("mine.yaml").write_text(shown.stdout)
    settings = {
        "stages.tune": "null", "teachers.general.model.path": big, "teachers.tuned.model.path": str(tmp_path / "tuned"),
        "teachers.tuned.stage": "null", "student.path": small, "data.path": str(tmp_path / "mine.jsonl"),
        "audit.subjects": "[start, train]",
        **{f"{n}.data.path": str(tmp_path / "general.txt") for n in ("general", "enhanced")},
        **{f"{n}.{k}": str(v) for n in ("general", "enhanced", "adapt", "train") for k, v in (("steps", 2), ("batch", 4))},
    }  # fmt: skip
    done = still("run", "mine.yaml", *(part for k, v in settings.items() for part in ("--set", f"{k}={v}")))
    assert done.exit_code == 0, done.stderr
    from transformers import AutoModelForSequenceClassification

    (out,) = (tmp_path / "runs").glob("*/artifacts/train/data")
    assert AutoModelForSequenceClassification.from_pretrained(out).config.id2label == {0: "a", 1: "b"}
