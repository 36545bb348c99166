"""The command line. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import stillhouse

if TYPE_CHECKING:
    from .progress import Progress

# Read by OpenMP when torch is imported, so set here, before any command does it. Idle threads that spin take the cores
# from whoever else works on the machine: beside one busy process generation fell from 79 to 17 tokens per CPU second.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")


class Commands(TyperGroup):
    """The commands, with one way out for errors. `--debug` may stand anywhere on the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--debug` out of the line, wherever it is."""
        ctx.meta["stillhouse.debug"] = "--debug" in args
        return super().parse_args(ctx, [arg for arg in args if arg != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error becomes one line on standard error and an exit status."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            # Wrong options (status 2, with their usage line) and `Exit` are typer's own to handle.
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise
            from .errors import report

            raise typer.Exit(report(error, debug=ctx.meta["stillhouse.debug"])) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

LOOK, DO, CHECK = "What there is", "Distil", "Look at what came out"
ScaleName = Literal["smoke", "small", "paper"]
Name = Annotated[str, typer.Argument(metavar="ID", help="a method's id, as `stillhouse list` shows it")]
Scale = Annotated[ScaleName, typer.Option(help="seconds on toys, minutes on real data, or the paper's own setting")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one field, as in train.optim.lr=1e-4")
]
Seed = Annotated[int | None, typer.Option(help="everything random follows from it; the recipe's own (0) if left out")]
Runs = Annotated[Path, typer.Option(help="the folder that run folders are made in")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the accelerator if there is one if left out")]
Allow = Annotated[list[str] | None, typer.Option(metavar="PACKAGE", help="let `use:` reach this package's classes too")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stillhouse {stillhouse.__version__}")
        raise typer.Exit


@app.callback()
def stillhouse_(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error; may stand anywhere")] = False,
) -> None:
    """Distil a big model into a small one, and prove that it was worth it."""


# -- what there is -------------------------------------------------------------------------------------------------


@app.command("list", rich_help_panel=LOOK)
def list_(
    modality: Annotated[str | None, typer.Option(help="text, image, graph, table")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="what you have to learn from: labels, unlabelled, documents, prompts, pairs, tasks"),
    ] = None,
    needs: Annotated[
        list[str] | None, typer.Option(help="what your teacher gives: logits, features, text, nothing …")
    ] = None,
    family: Annotated[str | None, typer.Option(help="the folder: classics, language …")] = None,
    proven: Annotated[bool | None, typer.Option("--proven/--unproven", help="by the verdict of its proof")] = None,
    json: Annotated[bool, typer.Option("--json", help="as JSON, for other programs")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="as a page, beside what the papers report")] = False,
) -> None:
    """Every method: what it needs from a teacher, and whether its claim held."""
    from . import show

    found = show.rows(modality=modality, data=data, needs=needs, family=family, proven=proven)
    if json:
        from json import dumps

        typer.echo(dumps(found, indent=1, ensure_ascii=False))
    elif markdown:
        typer.echo(show.markdown(found))
    elif found:
        show.console().print(show.table(found))
    else:
        typer.echo("no method fits all of that")


@app.command("show", rich_help_panel=LOOK)
def show_(
    name: Name,
    yaml: Annotated[bool, typer.Option("--yaml", help="print the whole recipe, to change and to run")] = False,
    scale: Annotated[ScaleName | None, typer.Option(help="the recipe at this scale; implies --yaml")] = None,
    settings: Settings = None,
) -> None:
    """One method: its equation, hyper-parameters, claim and verdict; or its recipe as YAML."""
    if yaml or scale or settings:
        from . import door

        typer.echo(door.dump(door.override(door.of_method(name, scale or "small"), settings or ())), nl=False)
    else:
        from . import show

        show.card(name, show.console())


@app.command(rich_help_panel=LOOK)
def choose(
    teacher: Annotated[str | None, typer.Option(help="a model's path, a server's address, a folder of signals")] = None,
    student: Annotated[str | None, typer.Option(help="a model's path, or shrink:layers=N")] = None,
    data: Annotated[str | None, typer.Option(help="your file, or folder of images")] = None,
    modality: Annotated[str | None, typer.Option(help="text, image, graph, table; looked up in --data if left out")] = None,
    gives: Annotated[list[str] | None, typer.Option(help="by the teacher; looked up in --teacher if left out")] = None,
    json: Annotated[bool, typer.Option("--json", help="as JSON, for other programs")] = False,
) -> None:
    """Which methods fit what you have, why, and the command. Asks what it cannot look up."""
    from . import choose as choosing
    from .show import console

    def ask(question: str, default: str) -> str:
        return typer.prompt(question, default=default) if sys.stdin.isatty() else default

    found = choosing.situation(teacher, data, modality, gives, ask)
    methods = choosing.fitting(found)
    for method in methods:
        method["command"] = choosing.command(method, teacher, student, data, found)
    if json:
        from json import dumps

        typer.echo(dumps({"known": found.known, "methods": methods}, indent=1, ensure_ascii=False))
        return
    for fact in found.known:
        typer.echo(fact)
    out = console()
    for method in methods:
        out.print(f"\n[bold]{method['id']}[/]  {method['summary']}")
        out.print(f"  {method['why']}", markup=False)
        out.print(f"  {method['command']}", markup=False, soft_wrap=True)
    if not methods:
        typer.echo("no method fits all of that; `stillhouse list` shows what each one needs")


@app.command(rich_help_panel=LOOK)
def cite(names: Annotated[list[str], typer.Argument(metavar="ID...", help="one or more methods")]) -> None:
    """BibTeX entries."""
    from .show import bibtex

    typer.echo(bibtex(names))


@app.command(rich_help_panel=LOOK)
def layers(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a Hugging Face folder, FILE.py:FUNCTION, or a spec: models.vision.ResNet")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a field of the spec, as in depth=8")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="of an image, channels x height x width: 3x32x32")] = None,
    data: Annotated[
        Path | None, typer.Option(help="images of yours to take shape and classes from: a folder or .npz")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="of a model that takes their number from the data")] = None,
) -> None:
    """What can be tapped in a model: its layers in order, with shapes and parameters."""
    from . import layers as listing
    from .show import console

    listing.show(model, listing.listed(model, settings or (), shape=shape, data=data, classes=classes), console())


@app.command(rich_help_panel=LOOK)
def doctor(runs: Runs = Path("runs")) -> None:
    """Is this machine ready? Says what is missing and how to get it."""
    from rich.text import Text

    from .doctor import examine
    from .show import console

    out, broken = console(), False
    marks = {"ok": Text("ok     ", "green"), "missing": Text("missing", "yellow"), "broken": Text("broken ", "red")}
    for line in examine(runs):
        broken |= line.state == "broken"
        out.print(marks[line.state], Text(f" {line.name:<10}", "bold"), Text(line.text), soft_wrap=True)
    if broken:
        raise typer.Exit(1)


# -- distil --------------------------------------------------------------------------------------------------------

Teacher = Annotated[
    str,
    typer.Option(
        help="a Hugging Face folder or name, a .gguf file, a folder of signals that `label` made; of classifiers also "
        "FILE.py:FUNCTION or models.vision.ResNet"
    ),
]
Student = Annotated[str, typer.Option(help="the same, or cut from the teacher: shrink:layers=10")]
Data = Annotated[
    str, typer.Option(help="your .jsonl, .parquet, .csv or .txt file; of images a folder, an .npz or a table of paths")
]
Out = Annotated[Path, typer.Option(help="the folder that the finished student goes to")]
MethodName = Annotated[str, typer.Option(help="a method's id; auto chooses from teacher, student and data")]
Steps = Annotated[int | None, typer.Option(min=1, help="optimizer steps")]
Minutes = Annotated[float | None, typer.Option(min=0.1, help="a budget in place of --steps")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="packed rows a step")]
Length = Annotated[int | None, typer.Option(min=8, help="tokens in a packed row")]
Column = Annotated[str | None, typer.Option(help="the column to learn from; found by itself if left out")]
Signal = Annotated[
    str | None,
    typer.Option(help="ask the teacher once and train from what it said: topk:64, sampled:50, hidden:float16"),
]
Adapt = Annotated[int, typer.Option(min=0, help="first fine-tune the teacher on your text for so many steps")]


PLAN = "What `distil` with the same options would need: memory, minutes, disk, teacher tokens. Trains nothing."


@app.command("plan", rich_help_panel=DO, help=PLAN)
@app.command("distil", rich_help_panel=DO)
def distil(
    context: typer.Context,
    teacher: Teacher,
    student: Student,
    data: Data,
    out: Out = Path("student"),
    method: MethodName = "auto",
    steps: Steps = None,
    minutes: Minutes = None,
    batch: BatchSize = None,
    length: Length = None,
    column: Column = None,
    adapt: Adapt = 0,
    signal: Signal = None,
    seed: Seed = None,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="start without asking")] = False,
) -> None:
    """Distil your own teacher into your own student on your own data."""
    asked: dict[str, Any] = dict(
        teacher=teacher, student=student, data=data, method=method,
        steps=steps, minutes=minutes, batch=batch, length=length, column=column, adapt=adapt, signal=signal,
        seed=seed or 0, settings=settings or (),
    )  # fmt: skip
    needed = stillhouse.plan(**asked)
    typer.echo(str(needed))
    if context.info_name == "plan":
        return
    needed.check()
    if not yes and sys.stdin.isatty() and not typer.confirm("Start?", default=True):
        raise typer.Exit(1)
    unit = "items" if hasattr(needed, "items") else "tokens"
    _finished(stillhouse.distil(**asked, out=out, runs=runs, progress=_progress(unit)))
    typer.echo(f"student: {out}")


@app.command(rich_help_panel=DO)
def label(
    teacher: Annotated[
        str, typer.Option(help="a Hugging Face folder or name, a .gguf file, or a server's address (http://host:8000/v1)")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="the folder that the signals go to; a stopped capture goes on there")],
    signal: Annotated[
        str, typer.Option(help="topk:K, sampled:DRAWS, hidden:float32|float16|bfloat16|int8, logits")
    ] = "topk:64",
    length: Length = None,
    column: Column = None,
    batch: Annotated[int, typer.Option(min=1, help="packed rows at a time")] = 4,
    temperature: Annotated[float, typer.Option(min=0.01, help="divides the teacher's logits for good")] = 1.0,
    model: Annotated[str | None, typer.Option(help="of a server: the model's name there")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="of a server: a folder with that model's tokenizer")] = None,
    key_env: Annotated[str | None, typer.Option(help="of a server: the environment variable that holds its key")] = None,
    runs: Runs = Path("runs"),
    device: Device = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="start without asking")] = False,
) -> None:
    """Ask a teacher about your data once; every student and method then learns from what it said."""
    from ..estimate import LabelPlan
    from ..shortcut import label_recipe
    from . import launch, signals

    recipe = label_recipe(
        teacher, data, out, signal=signal, length=length, column=column, batch=batch, temperature=temperature,
        model=model, tokenizer=tokenizer, key_env=key_env,
    )  # fmt: skip
    needed = LabelPlan.of(recipe)
    typer.echo(str(needed))
    needed.check(out)
    if not yes and sys.stdin.isatty() and not typer.confirm("Start?", default=True):
        raise typer.Exit(1)
    launch.launch(recipe, runs=runs, device=device, progress=_progress("tokens"))
    typer.echo(signals.describe(out))


@app.command("import", rich_help_panel=DO)
def import_(
    path: Annotated[Path, typer.Argument(metavar="SET", help="a file, or a folder of Parquet, Arrow or JSONL files")],
    out: Annotated[Path, typer.Option(help="the folder that the signals go to; a stopped conversion goes on there")],
    tokenizer: Annotated[str, typer.Option(help="the model (its folder or name) whose token ids the set holds")],
    kind: Annotated[str, typer.Option(help="distillkit, axolotl, vllm; auto: by the columns")] = "auto",
    config: Annotated[Path | None, typer.Option(help="DistillKit's compression config, if not beside the set")] = None,
    temperature: Annotated[float, typer.Option(min=0.01, help="the one that the set's probabilities were taken at")] = 1.0,
    teacher: Annotated[
        str | None, typer.Option(help="the model behind the set, by path: to measure how exact the set is")
    ] = None,
) -> None:
    """Turn log-probabilities that DistillKit, axolotl or vLLM wrote into signals."""
    from ..shortcut import import_signals
    from . import signals

    import_signals(path, out, tokenizer=tokenizer, kind=kind, config=config, temperature=temperature, teacher=teacher)
    typer.echo(signals.describe(out))


@app.command(rich_help_panel=DO)
def run(
    what: Annotated[
        str, typer.Argument(metavar="ID|RECIPE.yaml|RUN", help="a method, a recipe file, or a run to go on with")
    ],
    scale: Scale = "small",
    settings: Settings = None,
    teacher: Annotated[
        Path | None, typer.Option(help="a folder of signals that answers in place of the recipe's teacher")
    ] = None,
    signal: Signal = None,
    seed: Seed = None,
    runs: Runs = Path("runs"),
    device: Device = None,
    allow: Allow = None,
) -> None:
    """Run a method, your own recipe file, or what is left of a run that was stopped."""
    from ..core.recipe import RecipeError
    from . import door, launch

    allowed = tuple(allow or ())
    if launch.is_run(what):
        if settings or teacher or signal or seed is not None:
            raise RecipeError(f"{what} is a run that has begun: its recipe is fixed; start a new run to change it")
        recipe = door.load(Path(what) / "recipe.yaml", allow=allowed)
        progress = _progress(launch.unit_of(recipe))
        _finished(launch.launch(recipe, folder=Path(what), device=device, progress=progress))
        return
    recipe = launch.find(what, scale, allow=allowed)
    if teacher is not None:
        recipe = launch.with_signals(recipe, teacher)
    if signal is not None:
        recipe = launch.with_label(recipe, signal)
    recipe = door.override(recipe, settings or (), allow=allowed)
    if seed is not None:
        recipe = recipe.set("seed", seed)
    _planned(recipe)
    _finished(launch.launch(recipe, runs=runs, device=device, progress=_progress(launch.unit_of(recipe))))


@app.command(rich_help_panel=DO)
def demo(runs: Runs = Path("runs")) -> None:
    """Distil a real language model on this machine, in minutes."""
    from . import launch
    from .demo import recipe

    _planned(recipe())
    _finished(launch.launch(recipe(), runs=runs, progress=_progress("tokens")))


# -- look at what came out -----------------------------------------------------------------------------------------


@app.command(rich_help_panel=CHECK)
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    open_: Annotated[bool, typer.Option("--open", help="show it in the browser")] = False,
) -> None:
    """Write the page of a run again, from its folder alone."""
    from ..core.recipe import RecipeError
    from .launch import is_run

    if not is_run(folder):
        raise RecipeError(f"{folder} is not a run folder: there is no recipe.yaml in it")
    from ..reports import html

    page = html.write(folder)
    typer.echo(str(page))
    if open_:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())


@app.command(rich_help_panel=CHECK)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, or folders that hold runs")],
    metric: Annotated[str | None, typer.Option(help="the number to compare; the one that decides if left out")] = None,
    subject: Annotated[str | None, typer.Option(help="whose number; the distilled student's if left out")] = None,
    versus: Annotated[str | None, typer.Option(help="the recipe to compare with; supervised learning if left out")] = None,
    out: Annotated[Path, typer.Option(help="the page; the JSON file goes beside it")] = Path("compare.html"),
    open_: Annotated[bool, typer.Option("--open", help="show it in the browser")] = False,
) -> None:
    """Any set of runs side by side: quality, cost, differences paired by seed, one picture."""
    from ..reports import compare as comparing
    from . import results
    from .show import console

    found = comparing.compare(runs, metric=metric, subject=subject, versus=versus)
    for warning in found.warnings:
        typer.echo(warning, err=True)
    console().print(results.comparison(found))
    page = comparing.write(found, out)
    typer.echo(str(page))
    if open_:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())


@app.command(rich_help_panel=CHECK)
def signals(
    folder: Annotated[Path, typer.Argument(metavar="SIGNALS", help="a folder that `label` made")],
    teacher: Annotated[
        str | None, typer.Option(help="the model behind them: measure the error again, refuse another model's signals")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="as JSON, for other programs")] = False,
) -> None:
    """What is in a folder of signals, how exact it is, and whether every byte is as it was written."""
    from . import signals as shown

    typer.echo(shown.describe(folder, teacher=teacher, json=json))


Made = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder in which a stage made data")]
MadeStage = Annotated[str | None, typer.Option("--stage", help="the stage, if several made data")]


@app.command(rich_help_panel=CHECK)
def explain(
    run: Made, row: Annotated[str, typer.Argument(help="a row's _id, or how it begins")], stage: MadeStage = None
) -> None:
    """Where a row of made data comes from: every step, every ancestor, and why it was lost if it was."""
    from . import made

    typer.echo(made.explain(run, row, stage))


@app.command(rich_help_panel=CHECK)
def look(
    rows: Annotated[
        Path, typer.Argument(metavar="TABLE_OR_RUN", help="a run folder in which a stage made data, or any data file")
    ],
    stage: MadeStage = None,
    against: Annotated[Path | None, typer.Option(help="another run or file, to see what is different")] = None,
    export: Annotated[Path | None, typer.Option(help="write the page as one file that needs no server: FILE.html")] = None,
    most: Annotated[int, typer.Option("--rows", min=1, help="with --export: so many rows at most")] = 500,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="show it in the browser")] = False,
) -> None:
    """A page to look at rows: search, filter, where each comes from, what was lost and why, what is different."""
    import webbrowser

    from ..reports import look as looking

    if export is not None:
        typer.echo(str(looking.export(rows, export, stage=stage, against=against, most=most)))
        if open_:
            webbrowser.open(export.absolute().as_uri())
        return
    with looking.serving(rows, stage=stage, against=against, port=port) as server:
        typer.echo(f"{server.address} (Ctrl-C ends it)")
        if open_:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("\nended")


@app.command(rich_help_panel=CHECK)
def waterfall(run: Made, stage: MadeStage = None) -> None:
    """How many rows of made data went into each step, came out, and were lost for which reason."""
    from . import made
    from .show import console

    console().print(made.waterfall(run, stage))


@app.command(rich_help_panel=CHECK)
def review(
    run: Made,
    out: Annotated[Path, typer.Option(help="the file to write: .csv or .jsonl")] = Path("review.csv"),
    columns: Annotated[list[str] | None, typer.Option("--column", help="a column to show; all if left out")] = None,
    sample: Annotated[int | None, typer.Option(help="so many rows, not all", min=1)] = None,
    stage: MadeStage = None,
) -> None:
    """Write made rows into a file for a person to change; the step `synth.review.Reviewed` takes the changes back."""
    from . import made

    typer.echo(made.export(run, stage, out, columns or [], sample))


@app.command(rich_help_panel=CHECK)
def prove(
    names: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="one or more methods")] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="those (of ID..., or of all) whose code is not as it was when they were proven")
    ] = False,
    say: Annotated[bool, typer.Option("--list", help="with --changed: name them, and prove nothing")] = False,
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option(help="the folder that ID.json goes to")] = Path("proofs"),
    device: Device = None,
) -> None:
    """Does a method's claim hold here? Runs its arms over seeds, equally tuned, and writes the verdict."""
    from . import prove as proving
    from .show import console

    if not names and not changed:
        raise typer.BadParameter("name a method, or give --changed")
    if changed:
        from .changed import stale

        found = stale(names)
        for name, files in found.items():
            typer.echo(f"{name}: {', '.join(files)}")
        names = [] if say else list(found)
    for name in names or ():
        proving.prove(name, runs=runs, out=out, device=device, console=console())


def _planned(recipe: Any) -> None:
    """Say what a run will take and what it will ask of whom, where that can be told; one line and out if it cannot."""
    from ..estimate import Plan
    from ..synth.synthesize import DataPlan

    if Plan.knows(recipe):
        needed = Plan.of(recipe)
        typer.echo(str(needed))
        needed.check()
    if DataPlan.knows(recipe) and (asked := str(DataPlan.of(recipe))):
        typer.echo(asked)


def _progress(unit: str) -> Progress:
    from .progress import progress

    return progress(unit)


def _finished(run: Any) -> None:
    """Print what a run found and where its page is."""
    from ..reports import html
    from . import results
    from .show import console

    for table in results.tables(results.findings(run.folder)):
        console().print(table)
        console().print()
    typer.echo(f"report: {html.write(run.folder)}")


def main() -> None:
    """The command `stillhouse`."""
    app(prog_name="stillhouse")
