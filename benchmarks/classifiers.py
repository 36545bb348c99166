"""Every method of the catalogue that teaches a classifier, on the same pairs of teacher and student at equal budget.

Pairs: a convolutional network for one of its kind, a vision transformer for a convolutional network and the other way
round, and an encoder of texts for a smaller one. Images are MNIST's at 14 x 14 pixels (1,000 to learn from, 10,000 to
judge), texts are docstrings of Python's standard library and what their module is about. Every arm takes as many steps of
as many items; the learning rate is chosen from one grid for all on the validation split of another seed. The tables and
pictures are those of `stillhouse compare`; `docs/classifiers.md` has them side by side. The first pair is that of the
methods' proofs, which is where its numbers come from.

    python benchmarks/classifiers.py --pairs vit_cnn cnn_vit bert_small --runs runs/classifiers
    python benchmarks/classifiers.py --page docs/classifiers.md
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stillhouse.cli.prove import Runner
from stillhouse.core.paper import catalogue
from stillhouse.core.proof import Effect, Proof, interval
from stillhouse.core.recipe import Recipe
from stillhouse.data.images import Standard
from stillhouse.data.labelled import LibraryTopics
from stillhouse.methods.classics.hinton import Hinton
from stillhouse.methods.images import SMALL, alone, arm, images
from stillhouse.models.encoder import TinyEncoder
from stillhouse.models.toys import ConvNet
from stillhouse.models.vision import ViT
from stillhouse.reports import compare

RATES = (3e-3, 1e-2)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Who teaches whom, and on what."""

    teacher: Any
    student: Any
    data: Any
    teacher_rate: float = 3e-3
    teacher_steps: int = 600


BERT = TinyEncoder(width=48, depth=4, heads=4, vocabulary=2048, length=16)
PAIRS: Mapping[str, Pair] = {
    "cnn_cnn": Pair(teacher=ConvNet(width=16, depth=3), student=ConvNet(width=6, depth=3), data=SMALL),
    "vit_cnn": Pair(  # patches of 2 pixels learn too slowly: 600 steps brought such a teacher to 46 %
        teacher=ViT(patch=7, width=64, depth=3), student=ConvNet(width=6, depth=3), data=SMALL,
        teacher_rate=2e-3, teacher_steps=1800,
    ),
    "cnn_vit": Pair(
        teacher=ConvNet(width=16, depth=3), student=ViT(patch=7, width=32, depth=2, heads=2), data=SMALL
    ),
    "bert_small": Pair(teacher=BERT, student=replace(BERT, width=16, depth=2, heads=2), data=LibraryTopics()),
}  # fmt: skip


def methods() -> dict[str, Recipe]:
    """The `small` recipe of every paper that trains a student on the shared experiment's images in one stage.

    Left out are methods that are about their stages or their data: their proofs compare them.
    """
    found: dict[str, Recipe] = {}
    for name, entry in catalogue().items():
        if entry.family not in ("classics", "logits", "features"):
            continue
        recipe: Recipe = importlib.import_module(entry.module).recipe("small")
        if set(recipe.stages) - {"teacher"} == {"train", "alone", "audit"}:
            train = recipe.stages["train"]
            if isinstance(recipe.data, Standard) and train.student is None and train.data is None:
                found[name] = recipe
    return {"hinton": images("hinton", "small", Hinton()), **found}


def arms(pair: Pair, chosen: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """A recipe for every method, and the student on the labels alone; a method that mixes images does so here too."""
    base = images("pair", "small", Hinton(), student=pair.student, teacher=pair.teacher, data=pair.data)
    base = base.set("teacher.optim.lr", pair.teacher_rate).set("teacher.steps", pair.teacher_steps)
    made = {"alone": alone(base)}
    for name, recipe in chosen.items():
        train = recipe.stages["train"]
        ours = arm(base, train.method, name=name).set("train.optims", train.optims)
        if getattr(recipe.data.augment, "mixup", 0.0):
            if not isinstance(pair.data, Standard):
                continue  # texts cannot be mixed
            ours = replace(ours, data=replace(pair.data, augment=recipe.data.augment))
        if "teacher" not in recipe.stages:
            stages = {"train": ours.stages["train"], "audit": replace(ours.stages["audit"], subjects=("start", "train"))}
            ours = replace(ours, teachers={}, stages=stages)
        made[name] = ours
    return made


Row = tuple[str, float, Any, Any]  # method, mean, gain over the labels alone, gain over Hinton's distillation


def from_proofs(folder: Path) -> list[Row]:
    """What the proofs say of the pair that they share: those whose arm `hinton` is that of `fitnet`'s."""
    proofs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    shared = {arm: proofs["fitnet"]["arms"][arm]["values"] for arm in ("hinton", "alone")}
    rows = [("alone", proofs["fitnet"]["arms"]["alone"]["mean"], None, gain(shared["alone"], shared["hinton"]))]
    rows.append(("hinton", proofs["fitnet"]["arms"]["hinton"]["mean"], gain(shared["hinton"], shared["alone"]), None))
    for name, proof in proofs.items():
        arms = proof["arms"]
        if proof["metric"] == "accuracy" and all(arms.get(arm, {}).get("values") == shared[arm] for arm in shared):
            ours = arms[proof["ours"]]
            rows.append((name, ours["mean"], gain(ours["values"], shared["alone"]), gain(ours["values"], shared["hinton"])))
    return rows


def from_results(path: Path) -> list[Row]:
    """What a run of this file found for one pair."""
    found = json.loads(path.read_text(encoding="utf-8"))["rows"]
    rows = {"alone" if row["label"] == "supervised" else row["label"]: row for row in found}
    beside = {name: rows[name]["values"] for name in ("alone", "hinton")}
    return [
        (
            name, row["quality"]["mean"],
            None if name == "alone" else gain(row["values"], beside["alone"]),
            None if name == "hinton" else gain(row["values"], beside["hinton"]),
        )
        for name, row in rows.items()
    ]  # fmt: skip


def gain(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Effect:
    """The mean difference over seeds with its 95 % t-interval."""
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours)])


def page(path: Path, results: Path) -> None:
    """Write every pair's table between the marks of a page."""
    text = path.read_text(encoding="utf-8")
    for name in PAIRS:
        file = results / f"classifiers_{name}.json"
        rows = from_proofs(Path("proofs")) if name == "cnn_cnn" else from_results(file) if file.exists() else []
        lines = ["| | accuracy, % | points over the labels alone | points over Hinton's |", "|---|---|---|---|"]
        for method, mean, *gains in sorted(rows, key=lambda row: -row[1]):
            told = ["" if g is None else f"{100 * g.mean:+.1f} [{100 * g.low:+.1f}, {100 * g.high:+.1f}]" for g in gains]
            lines.append(f"| `{method}` | {100 * mean:.1f} | {told[0]} | {told[1]} |")
        lines = lines if rows else ["Not measured yet."]
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n" + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="all that fit, if left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/classifiers"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--page", type=Path, help="run nothing; write the tables of what was found into this page")
    args = parser.parse_args()
    if args.page is not None:
        page(args.page, args.out)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: recipe for name, recipe in methods().items() if args.methods is None or name in args.methods}
    for name in args.pairs:
        made = arms(PAIRS[name], chosen)
        proof = Proof(
            claim="", arms=made, metric="accuracy", ours=next(iter(chosen)), beats=("alone",),
            seeds=tuple(range(args.seeds)), tune={"train.optim.lr": RATES},
        )  # fmt: skip
        runner = Runner(proof, args.runs / name, Console(), None)
        rates, trials = runner.tune()
        values = runner.values(rates)
        folders = [trial.folder for by_seed in values.values() for trial in by_seed.values()]
        found = compare.compare(folders, metric="accuracy", subject="train", versus="supervised")
        path = args.out / f"classifiers_{name}.html"
        compare.write(found, path)
        plain = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        for row in plain["rows"]:
            row["folders"] = [Path(folder).name for folder in row["folders"]]
        tuning = {"rates": RATES, "trials": trials, "chosen": {key: dict(value) for key, value in rates.items()}}
        plain |= {"pair": name, "what": " ".join((__doc__ or "").split("\n\n")[1].split()), "tuning": tuning}
        path.with_suffix(".json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        for row in sorted(found.rows, key=lambda row: -row.quality.mean):
            gain = "" if row.gain is None else f"{row.gain.mean:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]"
            print(f"{name}  {row.label:20} {row.quality.mean:.4f}  {gain}  {row.seconds:.0f} s")


if __name__ == "__main__":
    main()
