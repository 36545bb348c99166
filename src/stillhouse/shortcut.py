"""The shortest way in: a teacher, a student, a file of text. Builds a recipe, says what it will take, runs it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.recipe import Recipe
from .core.run import Run, RunError

if TYPE_CHECKING:
    from .cli.progress import Progress
    from .data.tokens import Text

OURS, TOKENS, TIME = "train", "alone_tokens", "alone_time"


def distil(
    teacher: Any,
    student: Any,
    data: Any,
    out: str | Path | None = None,
    *,
    runs: str | Path = "runs",
    folder: str | Path | None = None,
    progress: Progress | None = None,
    **asked: Any,
) -> Run:
    """Distil `teacher` into `student` on `data`; the student goes to `out`, everything else to a folder below `runs`.

    Language models: options as in `recipe_for`. Beside the distilled student the run trains the same student without the
    teacher, at equal tokens and at equal wall-clock, and judges all of them on held-out text. Classifiers, two `nn.Module`s
    among them: options as in `classifiers.recipe_for`; the same student on the labels alone is trained beside it. `folder`
    is that of a run that was stopped, to go on with. Returns the finished run.
    """
    from .cli import launch
    from .export.folder import Export, check_empty

    recipe, needed = _planned(teacher, student, data, asked)
    needed.check()
    if out is not None:
        if folder is None:
            check_empty(Path(out))
        recipe = recipe.set("stages", {**recipe.stages, "export": Export(to=str(Path(out).resolve()), subject=OURS)})
    return launch.launch(recipe, runs=runs, folder=None if folder is None else Path(folder), progress=progress)


def _planned(teacher: Any, student: Any, data: Any, asked: dict[str, Any]) -> tuple[Recipe, Any]:
    """(the recipe, what it needs), of language models or of classifiers."""
    from . import classifiers
    from .estimate import Plan

    if classifiers.classifies(teacher, data):
        recipe = classifiers.recipe_for(teacher, student, data, **asked)
        return recipe, classifiers.Plan.of(recipe)
    recipe = recipe_for(teacher, student, data, **asked)
    return recipe, Plan.of(recipe)


def recipe_for(
    teacher: str,
    student: str,
    data: str | Path,
    *,
    method: str = "auto",
    steps: int | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    length: int | None = None,
    column: str | None = None,
    adapt: int = 0,
    signal: str | None = None,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> Recipe:
    """The recipe that `distil` runs.

    teacher: a Hugging Face folder, a hub name in the local cache, a `.gguf` file, `package:NAME`, or a folder of
        signals that `stillhouse label` made of the same data
    student: the same, or cut from the teacher: `shrink:layers=10,width=378`
    method: a language method's id; `auto` takes forward KL mixed with the labels, on answers that the teacher writes
        first if the data hold prompts only; `seqkd` lets the teacher write all training text
    steps, minutes: optimizer steps, or a budget for the whole run; default: two passes over the data
    batch, length: packed rows a step (4), tokens in a row (512 or the model's context)
    adapt: first fine-tune the teacher on the text for so many steps
    signal: ask the teacher about everything once, keep it as this (`topk:64`, `hidden:float16` ...), and train from that
    settings: `key=value` strings, as on the command line
    """
    from .audits.language import HeldOutText, Samples
    from .audits.own_answers import OwnAnswers
    from .audits.probe import Probe
    from .cli import door
    from .core.optim import Optim
    from .core.stage import Audit, Train
    from .data.tokens import Text
    from .data.written import Written
    from .estimate import Plan, fast_precision
    from .methods.classics.gkd import GKD
    from .methods.classics.seqkd import Write
    from .methods.classics.supervised import Supervised
    from .models.generate import Sampling
    from .models.hub import HubLM, StageLM, load_config
    from .models.shrink import shrink_of
    from .objectives.divergences import ForwardKL
    from .signals import formats
    from .signals.label import Label
    from .signals.reader import check_stored
    from .signals.store import is_store
    from .teachers.cached import Cached
    from .teachers.local import LocalLM

    precision = fast_precision()
    if _is_address(teacher):
        raise RunError("ask the server first (stillhouse label --teacher URL ...), then distil with --teacher SIGNALS")
    stored = str(Path(teacher).resolve()) if is_store(teacher) else None
    form = None if signal is None else formats.parse(signal)
    if stored is not None:
        teacher = _labelled_by(stored, student, adapt=adapt, method=method, signal=signal)
    cut = student.startswith("shrink:")
    known = teacher if cut or stored is None else student
    context = getattr(load_config(known), "max_position_embeddings", None) or 512
    text: Any = Text(path=str(data), column=column, length=min(length or 512, context))
    foreign = None if stored is None else _foreign_rows(stored, data, length)
    if foreign is not None:
        text = foreign
    prompts_only = foreign is None and _holds_prompts_only(text)
    write = method == "seqkd" or prompts_only
    of: Any = StageLM(stage="adapt") if adapt else HubLM(path=teacher)
    learner: Any = shrink_of(of, student.removeprefix("shrink:")) if cut else HubLM(path=student)
    if method == "auto":
        chosen: Any = GKD(on_policy=0.0, divergence=ForwardKL(), labels=0.0 if write else 0.25)
    elif method == "seqkd":
        chosen = Supervised()
    else:
        chosen = _method(method)
    if form is not None:
        check_stored(chosen, form.kinds)  # before the teacher is asked about everything
    base = text
    splits = ("train", "valid", "test") if prompts_only else ("train",)
    if write and stored is not None:
        raise RunError("stored signals cannot write answers: give rows that have them, or the teacher itself")
    if write:
        text = Written(stage="write", base=base)
    rows = batch or 4
    planned = steps or 100
    common: dict[str, Any] = {
        "steps": planned, "batch": rows, "accumulate": rows, "precision": precision,
        "optim": Optim(lr=1e-4 if cut else 5e-5),
    }  # fmt: skip
    stages: dict[str, Any] = {}
    if adapt:
        stages["adapt"] = Train(method=Supervised(), **(common | {"steps": adapt, "optim": Optim(lr=3e-5)}),
                                student=HubLM(path=teacher), data=base)  # fmt: skip
    if write:
        stages["write"] = Write(data=base, splits=splits)
    adult: Any = StageLM(stage="adapt", dtype=precision) if adapt else HubLM(path=teacher, dtype=precision)
    speaker: Any = LocalLM(model=adult)
    if form is not None:
        stages["label"] = Label(format=form, teacher=speaker)
        speaker = Cached(stage="label", live=speaker)
    elif stored is not None:
        speaker = Cached(path=stored)
    if not write and stored is None and planned >= 50:
        stages["probe"] = Probe(method=Supervised())
    stages[OURS] = Train(method=chosen, **common)
    rivals: tuple[str, ...] = ()
    if not (prompts_only and method == "seqkd"):  # there is no other text that a student without the teacher could read
        rivals, plain = (TOKENS, TIME), base if method == "seqkd" else None
        stages[TOKENS] = Train(method=Supervised(), data=plain, **common)
        stages[TIME] = Train(method=Supervised(), data=plain, **common, seconds_of=OURS, speed_of=TOKENS)
    subjects = (*(() if stored else ("teacher",)), "start", OURS, *rivals)
    checks: tuple[Any, ...] = (HeldOutText(versus=("start", *rivals), precision=precision),)
    if stored is None and (write or getattr(chosen, "asks_about_own", False)):  # what they gain, they gain where they write
        writing = Sampling(max_new=64, batch=16)
        checks += (OwnAnswers(versus=("start", *rivals), count=40, sampling=writing, precision=precision),)
    stages["audit"] = Audit(subjects=subjects, checks=checks)
    if foreign is None:  # whose rows are tokens without prompts
        stages["samples"] = Samples(subjects=subjects, precision=precision)
    recipe = Recipe(id="distil", student=learner, data=text, teachers={"teacher": speaker}, stages=stages, seed=seed)
    if steps is None:
        recipe = Plan.of(recipe).fitted(recipe, minutes)
    return door.override(recipe, settings)


def _labelled_by(folder: str, student: str, *, adapt: int, method: str, signal: str | None) -> str:
    """The path of the model that stored signals are from, for students cut from it; refuses what only a model can do."""
    from .signals.store import read_header

    for given, what in ((adapt, "--adapt"), (method == "seqkd", "--method seqkd"), (signal, "--signal")):
        if given:
            raise RunError(f"{what} needs the teacher itself, and {folder} holds what it said: give the model's path")
    header = read_header(Path(folder))
    name = str(header.get("name") or "") if header["teacher"].get("weights") else ""  # a server's name for it is no path
    if student.startswith("shrink:") and not name:
        raise RunError("these signals do not say which model they are from: give --student a path instead of shrink:")
    return name


def _foreign_rows(stored: str, data: str | Path, length: int | None) -> Any:
    """The rows of another tool's set, if that is what the signals were made from; they are token ids, not text."""
    from .cli import door
    from .data.foreign import ForeignRows
    from .signals.store import read_header

    spec = read_header(Path(stored))["data"]["spec"]
    if not str(spec.get("use", "")).endswith(".ForeignRows"):
        return None
    made: ForeignRows = door.spec(spec)
    return replace(made, path=str(data), length=length, valid=0.05, test=0.05)


def label_recipe(
    teacher: str,
    data: str | Path,
    out: str | Path,
    *,
    signal: str = "topk:64",
    column: str | None = None,
    length: int | None = None,
    batch: int = 4,
    temperature: float = 1.0,
    model: str | None = None,
    tokenizer: str | None = None,
    key_env: str | None = None,
) -> Recipe:
    """The recipe that `stillhouse label` runs: a language model's signals for every row of a text file, in `out`.

    teacher: a model by path or name, or the address of an OpenAI-compatible server that serves `model`, whose
        `tokenizer` is in a folder here
    """
    from .data.tokens import Text
    from .estimate import fast_precision
    from .models.hub import HubLM, load_config
    from .signals import formats
    from .signals.label import Label
    from .signals.topk import KeptTopK
    from .teachers.http import HttpLM
    from .teachers.local import LocalLM

    form = formats.parse(signal)
    served = _is_address(teacher)
    if served and not (model and tokenizer):
        raise RunError("a server needs --model (its name there) and --tokenizer (a folder with that model's tokenizer)")
    if served and (not isinstance(form, KeptTopK) or temperature != 1.0):
        raise RunError("a server gives the likeliest tokens at temperature 1 alone: --signal topk:K, no --temperature")
    if not served and (model or tokenizer or key_env):
        raise RunError("--model, --tokenizer and --key-env are for a teacher behind a server (--teacher http://...)")
    known = tokenizer if served and tokenizer else teacher
    if served:
        speaker: Any = HttpLM(url=teacher, model=str(model), tokenizer=known, k=form.k, key_env=key_env)
    else:
        speaker = LocalLM(model=HubLM(path=teacher, dtype=fast_precision()), temperature=temperature)
    context = getattr(load_config(known), "max_position_embeddings", None) or 512
    text = Text(path=str(data), column=column, length=min(length or 512, context - served))  # servers write one more
    stage = Label(format=form, batch=batch, to=str(Path(out).resolve()))
    return Recipe(id="label", student=HubLM(path=known), data=text, teachers={"teacher": speaker}, stages={"label": stage})


def import_signals(
    path: str | Path, out: str | Path, *, tokenizer: str, kind: str = "auto", config: str | Path | None = None,
    temperature: float = 1.0, teacher: str | None = None,
) -> Any:  # fmt: skip
    """Turn a set of DistillKit, axolotl or vLLM into a folder of signals, see `signals.foreign.convert`; its Store.

    teacher: the model behind the set, to measure the set against; without one it is measured against itself
    """
    from .core.run import best_device
    from .models.hub import CausalLM, load_model, load_tokenizer
    from .signals.foreign import convert
    from .teachers.local import LocalTeacher, check_tokenizers

    live, device = None, best_device()
    if teacher is not None:
        check_tokenizers(load_tokenizer(tokenizer), load_tokenizer(teacher))
        live = LocalTeacher(CausalLM(load_model(teacher)).to(device), teacher)
    return convert(
        path, kind, out, tokenizer=tokenizer, teacher_name=teacher or "", config=config, temperature=temperature,
        live=live, device=device,
    )  # fmt: skip


def _is_address(teacher: str) -> bool:
    return teacher.startswith(("http://", "https://"))


def _method(name: str) -> Any:
    """The method of a paper with its defaults; RunError if it does not learn from documents."""
    from .core.paper import DATA, find

    entry = find(name)
    if not {"text", "any"} & set(entry.paper.modality) or "documents" not in entry.paper.data:
        words = "; or ".join(f"{word} ({DATA[word]})" for word in entry.paper.data)
        raise RunError(
            f"{name} is not for text as it stands: it is of {', '.join(entry.paper.modality)} and begins with {words}; see "
            f"`stillhouse show {name}`, or `stillhouse list --data documents` for those that distil takes"
        )
    return type(importlib.import_module(entry.module).recipe("paper").stages[OURS].method)()


def _holds_prompts_only(text: Text) -> bool:
    """Whether the file gives prompts without answers, so that the teacher has to write them."""
    from .data.tables import read_rows
    from .data.tokens import example_of

    examples = [example_of(row, text.column) for row in read_rows(text.path)[:200]]
    usable = [example for example in examples if not isinstance(example, str)]
    return bool(usable) and not any(map(_answered, usable))


def _answered(example: dict[str, Any]) -> bool:
    spoken = any(turn["role"] == "assistant" for turn in example.get("messages", ()))
    return spoken or "completion" in example or "text" in example


def plan(teacher: Any, student: Any, data: Any, **asked: Any) -> Any:
    """What `distil` with the same options would need; trains nothing. `str()` of it is what the command line prints."""
    for name in ("out", "runs", "folder"):
        asked.pop(name, None)
    return _planned(teacher, student, data, asked)[1]
