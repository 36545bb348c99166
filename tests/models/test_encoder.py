"""The small encoder, and looking inside modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.models.encoder import TinyEncoder, inside, products, real_tokens
from stillhouse.models.toys import MLP

SPEC = TinyEncoder(classes=3, width=12, depth=3, heads=3, vocabulary=64, length=6)


def built(folder: Path) -> tuple[Any, Any, Any]:
    run = run_of(folder, SPEC)
    torch.manual_seed(0)
    texts = ["one two three four", "five", "a b c d e f g h", ""]
    return run, SPEC.build(run).eval(), {"inputs": SPEC.encoder(run)(texts)}


def test_padding_changes_nothing(tmp_path: Path) -> None:
    run, net, batch = built(tmp_path)
    assert batch["inputs"]["input_ids"].shape == (4, 6)  # cut at six words
    together = net(**batch["inputs"])
    torch.testing.assert_close(together[1:2], net(**SPEC.encoder(run)(["five"])))
    assert together.isfinite().all() and real_tokens(batch)[3].sum() == 1  # nothing to read is one empty word


def test_kept_and_found_again(tmp_path: Path) -> None:
    run, net, batch = built(tmp_path / "run")
    SPEC.save(net, tmp_path, run)
    torch.testing.assert_close(SPEC.load(tmp_path, run).eval()(**batch["inputs"]), net(**batch["inputs"]))


def test_inside_is_what_is_computed(tmp_path: Path) -> None:
    _, net, batch = built(tmp_path)
    seen = inside(net, batch)
    torch.testing.assert_close(seen.logits, net(**batch["inputs"]))
    x, mask = seen.hidden[0], batch["inputs"]["attention_mask"][:, None, None].bool()
    for i, layer in enumerate(net.layer):
        q, k = layer.query(x), layer.key(x)
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            torch.testing.assert_close(seen.scores[i][:, head], q[..., part] @ k[..., part].transpose(1, 2) / 2)
        x = layer(x, mask)
        torch.testing.assert_close(seen.hidden[i + 1], x)
    assert products(torch.zeros(0, 2, 6), torch.zeros(0, 2, 6), 3).shape == (0, 3, 2, 2)


def test_hooks_are_taken_off_even_after_an_error(tmp_path: Path) -> None:
    _, net, batch = built(tmp_path)
    broken = {"inputs": {**batch["inputs"], "input_ids": batch["inputs"]["input_ids"] + 1000}}
    with pytest.raises(IndexError):
        inside(net, broken)
    inside(net, batch)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_modules_that_cannot_be_looked_into(tmp_path: Path) -> None:
    run, net, batch = built(tmp_path)
    del net.layer[1].query  # other projections: hidden states are still seen
    net.layer[1].query, net.layer[1].other = nn.Identity(), nn.Linear(12, 12)
    assert len(inside(net, batch).hidden) == 4
    with pytest.raises(RunError, match="no list of layers"):
        inside(MLP(inputs=2, classes=2, depth=0).build(run), {"inputs": torch.zeros(1, 2)})
    with pytest.raises(RunError, match="attention_mask"):
        real_tokens({"inputs": {"input_ids": torch.zeros(1, 2)}})
    with pytest.raises(ValueError, match="multiple of the heads"):
        TinyEncoder(width=10, heads=3)
