"""A graph whose nodes have features and classes: read from files or drawn from a block model, and split into nodes.

Two settings. *Transductive*: the whole graph is there while training, the test nodes' labels are not. *Inductive* (the
papers' "production"): a share of the test nodes arrives later; they and their edges are cut out of the graph that
training sees, and only the split `test` shows them, in the whole graph.

A batch is some nodes: `inputs` has their `features` [B, d], their numbers `node` [B] and the `graph` they stand in. A
network on features takes the first and leaves the rest; a graph network takes the other two. `labels` [B] is negative
where nobody knows it, `weight` [B] is one, and `label_weight` [B] makes sums over known labels into means over them.
"""

from __future__ import annotations

import csv
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from ..core.run import Run, RunError, seed_of
from ..core.signal import Batch
from . import planetoid
from .shelves import looked_in, shelves

UNKNOWN = -100  # the label of a node whose label is not known
Setting = Literal["transductive", "inductive"]
MASKS = {"train": ("train", "train_mask"), "valid": ("valid", "val_mask"), "test": ("test", "test_mask")}


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes with features and undirected edges without loops, each stored both ways and sorted by where it arrives."""

    features: Tensor  # [N, d]
    edges: Tensor  # [2, E]: from, to
    degree: Tensor  # [N] neighbours in the whole graph, also where this is a part whose border lacks some

    @staticmethod
    def of(features: Tensor, edges: Tensor) -> Graph:
        """The graph of any list of edges [2, E]: directions, loops and repetitions are dropped."""
        n = len(features)
        edges = edges[:, edges[0] != edges[1]]
        both = torch.cat([edges, edges.flip(0)], 1)
        code = (both[1] * n + both[0]).unique()
        edges = torch.stack([code % n, code // n])
        return Graph(features, edges, torch.bincount(edges[1], minlength=n))

    def __len__(self) -> int:
        return len(self.features)

    def on(self, device: torch.device) -> Graph:
        """The same graph on a device; moved once."""
        if device == self.features.device:
            return self
        if device not in self._moved:
            self._moved[device] = Graph(self.features.to(device), self.edges.to(device), self.degree.to(device))
        return self._moved[device]

    @cached_property
    def _moved(self) -> dict[torch.device, Graph]:
        return {}

    @cached_property
    def _start(self) -> Tensor:
        """[N + 1]: the edges that arrive at node i are those from `_start[i]` to `_start[i + 1]`."""
        here = torch.bincount(self.edges[1], minlength=len(self))
        return torch.cat([here.new_zeros(1), here.cumsum(0)])

    @cached_property
    def _normal(self) -> Tensor:
        """[E] weights of the edges in the symmetric normalisation of A + I."""
        root = (self.degree + 1.0).rsqrt()
        return (root[self.edges[0]] * root[self.edges[1]]).to(self.features.dtype)

    @cached_property
    def compact(self) -> Tensor:
        """The features, as a sparse matrix where they are many and few are not zero (words of a text)."""
        many = self.features.numel() > 1_000_000 and (self.features != 0).float().mean() < 0.1
        return self.features.to_sparse().coalesce() if many else self.features

    def smooth(self, x: Tensor) -> Tensor:
        """D^-1/2 (A + I) D^-1/2 x, with D the degrees of A + I; x is [N, w]."""
        own = x / (self.degree + 1).to(x.dtype).unsqueeze(1)
        return own.index_add(0, self.edges[1], x[self.edges[0]] * self._normal.to(x.dtype).unsqueeze(1))

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the neighbours of every node, zero where there are none; x is [N, w]."""
        total = torch.zeros_like(x).index_add(0, self.edges[1], x[self.edges[0]])
        return total / self.degree.clamp(min=1).to(x.dtype).unsqueeze(1)

    def neighbours(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """(position in `nodes`, neighbour) of every edge that arrives at one of them."""
        begin, count = self._start[nodes], self._start[nodes + 1] - self._start[nodes]
        position = torch.arange(len(nodes), device=nodes.device).repeat_interleave(count)
        first = count.cumsum(0) - count
        edge = torch.arange(len(position), device=nodes.device) - first[position] + begin[position]
        return position, self.edges[0][edge]

    def part(self, nodes: Tensor) -> Graph:
        """The graph of these nodes and the edges between them, numbered in their order; the rest is gone."""
        number = torch.full((len(self),), -1)
        number[nodes] = torch.arange(len(nodes))
        edges = number[self.edges]
        return Graph.of(self.features[nodes], edges[:, (edges >= 0).all(0)])

    def around(self, nodes: Tensor, hops: int) -> tuple[Graph, Tensor]:
        """(what a network of so many layers needs of the graph to answer for `nodes`, their numbers in it)."""
        seen, arriving = nodes.unique(), []
        for _ in range(hops):
            position, other = self.neighbours(seen)
            arriving.append(torch.stack([other, seen[position]]))
            seen = torch.cat([seen, other]).unique()
        edges = torch.cat(arriving, 1) if arriving else self.edges[:, :0]
        edges = torch.searchsorted(seen, edges)
        edges = edges[:, torch.argsort(edges[1] * len(seen) + edges[0])]
        if edges.shape[1]:
            edges = edges.unique_consecutive(dim=1)
        return Graph(self.features[seen], edges, self.degree[seen]), torch.searchsorted(seen, nodes)

    def largest(self) -> Tensor:
        """The nodes of the largest connected part."""
        part = torch.arange(len(self))
        while True:
            lower = part.scatter_reduce(0, self.edges[1], part[self.edges[0]], "amin")
            lower = lower[lower]
            if torch.equal(lower, part):
                return (part == part.bincount().argmax()).nonzero().flatten()
            part = lower


@dataclass(frozen=True, eq=False)
class Nodes:
    """Some nodes of a graph: one split."""

    graph: Graph  # what these nodes may see
    nodes: Tensor  # [n] their numbers in it
    labels: Tensor  # [n]; UNKNOWN where it is not known
    names: tuple[str, ...]  # of the classes
    origin: str = ""  # where the graph comes from

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """[d] of one node's features."""
        return tuple(self.graph.features.shape[1:])

    @cached_property
    def _per_label(self) -> float:
        return len(self) / max(1, int((self.labels >= 0).sum()))

    def batch(self, items: Sequence[int], epoch: int) -> Batch:
        """inputs (features [B, d], node [B], graph), labels [B], weight [B], label_weight [B]."""
        chosen = torch.as_tensor(items, dtype=torch.long)
        node, labels = self.nodes[chosen], self.labels[chosen]
        return {
            "inputs": {"features": self.graph.features[node], "node": node, "graph": self.graph},
            "labels": labels,
            "weight": torch.ones(len(node)),
            "label_weight": self._per_label * (labels >= 0),
        }


@dataclass(frozen=True, kw_only=True)
class NodeSplit:
    """Which nodes are known, chosen by and judged by. Files that bring masks of their own are split by those."""

    labels: int = 20  # known nodes of every class
    valid: int = 30  # nodes of every class to choose by
    test: int = 1000  # nodes to judge by, the same for every seed; 0: all that are left, other ones for every seed
    unseen: float = 0.2  # share of the test nodes that arrive after training, where the setting is inductive


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A made-up graph: classes are blocks that link among themselves, features are a class's mean under much noise."""

    nodes: int = 2000
    classes: int = 6
    degree: float = 6.0  # neighbours of a node, on average
    inside: float = 0.8  # share of the edges that stay in their block
    inputs: int = 48  # features of a node
    signal: float = 0.25  # how far the classes' means are apart, in units of the noise
    setting: Setting = "transductive"
    split: NodeSplit = NodeSplit()

    def load(self, run: Run) -> Mapping[str, Nodes]:
        """The splits; the graph is the same for every seed of the run."""
        draw = torch.Generator().manual_seed(seed_of("blocks", self.nodes, self.classes, self.inputs))
        labels = torch.arange(self.nodes) % self.classes
        centres = self.signal * torch.randn(self.classes, self.inputs, generator=draw)
        features = centres[labels] + torch.randn(self.nodes, self.inputs, generator=draw)
        count = round(self.nodes * self.degree / 2)
        source = torch.randint(self.nodes, (count,), generator=draw)
        inside = torch.rand(count, generator=draw) < self.inside
        relative = torch.randint(self.nodes // self.classes, (count,), generator=draw) * self.classes + source % self.classes
        target = torch.where(inside, relative, torch.randint(self.nodes, (count,), generator=draw))
        names = tuple(str(number) for number in range(self.classes))
        found = Found(features, torch.stack([source, target]), labels, names, f"a block model of {self.nodes:,} nodes")
        return found.split(self.split, self.setting, run)


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A graph of your own: a file `.npz` or `.pt`, or a folder with `nodes.csv` and `edges.csv` or Planetoid's files.

    `.npz`: `features` [N, d], `edges` [2, E], `labels` [N] (negative: not known) and, if they are fixed, the masks `train`,
    `valid` and `test`; the names that torch-geometric uses do as well, and so do the files of the CPF collection.
    `.pt`: a dictionary of such tensors (`torch.save(data.to_dict(), "graph.pt")`); objects are refused, since reading
    them would run them. `nodes.csv`: `id`, `label` (empty: not known), numbers, and if you like `split`; `edges.csv`:
    `source`, `target`. Without a path the graph `name` of Planetoid is looked for in `$STILLHOUSE_DATA` and `data`.
    """

    path: str | None = None
    name: str = "Cora"  # of Planetoid's graphs, where there is no path
    setting: Setting = "transductive"
    split: NodeSplit = NodeSplit()
    largest: bool = False  # keep only the largest connected part
    otherwise: Blocks | None = None  # what to take when no path is given and nothing is found

    def load(self, run: Run) -> Mapping[str, Nodes]:
        """The splits; who is known depends on the run's seed."""
        if self.path is None:
            folder = find(self.name)
            if folder is None and self.otherwise is not None:
                made = replace(self.otherwise, setting=self.setting, split=self.split)
                splits = made.load(run)
                note = f"{splits['train'].origin}, because {self.name} was not found in {looked_in()}"
                run.event("note", text=f"the data are {note}; set data.path to a graph of yours")
                return {name: replace(nodes, origin=note) for name, nodes in splits.items()}
            if folder is None:
                raise RunError(f"no {self.name} in {looked_in()}; set data.path to your graph")
            found = read(folder, self.name)
        else:
            found = read(Path(self.path), Path(self.path).name)
        if self.largest:
            found = found.part(Graph.of(found.features, found.edges).largest())
        return found.split(self.split, self.setting, run)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The nodes of the recipe's own data whose label is known, in the graph that training sees: a stage's `data`."""

    def load(self, run: Run) -> Mapping[str, Nodes]:
        """`train` alone."""
        if isinstance(run.recipe.data, Labelled):
            raise RunError("Labelled takes its nodes from the recipe's data and cannot be them")
        source: Any = run.sources()["train"]
        known = source.labels >= 0
        return {"train": replace(source, nodes=source.nodes[known], labels=source.labels[known])}


@dataclass(frozen=True, eq=False)
class Found:
    """What a file holds, before it is split."""

    features: Tensor  # [N, d]
    edges: Tensor  # [2, E]
    labels: Tensor  # [N], from 0; UNKNOWN where it is not known
    names: tuple[str, ...]  # of the classes
    origin: str
    masks: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # train, valid, test: [N] bool

    def part(self, nodes: Tensor) -> Found:
        """These nodes alone."""
        graph = Graph.of(self.features, self.edges).part(nodes)
        masks = {name: mask[nodes] for name, mask in self.masks.items()}
        return replace(self, features=graph.features, edges=graph.edges, labels=self.labels[nodes], masks=masks)

    def split(self, split: NodeSplit, setting: Setting, run: Run) -> dict[str, Nodes]:
        """train (all nodes that may be seen), valid, test; where the setting is inductive, also `observed`: the test
        nodes that training has seen without their labels."""
        train, valid, test = self._masked() if self.masks else self._drawn(split, run)
        whole = Graph.of(self.features, self.edges)
        labels = self.labels
        gone = test[:0]
        if setting == "inductive":
            count = max(1, round(split.unseen * len(test)))
            draw = torch.Generator().manual_seed(seed_of(run.seed, "unseen"))
            gone = test[torch.randperm(len(test), generator=draw)[:count]].sort().values
            kept = torch.ones(len(whole), dtype=torch.bool)
            kept[gone] = False
            order = torch.cat([kept.nonzero().flatten(), gone])  # who arrives later is numbered last: numbers stay
            number = torch.empty_like(order)
            number[order] = torch.arange(len(order))
            whole, labels = whole.part(order), labels[order]
            train, valid, test, gone = number[train], number[valid], number[test], number[gone]
        seen = whole.part(torch.arange(len(whole) - len(gone))) if len(gone) else whole
        known = torch.full_like(labels, UNKNOWN)
        known[train] = labels[train]

        def nodes(graph: Graph, chosen: Tensor, said: Tensor) -> Nodes:
            return Nodes(graph, chosen, said[chosen], self.names, self.origin)

        splits = {"train": nodes(seen, torch.arange(len(seen)), known), "valid": nodes(seen, valid, labels)}
        if not len(gone):
            return {**splits, "test": nodes(seen, test, labels)}
        observed = test[test < len(seen)]
        return {**splits, "test": nodes(whole, gone, labels), "observed": nodes(seen, observed, labels)}

    def _masked(self) -> list[Tensor]:
        parts = [(self.masks[name].bool() & (self.labels >= 0)).nonzero().flatten() for name in ("train", "valid", "test")]
        if any(len(part) == 0 for part in parts):
            raise RunError(f"{self.origin}: the masks train, valid and test must each hold labelled nodes")
        if torch.cat(parts).bincount().max() > 1:
            raise RunError(f"{self.origin}: a node is in two of the masks train, valid and test")
        return parts

    def _drawn(self, split: NodeSplit, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        labelled = (self.labels >= 0).nonzero().flatten()
        same = torch.Generator().manual_seed(seed_of("test nodes"))
        shuffled = labelled[torch.randperm(len(labelled), generator=same)]
        test, rest = shuffled[: split.test], shuffled[split.test :]
        draw = torch.Generator().manual_seed(seed_of(run.seed, "nodes"))
        rest = rest[torch.randperm(len(rest), generator=draw)]
        train, valid, left = [], [], []
        for label, name in enumerate(self.names):
            members = rest[self.labels[rest] == label]
            if len(members) < split.labels + split.valid:
                raise RunError(
                    f"{self.origin} has {len(members)} nodes of class {name} beside the {len(test)} to test, too few for "
                    f"{split.labels} labels and {split.valid} to choose by: lower data.split.labels, .valid or .test"
                )
            train.append(members[: split.labels])
            valid.append(members[split.labels : split.labels + split.valid])
            left.append(members[split.labels + split.valid :])
        parts = [torch.cat(part).sort().values for part in (train, valid, left)]
        return parts[0], parts[1], test.sort().values if split.test else parts[2]


def find(name: str) -> Path | None:
    """The folder of one of Planetoid's graphs, or None."""
    for shelf in shelves():
        for folder in (shelf / "planetoid" / name, shelf / name):
            if folder.is_dir():
                return folder
    return None


def read(path: Path, origin: str) -> Found:
    """The graph in a file or folder; RunError says what is wrong with it."""
    if path.is_dir():
        if (path / "nodes.csv").is_file():
            return _from_csv(path, origin)
        inner = path / "raw" if (path / "raw").is_dir() else path
        features, edges, labels = planetoid.read(inner)
        return _found(features, edges, labels, {}, origin)
    if not path.is_file():
        raise RunError(f"no file or folder {path}")
    if path.suffix == ".pt":
        return _from_arrays(_tensors(path), origin)
    try:
        with numpy.load(path, allow_pickle=False) as file:
            wanted = [n for n in file.files if not n.endswith(("_names", "_to_names", "metadata"))]
            arrays = {
                name: torch.from_numpy(numpy.asarray(file[name])) for name in wanted if file[name].dtype.kind in "biuf"
            }
    except Exception as error:  # numpy raises whatever zip, zlib and its own parser raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"cannot read {path} as an NPZ file: {reason}") from error
    return _from_arrays(arrays, origin)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} holds objects, and reading objects would run them. Write tensors instead: "
            'torch.save(data.to_dict(), "graph.pt")'
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"cannot read {path} as a file of tensors: {reason}") from error
    if not isinstance(found, Mapping):
        raise RunError(f"{path} holds a {type(found).__name__}; it should hold a dictionary of tensors")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _from_arrays(arrays: Mapping[str, Tensor], origin: str) -> Found:
    if "adj_indptr" in arrays:  # the CPF collection keeps scipy's sparse matrices
        edges, _ = _sparse(arrays, "adj")
        features = arrays.get("attr_matrix")
        if features is None:
            (row, column), values = _sparse(arrays, "attr")
            features = torch.zeros(tuple(arrays["attr_shape"].tolist())).index_put((row, column), values.float())
        return _found(features, edges, arrays["labels"], {}, origin)

    def pick(*names: str) -> Tensor:
        for name in names:
            if name in arrays:
                return arrays[name]
        raise RunError(f"{origin} holds {', '.join(arrays) or 'nothing'}; it needs `{names[0]}`")

    features, edges, labels = pick("features", "x"), pick("edges", "edge_index"), pick("labels", "y")
    if edges.ndim == 2 and edges.shape[0] != 2 and edges.shape[1] == 2:
        edges = edges.T
    masks = {part: next((arrays[n] for n in names if n in arrays), None) for part, names in MASKS.items()}
    given = {part: mask for part, mask in masks.items() if mask is not None}
    if given and len(given) < len(MASKS):
        raise RunError(f"{origin} has the mask {', '.join(given)} alone; it takes train, valid and test, or none")
    return _found(features, edges, labels, given, origin)


def _sparse(arrays: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """(rows and columns [2, n], values [n]) of one of scipy's CSR matrices."""
    start = arrays[f"{name}_indptr"].long()
    rows = torch.arange(len(start) - 1).repeat_interleave(start.diff())
    return torch.stack([rows, arrays[f"{name}_indices"].long()]), arrays[f"{name}_data"]


def _from_csv(folder: Path, origin: str) -> Found:
    def table(name: str) -> list[dict[str, str]]:
        try:
            with (folder / name).open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RunError(f"cannot read {folder / name}: {error}") from error

    rows, links = table("nodes.csv"), table("edges.csv")
    if not rows or not {"id", "label"} <= set(rows[0]):
        raise RunError(f"{folder / 'nodes.csv'} needs the columns id and label, and one for every feature")
    number = {row["id"]: i for i, row in enumerate(rows)}
    if len(number) < len(rows):
        raise RunError(f"{folder / 'nodes.csv'} has an id twice")
    columns = [name for name in rows[0] if name not in ("id", "label", "split")]
    try:
        features = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    except (TypeError, ValueError) as error:
        raise RunError(f"{folder / 'nodes.csv'}: every column but id, label and split holds numbers ({error})") from error
    try:
        edges = torch.tensor([(number[link["source"]], number[link["target"]]) for link in links]).reshape(-1, 2).T
    except KeyError as error:
        raise RunError(
            f"{folder / 'edges.csv'} needs the columns source and target with ids of nodes; not {error}"
        ) from error
    names = tuple(sorted({row["label"] for row in rows} - {""}))
    labels = torch.tensor([names.index(row["label"]) if row["label"] else UNKNOWN for row in rows])
    masks = {part: torch.tensor([row["split"] == part for row in rows]) for part in MASKS} if "split" in rows[0] else {}
    return replace(_found(features, edges, labels, masks, origin), names=names)


def _found(features: Tensor, edges: Tensor, labels: Tensor, masks: Mapping[str, Tensor], origin: str) -> Found:
    """Checked, with classes numbered from 0."""
    n = len(features)
    if features.ndim != 2 or edges.ndim != 2 or edges.shape[0] != 2 or labels.numel() != n:
        shapes = f"features {list(features.shape)}, edges {list(edges.shape)}, labels {list(labels.shape)}"
        raise RunError(f"{origin}: {shapes} do not make a graph; they should be [N, d], [2, E] and [N]")
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= n):
        raise RunError(f"{origin}: an edge leads to node {int(edges.max())}, and there are {n}")
    if not bool(torch.isfinite(features).all()):
        raise RunError(f"{origin}: a feature is not a finite number")
    labels = labels.flatten().long()
    values = labels[labels >= 0].unique()
    if len(values) < 2:
        raise RunError(f"{origin} has {len(values)} classes; to classify takes two or more")
    numbered = torch.searchsorted(values, labels).where(labels >= 0, UNKNOWN)
    names = tuple(str(value) for value in values.tolist())
    return Found(features.float(), edges.long(), numbered, names, origin, masks)
