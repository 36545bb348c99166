"""Run folders as the engine leaves them, made without training, so that a page can be tested and looked at.

python tests/reports/example.py /tmp/example     # writes /tmp/example/{language,images,killed}/report.html
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

SUPERVISED = {"use": "methods.classics.supervised.Supervised"}
STEPS = {"train": 300, "alone_tokens": 300, "alone_time": 372}
SECONDS = {"train": 189.4, "alone_tokens": 152.7, "alone_time": 189.2}
HOSTILE = "<script>alert('x')</script> & <img src=x onerror=alert(1)> $\\frac{1}{0}$"

SAMPLES = [
    {
        "prompt": "What does the `zip` function do in Python?",
        "teacher": "The `zip` function takes two or more iterables and returns an iterator of tuples, where the first "
        "tuple holds the first item of each, and so on. It stops when the shortest iterable is exhausted.",
        "start": "The zip zip function of is the a function function that that that in in in Python Python the the",
        "train": "The `zip` function takes iterables and returns an iterator of tuples. Each tuple holds one item from "
        "each iterable. It stops at the shortest one.",
        "alone_tokens": "The `zip` function is used to zip a list. It returns a list of the list of the items.",
        "alone_time": "The `zip` function returns a zip object, which is an object that zips the objects.",
    },
    {
        "prompt": "Rewrite in a polite tone: Send me the file now.",
        "teacher": "Could you please send me the file when you have a moment? Thank you!",
        "start": "Send Send the file file file file the the now now now.",
        "train": "Could you please send me the file? Thank you.",
        "alone_tokens": "Please send me the file now now. I would like the file.",
        "alone_time": "Please send the file to me now, please.",
    },
    {
        "prompt": "List three uses of a dictionary.",
        **dict.fromkeys(("teacher", "train"), "1. Counting\n2. Caching\n3. Looking up"),
    },
    {"prompt": HOSTILE, "teacher": HOSTILE, "train": HOSTILE},
]


def language(folder: Path, gain: float = 0.172, gain_time: float = 0.131, stages_done: int = 6) -> Path:
    """A finished language run whose student is better than the two baselines by `gain`, give or take 0.02 nats."""
    recipe = {
        "id": "gkd", "seed": 0, "expect": [],
        "student": {"use": "models.shrink.Shrunk", "path": "SmolLM2-135M-Instruct", "layers": 10},
        "data": {"use": "data.tokens.Text", "path": "questions.jsonl", "length": 512, "held_out": 0.1},
        "teachers": {"teacher": {"use": "teachers.local.Local", "path": "SmolLM2-135M-Instruct", "dtype": "bfloat16"}},
        "stages": {
            "train": {"use": "core.stage.Train", "method": {"use": "methods.classics.gkd.GKD"}, "steps": 300},
            "alone_tokens": {"use": "core.stage.Train", "method": SUPERVISED, "steps": 300},
            "alone_time": {
                "use": "core.stage.Train", "method": SUPERVISED, "steps": 300,
                "seconds_of": "train", "speed_of": "alone_tokens",
            },
            "audit": {
                "use": "core.stage.Audit", "subjects": ["teacher", "start", "train", "alone_tokens", "alone_time"],
                "checks": [{"use": "audits.language.HeldOutText", "split": "test"}],
            },
            "samples": {"use": "audits.samples.Samples", "prompts": 4},
            "export": {"use": "export.hub.Export"},
        },
    }  # fmt: skip
    nll = {
        "teacher": 2.104,
        "start": 3.012,
        "train": 2.451,
        "alone_tokens": 2.451 + gain,
        "alone_time": 2.451 + gain_time,
    }
    rest = {  # agreement, kl, ece, parameters, tokens/s
        "teacher": (1.0, 0.0, 0.021, 134_515_008, 850.0), "start": (0.412, 1.213, 0.094, 63_710_784, 1820.0),
        "train": (0.674, 0.342, 0.028, 63_710_784, 1815.0), "alone_tokens": (0.583, 0.571, 0.043, 63_710_784, 1822.0),
        "alone_time": (0.597, 0.538, 0.047, 63_710_784, 1818.0),
    }  # fmt: skip
    common: dict[str, Any] = {"n": 240, "over": "held-out documents", "split": "test"}
    found: list[dict[str, Any]] = []
    for who, loss in nll.items():
        agreement, kl, ece, parameters, speed = rest[who]
        found += [
            finding("nll", loss, who, "lower", "nats/token", 0.041, **common),
            finding("perplexity", math.exp(loss), who, "lower", "", 0.041 * math.exp(loss), **common),
            finding("ece", ece, who, "lower", "", 0.004, **common),
            finding("parameters", parameters, who, "lower"),
            finding("bytes", 2 * parameters, who, "lower"),
            finding("tokens_per_second", speed, who, "higher", "tokens/s"),
        ]
        if who != "teacher":
            found.append(finding("agreement", agreement, who, "higher", "", 0.006, **common))
            found.append(finding("kl", kl, who, "lower", "nats/token", 0.011, **common))
    for other in ("alone_tokens", "alone_time", "start", "teacher"):
        found.append(
            finding("nll", nll["train"] - nll[other], "train", "lower", "nats/token", 0.0205, versus=other, **common)
        )
    values = {"audit": found, "samples": SAMPLES, "export": {"folder": "student"}}
    _write(folder, recipe, values, stages_done, tokens=4096)
    _log(folder, list(recipe["stages"])[:stages_done], tokens=4096)
    lines(folder / "rejects.jsonl", [{"stage": "train", "why": "longer than 512 tokens", "row": {}}] * 14
          + [{"stage": "train", "why": "no answer to learn from", "row": {}}] * 3)  # fmt: skip
    return folder


def images(folder: Path) -> Path:
    """A classification run: accuracy decides, one baseline, and nothing can be shown."""
    recipe = {
        "id": "hinton", "seed": 1,
        "student": {"use": "models.toys.Mlp", "widths": [64, 16, 10]}, "data": {"use": "data.images.Digits"},
        "teachers": {"teacher": {"use": "teachers.module.Module", "widths": [64, 512, 10]}},
        "stages": {
            "train": {"use": "core.stage.Train", "method": {"use": "methods.classics.hinton.Hinton"}, "steps": 300},
            "alone": {"use": "core.stage.Train", "method": SUPERVISED, "steps": 300},
            "audit": {"use": "core.stage.Audit"},
        },
    }  # fmt: skip
    common: dict[str, Any] = {"n": 360, "over": "test images", "split": "test"}
    rows = {"teacher": 0.978, "start": 0.103, "train": 0.944, "alone": 0.936}
    found = [finding("accuracy", value, who, "higher", "", 0.018, **common) for who, value in rows.items()]
    found += [finding("ece", 0.031, who, "lower", "", 0.008, **common) for who in ("teacher", "train", "alone")]
    found.append(finding("accuracy", 0.008, "train", "higher", "", 0.016, versus="alone", **common))
    _write(folder, recipe, {"audit": found}, 3, tokens=0)
    _log(folder, ["train", "alone", "audit"], tokens=0)
    return folder


def finding(
    name: str, value: float, subject: str, better: str, unit: str = "", half: float | None = None, **rest: Any
) -> dict[str, Any]:
    """A finding as an audit writes it, with an interval of +- `half`."""
    bounds = {} if half is None else {"low": value - half, "high": value + half}
    return {"name": name, "value": value, "subject": subject, "better": better, "unit": unit, **bounds, **rest}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _reliability() -> list[dict[str, Any]]:
    """The events of an audit: per subject, (share of the tokens, mean confidence, share right) of each bin."""
    bend = {"teacher": 0.97, "start": 0.62, "train": 0.95, "alone_tokens": 0.91, "alone_time": 0.89}
    bins = {
        who: [(0.1, c, c * b + 0.004 * (-1) ** i) for i, c in enumerate(x / 10 + 0.05 for x in range(10))]
        for who, b in bend.items()
    }
    return [
        {"time": 0.0, "stage": "audit", "event": "reliability", "subject": who, "bins": rows} for who, rows in bins.items()
    ]


def _write(folder: Path, recipe: dict[str, Any], values: dict[str, Any], stages_done: int, tokens: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "artifacts").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    environment = {
        "stillhouse": "0.1.0",
        "python": "3.11.2",
        "torch": "2.13.0",
        "device": "cpu",
        "cpu": {"cores": 2, "memory GiB": 15.6},
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    for name in list(recipe["stages"])[:stages_done]:
        data = folder / "artifacts" / name / "data"
        data.mkdir(parents=True)
        mark: dict[str, Any] = {"name": name, "memory": 2_910_000_000 if name in STEPS else 1_400_000_000}
        mark["teacher_tokens"] = {"train": tokens * STEPS.get(name, 0), "audit": 61_000 if tokens else 0}.get(name, 0)
        if name in values:
            (data / "value.json").write_text(json.dumps(values[name]), encoding="utf-8")
        else:
            steps = STEPS.get(name, 300)
            mark |= {"kind": "model", "steps": steps, "seconds": SECONDS.get(name, 4.2), "items": steps * 4}
        (data.parent / "done.json").write_text(json.dumps(mark), encoding="utf-8")


def _log(folder: Path, stages: list[str], tokens: int) -> None:
    rng, metrics, events = random.Random(0), list[dict[str, Any]](), list[dict[str, Any]]()
    for name in stages:
        clock = {"time": 0.0, "stage": name}
        seconds = SECONDS.get(name, 21.3) + 6
        events.append({**clock, "event": "stage", "state": "started"})
        if name == "train" and tokens:
            text = "12 lines of questions.jsonl are not JSON objects and were left out (line 4)"
            events.append({**clock, "event": "warning", "text": text})
        events += _reliability() if name == "audit" and tokens else []
        events.append({**clock, "event": "stage", "state": "done", "seconds": seconds})
        if name.startswith(("train", "alone")):
            end = {"train": 2.4, "alone": 2.5}.get(name, 2.55)
            noise = random.Random(name == "train")
            for step in range(STEPS.get(name, 300)):
                nll = end + (3.05 - end) * math.exp(-step / (45 if name == "train" else 60)) + noise.gauss(0, 0.06)
                line = {"student/count": tokens * 0.61 or 32.0, "student/gradient_norm": 1 + rng.random()}
                own = {"loss": nll / 2 - 0.9, "nll": nll, "divergence": nll / 2 - 1} if name == "train" else {"loss": nll}
                metrics.append({"stage": name, "step": step, **line, **{f"student/{k}": v for k, v in own.items()}})
    lines(folder / "metrics.jsonl", metrics)
    lines(folder / "events.jsonl", events)


if __name__ == "__main__":
    from stillhouse.reports import html

    target = Path(sys.argv[1])
    for made in (language(target / "language"), images(target / "images"), language(target / "killed", stages_done=2)):
        print(html.write(made))
