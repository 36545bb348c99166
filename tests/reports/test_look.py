"""A page on rows: what it answers, what it refuses, and that a model's words stay words."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from stillhouse.core.recipe import Recipe
from stillhouse.core.run import Run, RunError
from stillhouse.core.signal import Kind
from stillhouse.core.stage import execute
from stillhouse.reports import look
from stillhouse.reports.look import Asked, Looking, View, cell, difference, marked, page, spread
from stillhouse.synth.steps import Need, Row
from stillhouse.synth.synthesize import Synthesize
from stillhouse.synth.table import Table, write

Still = Callable[..., Any]
HOSTILE = [
    "<script>document.title='stolen'</script>", "</textarea></script><img src=x onerror=document.title='stolen'>",
    "\u202eright to left\u202c \u2066iso", "line\u2028and\u2029paragraph", "a\x00b\x1b[31m", "</dialog>{{ 7 * 7 }}{% raw %}",
    "Ärger, ÄRGER und 東京 🦊", "quote \" and \\ back", "&lt;b&gt; & <b>",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Rows of text with a label."""

    count: int = 30
    more: tuple[str, ...] = ()

    def rows(self, run: Run) -> dict[str, list[dict[str, Any]]]:
        texts = [f"line {i}" for i in range(self.count)] + list(self.more)
        return {"train": [{"text": text, "label": "abc"[i % 3], "n": i} for i, text in enumerate(texts)]}

    def load(self, run: Run) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a step that asks nobody needs."""

    needs: ClassVar[frozenset[Kind]] = frozenset()

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        return {}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        return rows


@dataclass(frozen=True, kw_only=True)
class Joined(Pass):
    """One new row of every two."""

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        before: Row | None = None
        for row in rows:
            if before is not None:
                yield run.work.child(before, row, text=f"{before['text']} + {row['text']}", label=row["label"], n=row["n"])
            before = row


@dataclass(frozen=True, kw_only=True)
class Odd(Pass):
    """Only odd numbers, and a score."""

    marked: str = "kept"

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        for row in rows:
            if row["n"] % 2 == 0:
                run.work.lose(
                    row, "even" if row["n"] < 10 else "even and large", number=row["n"], parts={"half": row["n"] / 2}
                )
            else:
                yield {**row, "score": row["n"] / 4, "mark": self.marked}


def make(folder: Path, *, count: int = 30, more: Sequence[str] = (), mark: str = "kept") -> Path:
    stage = Synthesize(steps={"join": Joined(), "odd": Odd(marked=mark)})
    recipe = Recipe(
        id="looked", student=None, data=Lines(count=count, more=tuple(more)), teachers={}, stages={"make": stage}
    )
    execute(recipe, Run(folder))
    (folder / "recipe.yaml").touch()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: 38 rows of a file joined to 37 or so, of which half are lost."""
    return make(tmp_path_factory.mktemp("look") / "run", more=HOSTILE)


class Site:
    """A server in a thread, and questions to it."""

    def __init__(self, server: look.Server):
        self.server = server

    def ask(self, name: str, where: Sequence[tuple[str, str | None]] = (), **asked: object) -> Any:
        query = urlencode([*asked.items(), *(("where", json.dumps(pair)) for pair in where)])
        with urlopen(f"{self.server.address}api/{name}?{query}", timeout=20) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            return json.load(answer)


@pytest.fixture
def serve() -> Iterator[Callable[..., Site]]:
    """`serve(path, against=...)`: a site on it."""
    contexts, threads = [], []

    def start(given: Path, **asked: Any) -> Site:
        context = look.serving(given, **asked)
        server = context.__enter__()
        threads.append(threading.Thread(target=server.serve_forever, args=(0.01,)))
        threads[-1].start()
        contexts.append((context, server))
        return Site(server)

    yield start
    for (context, server), thread in zip(contexts, threads, strict=True):
        server.shutdown()
        thread.join()
        context.__exit__(None, None, None)


def table_of(folder: Path, rows: Iterable[Row], name: str = "t") -> View:
    return View(name, write(folder / f"{name}.parquet", rows), 0)


# -- rows ----------------------------------------------------------------------------------------------------------


def expected(rows: Sequence[Row], asked: Asked) -> list[int]:
    """The same in plain Python."""
    found = []
    for number, row in enumerate(rows):
        texts = [v for v in row.values() if isinstance(v, str)] + sum([v for v in row.values() if isinstance(v, list)], [])
        right = all((str(row[c]) if row.get(c) is not None else None) == v for c, v in asked.where)
        if right and any(asked.words.lower() in text.lower() for text in ["", *texts] if asked.words or not text):
            found.append(number)
    if asked.sort:
        have = [n for n in found if rows[n].get(asked.sort) is not None]
        have.sort(key=lambda n: rows[n][asked.sort], reverse=asked.down)
        if asked.down:  # equal ones stay in their order
            have = sorted(sorted(have), key=lambda n: rows[n][asked.sort], reverse=True)
        found = have + [n for n in found if n not in set(have)]
    return found


CELLS = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(st.sampled_from("aBcÄä\"\\\n<\x00\u2028東"), max_size=6),
        "n": st.none() | st.integers(-3, 3), "tags": st.none() | st.lists(st.sampled_from(["aa", "b", "Ä"]), max_size=3),
    }
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@drawn(
    rows=st.lists(CELLS, min_size=1, max_size=12), words=st.sampled_from(["", "a", "BC", "ä", '"', "\\", "\x00", "%"]),
    where=st.sampled_from([(), (("n", "1"),), (("n", None),), (("text", None),), (("text", ""),)]),
    sort=st.sampled_from(["", "n", "text"]), down=st.booleans(),
)  # fmt: skip
def test_search_filter_and_order_are_those_of_plain_python(
    rows: list[dict[str, Any]], words: str, where: Any, sort: str, down: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = [{**{k: v for k, v in row.items() if v is not None}, "_id": f"{i:032x}"} for i, row in enumerate(rows)]
    first = {"_id": "f" * 32, "text": "zz", "n": 9, "tags": ["zz"]}  # so that there are all columns, with their types
    view = table_of(tmp_path_factory.mktemp("rows"), [first, *kept])
    asked = Asked(words, where, sort, down)
    found = page(view, asked, 0, 500)
    assert [row["n"] for row in found["rows"]] == expected([first, *kept], asked)
    assert found["total"] == len(found["rows"])


def test_pages_go_through_a_table_of_many_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.synth.table.CHUNK", 7)
    monkeypatch.setattr(look, "BATCH", 5)
    rows = [{"_id": f"{i:032x}", "text": f"word {i * 37 % 100:02d}", "even": i % 2 == 0} for i in range(100)]
    view = table_of(tmp_path, rows)
    asked = Asked("word", (("even", "true"),), "text", down=True)
    seen = [row for first in range(0, 60, 8) for row in page(view, asked, first, 8)["rows"]]
    assert [row["cells"]["text"] for row in seen] == sorted((r["text"] for r in rows if r["even"]), reverse=True)
    assert all(rows[row["n"]]["_id"] == row["id"] for row in seen)


def test_a_page_of_a_large_table_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    write(path, ({"_id": f"{i:032x}", "text": f"{i} " + f"{i * 7919 % 99991} " * 300} for i in range(20_000)))
    code = (
        "import sys\nimport pyarrow\nfrom pathlib import Path\nfrom stillhouse.reports.look import *\n"
        "view = View('t', Table(Path(sys.argv[1])), 0)\npage(view, Asked('7919 '), 10)\n"
        "page(view, Asked(sort='text'), 100)\nspread(view, 'text', Asked())\n"
        "print(pyarrow.default_memory_pool().max_memory())"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    size = sum(len(row["text"]) for row in Table(path))
    assert size > 3e7 and int(done.stdout) < size / 2, (done.stdout, size)


def test_columns_of_a_foreign_table(tmp_path: Path) -> None:
    import datetime

    table = pa.table(
        {
            "when": [datetime.datetime(2026, 1, 2), None], "picture": [{"bytes": b"\x89PNG", "path": "a.png"}, None],
            "raw": [b"abc", b""], "many": pa.array([{"a": 1}, {"a": 2}], pa.struct([("a", pa.int8())])),
            "coded": pa.array(["x", "y"]).dictionary_encode(), "wide": [2**60, 1], "odd": [float("nan"), 1.5],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "f.parquet")
    looking = Looking(tmp_path / "f.parquet")
    cells = looking.answer("row", {"t": "0", "n": "0"})["cells"]  # type: ignore[index]
    assert cells["when"] == "2026-01-02 00:00:00" and cells["coded"] == "x" and cells["wide"] == str(2**60)
    assert json.loads(cells["picture"]["text"]) == {"bytes": "(4 bytes)", "path": "a.png"} and cells["odd"] == "nan"
    for column in table.column_names:
        told = looking.answer("spread", {"t": "0", "column": column})
        json.dumps(told, allow_nan=False)
        for value, count in told["values"]:  # type: ignore[index]
            assert looking.answer("rows", {"t": "0"}, [json.dumps([column, value])])["total"] == count  # type: ignore[index]
        for down in "01":
            assert looking.answer("rows", {"t": "0", "sort": column, "down": down})["total"] == 2  # type: ignore[index]
    assert looking.answer("rows", {"t": "0", "q": "X"})["total"] == 1  # type: ignore[index]
    looking.close()


def test_what_a_cell_is_to_the_page() -> None:
    assert [cell(v, 5) for v in (None, True, 3, 1.5, "short")] == [None, True, 3, 1.5, "short"]
    assert cell("x" * 2**20, 10) == {"text": "x" * 10, "of": 2**20}
    assert cell(["ä", {"b": 1}], 50) == {"text": '["ä", {"b": 1}]', "of": 15, "parts": True}
    assert cell(2**53, 50) == "9007199254740992" and cell(float("inf"), 50) == "inf"


# -- what a column holds -------------------------------------------------------------------------------------------


def test_bars_are_the_commonest_values(tmp_path: Path) -> None:
    labels = [chr(65 + i) for i in range(40) for _ in range(i + 1)]
    rows = [{"_id": f"{i:032x}", "label": label, "flag": i % 2 == 0} for i, label in enumerate(labels)]
    view = table_of(tmp_path, [*rows, {"_id": "0" * 32}])
    told, truth = spread(view, "label", Asked()), Counter(labels).most_common(30)
    assert told["values"] == truth and told["none"] == 1 and told["different"] == 40
    assert told["others"] == len(labels) - sum(n for _, n in truth)
    assert spread(view, "flag", Asked(where=(("label", "C"),)))["rows"] == 3
    assert sum(n for _, n in spread(view, "flag", Asked("h"))["values"]) == Counter(labels)["H"] + Counter(labels)["h"]


@pytest.mark.parametrize("scale", [1, 0.001, 1e9])
def test_histograms_hold_every_row_once(tmp_path: Path, scale: float) -> None:
    numbers = [scale * (i * i % 997) for i in range(500)]
    texts = ["x" * (i * 13 % 800) for i in range(500)]
    rows = [{"_id": f"{i:032x}", "n": float(n), "t": t} for i, (n, t) in enumerate(zip(numbers, texts, strict=True))]
    view = table_of(tmp_path, rows)
    for column, values in (("n", numbers), ("t", [len(t) for t in texts])):
        bins = spread(view, column, Asked())["bins"]
        assert sum(n for *_, n in bins) == 500 and len(bins) <= 22
        assert bins[0][0] <= min(values) and bins[-1][1] >= max(values)
        for low, high, n in bins[:-1]:
            assert n == sum(low <= v < high for v in values)


def test_nothing_to_count(tmp_path: Path) -> None:
    view = table_of(tmp_path, [])
    assert page(view, Asked("x", sort="_id"))["rows"] == [] and spread(view, "_id", Asked())["bins"] == []
    with pytest.raises(RunError, match="has no column 'labl'; it has _id"):
        spread(view, "labl", Asked())


# -- differences ---------------------------------------------------------------------------------------------------


def test_differences_are_those_of_dictionaries(tmp_path: Path) -> None:
    before = {f"{i:032x}": {"text": f"text {i}", "n": i} for i in range(20)}
    after = {k: dict(v) for k, v in before.items() if v["n"] % 5}
    for k, v in after.items():
        if v["n"] % 3 == 0:
            after[k] = {**v, "text": f"new text {v['n']}"}
    after |= {f"{i:032x}": {"text": "another", "n": i} for i in range(50, 53)}
    one = table_of(tmp_path, [{"_id": k, **v} for k, v in before.items()], "one")
    other = table_of(tmp_path, [{"_id": k, **v} for k, v in reversed(after.items())], "other")
    ids = lambda kind: {row["id"] for row in difference(one, other, kind)["rows"]}  # noqa: E731
    assert ids("added") == set(after) - set(before) and ids("removed") == set(before) - set(after)
    changed = {k for k in set(before) & set(after) if before[k] != after[k]}
    assert ids("changed") == changed and difference(one, other)["counts"]["same"] == len(set(before) & set(after)) - len(
        changed
    )
    found = next(row for row in difference(one, other)["rows"] if row["id"].endswith("3"))
    assert found["columns"] == {"text": [("+", "new "), ("=", "text 3")]}
    assert [row["n"] for row in difference(one, other, "added", first=1, most=1)["rows"]] == [1]
    with pytest.raises(RunError, match="'label' is no column of both"):
        difference(one, other, key="label")


def test_rows_without_a_name_are_compared_whole_or_by_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("word,kind\nfox,animal\nfox,animal\noak,tree\n")
    (tmp_path / "b.csv").write_text("word,kind\noak,plant\nfox,animal\nelm,tree\n")
    looking = Looking(tmp_path / "a.csv", against=tmp_path / "b.csv")
    a, b = looking.views
    assert difference(a, b)["counts"] == {"added": 2, "removed": 2, "changed": 0, "same": 1}
    found = difference(a, b, key="word")
    assert found["counts"] == {"added": 1, "removed": 1, "changed": 1, "same": 1}
    assert found["rows"][0]["columns"] == {"kind": [("-", "tree"), ("+", "plant")]}
    looking.close()


@settings(max_examples=100, deadline=None)
@drawn(st.text(st.sampled_from("ab \n<.ä"), max_size=30), st.text(st.sampled_from("ab \n<.ä"), max_size=30))
def test_marked_words_give_both_texts_back(before: str, after: str) -> None:
    told = marked(before, after)
    assert "".join(text for sign, text in told if sign != "+") == before
    assert "".join(text for sign, text in told if sign != "-") == after
    assert before != after or {sign for sign, _ in told} <= {"="}


def test_a_change_in_a_long_text_is_found_and_the_rest_is_cut() -> None:
    told = marked("word " * 200_000 + "old" + " end" * 50_000, "word " * 200_000 + "new" + " end" * 50_000)
    assert [each for each in told if each[0] != "="] == [("-", "old"), ("+", "new")]
    assert sum(len(text) for _, text in told) < 1000 and "letters)" in told[0][1]
    assert len(marked("a b " * 5000, "c d " * 5000)) == 2 or marked("a b " * 5000, "c d " * 5000)[-1] == ("=", " ")


# -- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_shows_what_came_out_what_was_lost_and_why(run: Path, serve: Callable[..., Site]) -> None:
    site = serve(run)
    told = site.server.looking.plain()
    names = {view["name"]: n for n, view in enumerate(told["views"])}
    assert list(names) == ["after given", "after join", "after odd", "lost in odd"] and told["start"] == names["after odd"]
    account = {step["step"]: step for step in told["steps"]}
    assert sum(account["odd"]["lost"].values()) == told["views"][names["lost in odd"]]["rows"]
    for why, count in account["odd"]["lost"].items():
        found = site.ask("rows", [("_why", why)], t=names["lost in odd"], most=500)
        assert found["total"] == count and all(row["cells"]["_why"] == why for row in found["rows"])
        assert {"text", "label", "n", "numbers"} <= set(found["columns"])
    row = found["rows"][0]
    assert json.loads(row["cells"]["numbers"]["text"]) == {
        "number": row["cells"]["n"],
        "parts": {"half": row["cells"]["n"] / 2},
    }
    history = site.ask("history", t=names["lost in odd"], id=row["id"])["rows"]
    assert [each["depth"] for each in history] == [0, 1, 1] and history[0]["parents"] == [each["id"] for each in history[1:]]
    assert [step["step"] for step in history[0]["steps"]] == ["join", "odd"]
    assert history[0]["steps"][1]["lost"] == why and history[0]["steps"][1]["numbers"]["number"] == row["cells"]["n"]
    children = site.ask("rows", t=names["after join"], q=history[1]["id"])
    assert row["id"] in {each["id"] for each in children["rows"]} and children["total"] == 2


def test_two_runs_are_compared(run: Path, tmp_path: Path, serve: Callable[..., Site]) -> None:
    other = make(tmp_path / "other", count=28, more=HOSTILE, mark="kept & seen")
    site = serve(run, against=other)
    told = site.server.looking.plain()
    a, b = told["pair"]
    assert told["views"][a]["name"] == "other: after odd" and told["views"][b]["name"] == "after odd"
    ours = {row["_id"]: row for row in site.server.looking.views[b].table}
    theirs = {row["_id"]: row for row in site.server.looking.views[a].table}
    found = site.ask("difference", a=a, b=b)
    assert found["counts"]["added"] == len(set(ours) - set(theirs)) and found["counts"]["changed"] == len(
        set(ours) & set(theirs)
    )
    assert all(row["columns"]["mark"] == [["=", "kept"], ["-", " & seen"]] for row in found["rows"])


def test_an_ancestry_in_which_everybody_is_everybodys_parent_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.synth.ancestry import Ancestry

    level: list[Ancestry] = []
    for depth in range(40):  # 2 to the 40th ways up
        level = [Ancestry(f"{depth}-{i}", [], level) for i in range(2)]
    source = look.Source("x", [], tables=type("T", (), {"explain": lambda self, id: level[0]})())
    told = look.lineage(source, "39-0")
    assert len(told["rows"]) == 79 and not told["more"] and len({row["id"] for row in told["rows"]}) == 79
    monkeypatch.setattr(look, "ANCESTORS", 10)
    assert len(look.lineage(source, "39-0")["rows"]) == 10 and look.lineage(source, "39-0")["more"]


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_of_lines_with_whatever_in_them(tmp_path: Path, serve: Callable[..., Site]) -> None:
    lines = [
        {"text": "a", "x": 1, "deep": {"b": [1]}},
        {"text": 5, "x": 2**70, "deep": "flat"},
        {"text": "\ud800 half", "x": "y"},
    ]
    lines += [{"text": None, "list": [1, "a"]}, {"list": ["b"], "new": 1.5}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n", encoding="utf-8")
    site = serve(path)
    found = site.ask("rows", t=0)
    assert found["total"] == 5 and [row["cells"].get("text") for row in found["rows"]] == ["a", "5", "? half", None, None]
    assert [row["cells"].get("x") for row in found["rows"][:3]] == ["1", str(2**70), "y"]
    assert "1 lines of rows.jsonl were left out" in site.server.looking.plain()["notes"][0]
    assert site.ask("history", t=0, id="abcd") == {"rows": [], "more": False}


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("nowhere.csv", {}, "no data file"), ("rows.xyz", {}, "cannot read rows.xyz"), ("", {}, "not a run folder"),
        ("rows.csv", {"stage": "make"}, "--stage is for a run folder"), ("bad.parquet", {}, "cannot read the table"),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_said_in_one_line(tmp_path: Path, name: str, asked: Any, why: str) -> None:
    for file in ("rows.xyz", "rows.csv", "bad.parquet"):
        (tmp_path / file).write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match=why):
        Looking(tmp_path / name, **asked)


def test_a_stage_must_be_named_where_several_made_data(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "two")
    shutil.copytree(run / "artifacts" / "make", tmp_path / "two" / "artifacts" / "again")
    with pytest.raises(RunError, match="name one with --stage"):
        Looking(tmp_path / "two")
    one, other = Looking(tmp_path / "two", stage="again"), Looking(run / "artifacts" / "make" / "data" / "rows.parquet")
    assert one.plain()["views"] == other.plain()["views"]


# -- who may ask ---------------------------------------------------------------------------------------------------


def told_by(site: Site, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> tuple[int, str, Any]:
    connection = HTTPConnection("127.0.0.1", site.server.server_address[1], timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": "localhost:1"} if headers is None else headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_only_this_machine_is_answered(run: Path, serve: Callable[..., Site]) -> None:
    site = serve(run)
    assert site.server.server_address[0] == "127.0.0.1"
    home = f"/{site.server.word}/"
    assert told_by(site, home)[0] == 200 and told_by(site, home, {"Host": "127.0.0.1:9999"})[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "0.0.0.0", "evil@localhost", ""):
        for path in (home, f"{home}api/rows?t=0"):
            status, body, _ = told_by(site, path, {"Host": host})
            assert status == 403 and "line 1" not in body
    assert told_by(site, home, {})[0] == 403
    assert told_by(site, "/")[0] == told_by(site, "/api/rows?t=0")[0] == told_by(site, "//api/rows")[0] == 404
    assert told_by(site, home, method="POST")[0] == told_by(site, home, method="PUT")[0] == 501


def test_no_path_of_a_request_is_opened(run: Path, serve: Callable[..., Site]) -> None:
    site = serve(run)
    home = f"/{site.server.word}/"
    for path in (
        "../recipe.yaml",
        "recipe.yaml",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "api/../recipe.yaml",
        "api/",
        "rows",
    ):
        assert told_by(site, home + path)[0] == 404, path
    for query in (
        "t=../x",
        "t=-1",
        "t=99",
        "t=%D9%A1",
        "t=1&n=x",
        "",
        "t=0&where=[1]",
        't=0&where=["a"',
        "t=0&from=1e9",
        "t=0&sort=zz",
    ):
        status, body, _ = told_by(site, f"{home}api/rows?{query}")
        if query != "t=1&n=x":
            assert status == 400 and json.loads(body)["error"] and "Traceback" not in body, query
    with pytest.raises(HTTPError) as refused:
        site.ask("row", t=0, n=10**6)
    assert refused.value.code == 400
    deep = told_by(site, f"{home}api/rows?t=0&where=" + "[" * 30_000)[0]
    assert deep == 400
    assert site.ask("rows", t=0)["total"] == 30 + len(HOSTILE), "it goes on"


def test_the_page_may_run_its_own_script_only(run: Path, serve: Callable[..., Site]) -> None:
    site = serve(run)
    _, body, headers = told_by(site, f"/{site.server.word}/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and f"script-src 'nonce-{site.server.nonce}'" in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "innerHTML" not in body and "insertAdjacentHTML" not in body and "document.write" not in body
    assert not re.search(r"(src|href)=.?https?:", body)


def test_many_may_ask_at_once(run: Path, serve: Callable[..., Site]) -> None:
    site, found = serve(run), list[int]()
    threads = [
        threading.Thread(target=lambda i=i: found.append(site.ask("rows", t=0, q=f"line {i % 10}")["total"]))
        for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and min(found) >= 1


# -- the file ------------------------------------------------------------------------------------------------------


def told_in(text: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="told">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]


def test_the_exported_file_needs_nothing_else(run: Path, tmp_path: Path) -> None:
    file = look.export(run, tmp_path / "page.html", most=8)
    text = file.read_text(encoding="utf-8")
    told = told_in(text)
    shown = told["tables"][str(told["start"])]
    assert told["exported"] == 8 and len(shown["rows"]) == 8 and shown["total"] == told["views"][told["start"]]["rows"]
    assert len(told["tables"]) == 2 and told["differences"]["removed"]["rows"] and told["steps"]
    assert told["spreads"]["label"]["rows"] == shown["total"]
    assert "connect-src 'none'" in text.replace("&#39;", "'") and not re.search(r"(src|href)=.?https?:", text)
    assert look.export(run, tmp_path / "again.html", most=8).read_bytes() == file.read_bytes()
    with pytest.raises(RunError, match="ends in .html"):
        look.export(run, tmp_path / "page.csv")


def test_hostile_rows_stay_inside_their_cells(tmp_path: Path) -> None:
    rows = [{"_id": f"{i:032x}", "text": text, text[:20].replace("\x00", ""): "x"} for i, text in enumerate(HOSTILE)]
    write(tmp_path / "h.parquet", [*rows, {"_id": "f" * 32, "text": "y" * 2**20}])
    text = look.export(tmp_path / "h.parquet", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in text and text.count("<script") == 2 and text.count("</script>") == 2
    assert not re.search("[\x00\u2028\u2029\u202e\u2066]", text) and len(text) < 300_000
    found = [row["cells"]["text"] for row in told_in(text)["tables"]["0"]["rows"]]
    assert found[:-1] == HOSTILE and found[-1]["of"] == 2**20 and len(found[-1]["text"]) == 4000


# -- in a browser --------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
browser = pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--virtual-time-budget=8000",
]  # fmt: skip


def seen(address: str, folder: Path) -> str:
    """The page as it stands once its script has run."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert 'data-ready="' in done.stdout, done.stderr[-2000:]
    return done.stdout


def body_of(text: str) -> list[str]:
    """The text of every row in the table."""
    inside = text.split('id="body"', 1)[1].split("</tbody>")[0]
    return [re.sub(r"<[^>]*>", " ", row) for row in inside.split("<tr")[1:]]


@browser
def test_the_served_page_shows_searches_and_filters(run: Path, tmp_path: Path, serve: Callable[..., Site]) -> None:
    site = serve(run)
    address, lost = site.server.address, len(site.server.looking.views) - 1
    text = seen(address, tmp_path)
    assert "<title>run: rows</title>" in text and len(body_of(text)) == len(site.server.looking.views[2].table)
    assert "even and large" in text and 'role="alert" hidden' in text
    query = urlencode({"t": lost, "where": '["_why","even"]', "q": "LINE 4", "row": ""})
    (row,) = body_of(seen(f"{address}#{query}", tmp_path))
    assert "line 3 + line 4" in row
    opened = seen(f"{address}#{urlencode({'t': lost, 'row': 0})}", tmp_path)
    assert "Lost in odd:" in opened and "Where it comes from" in opened and opened.count('class="ancestor') == 3
    changes = seen(f"{address}#part=differences", tmp_path)
    assert "<ins>kept</ins>" in changes and "are the same" in changes
    assert "has no column" in seen(f"{address}#sort=nothing", tmp_path)


@browser
def test_the_exported_page_works_alone_and_no_row_gets_out(tmp_path: Path) -> None:
    rows = [{"_id": f"{i:032x}", "text": text, "label": "ab"[i % 2], "n": i} for i, text in enumerate(HOSTILE)]
    write(tmp_path / "h.parquet", rows)
    page_ = look.export(tmp_path / "h.parquet", tmp_path / "page.html").as_uri()
    text = seen(page_, tmp_path)
    assert "<title>h.parquet: rows</title>" in text and "<img" not in text
    assert "&lt;script&gt;document.title" in text and "U+202E" in text and "U+2028" in text and "U+0000" in text
    assert len(body_of(text)) == len(HOSTILE) and "49" not in "".join(body_of(text))
    (row,) = body_of(seen(f"{page_}#{urlencode({'q': 'ärger'})}", tmp_path))
    assert "東京" in row
    found = body_of(seen(f"{page_}#{urlencode({'where': json.dumps(['label', 'b']), 'sort': 'n', 'down': 1})}", tmp_path))
    assert [int(re.findall(r"\d+", row)[0]) - 1 for row in found] == [7, 5, 3, 1]


class Hands:
    """A browser with a page in it, to click and to type in: speaks with Chromium through two pipes."""

    def __init__(self, address: str, folder: Path):
        theirs, self.out = os.pipe()
        self.into, their_out = os.pipe()
        command = [
            str(BROWSER),
            *FLAGS[:-1],
            "--remote-debugging-pipe",
            f"--user-data-dir={folder / 'hands'}",
            "about:blank",
        ]
        line = f"exec 3<&{theirs} 4>&{their_out}; exec " + shlex.join(command)
        self.process = subprocess.Popen(
            ["bash", "-c", line], pass_fds=(theirs, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(their_out)
        self.number, self.waiting, self.session = 0, b"", ""
        target = self.tell("Target.createTarget", url=address)["targetId"]
        self.session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def tell(self, method: str, **asked: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": asked} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.waiting:
                ready, _, _ = select.select([self.into], [], [], 60)
                assert ready and (more := os.read(self.into, 2**16)), f"no answer to {method}"
                self.waiting += more
            text, _, self.waiting = self.waiting.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def says(self, script: str) -> Any:
        return self.tell("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for it to become true."""
        for _ in range(300):
            if self.says(f"Boolean({script})"):
                return
            time.sleep(0.1)
        raise AssertionError(f"{script} never was: {self.says('document.body.innerText')[:2000]}")

    def press(self, key: str, code: int, text: str = "") -> None:
        self.until("document.body.dataset.ready == turn")  # nothing is being drawn
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.out)
        os.close(self.into)


@browser
def test_keys_and_clicks(run: Path, tmp_path: Path, serve: Callable[..., Site]) -> None:
    site = serve(run)
    total = len(site.server.looking.views[2].table)
    hands = Hands(site.server.address, tmp_path)
    rows, dialog = "document.querySelectorAll('#body tr').length", "document.querySelector('dialog').open"
    try:
        hands.until(f"{rows} === {total}")
        hands.press("/", 191, "/")
        assert hands.says("document.activeElement.id") == "words"
        hands.tell("Input.insertText", text="LINE 1")
        hands.press("Enter", 13, "\r")
        hands.until(f"{rows} > 0 && {rows} < {total}")
        found = hands.says(rows)
        hands.says("document.querySelector('#body tr button').focus()")
        hands.press("Enter", 13, "\r")
        hands.until(f"{dialog} && document.querySelectorAll('.ancestor').length === 3")
        first = hands.says("document.querySelector('#row_title').textContent")
        hands.press("ArrowRight", 39)
        hands.until(f"document.querySelector('#row_title').textContent !== {json.dumps(first)}")
        hands.press("Escape", 27)
        hands.until(f"!{dialog} && document.activeElement.closest('#body')")
        hands.says(
            "[...document.querySelectorAll('#steps button')].find(b => b.textContent.includes('even and large')).click()"
        )
        large = sum(row["_why"] == "even and large" for row in site.server.looking.views[3].table)
        hands.until(f"{rows} === {large} && document.querySelector('#chips button')")
        hands.says("document.querySelector('#chips button').click()")
        hands.until(f"{rows} === {len(site.server.looking.views[3].table)}")
        hands.says("history.go(-2)")
        hands.until(f"{rows} === {found} && document.querySelector('#words').value === 'LINE 1'")
        hands.says("document.querySelector('.spread button').click()")
        hands.until(f"{rows} > 0 && {rows} < {found}")
        hands.says("document.querySelector('#to_differences').click()")
        hands.until("document.querySelectorAll('.change ins').length")
        assert hands.says("document.querySelector('#trouble').hidden")
    finally:
        hands.close()


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_a_file(still: Still, run: Path, tmp_path: Path) -> None:
    result = still("look", run, "--export", tmp_path / "x.html", "--rows", "3")
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "x.html"), result.stderr
    assert told_in((tmp_path / "x.html").read_text())["exported"] == 3
    assert "no data file" in still("look", tmp_path / "none.csv").stderr


def test_the_command_serves_until_it_is_told_to_stop(run: Path) -> None:
    import signal

    def heed() -> None:  # a test run in the background may have handed down that Ctrl-C is ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)

    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "stillhouse", "look", str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=env, preexec_fn=heed,  # noqa: PLW1509
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().split()[0]
        with urlopen(address, timeout=30) as answer:
            assert answer.status == 200 and b"Distil" not in answer.read()[:100]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and process.stdout.read().split() == ["ended"] and process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
