"""Pruning: the scores against loops and hand-made cases, which images stay, the rule for the teacher's weight, the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from logit_toys import CE, STUDENT, TEACHER, mean, only, taught
from stillhouse.core.run import Run, RunError
from stillhouse.core.stage import execute
from stillhouse.data.images import Digits, Noisy, Split
from stillhouse.data.pruned import Part, Pruned
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.logits.kd_data_pruning import PrunedKD, recipe
from stillhouse.models.scored import looked, scored
from stillhouse.models.toys import MLP


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_look_against_autograd():
    """The last layer's gradient by torch, the error, margin and entropy by their definitions."""
    features, labels = drawn(9, 5), torch.arange(9) % 4
    head = torch.nn.Linear(5, 4).double()
    look = looked(head(features).detach(), features, labels)
    for i in range(9):
        loss = torch.nn.functional.cross_entropy(head(features[i]), labels[i])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))])
        p = head(features[i]).detach().softmax(-1)
        own, others = float(p[labels[i]]), sorted(float(q) for k, q in enumerate(p) if k != labels[i])
        wrong = p - torch.nn.functional.one_hot(labels[i], 4)
        assert float(look.gradient[i]) == pytest.approx(float(gradient.norm()), rel=1e-9)
        assert float(look.error[i]) == pytest.approx(float(wrong.norm()), rel=1e-9)
        assert float(look.margin[i]) == pytest.approx(1 - own + others[-1], rel=1e-9)
        assert float(look.entropy[i]) == pytest.approx(-sum(float(q) * float(q.log()) for q in p), rel=1e-9)
        middle = features[labels == labels[i]].mean(0)
        assert float(look.far[i]) == pytest.approx(float((features[i] - middle).norm()), rel=1e-9)
        assert bool(look.right[i]) == (int(p.argmax()) == int(labels[i]))


def test_forgetting_by_hand():
    """Items: always right, forgotten once, forgotten twice, never right, learned at the end."""
    history = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 1]]
    labels = torch.tensor([0, 0, 0, 0, 0])
    looks = [
        looked(torch.tensor([[1.0, 0.0] if right else [0.0, 1.0] for right in row]), torch.zeros(5, 1), labels)
        for row in history
    ]
    assert scored(looks, 1)["forgetting"].tolist() == [0, 1, 2, 4, 0]
    assert torch.equal(scored(looks, 2)["el2n"], (looks[0].error + looks[1].error) / 2)
    assert torch.equal(scored(looks, 2)["margin"], looks[-1].margin)


def test_certain_logits_have_finite_scores():
    logits = torch.tensor([[1e4, 0.0, 0.0], [-1e4, 0.0, 1e4]])
    look = looked(logits, torch.ones(2, 3), torch.tensor([0, 1]))
    assert look.error.tolist() == pytest.approx([0.0, 2**0.5]) and look.entropy.tolist() == [0.0, 0.0]
    assert look.margin.tolist() == [0.0, 2.0]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path, device=torch.device("cpu"))
    made.recipe = recipe("smoke").set("data", Digits(split=Split(labels=20, unlabelled=False)))
    return made


def test_which_images_stay(run: Run):
    train = run.sources()["train"]
    hard = torch.arange(len(train), dtype=torch.float64).flip(0)
    with run.artifact("score") as folder:
        save_file({"el2n": hard.contiguous()}, folder / "scores.safetensors")
    kept = Pruned(share=0.25, stage="score").load(run)
    assert torch.equal(kept["train"].images, train.images[:50]) and kept["valid"] is run.sources()["valid"]
    easy = Pruned(share=0.25, stage="score", keep="easiest").load(run)["train"]
    assert torch.equal(easy.images, train.images[-50:])
    even = Pruned(share=0.25, stage="score", balanced=True).load(run)["train"]
    assert even.labels.bincount().tolist() == [5] * 10
    assert torch.equal(even.images[even.labels == 3], train.images[train.labels == 3][:5])


def test_a_random_part_depends_on_the_seed_alone(run: Run):
    one, again = (Pruned(share=0.3).load(run)["train"] for _ in range(2))
    assert isinstance(one, Part) and one.share == 0.3 and len(one) == 60
    assert torch.equal(one.images, again.images)
    run.seed = 1
    other = Pruned(share=0.3).load(run)["train"]
    assert not torch.equal(one.images, other.images)
    whole = Pruned(share=1.0).load(run)["train"]
    assert torch.equal(whole.images, run.sources()["train"].images)


def test_scores_of_other_data_are_refused(run: Run):
    with run.artifact("score") as folder:
        save_file({"el2n": torch.zeros(7)}, folder / "scores.safetensors")
    with pytest.raises(RunError, match="has scored 7 images and there are 200"):
        Pruned(stage="score").load(run)
    with pytest.raises(ValueError, match="share must be above 0"):
        Pruned(share=0.0)


def test_images_with_a_wrong_label_are_the_hard_ones(tmp_path: Path):
    made = recipe("smoke").set("data", Digits(split=Split(noise=Noisy(share=0.1))))
    made = made.set("score.steps", 150).set("score.early", 1.0).set("student", MLP(width=32))
    made = made.set("stages", {"score": made.stages["score"]})
    run = Run(tmp_path, device=torch.device("cpu"))
    execute(made, run)
    scores, train = load_file(run.path("score") / "scores.safetensors"), run.sources()["train"]
    wrong = train.labels != train.truth
    assert set(scores) == {"el2n", "grand", "forgetting", "margin", "entropy", "prototype"}
    for name in ("el2n", "grand", "margin", "forgetting"):
        assert float(scores[name][wrong].mean()) > 2 * float(scores[name][~wrong].mean())
    hardest = scores["el2n"].argsort(descending=True)[: int(wrong.sum())]
    assert float(wrong[hardest].double().mean()) > 0.5  # by chance 0.1


def test_images_without_labels_are_not_scored(tmp_path: Path):
    made = recipe("smoke").set("data", Digits(split=Split(labels=4)))
    with pytest.raises(RunError, match="unlabelled=false"):
        execute(made.set("stages", {"score": made.stages["score"]}), Run(tmp_path, device=torch.device("cpu")))


def test_the_fewer_stay_the_more_the_teacher_counts():
    rule = PrunedKD(full=0.4)
    assert rule.soft(1.0) == pytest.approx(0.4) and rule.soft(0.5) == pytest.approx(0.7) and rule.soft(0.01) > 0.99
    assert PrunedKD(alpha=0.2).soft(0.1) == 0.2
    for settings in ({"alpha": 1.5}, {"full": -0.1}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            PrunedKD(**settings)


def test_the_objective_is_hintons_with_that_weight(tmp_path: Path):
    """Reference values of classics/hinton: T² KL is 4.2016 and the cross-entropy 6.2710 for these logits."""
    run = taught(tmp_path, TEACHER)
    run.source = Part(*[torch.zeros(1, 1, 1, 1)] * 2, ("a",), torch.zeros(1), torch.ones(1), share=0.5)  # type: ignore[arg-type]
    made, _ = only(PrunedKD(full=0.5), run, STUDENT)
    assert mean(made) == pytest.approx(0.75 * 4.2016458210702865 + 0.25 * CE, rel=1e-9)
    hinton, _ = only(Hinton(alpha=0.75), run, STUDENT)
    assert mean(hinton) == pytest.approx(mean(made), rel=1e-9)
