"""DisWOT: the score against the formulas written out, unequal widths, the recipe, and a user's own function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from stillhouse.audits.proxies import Chance, Parameters, Trained, Untrained
from stillhouse.audits.search import Search
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data.images import Digits
from stillhouse.methods.features.diswot import DisWOT, proof, recipe
from stillhouse.models.own import OwnModule
from stillhouse.models.space import Compact, Space
from stillhouse.models.toys import ConvNet

ITEMS = list(range(12))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run", device=torch.device("cpu"), stage="search")
    made.recipe = replace(recipe("smoke"), data=Digits())
    made.source = made.sources()["train"]
    return made


def seen(net: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The map before it is pooled, flat, and the gradient in the last layer, both by hand."""
    kept: list[torch.Tensor] = []
    hook = net.stages[-1].register_forward_hook(lambda part, args, output: kept.append(output))
    loss = F.cross_entropy(net(batch["inputs"]), batch["labels"])
    hook.remove()
    return kept[0].detach().flatten(1), torch.autograd.grad(loss, net.head.weight)[0]


@pytest.mark.parametrize("semantic", ["channels", "classes"])
def test_the_score_by_hand(semantic: Any, run: Run):
    student = Untrained(Compact(width=4, depth=3), ITEMS, run)
    teacher = Untrained(ConvNet(width=8), ITEMS, run, teacher=True)  # both have 16 features
    batch = run.source.batch(ITEMS, 0)
    (a, g), (b, h) = seen(student.module, batch), seen(teacher.module, batch)
    relation = (F.normalize(a @ a.T, dim=1) - F.normalize(b @ b.T, dim=1)).square().sum() / 12**2
    if semantic == "channels":
        s, t = (F.normalize(x.unsqueeze(2) @ x.unsqueeze(1), dim=2) for x in (g, h))
        gap = (s - t).square().sum() / (16 * 10)
    else:
        gap = (F.normalize(g @ g.T, dim=1) - F.normalize(h @ h.T, dim=1)).square().sum() / 10**2
    found = DisWOT(semantic=semantic)(student, teacher, run)
    assert found == pytest.approx(-float(relation + gap), rel=1e-4) and found < -1e-4


@pytest.mark.parametrize("semantic", ["channels", "classes"])
def test_nobody_is_more_like_the_teacher_than_itself(semantic: Any, run: Run):
    score = DisWOT(semantic=semantic)
    teacher = Untrained(ConvNet(width=8), ITEMS, run)
    assert score(teacher, teacher, run) == pytest.approx(0.0, abs=1e-6)
    assert score(Untrained(ConvNet(width=8), ITEMS, run, 1), teacher, run) < -1e-4


def test_unequal_widths_are_for_classes(run: Run):
    student, teacher = Untrained(Compact(width=4), ITEMS, run), Untrained(ConvNet(width=8), ITEMS, run)
    with pytest.raises(RunError, match='last layer is \\[10, 8\\] and the teacher\'s \\[10, 16\\].*semantic="classes"'):
        DisWOT()(student, teacher, run)
    assert DisWOT(semantic="classes")(student, teacher, run) < DisWOT(weight=0.0)(student, teacher, run) < 0
    (a, _), (b, _) = (seen(net.module, run.source.batch(ITEMS, 0)) for net in (student, teacher))
    relation = (F.normalize(a @ a.T, dim=1) - F.normalize(b @ b.T, dim=1)).square().sum() / 12**2
    assert DisWOT(weight=0.0)(student, teacher, run) == pytest.approx(-float(relation), rel=1e-4)


def test_the_picked_student_is_distilled(tmp_path: Path):
    made = recipe("smoke").set("train.steps", 2).set("alone.steps", 2).set("teacher.steps", 2)
    run = Run(tmp_path, device=torch.device("cpu"))
    execute(made, run)
    best = run.load_json("search")["ranked"][0]
    counted = {f["subject"]: f["value"] for f in run.load_json("audit") if f["name"] == "parameters"}
    assert counted["train"] == counted["start"] == counted["alone"] == best["parameters"] <= 5000
    assert best["settings"]["width"] in (4, 8) and best["score"] == max(
        s["score"] for s in run.load_json("search")["ranked"]
    )


def test_a_space_of_your_own_function(run: Run, tmp_path: Path):
    own = tmp_path / "mine.py"
    own.write_text(
        "from torch import nn\n"
        "def student(width, act='relu'):\n"
        "    act = {'relu': nn.ReLU, 'gelu': nn.GELU}[act]\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(width, 10))\n"
    )
    space = Space(of=OwnModule(function=f"{own}:student"), values={"width": (4, 8), "act": ("relu", "gelu")})
    Search(space=space, score=DisWOT(semantic="classes"), beside=(Parameters(),), batch=16)(run)
    found = run.load_json("search")["ranked"]
    assert {(s["settings"]["width"], s["settings"]["act"]) for s in found} == {
        (4, "relu"),
        (4, "gelu"),
        (8, "relu"),
        (8, "gelu"),
    }
    assert len({s["score"] for s in found}) == 4


def test_the_teacher_is_looked_at_without_its_weights(run: Run):
    """Trained weights of the recipe's teacher would be asked for where stage `teacher` is not done."""
    Search(space=Space(of=Compact(features=16), values={"width": (2, 4)}), score=DisWOT(), batch=16)(run)
    assert len(run.load_json("search")["ranked"]) == 2 and run.done("teacher") is None


def test_the_proof_distils_all_picks_alike():
    arms = proof().arms
    scores = {name: type(made.stages["search"].score) for name, made in arms.items()}
    assert scores == {"ours": DisWOT, "random": Chance, "parameters": Parameters, "alone": DisWOT, "trained": Trained}
    for name, made in arms.items():
        assert replace(made.stages["search"], score=DisWOT(), beside=()) == arms["ours"].stages["search"]
        assert name == "alone" or made.stages["train"] == arms["ours"].stages["train"]
        assert made.stages["train"].steps == 400 and made.stages["train"].batch == 64


def test_at_the_scale_of_the_paper_widths_agree():
    made = recipe("paper")
    search = made.stages["search"]
    assert len(search.space) > search.budget and search.score == DisWOT()
    specs = [search.space.spec(search.space.settings(choice)) for choice in search.space]
    assert {spec.widths[-1] for spec in specs} == {made.teachers["teacher"].spec.widths[-1]} == {64}
