"""FitNets' hint against its equation."""

from __future__ import annotations

import torch

from feature_toys import stood
from stillhouse.methods.classics.fitnet import FitNet
from stillhouse.methods.layers import Beside


def test_the_objective_is_the_papers(tmp_path):
    method = FitNet(weight=3.0, beside=Beside(labels=0.5))
    s, run, batch = stood(tmp_path, method)
    (update,) = method.step(s, batch, run)
    seen = s.see(batch, run, adapted=False)
    (own,), (other,) = seen.mine, seen.theirs
    regressed = s.adapters[0](own)
    hint = sum(float((a - b).square().sum()) / a.numel() for a, b in zip(regressed, other, strict=True))
    ce = torch.nn.functional.cross_entropy(seen.logits, batch["labels"], reduction="sum")
    assert torch.allclose(update.loss, 0.5 * ce + 3.0 * hint, rtol=1e-5)
    assert method.equation == "0.5 CE(y, q) + 3 mean (u - r(v))²"


def test_a_student_that_computes_the_same_has_no_hint_to_follow(tmp_path):
    method = FitNet(beside=Beside(labels=0.0))
    s, run, batch = stood(tmp_path, method, same=True)
    with torch.no_grad():
        s.adapters[0].project.weight.copy_(torch.eye(s.adapters[0].project.weight.shape[0])[:, :, None, None])
        s.adapters[0].project.bias.zero_()
    (update,) = method.step(s, batch, run)
    assert float(update.loss.detach()) < 1e-8
