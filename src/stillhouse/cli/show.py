"""What there is: the table of methods, one method's card, how to cite. Imports neither methods nor torch."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.paper import DATA, Entry, catalogue, find
from ..core.recipe import RecipeError, nearest

PACKAGE = Path(__file__).parent.parent
PAGES = PACKAGE.parent.parent / "docs" / "methods"
COLOURS = {"holds": "green", "does not hold": "red", "undecided": "yellow"}


def console(*, stderr: bool = False) -> Console:
    """A console that does not cut lines short when its output goes into a file."""
    out = Console(stderr=stderr, highlight=False)
    return out if out.is_terminal else Console(stderr=stderr, highlight=False, width=160)


def proof_of(name: str) -> dict[str, Any] | None:
    """The newest measured proof: of this folder, of the checkout, or the one that came with the package."""
    for folder in (Path("proofs"), PACKAGE.parent.parent / "proofs", PACKAGE / "proofs"):
        file = folder / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    return None


def rows(
    *,
    modality: str | None = None,
    data: Sequence[str] | None = None,
    needs: Sequence[str] | None = None,
    family: str | None = None,
    proven: bool | None = None,
) -> list[dict[str, Any]]:
    """The methods that pass all filters, as plain values; RecipeError for a word that no method has.

    `data` keeps the methods that can begin with one of these, words of `core.paper.DATA`; `needs` those that a teacher
    giving only these signals can serve; `proven` those whose claim held (or, if False, has not held so far).
    """
    entries = list(catalogue().values())
    _known("--family", family, {e.family for e in entries})
    _known("--modality", modality, {m for e in entries for m in e.paper.modality})
    for word in data or ():
        _known("--data", word, set(DATA))
    for kind in needs or ():
        _known("--needs", kind, {"nothing", "logits", "topk", "features", "text", "score", "reward"})
    found: list[dict[str, Any]] = []
    for entry in entries:
        proof = proof_of(entry.paper.id)
        if family not in (None, entry.family) or (modality and not {modality, "any"} & set(entry.paper.modality)):
            continue
        if data is not None and not set(data) & set(entry.paper.data):
            continue
        given = {*(needs or ()), *(("logits",) if entry.takes_topk and "topk" in (needs or ()) else ())}
        if needs is not None and not set(entry.needs) <= given:
            continue
        verdict = proof["verdict"] if proof else None
        if proven is not None and proven != (verdict == "holds"):
            continue
        found.append(
            {
                "id": entry.paper.id, "family": entry.family, "modality": list(entry.paper.modality),
                "data": list(entry.paper.data), "needs": list(entry.needs), "summary": entry.summary,
                "year": entry.paper.year,
                "link": entry.paper.link, "verdict": verdict,
            }
        )  # fmt: skip
    return found


def table(methods: Sequence[dict[str, Any]]) -> Table:
    """The methods as a table."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "family", "modality", "data", "teacher gives", "proven"):
        grid.add_column(name, no_wrap=True)
    grid.add_column("in one line", overflow="fold")
    for m in methods:
        verdict = m["verdict"] or "not yet"
        grid.add_row(
            Text(m["id"], "bold"), m["family"], " ".join(m["modality"]), " ".join(m["data"]),
            " ".join(m["needs"]) or "nothing",
            Text(verdict, COLOURS.get(verdict, "dim")), Text(m["summary"]),
        )  # fmt: skip
    return grid


def markdown(methods: Sequence[dict[str, Any]]) -> str:
    """The methods as a page: what was measured here beside what each paper reports."""
    lines = [
        "# Methods",
        "",
        "Made by `stillhouse list --markdown`. Verdicts and effects are those of `proofs/`, measured small on a CPU; the",
        "papers' numbers are of other sizes and data, and stand here to be told apart from them.",
        "",
        "| method | paper | of | begins with | teacher gives | verdict"
        " | measured here, against, [95 % interval] | the paper reports |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in methods:
        entry = find(m["id"])
        page = f"[{m['id']}]({m['id']}.md)" if (PAGES / f"{m['id']}.md").is_file() else m["id"]
        title = f"[{entry.paper.title}]({m['link']})" if m["link"] else entry.paper.title
        proof = proof_of(m["id"])
        effects = [] if proof is None else [
            f"{proof['metric']}, {arm}: {effect['mean']:+.3g}"
            + ("" if effect["low"] is None else f" [{effect['low']:+.3g}, {effect['high']:+.3g}]")
            for arm, effect in proof["effects"].items()
        ]  # fmt: skip
        reported = [f"{e['metric']} {e['value']:g} ({e['where']}; {e.get('setting', '')})" for e in expected(entry)]
        cells = [
            page, title, " ".join(m["modality"]), " ".join(m["data"]), " ".join(m["needs"]) or "nothing",
            m["verdict"] or "not yet", "<br>".join(effects), "<br>".join(reported),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def expected(entry: Entry) -> list[dict[str, Any]]:
    """The numbers of a paper that its file names (`Expect(...)` with literals), read without importing it."""
    calls = (node for node in ast.walk(ast.parse(entry.path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    return [
        {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "Expect"
    ]


def card(name: str, out: Console) -> None:
    """Print what a method's file says about itself."""
    entry = find(name)
    paper = entry.paper
    out.print(Text(f"{paper.id}", "bold"), Text(f"  {entry.family}, {' '.join(paper.modality)}", "dim"))
    out.print(Text(f"{paper.title} ({_who(entry)} {paper.year})"))
    if paper.link:
        out.print(Text(paper.link, "blue"))
    out.print()
    out.print(Text(entry.doc))
    out.print()
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    if paper.claim:
        facts.add_row("claim", Text(paper.claim))
    facts.add_row("proven", _proven(name))
    facts.add_row("begins with", "; or ".join(f"{word} ({DATA[word]})" for word in paper.data))
    facts.add_row("teacher gives", " ".join(entry.needs) or "nothing")
    for key, value in entry.fields.items():
        facts.add_row(Text(key), Text(value))
    facts.add_row("run it", Text(f"stillhouse run {name} --scale smoke"))
    facts.add_row("change it", Text(f"stillhouse show {name} --yaml > my.yaml; stillhouse run my.yaml"))
    out.print(facts)


def _proven(name: str) -> Text:
    proof = proof_of(name)
    if proof is None:
        return Text(f"not yet; stillhouse prove {name}")
    text = Text(proof["verdict"], COLOURS.get(proof["verdict"], ""))
    for arm, effect in proof["effects"].items():
        text.append(f"; {proof['metric']} against {arm}: {effect['mean']:+.4g}", "default")
        if effect["low"] is not None:
            text.append(f" [{effect['low']:+.4g}, {effect['high']:+.4g}] over {effect['n']} seeds", "default")
    return text


def _who(entry: Entry) -> str:
    first = entry.paper.authors[0] if entry.paper.authors else "anonymous"
    family = first.split(",")[0] if "," in first else first.split()[-1]
    return f"{family} et al." if len(entry.paper.authors) > 2 else family


def bibtex(names: Sequence[str]) -> str:
    """The BibTeX entries of some methods."""
    return "\n\n".join(find(name).paper.bibtex() for name in names)


def _known(option: str, word: str | None, words: set[str]) -> None:
    if word is not None and word not in words:
        raise RecipeError(f"{option} {word}: no method has that{nearest(word, sorted(words))}")
