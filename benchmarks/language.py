"""Every method of the catalogue that can teach a language model to answer questions, on one task at equal budget.

Arithmetic chains of two operators modulo 10, a character a token, a transformer of width 64 with two blocks that has read
400 worked chains. From there every method takes the same number of steps of 64 answers: worked ones (those 400), the
teacher's, or the student's own to 1,500 further questions. A method may use what it is made for: the teacher (the same
network after 1,500 worked chains), the verifier, or the solutions as hints. Learning rates are chosen from one grid for all
on the validation split of another seed. The table and the picture are those of `stillhouse compare`.

    python benchmarks/language.py --runs runs/language          # about an hour on two cores
    stillhouse compare runs/language/test --out language.html
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stillhouse.audits.solved import Solved
from stillhouse.cli.prove import Runner
from stillhouse.core.optim import Optim
from stillhouse.core.proof import Proof
from stillhouse.core.recipe import Recipe
from stillhouse.core.stage import Audit, Train
from stillhouse.data.pairs import StagePairs
from stillhouse.data.tasks import Chain
from stillhouse.data.traces import Traces
from stillhouse.data.written import Written
from stillhouse.methods.classics.distillm import DistiLLM
from stillhouse.methods.classics.dpo import DPO
from stillhouse.methods.classics.gkd import GKD
from stillhouse.methods.classics.grpo import GRPO
from stillhouse.methods.classics.minillm import MiniLLM
from stillhouse.methods.classics.seqkd import Write
from stillhouse.methods.classics.simpo import SimPO
from stillhouse.methods.classics.supervised import Supervised
from stillhouse.methods.language.adpo import OnlineADPO
from stillhouse.methods.language.curiosft import CurioSFT
from stillhouse.methods.language.first import FIRST
from stillhouse.methods.language.gopd import GOPD
from stillhouse.methods.language.opsd import OPSD
from stillhouse.methods.language.pi_distill import PiDistill
from stillhouse.methods.language.rlad import RLAD
from stillhouse.methods.language.rltf import RLTF
from stillhouse.methods.language.taid import TAID
from stillhouse.methods.language.tsd_kd import TSDKD
from stillhouse.methods.reasoning.redi import REDI
from stillhouse.models.earlier import Continued
from stillhouse.models.generate import Sampling
from stillhouse.models.toys import TinyLM
from stillhouse.objectives.divergences import ForwardKL, ReverseKL
from stillhouse.reports import compare
from stillhouse.teachers.module import ModuleTeacher

TASKS = Chain(ops=(2,), signs="+-", style="values", train=1500, valid=300, test=800)
FEW = replace(TASKS, train=400, skip=1500)
STUDENT = TinyLM(width=64, heads=4)
DRAWN = Sampling(max_new=8, batch=512)
ANSWERS, GROUP = 64, 8
RATES = (3e-4, 1e-3, 3e-3)


def stages(steps: int) -> dict[str, dict[str, Any]]:
    """What each method adds behind the stages `warm` and `teacher`."""
    from_warm = Train(method=Supervised(), student=Continued(stage="warm"), steps=steps, batch=ANSWERS, optim=Optim(lr=1e-3))

    def taught(method: Any, *, given: bool = False, groups: bool = False, **settings: Any) -> dict[str, Any]:
        """One training stage: on the worked chains if `given`, else on questions; groups of answers count as many."""
        batch = ANSWERS // GROUP if groups else ANSWERS
        return {"train": replace(from_warm, method=method, data=FEW if given else None, batch=batch, **settings)}

    def paired(method: Any) -> dict[str, Any]:
        """Right and wrong answers of the student to 1,500 questions, then a method on pairs of them."""
        traces = Traces(data=TASKS, each=4, sampling=DRAWN)
        pairs = StagePairs(stage="traces", base=TASKS)
        return {"traces": traces, "train": replace(from_warm, method=method, data=pairs, batch=ANSWERS // 2)}

    written = Written(stage="write", base=TASKS)
    own = {"sampling": DRAWN}
    return {
        "supervised": taught(Supervised(), given=True),
        "gkd_off_policy": taught(GKD(on_policy=0.0, divergence=ForwardKL()), given=True),
        "taid": taught(TAID(), given=True),
        "first": taught(FIRST(), given=True),
        "curiosft": taught(CurioSFT(), given=True),
        "seqkd": {
            "write": Write(data=TASKS, sampling=DRAWN, splits=("train",)),
            "train": replace(from_warm, data=written),
        },
        "distillm": taught(DistiLLM(every=20, **own), given=True),
        "gkd": taught(GKD(on_policy=1.0, **own)),
        "gkd_reverse_kl": taught(GKD(on_policy=1.0, divergence=ReverseKL(), **own)),
        "minillm": taught(MiniLLM(**own), given=True),
        "tsd_kd": taught(TSDKD(**own)),
        "gopd": taught(GOPD(**own)),
        "grpo": taught(GRPO(group=GROUP, kl=0.0, **own), groups=True),
        "adpo": taught(OnlineADPO(group=GROUP, **own), groups=True),
        "rlad": taught(RLAD(group=GROUP, **own), groups=True),
        "rltf": taught(RLTF(group=GROUP, **own), groups=True),
        "pi_distill": taught(PiDistill(group=GROUP, **own), groups=True),
        "opsd": taught(OPSD(**own)),
        "dpo": paired(DPO()),
        "simpo": paired(SimPO()),
        "redi": paired(REDI()),
    }


def recipes(steps: int) -> dict[str, Recipe]:
    """A whole recipe for every method."""
    warm = Train(method=Supervised(), data=FEW, steps=300, batch=64, optim=Optim(lr=3e-3), label="Student before")
    teacher = replace(warm, data=None, steps=500, label="Teacher")
    judged = Solved(versus=("warm",), sampling=replace(DRAWN, temperature=0.0))
    made: dict[str, Recipe] = {}
    for name, added in stages(steps).items():
        every = {"warm": warm, "teacher": teacher, **added}
        teachers = {"teacher": ModuleTeacher(spec=STUDENT, stage="teacher")}
        if "traces" in added:
            teachers = {"writer": ModuleTeacher(spec=STUDENT, stage="warm")}
        audit = Audit(subjects=("start", "warm", "teacher", "train"), checks=(judged,))
        made[name] = Recipe(id=name, student=STUDENT, data=TASKS, teachers=teachers, stages={**every, "audit": audit})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=list(stages(1)), default=list(stages(1)), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=Path("runs/language"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "language.html")
    args = parser.parse_args()
    arms = {name: recipe for name, recipe in recipes(args.steps).items() if name in args.methods}
    proof = Proof(
        claim="", arms=arms, metric="solved", ours=args.methods[0], beats=tuple(args.methods[1:]),
        seeds=tuple(range(args.seeds)), tune={"train.optim.lr": RATES},
    )  # fmt: skip
    runner = Runner(proof, args.runs / "trials", Console(), None)
    chosen, trials = runner.tune()
    values = runner.values(chosen)
    folders = [trial.folder for by_seed in values.values() for trial in by_seed.values()]
    found = compare.compare(folders, metric="solved", subject="train", versus="supervised")
    compare.write(found, args.out)
    tuning = {"rates": RATES, "trials": trials, "chosen": {arm: dict(settings) for arm, settings in chosen.items()}}
    path = args.out.with_suffix(".json")
    plain = json.loads(path.read_text(encoding="utf-8"))
    for row in plain["rows"]:
        row["folders"] = [Path(folder).name for folder in row["folders"]]
    plain |= {"what": " ".join((__doc__ or "").split("\n\n")[0].split()), "tuning": tuning, "steps": args.steps}
    path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    for row in found.rows:
        gain = "" if row.gain is None else f"{row.gain.mean:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]"
        print(f"{row.label:20} {row.quality.mean:.3f}  {gain}  {row.seconds:.0f} s")


if __name__ == "__main__":
    main()
