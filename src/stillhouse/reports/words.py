"""What the report calls things: subjects, metrics with their formulas, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..core.report import Finding

# subject -> (label, the same inside a sentence); {items} and {data} are tokens and text, or examples and data
SUBJECTS = {
    "teacher": ("Teacher", "the teacher"),
    "start": ("Student before training", "the student before training"),
    "train": ("Distilled student", "the distilled student"),
    "alone": ("No teacher", "the same student trained on the same {data} without a teacher"),
    "alone_tokens": (
        "No teacher, equal {items}",
        "the same student trained on the same {data} without a teacher, for equally many {items}",
    ),
    "alone_time": (
        "No teacher, equal time",
        "the same student trained on the same {data} without a teacher, for the same time",
    ),
}
CONDITIONS = {
    "alone": "against training without a teacher",
    "alone_tokens": "at equal {items}",
    "alone_time": "at equal time",
}


def words(text: str, language: bool) -> str:
    """A template above for language or for anything else."""
    return text.format(items="tokens" if language else "examples", data="text" if language else "data")


def label_of(subject: str, language: bool) -> str:
    """A subject's name in a table: its own words if it is a usual one, else its stage's name made readable."""
    label = SUBJECTS.get(subject, (subject.replace("_", " ").strip().capitalize(),))[0]
    return words(label, language) if subject in SUBJECTS else label


# -- numbers -----------------------------------------------------------------------------------------------------------


def fixed(value: float, decimals: int = 2) -> str:
    """`1,234.5`, with a real minus sign and no negative zero."""
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", "\N{MINUS SIGN}")


def percent(value: float, decimals: int = 1) -> str:
    """A share as `71.3 %`."""
    return f"{fixed(100 * value, decimals)}\N{NO-BREAK SPACE}%"


def si(value: float, decimals: int = 0) -> str:
    """Three significant digits and a thousand's letter: `135 M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}\N{NO-BREAK SPACE}{letter}"
    return f"{value:.0f}"


def size(value: float, decimals: int = 0) -> str:
    """Bytes as `269 MB`."""
    text = si(value)
    return f"{text}B" if text[-1].isalpha() else f"{text}\N{NO-BREAK SPACE}B"


def rate(value: float, decimals: int = 0) -> str:
    """`850`, `1,815`, `548 k`."""
    return si(value) if abs(value) >= 1e4 else fixed(value, 0 if abs(value) >= 10 else 1)


def duration(seconds: float, decimals: int = 0) -> str:
    """`12 s`, `4 min 12 s`, `1 h 23 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    parts = [(hours, "h"), (left, "min")] if hours else [(minutes, "min"), (rest, "s")]
    return " ".join(f"{n}\N{NO-BREAK SPACE}{unit}" for n, unit in parts if n)


def decimals(values: Iterable[float], halves: Iterable[float]) -> int:
    """Digits after the point that a column deserves: one, or two if it starts with 1, of a typical interval's half.

    Without intervals (`halves` are halves of their lengths): three significant digits of a typical value.
    """
    known = sorted(h for h in halves if math.isfinite(h) and h > 0)
    if known:
        return min(4, max(0, math.ceil(-math.log10(known[len(known) // 2] / 2))))
    finite = sorted(abs(v) for v in values if math.isfinite(v) and v)
    return min(4, max(0, 2 - math.floor(math.log10(finite[len(finite) // 2])))) if finite else 0


# -- metrics -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """How one quantity is written and what it means."""

    label: str
    unit: str
    formula: str
    meaning: str
    better: Literal["higher", "lower", "neither"] = "neither"
    show: Callable[[float, int], str] = fixed
    difference: str = ""  # the unit of a difference, if not `unit`

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be shown."""
        return 100.0 if self.show is percent else 1.0


_POINTS = "percentage points"
METRICS = {
    "nll": Metric(
        "Loss", "nats per token", "−(1/N) Σ ln p(correct next token)",
        "How surprised the model is by new data. 0.1 less is 10 % less perplexity. A nat is 1.44 bits.", "lower",
    ),
    "perplexity": Metric(
        "Perplexity", "", "exp(loss)",
        "Among how many equally likely next tokens the model seems to hesitate; 1 would be perfect foresight.", "lower",
    ),
    "accuracy": Metric(
        "Accuracy", "", "right answers / all answers", "How often the most likely answer is the right one.",
        "higher", percent, _POINTS,
    ),
    "agreement": Metric(
        "Agreement", "", "share of cases with argmax p = argmax p(teacher)",
        "How often the model's first choice is the teacher's first choice, right or wrong.", "higher", percent, _POINTS,
    ),
    "kl": Metric(
        "KL to teacher", "nats per token", "(1/N) Σ Σᵥ pₜ(v) ln(pₜ(v) / p(v))",
        "How far the model's probabilities are from the teacher's; 0 means the same probabilities everywhere.", "lower",
    ),
    "ece": Metric(
        "Calibration error", "", "Σ over confidence bins of (share of cases) · |accuracy − confidence|",
        "How far stated confidence and actual success are apart; 0 % means that it is right as often as it claims.",
        "lower", percent, _POINTS,
    ),
    "reverse_kl": Metric(
        "Reverse KL", "nats per token", "(1/N) Σ Σᵥ p(v) ln(p(v) / pₜ(v))",
        "The same distance seen from the student: high where it says what the teacher would not.", "lower",
    ),
    "own_reverse_kl": Metric(
        "Reverse KL on its own answers", "nats per token", "(1/N) Σ Σᵥ p(v) ln(p(v) / pₜ(v)), behind the model's own words",
        "How far from the teacher the model is on text that it writes itself, as it will when it is used.", "lower",
    ),
    "own_teacher_nll": Metric(
        "Teacher's surprise at its answers", "nats per token", "−(1/N) Σ ln pₜ(the model's token)",
        "How unlikely the teacher finds what the model writes.", "lower",
    ),
    "parameters": Metric("Parameters", "", "count of learned numbers", "The size of the model.", show=si),
    "bytes": Metric("On disk", "", "bytes of the saved weights", "The size of the model's files.", show=size),
    "tokens_per_second": Metric(
        "Speed", "tokens/s", "tokens read / seconds", "How fast the model reads text on this machine.", show=rate,
    ),
    "items_per_second": Metric(
        "Speed", "examples/s", "examples answered / seconds", "How fast the model answers on this machine.", show=rate,
    ),
    "train_seconds": Metric(
        "Training time", "", "seconds inside optimizer steps",
        "Time spent learning, without loading, saving and testing.", show=duration,
    ),
    "train_items": Metric(
        "Learned from", "", "Σ over steps of what counted in the loss",
        "How much its training batches held, repetitions included.", show=si,
    ),
    "frechet": Metric(
        "Fréchet distance", "", "|μ − μᵣ|² + tr(Σ + Σᵣ − 2 (Σ Σᵣ)^½)",
        "How far the mean and spread of what was drawn are from those of real data; 0 means alike.", "lower",
    ),
    "energy_distance": Metric(
        "Energy distance", "", "2 E|x − r| − E|x − x′| − E|r − r′|",
        "How far what was drawn is from real data, in every respect; 0 only if both are distributed alike.", "lower",
    ),
    "mmd": Metric(
        "Maximum mean discrepancy", "", "E k(x, x′) + E k(r, r′) − 2 E k(x, r)",
        "Another distance between what was drawn and real data, by a kernel k of likeness.", "lower",
    ),
    "coverage": Metric(
        "Coverage", "", "share of real items with a drawn one among their nearest neighbours' distance",
        "How much of the real data's variety is reached by what was drawn.", "higher", percent, _POINTS,
    ),
    "on_mode": Metric(
        "On a mode", "", "share of drawn points within three deviations of a centre",
        "How often what was drawn lies where data lie.", "higher", percent, _POINTS,
    ),
    "modes": Metric(
        "Modes reached", "", "centres or classes with a drawn item", "How many kinds are drawn at all.", "higher",
    ),
    "evaluations": Metric(
        "Evaluations", "", "calls of the network for one item", "What drawing one item takes.", "lower", si,
    ),
    "images": Metric("Images", "", "images in the set", "How much there is to train on.", "lower", si),
    "latency": Metric(
        "Latency", "ms", "median time of one answer", "How long a single answer takes on this machine.", "lower",
    ),
    "accuracy_observed": Metric(
        "Accuracy on seen nodes", "", "right answers / all answers", "On test nodes that training saw without their label.",
        "higher", percent, _POINTS,
    ),
    "accuracy_consensus": Metric(
        "Accuracy together", "", "right answers / all answers", "Of all clients' averaged scores, as one committee.",
        "higher", percent, _POINTS,
    ),
    "bytes_per_round": Metric("Sent in a round", "", "bytes, both ways", "What one round of talking takes.", "lower", size),
    "bytes_sent": Metric("Sent in all", "", "bytes, both ways", "What all rounds of talking take.", "lower", size),
    "bytes_per_round_of_weights": Metric(
        "A round of weights", "", "bytes, both ways", "What a round would take that sends the networks themselves.",
        "lower", size,
    ),
    "label_precision": Metric(
        "Right labels", "", "right labels / made rows", "How often a made row has the label that is true of it.",
        "higher", percent, _POINTS,
    ),
    "asked_label_precision": Metric(
        "Right if not labelled again", "", "rows whose asked label is true / made rows",
        "How often the label that a text was asked for would have been right.", "higher", percent, _POINTS,
    ),
    "labels_changed": Metric(
        "Labels changed", "", "rows with another label than asked for / made rows",
        "How often labelling again gave another label.", show=percent, difference=_POINTS,
    ),
    "rows_made": Metric("Rows made", "", "count", "How many rows came out.", show=si),
    "rows_lost": Metric("Rows lost", "", "count", "How many rows were dropped, each with a reason.", "lower", si),
    "teacher_calls": Metric("Teacher calls", "", "count", "How many answers were paid for.", "lower", si),
    "solved": Metric(
        "Solved", "", "tasks whose answer the verifier accepts / all tasks", "How often its answer is right.",
        "higher", percent, _POINTS,
    ),
    "trust": Metric(
        "Trust", "", "accuracy - expected calibration error of the answer's first token",
        "How far it is right, less how far it misjudges that.", "higher",
    ),
    "ece_answers": Metric(
        "Calibration error of answers", "", "mean |share right - confidence| over ten bins of confidence",
        "How far its confidence is from how often it is right.", "lower",
    ),
    "gap_worst": Metric(
        "Lag in the worst domain", "nats/token", "the largest of its loss - the teacher's over the domains",
        "How far behind its teacher it is where it is furthest behind.", "lower",
    ),
    "gap_mean": Metric(
        "Lag, mean over domains", "nats/token", "its loss - the teacher's, every domain once",
        "How far behind its teacher it is.", "lower",
    ),
    "adherence": Metric(
        "Adherence", "", "answers that say what the passage says, true or false, and not its rival / such questions",
        "How often it says what the passage says.", "higher", percent, _POINTS,
    ),
    "robustness": Metric(
        "Robustness", "", "right or rightly refused answers beside passages that do not help / such questions",
        "How often passages that do not help leave it undisturbed.", "higher", percent, _POINTS,
    ),
    "rightly": Metric(
        "Rightly used", "", "(adherence + robustness) / 2", "How well it tells passages that help from others.",
        "higher", percent, _POINTS,
    ),
    "length_drop": Metric(
        "Shortening", "", "the largest fall of the answers' mean length below where it began, as a share of it",
        "How much shorter its answers became while it learned.", "lower", percent, _POINTS,
    ),
    "answer_tokens": Metric("Answer length", "tokens", "tokens of an answer, on average", "How much it writes.", show=rate),
    "preferred": Metric(
        "Prefers the better answer", "", "pairs in which the better answer is likelier, token by token",
        "How often it finds the better of two answers likelier.", "higher", percent, _POINTS,
    ),
    "chosen_logp": Metric(
        "Better answers", "nats per token", "(1/N) Σ ln p(token) over better answers",
        "How likely it finds good answers.", "higher",
    ),
    "rejected_logp": Metric(
        "Worse answers", "nats per token", "(1/N) Σ ln p(token) over worse answers",
        "How likely it finds bad answers. If this and the one above fall together, it forgets how to write.",
    ),
    "proxy": Metric(
        "Distance to the teacher", "nats per token", "E KL(pₜ ‖ p) over the teacher's answers",
        "What training lowers: how far from the teacher the student is.", "lower",
    ),
    "golden": Metric(
        "Distance to the truth", "nats per token", "E KL(μ ‖ p) over the oracle's answers",
        "What one would like to be low: how far from the oracle the student is.", "lower",
    ),
    "golden_rise": Metric(
        "Rise from its best", "nats per token", "distance to the truth at the end − its minimum",
        "How much further from the truth the student ended than it had been.", "lower",
    ),
}  # fmt: skip


def metric_of(finding: Finding) -> Metric:
    """The glossary's entry in the finding's own unit; for a metric that it does not know, one made from the finding."""
    unit = finding.unit if finding.unit.endswith("/s") else finding.unit.replace("/item", "/example").replace("/", " per ")
    known = METRICS.get(finding.name)
    if known is not None:
        return replace(known, unit=unit) if unit and known.show is not percent else known
    label, meaning = finding.name.replace("_", " ").capitalize(), finding.note or "A metric of this run's own."
    return Metric(label, unit, "", meaning, finding.better)
