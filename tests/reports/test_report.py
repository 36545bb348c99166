"""The page, its JSON and the model card, from run folders that `example.py` makes."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from example import HOSTILE, finding, images, language, lines
from pydantic import TypeAdapter

from stillhouse.core.report import Report
from stillhouse.reports import card, html, tables, verdict
from stillhouse.reports.read import ReportError, read
from stillhouse.reports.words import decimals, duration, fixed, percent, si, size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished language run with its page."""
    folder = language(tmp_path_factory.mktemp("runs") / "gkd")
    html.write(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def said(folder: Path) -> verdict.Verdict:
    return verdict.verdict(read(folder))


def measured(folder: Path, rows: list[dict[str, object]]) -> None:
    """Replace what the audit of a run found."""
    (folder / "artifacts" / "audit" / "data" / "value.json").write_text(json.dumps(rows), encoding="utf-8")


def difference(value: float, half: float | None, versus: str) -> dict[str, object]:
    return finding("nll", value, "train", "lower", "nats/token", half, versus=versus, n=240, over="documents", split="test")


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_a_better_student_is_said_to_beat_its_baselines_with_the_interval(run: Path):
    found = said(run)
    assert (found.outcome, found.headline) == ("better", "Distilling paid off at equal tokens and at equal time.")
    tokens = found.comparisons[0]
    assert tokens.baseline and tokens.outcome == "better"
    assert tokens.text.replace("\N{NO-BREAK SPACE}", " ") == (
        "The distilled student beats the same student trained on the same text without a teacher, for equally many "
        "tokens, by 0.17 nats per token [0.15, 0.19], which is 16 % less perplexity."
    )
    assert "another seed" in found.basis


def test_the_teacher_comes_last_and_decides_nothing(run: Path):
    last = said(run).comparisons[-1]
    assert last.text.startswith("The distilled student stays behind the teacher") and not last.baseline


@pytest.mark.parametrize(
    ("gain", "gain_time", "outcome", "headline"),
    [
        (-0.2, -0.1, "worse", "Distilling did not pay off at equal tokens and at equal time."),
        (0.001, -0.002, "undecided", "Undecided whether distilling pays off at equal tokens and at equal time."),
        (0.2, -0.1, "undecided", "Distilling paid off at equal tokens; it did not at equal time."),
        (0.2, 0.001, "undecided", "Distilling paid off at equal tokens; undecided at equal time."),
    ],
)  # fmt: skip
def test_headlines(tmp_path: Path, gain: float, gain_time: float, outcome: str, headline: str):
    found = said(language(tmp_path / "r", gain, gain_time))
    assert (found.outcome, found.headline) == (outcome, headline)


def test_a_worse_student_is_said_to_lose(tmp_path: Path):
    text = said(language(tmp_path / "r", gain=-0.2)).comparisons[0].text
    assert "loses to the same student" in text and "by 0.20 nats per token [0.18," in text and "22\xa0% more" in text


def test_an_undecided_difference_shows_that_its_interval_includes_zero(tmp_path: Path):
    text = said(language(tmp_path / "r", gain=0.004)).comparisons[0].text
    assert text.startswith("No difference can be shown") and "[−0.02,\xa00.02] includes zero" in text


def test_a_difference_without_an_interval_decides_nothing(tmp_path: Path):
    measured(language(tmp_path / "r"), [difference(-0.4, None, "alone_tokens")])
    found = said(tmp_path / "r")
    assert found.outcome == "undecided" and "may be chance" in found.comparisons[0].text


def test_a_bound_that_excludes_zero_is_not_written_as_zero(tmp_path: Path):
    measured(language(tmp_path / "r"), [difference(-0.0204, 0.0201, "alone_tokens")])
    assert "[0.0003,\xa00.0405]" in said(tmp_path / "r").comparisons[0].text


def test_no_baseline_no_verdict(tmp_path: Path):
    measured(language(tmp_path / "r"), [difference(-0.4, 0.1, "start")])
    assert said(tmp_path / "r").headline.startswith("No verdict: ")


def test_classification_speaks_of_accuracy_and_examples(tmp_path: Path):
    folder = images(tmp_path / "r")
    found, text = said(folder), html.write(folder).read_text(encoding="utf-8")
    assert found.outcome == "undecided" and "0.8 percentage points" in found.comparisons[0].text
    assert "Perplexity" not in text and "tokens" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    table = tables.arms(read(folder))[0]
    assert table.columns[0].label == "Accuracy"
    assert [s.label for s, _ in table.rows] == ["Teacher", "Student before training", "Distilled student", "No teacher"]


# -- the tables --------------------------------------------------------------------------------------------------------


def test_the_best_student_is_bold_and_the_teacher_never(run: Path):
    table = tables.arms(read(run))[0]
    cells = {subject.name: dict(zip((m.label for m in table.columns), row, strict=True)) for subject, row in table.rows}
    assert [name for name, row in cells.items() if row["Loss"].best] == ["train"]
    assert not any(cell.best for cell in cells["teacher"].values())
    assert (cells["train"]["Loss"].text, cells["train"]["Loss"].interval) == ("2.45", "2.41 – 2.49")
    assert cells["train"]["Learned from"].text == "750\xa0k" and cells["teacher"]["KL to teacher"].text == "–"


def test_metrics_of_a_run_s_own_and_further_splits_have_tables_of_their_own(tmp_path: Path):
    rows = [finding("nll", 2.0, "train", "lower", "nats/token", 0.1, split=split) for split in ("valid", "test")]
    measured(language(tmp_path / "r"), [*rows, finding("rhyme_rate", 0.123, "train", "higher", split="test")])
    titles = {table.title: [m.label for m in table.columns] for table in tables.arms(read(tmp_path / "r"))}
    assert titles["More measurements"] == ["Rhyme rate"] and titles["On the valid split"] == ["Loss"]


def test_a_stage_may_have_a_label_and_unknown_stages_a_readable_name(tmp_path: Path):
    folder = language(tmp_path / "r")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["stages"]["alone_time"]["label"] = "My baseline"
    recipe["stages"]["half_labels"] = recipe["stages"]["train"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    who = tables.subjects(read(folder))
    assert who["alone_time"].label == "My baseline" and who["half_labels"].label == "Half labels"
    assert len({s.slot for s in who.values()}) == len(who)  # a colour each
    assert "“My baseline”" in said(folder).comparisons[1].text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (fixed(-0.001, 2), "0.00"), (fixed(-1234.5, 1), "−1,234.5"), (percent(0.7131), "71.3 %"),
        (si(134_515_008), "135 M"), (si(999_900), "1 M"), (size(269_030_016), "269 MB"),
        (size(12), "12 B"), (duration(3.21), "3.2 s"),
        (duration(252), "4 min 12 s"), (duration(4980), "1 h 23 min"), (decimals([2.4], [0.02]), 2),
        (decimals([2.4], [0.012]), 3), (decimals([70.0], [2.4]), 0), (decimals([1815.0], []), 0),
        (decimals([], []), 0),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(shown: object, text: object):
    assert (shown.replace("\N{NO-BREAK SPACE}", " ") if isinstance(shown, str) else shown) == text


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_has_every_part(page: str):
    for title in ("side by side", "How far apart", "What they write", "How sure they are", "How they learned"):
        assert title in page
    for title in ("What it took", "What was run", "What the words mean", "How to cite", "12 lines of questions.jsonl"):
        assert title in page
    assert "14: longer than 512 tokens" in page and "@inproceedings{gkd" in page and page.count("<svg") == 9


def test_the_same_folder_gives_the_same_bytes(run: Path, page: str, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "elsewhere")
    assert html.write(copy).read_text(encoding="utf-8") == page
    assert (copy / "report.json").read_bytes() == (run / "report.json").read_bytes()


def test_nothing_is_loaded_from_anywhere(page: str):
    class Loads(HTMLParser):
        found: list[tuple[str, str, str]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [(tag, name, value or "") for name, value in attrs if name in ("src", "href", "srcset", "data")]
            assert tag not in ("script", "link", "iframe", "object", "img")

    Loads().feed(page)
    assert Loads.found
    for tag, name, value in Loads.found:
        assert value.startswith("#") or (tag == "a" and name == "href" and value.startswith("https://")), (tag, value)
    assert not re.search(r"url\((?!#)|@import", page) and "javascript:" not in page


def test_what_models_write_is_shown_and_never_run(page: str):
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(" in page


def test_hostile_names_are_escaped_in_figures_and_cards_too(tmp_path: Path):
    folder = language(tmp_path / "r")
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    recipe["stages"]["train"]["label"] = HOSTILE
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    page = html.write(folder).read_text(encoding="utf-8")
    assert "<script" not in page and "<img" not in page
    assert "<script" not in card.write(folder, tmp_path).read_text(encoding="utf-8")


def test_a_killed_run_says_what_is_missing(tmp_path: Path):
    folder = language(tmp_path / "r", stages_done=2)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"stage": "alone_time", "st')  # cut short
    page = html.write(folder).read_text(encoding="utf-8")
    assert "No verdict yet" in page and "2 of 6 stages are done" in page
    assert "Missing: No teacher, equal time, Audit, Samples, Export" in page


def test_an_empty_run_has_a_page(tmp_path: Path):
    (tmp_path / "artifacts").mkdir()
    assert "No verdict" in html.write(tmp_path).read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ReportError, match="is not a run folder"):
        read(tmp_path)


def test_numbers_that_are_not_finite_do_not_break_the_page(tmp_path: Path):
    folder = language(tmp_path / "r")
    measured(
        folder,
        [finding("nll", float("nan"), "train", "lower", "nats/token"), difference(0.1, float("inf"), "alone_tokens")],
    )
    html.write(folder)
    json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_a_line_separator_inside_a_string_does_not_cut_the_line(tmp_path: Path):
    folder = language(tmp_path / "r")
    line = json.dumps({"time": 0, "stage": "train", "event": "warning", "text": "a\u2028b"}, ensure_ascii=False)
    (folder / "events.jsonl").write_text(line + "\n", encoding="utf-8")
    assert read(folder).warnings == ("a\u2028b",)


def test_long_curves_are_thinned(tmp_path: Path):
    folder = language(tmp_path / "r")
    lines(folder / "metrics.jsonl", [{"stage": "train", "step": i, "student/loss": float(i)} for i in range(5000)])
    (curve,) = read(folder).curves
    points = curve.series["train"]
    assert len(points) <= 400 and points[-1][0] == 5000 and points[0] == (13, 6.0)


# -- JSON and card -----------------------------------------------------------------------------------------------------


def test_the_json_follows_its_schema(run: Path):
    value = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert value.pop("schema") == "stillhouse.report/1"
    assert value.pop("verdict").keys() == {"outcome", "headline", "comparisons", "basis"}
    adapter = TypeAdapter(Report)
    assert set(adapter.json_schema()["properties"]) == value.keys()
    assert adapter.validate_python(value) == read(run)


def test_the_card_has_a_machine_readable_head_and_the_numbers(run: Path, tmp_path: Path):
    text = card.write(run, tmp_path).read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["base_model"] == head["teacher"] == "SmolLM2-135M-Instruct" and "license" not in head
    assert head["pipeline_tag"] == "text-generation" and "gkd" in head["tags"]
    assert "| Distilled student | 2.45 [2.41 – 2.49] |" in text and "@inproceedings{gkd" in text and "## Limits" in text


def test_reports_need_no_torch_and_reading_no_matplotlib(run: Path):
    code = (
        "import sys; from stillhouse.reports import card, html; from stillhouse.reports.read import read;"
        f"read({str(run)!r}); print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PICTURE = b"\x89PNG, or nearly"


def test_pictures_and_what_was_made_are_on_the_page(tmp_path: Path):
    folder = images(tmp_path / "run")
    made = folder / "artifacts" / "make" / "data"
    made.mkdir(parents=True)
    (made / "samples.png").write_bytes(PICTURE)
    (made / "large.png").write_bytes(b"x" * (html.LARGEST + 1))
    teacher = {"calls": 1200, "tokens": 34000, "money": 0.5, "borrowed": 7}
    steps = [{"step": "mix", "given": 18, "made": 1190, "lost": {"the same <text> was there before": 10}}]
    (made / "account.json").write_text(json.dumps({"steps": steps, "teachers": {"teacher": teacher}}))
    (made.parent / "done.json").write_text(json.dumps({"name": "make"}))
    page = html.write(folder).read_text(encoding="utf-8")
    assert "data:image/png;base64," + base64.b64encode(PICTURE).decode() in page
    assert page.count("data:image/png") == 1  # the large one stays where it is
    assert "<td>18</td><td>1,190</td>" in page and "10: the same &lt;text&gt; was there before" in page
    assert "teacher: 1,200 calls and 34,000 tokens, 0.50 in money; 7 answers were there" in page
    plain = json.loads((folder / "report.json").read_text())
    assert plain["pictures"] == ["artifacts/make/data/large.png", "artifacts/make/data/samples.png"]
