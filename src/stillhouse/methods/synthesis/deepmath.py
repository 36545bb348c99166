"""DeepMath-103K: A Large-Scale, Challenging, Decontaminated, and Verifiable Mathematical Dataset for Advancing Reasoning.

    keep x  if  judge(x, b) = "another question" for the k benchmark questions b nearest to x,
            and mean of 6 ratings of x >= 5,   and  answer(y_1) = answer(y_2) = answer(y_3) = answer given with x

A pool of questions x with answers becomes data to learn reasoning from (He et al. 2025). What a benchmark asks is left
out by meaning, not by words: the k = 5 benchmark questions whose embeddings are nearest to x are shown to a judge, which
says whether one of them asks the same. A question must be hard enough by the mean of six ratings, must not give its
answer away, and must have one: three solutions y of a teacher end in the answer that came with x, and so agree. Two
answers are the same if one of two checkers says so. What is kept: question, answer, difficulty, topic and the three
solutions.

Sure from the authors' repository: decontamination by meaning, levels from 5 to 9, three solutions, two checkers of which
one is enough, topics, and that questions which gave their answers away had to be repaired afterwards. From memory: k, the
judge, six ratings, and that the three answers must agree with the given one.

Differs from the paper / the authors' code: the prompts are ours; questions that give their answer away are lost, not
repaired; easier questions are not kept in part; sources are not compared before. Their reinforcement learning is `grpo`
on the rows that were made; a checker's time limit is that of math-verify, not theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ...audits.faults import Faults
from ...audits.solved import Solved
from ...core.optim import Optim
from ...core.paper import Paper
from ...core.proof import Proof
from ...core.recipe import Recipe, Scale, pick
from ...core.run import Run
from ...core.signal import Kind
from ...core.stage import Audit, Train
from ...data.tasks import Chain, Questions
from ...models.generate import Sampling
from ...models.hub import HubLM
from ...models.toys import TinyLM
from ...synth.asking import Unfit, Wording, answered, check_columns, gone_through, most_of
from ...synth.beside import Beside
from ...synth.decontaminate import Decontaminate
from ...synth.dedup import Embedder, Hashed, HubEncoder, vectors_of
from ...synth.generate import Generate
from ...synth.judge import Judge, unread
from ...synth.made import Answered
from ...synth.parse import number_in
from ...synth.pools import GOOD, StoryPool
from ...synth.rules import NoLeak, Rules, text_in
from ...synth.scripts.examiner import Examiner
from ...synth.scripts.solver import Solver
from ...synth.select import Between
from ...synth.source import File
from ...synth.steps import Need, Row
from ...synth.synthesize import Synthesize
from ...synth.tag import Tag
from ...synth.verify import Verify
from ...synth.votes import Vote
from ...teachers.chat import HttpChat
from ...teachers.scripted import Scripted
from ...teachers.text import Ask, Decoding, Lost
from ..classics.supervised import Supervised

PAPER = Paper(
    id="deepmath",
    title="DeepMath-103K: A Large-Scale, Challenging, Decontaminated, and Verifiable Mathematical Dataset for Advancing"
    " Reasoning",
    authors=("Zhiwei He", "Tian Liang", "Jiahao Xu", "Qiuzhi Liu", "Xingyu Chen", "Yue Wang", "Linfeng Song", "Dian Yu",
             "Zhenwen Liang", "Wenxuan Wang", "Zhuosheng Zhang", "Rui Wang", "Zhaopeng Tu", "Haitao Mi", "Dong Yu"),
    year=2025,
    arxiv="2504.11456",
    modality=("text",),
    data=("tasks", "prompts"),
    claim="Hard questions that no benchmark asks in other words, with answers that three solutions agree on, teach most.",
)  # fmt: skip

SAME = """Here is a question:

{{ question }}

And here are others:
{% for test in tests %}
{{ loop.index }}. {{ test }}
{% endfor %}

Does one of these ask the same as the question, in whatever words, so that who knows its answer knows that of the \
question? With another number in it it is another question. Reply with its number, or with 0 if none does, and nothing \
else."""
DIFFICULTY = """{{ question }}

How difficult is the question above, from {{ lowest }} to {{ highest }}? 1 is counting, 3 school arithmetic in a few \
steps, 5 a hard question of a last school year, 7 a national olympiad, 9 an international one, 10 research. Reply with \
the number alone."""
SOLVE = """{{ question }}

Reason step by step, and put the final answer in \\boxed{}."""
CHUNK = 256  # rows that are embedded together
UNASKED = r"(?i)\b(prove|show that|explain why|give an example|justify|sketch)\b"  # what has no one answer


@dataclass(frozen=True, kw_only=True)
class NoParaphrase:
    """Rows that ask what a test asks, in whatever words, are lost; the others pass.

    The `k` tests whose vectors are nearest to the row's are shown to the teacher, which names one that asks the same or
    says that none does. Tests are those of `synth.decontaminate.Decontaminate`: the test split of the recipe's data, of
    `data`, or files. A test whose cosine is below `least` is not shown, and a row without a test to show passes unasked.
    Lost too: a row without text, and one about which the answer did not come or cannot be read. Streams; the tests are
    held.
    """

    column: str = "question"
    theirs: str | None = None  # of the tests; None: the same
    paths: tuple[str, ...] = ()  # files of tests
    data: Any = None  # a data spec with splits; None, and no paths: the recipe's
    splits: tuple[str, ...] = ("test",)
    k: int = 5
    least: float = 0.0
    embed: Embedder = Hashed()  # or synth.dedup.HubEncoder, OwnEmbedder
    prompt: str = SAME  # over the row's columns, `question` (its text) and `tests`
    decoding: Decoding = Decoding(temperature=0.0, max_new=16)
    teacher: str = "judge"
    needs: ClassVar[frozenset[Kind]] = frozenset({"text"})

    def __post_init__(self) -> None:
        if self.k < 1 or not -1 <= self.least <= 1:
            raise ValueError("k must be 1 or more, and least a cosine")

    @property
    def files(self) -> Sequence[Path]:
        """What its rows depend on beside its settings."""
        return [*self._tests().files, *getattr(self.embed, "files", [])]

    def check(self, run: Run) -> None:
        """RunError if there are no tests, or not the column that is named."""
        self._tests().tests(run)

    def __call__(self, rows: Iterable[Row], run: Run) -> Iterator[Row]:
        """The rows that no test asks, in their order."""
        work, rows, tests = run.work, gone_through(rows), self._tests().tests(run)
        wording = self._wording()
        wording.check(rows)
        check_columns([self.column], rows, "the comparison with tests")
        vectors = vectors_of([text for _, text in tests], self.embed, run)

        near: dict[Any, list[tuple[int, float]]] = {}  # of the rows under way: (a test, its cosine)

        def found() -> Iterator[Row]:
            waiting = iter(rows)
            while chunk := list(islice(waiting, CHUNK)):
                cosines = vectors_of([text_in(row, self.column) for row in chunk], self.embed, run) @ vectors.T
                for row, values in zip(chunk, cosines, strict=True):
                    order = (-values).argsort(kind="stable")[: self.k]
                    near[row["_id"]] = [(int(i), float(values[i])) for i in order if values[i] >= self.least]
                    yield row

        def asks_of(row: Row) -> list[Ask]:
            question, shown = text_in(row, self.column), [tests[i][1] for i, _ in near[row["_id"]]]
            if not question.strip():
                raise Unfit(f"no {self.column}")
            about = {"question": question, "tests": shown}
            return [Ask(wording.messages(row, **about), self.decoding, about=about)] if shown else []

        for row, answers in answered(work, self.teacher, found(), asks_of):
            shown = near.pop(row["_id"])
            said = None if not answers or isinstance(answers[0], Lost) else number_in(answers[0].text)
            if answers and said not in range(len(shown) + 1):
                unread(work, row, answers)
            elif not said:
                yield row
            else:
                number, alike = shown[int(said) - 1]
                where, says = tests[number]
                work.lose(row, "it asks what a test asks", test=where, says=says[:200], alike=round(alike, 4))

    def _tests(self) -> Decontaminate:
        theirs = (self.theirs or self.column,)
        return Decontaminate(columns=(self.column,), theirs=theirs, paths=self.paths, data=self.data, splits=self.splits)

    def _wording(self) -> Wording:
        return Wording(self.prompt, given=("question", "tests"))

    def estimate(self, rows: Sequence[Row], run: Run) -> Mapping[str, Need]:
        """One call for every row."""
        shown = sorted((text for _, text in self._tests().tests(run)), key=len)[-self.k :]
        wording = self._wording()

        def size(row: Row) -> int:
            return wording.size(row, question=row.get(self.column, ""), tests=shown)

        return {self.teacher: most_of(rows, size, 1, self.decoding)}

    def sketch(self, rows: Sequence[Row], run: Run) -> Sequence[Row]:
        """All of them."""
        return rows


def curated(tests: NoParaphrase, solve: Generate, verify: Verify, topics: Mapping[str, str]) -> dict[str, Any]:
    """All steps, in order: what costs least comes first."""
    hard = Judge(
        prompt=DIFFICULTY, into="difficulty", lowest=1.0, highest=10.0, reviewers=6,
        decoding=Decoding(temperature=1.0, max_new=16),
    )  # fmt: skip
    return {
        "asked": Rules(column="question", forbidden=(UNASKED,)),
        "leaks": NoLeak(answer="truth"),
        "tests": tests,
        "rate": hard,
        "hard": Between(by="difficulty", least=5.0),
        "topic": Tag(names=topics, into="topic"),
        "solve": solve,
        "verify": verify,
        "agree": Vote(group="_from", value="right", by="number", least=1.0, voters=solve.each),  # all of them are right
        "beside": Beside(group="_from", columns=("solution",)),
    }


def recipe(scale: Scale = "small") -> Recipe:
    """Stories about arithmetic with known faults and scripts that read and solve them (smoke, small); a pool and a
    benchmark of yours, and served models (paper). The small student reads the same questions as chains."""
    if scale == "paper":
        bench = "benchmark.jsonl"
        embed = HubEncoder(path="sentence-transformers/all-MiniLM-L6-v2")
        drawn = Decoding(temperature=0.6, top_p=0.95, max_new=16384)
        solve = Generate(prompt=SOLVE, into="solution", each=3, decoding=drawn, teacher="writer")
        topics = {name: "" for name in ("Algebra", "Calculus", "Geometry", "Number theory", "Combinatorics", "Probability")}
        steps = curated(
            NoParaphrase(paths=(bench,), embed=embed), solve, Verify(checks=("math", "number"), answer="solution"), topics
        )
        data = Questions(path=bench, check="math", test=0.9, valid=0.05, instruction="", length=16384)
        train = Train(
            method=Supervised(), data=Answered(stage="make", answer="solution_1", length=16384), steps=2000, batch=32,
            accumulate=32, precision="bfloat16", checkpointing=True, optim=Optim(lr=1e-5, warmup=0.05),
        )  # fmt: skip
        solved = Solved(sampling=Sampling(temperature=0.0, max_new=8192), precision="bfloat16")
        served = HttpChat(url="http://localhost:8000/v1", model="teacher")
        audit = Audit(subjects=("start", "train"), checks=(solved,))
        return Recipe(
            id="deepmath", student=HubLM(path="Qwen/Qwen2.5-1.5B"), data=data, teachers={"writer": served, "judge": served},
            stages={"make": Synthesize(steps=steps, data=File(path="pool.jsonl")), "train": train, "audit": audit},
        )  # fmt: skip
    easy, hard = Chain(ops=(2,), base=6, train=120, valid=24, test=48), Chain(ops=(2, 3), train=900, valid=200, test=200)
    task = pick(scale, smoke=easy, small=hard, paper=hard)
    few, many = StoryPool(chain=easy, copies=6, again=14, near=14, easy=12), StoryPool(chain=hard)
    pool = pick(scale, smoke=few, small=many, paper=many)
    steps = curated(
        NoParaphrase(data=pool),
        Generate(prompt=SOLVE, into="solution", each=3, decoding=Decoding(temperature=1.0, max_new=96), teacher="writer"),
        Verify(checks=("exact", "number"), answer="solution"),
        {"Arithmetic > Chains": "", "Geometry > Plane": ""},
    )
    hunts = {"asked": ("unasked",), "leaks": ("leak",), "tests": ("copy", "again"), "hard": ("easy",), "verify": ("wrong",)}
    writing = Sampling(temperature=0.0, max_new=pick(scale, smoke=16, small=32, paper=32), batch=500)
    checks = (Faults(good=GOOD, hunts=hunts), Solved(sampling=writing), Solved(sampling=writing, split="valid"))
    solver = Solver(data=task, wrong=0.01, question="short")
    return Recipe(
        id="deepmath",
        student=TinyLM(width=pick(scale, smoke=24, small=32, paper=32)),
        data=task,
        teachers={"writer": Scripted(script=solver), "judge": Scripted(script=Examiner(base=task.base))},
        stages={
            "make": Synthesize(steps=steps, data=pool),
            "train": Train(
                method=Supervised(), data=Answered(stage="make", question="short", answer="solution_1"),
                steps=pick(scale, smoke=60, small=500, paper=500), batch=8, optim=Optim(lr=1e-2, warmup=0.1),
            ),
            "audit": Audit(subjects=("start", "train"), checks=checks),
        },
    )  # fmt: skip


def proof() -> Proof:
    """The whole curation against n-grams in place of embedding and judge, and against answers taken as they came."""
    ours = recipe("small")
    steps = ours.stages["make"].steps
    words = Decontaminate(columns=("question",), data=ours.stages["make"].data, alike=None)
    trusting = {name: step for name, step in steps.items() if name not in ("verify", "agree")}
    raw = {"solve": steps["solve"], "beside": steps["beside"]}
    return Proof(
        claim="Out of a pool with known faults the rows that are kept are nearer to the good ones (F1) than with n-grams of"
        " 13 words in place of embeddings and a judge, than with answers taken as they came, and than the pool itself.",
        arms={
            "ours": ours,
            "ngrams": ours.set("make.steps", {**steps, "tests": words}),
            "trusting": ours.set("make.steps", trusting),
            "raw": ours.set("make.steps", raw),
        },
        metric="kept_f1",
        subject="make",
        beats=("ngrams", "trusting", "raw"),
        minutes=4.0,
        note="Equal pools and equally many solutions, three to each question that is left; the judge's calls are what the"
        " whole curation costs more. Each arm also trains a student for as many steps on as many tokens: `solved` on the"
        " benchmark (test) minus on as many questions that no pool holds (valid) is what contamination adds.",
    )
