"""One text encoder that contains many: fewer layers, fewer heads, narrower hidden states, thinner feed-forward parts.

Of every weight the first rows and columns make a smaller member, and of the layers the first ones. A member can be taken
out (`taken`): it is then a network of its own size that computes the same. A folder with such a network says what it is in
`network.json`, and `opened` reads it without a run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.run import Run, RunError
from .elastic import Family
from .encoder import TinyEncoder, layers_of_encoder
from .hub import load_config, load_tokenizer
from .text import HubClassifier
from .toys import WEIGHTS, sizes_of

TOLD = "network.json"
TOKENIZER = "tokenizer"  # a folder in the folder
_TRIOS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))


@dataclass(frozen=True, order=True)
class TextMember:
    """One encoder of a family."""

    depth: int  # layers
    heads: int
    width: int  # of the hidden states
    ratio: float  # channels of the feed-forward part, as a multiple of the width

    @property
    def inner(self) -> int:
        """Channels of the feed-forward part."""
        return round(self.ratio * self.width)

    @property
    def name(self) -> str:
        """Such as `depth 4, heads 7, width 128, ratio 2.5`."""
        return f"depth {self.depth}, heads {self.heads}, width {self.width}, ratio {self.ratio:g}"


@dataclass(frozen=True)
class Plan:
    """What a network is, apart from its weights."""

    members: tuple[TextMember, ...]  # the largest first, the smallest last
    head_width: int  # channels of an attention head
    vocabulary: int
    length: int  # tokens of a text, at most
    classes: int
    tokenizer: str | None = None  # a folder or hub id; None: hashed words

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
        """Texts to padded tokens and which of them are no padding."""
        if self.tokenizer is None:
            return TinyEncoder(vocabulary=self.vocabulary, length=self.length).encoder(run)
        return HubClassifier(path=self.tokenizer, length=self.length).encoder(run)

    def parameters(self, member: TextMember) -> int:
        """How many numbers the member has when it is taken out."""
        with torch.device("meta"):
            return sum(p.numel() for p in TextFamily(replace(self, members=(member,))).parameters())

    def flops(self, member: TextMember) -> int:
        """Multiplications and additions in the matrix products for one text of full length."""
        inside = self.head_width * member.heads
        token = 8 * member.width * inside + 4 * member.width * member.inner + 4 * self.length * inside
        return self.length * member.depth * token + 2 * member.width * self.classes


@dataclass(frozen=True, kw_only=True)
class ElasticEncoder:
    """A bidirectional transformer that contains smaller ones: every combination of the sizes given.

    The classifier reads the mean of the last hidden states. Without a `tokenizer` a text is hashed words, as for
    `models.encoder.TinyEncoder`.
    """

    depths: tuple[int, ...] = (2, 3, 4)
    heads: tuple[int, ...] = (2, 4)
    widths: tuple[int, ...] = (32, 48)
    ratios: tuple[float, ...] = (2.0, 3.0)
    head_width: int = 16
    tokenizer: str | None = None  # that of the teacher: its folder, or a hub id in the local cache
    vocabulary: int = 4096  # hashed words; a tokenizer brings its own number
    length: int = 32  # tokens of a text, at most
    classes: int | None = None  # None: as the recipe's data have

    def __post_init__(self) -> None:
        sizes = (*self.depths, *self.heads, *self.widths, *self.ratios, self.head_width, self.vocabulary, self.length)
        if not (self.depths and self.heads and self.widths and self.ratios) or min(sizes) <= 0:
            raise ValueError("give at least one of depths, heads, widths and ratios, all sizes above 0")

    @property
    def members(self) -> tuple[TextMember, ...]:
        """All of them, the largest first."""
        ways = (sorted(set(sizes), reverse=True) for sizes in (self.depths, self.heads, self.widths, self.ratios))
        return tuple(TextMember(*each) for each in product(*ways))  # type: ignore[arg-type]

    def plan(self, run: Run) -> Plan:
        """The network's sizes for the recipe's data."""
        _, classes = sizes_of(run, (), self.classes)
        words = self.vocabulary if self.tokenizer is None else len(load_tokenizer(self.tokenizer))
        return Plan(self.members, self.head_width, words, self.length, classes, self.tokenizer)

    def build(self, run: Run) -> nn.Module:
        """Tokens `[B, T]` to logits `[B, classes]`."""
        return TextFamily(self.plan(run))

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
        """Texts to what the network is called with."""
        return Plan((), self.head_width, self.vocabulary, self.length, 1, self.tokenizer).encoder(run)

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """Write the weights, what the network is, and its tokenizer."""
        write(module, folder)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """A network written by `save`; RunError if it is another than this spec's."""
        found = opened(folder)
        if found.members != self.members:
            raise RunError(f"the network in {folder} has other members than {self}")
        return found


@dataclass(frozen=True, kw_only=True)
class OneMember:
    """A network that a search has taken out, or a member of a family that is taken out now, as a model to train or use."""

    source: str = "search"  # a stage of this run, or a folder
    member: int = 0  # its number in the family; the largest is 0
    fresh: bool = False  # the same sizes with new weights

    def build(self, run: Run) -> nn.Module:
        """Tokens `[B, T]` to logits `[B, classes]`; a head for another number of classes is replaced by a new one."""
        found = self._opened(run)
        if not 0 <= self.member < len(found.members):
            raise RunError(f"{self.source} has members 0 to {len(found.members) - 1}, and no member {self.member}")
        made = found.taken(self.member)
        _, classes = sizes_of(run, (), None)
        plan = replace(made.plan, classes=classes)
        if self.fresh:
            return TextFamily(plan)
        if classes != made.plan.classes:
            made.head, made.plan = nn.Linear(made.head.in_features, classes), plan
        return made

    def encoder(self, run: Run) -> Callable[[Sequence[str]], Mapping[str, Tensor]]:
        """Texts to what the network is called with."""
        return self._opened(run).plan.encoder(run)

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """Write the weights, what the network is, and its tokenizer."""
        write(module, folder)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """A network written by `save`."""
        return opened(folder)

    def _opened(self, run: Run) -> TextFamily:
        return opened(run.path(self.source) if run.done(self.source) else Path(self.source))


class TextFamily(Family):
    """Word vectors and positions, layers, a mean and a linear layer; its `members` are in it."""

    members: tuple[TextMember, ...]  # type: ignore[assignment]

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan, self.members = plan, plan.members
        width = max(m.width for m in self.members)
        inside = plan.head_width * max(m.heads for m in self.members)
        inner = max(m.inner for m in self.members)
        self.words, self.positions = nn.Embedding(plan.vocabulary, width), nn.Embedding(plan.length, width)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=width**-0.5)
        self.norm = nn.LayerNorm(width)
        depth = max(m.depth for m in self.members)
        self.layer = nn.ModuleList([ElasticLayer(width, inside, inner, plan.head_width) for _ in range(depth)])
        self.head = nn.Linear(width, plan.classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, member: int = 0) -> Tensor:
        """`[B, T]` to `[B, classes]`, by member number `member`."""
        x, chosen = self._embedded(input_ids, member)
        for layer in self._layers(chosen):
            x = layer(x, attention_mask, chosen)
        real = attention_mask.unsqueeze(-1).to(x.dtype)
        return _linear(self.head, (x * real).sum(1) / real.sum(1).clamp(min=1), self.plan.classes)

    def attention(self, input_ids: Tensor, attention_mask: Tensor, member: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, T, heads * head_width]` of the member's last layer."""
        x, chosen = self._embedded(input_ids, member)
        *before, last = self._layers(chosen)
        for layer in before:
            x = layer(x, attention_mask, chosen)
        return last.projections(x, chosen)

    @torch.no_grad()
    def taken(self, member: int) -> TextFamily:
        """The member as a network of its own size: the first rows and columns of every weight."""
        made = TextFamily(replace(self.plan, members=(self.members[member],))).to(self.words.weight)
        whole = self.state_dict()
        for name, value in made.state_dict().items():
            value.copy_(whole[name][tuple(slice(size) for size in value.shape)])
        return made

    def _embedded(self, input_ids: Tensor, member: int) -> tuple[Tensor, TextMember]:
        chosen = self.members[member]
        wide = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        return _normed(self.norm, wide[..., : chosen.width]), chosen

    def _layers(self, chosen: TextMember) -> Iterator[ElasticLayer]:
        for layer in list(self.layer)[: chosen.depth]:
            assert isinstance(layer, ElasticLayer)
            yield layer


class ElasticLayer(nn.Module):
    """Attention and a feed-forward part, each added to the stream and normalised, as in BERT."""

    def __init__(self, width: int, inside: int, inner: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.query, self.key, self.value = (nn.Linear(width, inside) for _ in range(3))
        self.out = nn.Linear(inside, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.after_attention, self.after_mlp = nn.LayerNorm(width), nn.LayerNorm(width)

    def projections(self, x: Tensor, chosen: TextMember) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, T, heads * head_width]`."""
        inside = chosen.heads * self.head_width
        return _linear(self.query, x, inside), _linear(self.key, x, inside), _linear(self.value, x, inside)

    def forward(self, x: Tensor, mask: Tensor, chosen: TextMember) -> Tensor:
        """x [B, T, width of the member], mask [B, T]."""
        q, k, v = (p.unflatten(-1, (chosen.heads, -1)).transpose(1, 2) for p in self.projections(x, chosen))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
        attended = attended.transpose(1, 2).flatten(-2)
        x = _normed(self.after_attention, x + _linear(self.out, attended, chosen.width))
        inner = F.gelu(_linear(self.up, x, chosen.inner))
        return _normed(self.after_mlp, x + _linear(self.down, inner, chosen.width))


def _linear(layer: nn.Linear, x: Tensor, width: int) -> Tensor:
    if (width, x.shape[-1]) == layer.weight.shape:
        return layer(x)  # so that hooks see it
    return F.linear(x, layer.weight[:width, : x.shape[-1]], layer.bias[:width])


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    width = x.shape[-1]
    if norm.normalized_shape == (width,):
        return norm(x)
    return F.layer_norm(x, (width,), norm.weight[:width], norm.bias[:width], norm.eps)


# -- folders -----------------------------------------------------------------------------------------------------------


def write(module: nn.Module, folder: Path) -> None:
    """The weights, what the network is, and, where it has one, its tokenizer."""
    assert isinstance(module, TextFamily)
    save_model(module, str(folder / WEIGHTS))
    told = asdict(module.plan) | {"tokenizer": module.plan.tokenizer is not None}
    (folder / TOLD).write_text(json.dumps(told, indent=1), encoding="utf-8")
    if module.plan.tokenizer is not None:
        load_tokenizer(module.plan.tokenizer).save_pretrained(folder / TOKENIZER)
        load_config(module.plan.tokenizer).save_pretrained(folder / TOKENIZER)  # says which tokenizer it is


def opened(folder: Path | str) -> TextFamily:
    """The network in a folder, in evaluation mode; RunError if there is none."""
    folder = Path(folder)
    try:
        told = json.loads((folder / TOLD).read_text(encoding="utf-8"))
        told |= {"members": tuple(TextMember(**m) for m in told["members"])}
        told |= {"tokenizer": str(folder / TOKENIZER) if told["tokenizer"] else None}
        module = TextFamily(Plan(**told))
        load_model(module, folder / WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{folder} holds no network that `models.elastic_text` wrote: {str(error).splitlines()[0]}"
        ) from error
    return module.eval()


# -- any encoder -------------------------------------------------------------------------------------------------------


def attention_taps(module: nn.Module) -> tuple[str, str, str]:
    """The names of the last layer's query, key and value projections; RunError if it has none of its own."""
    last = layers_of_encoder(module)[-1]
    within = {id(part) for part in last.modules()}
    names = {name.rpartition(".")[2]: name for name, part in module.named_modules() if id(part) in within}
    for trio in _TRIOS:
        if all(part in names for part in trio):
            return names[trio[0]], names[trio[1]], names[trio[2]]
    raise RunError(
        f"the last layer of {type(module).__name__} has no query, key and value projections of its own to compare "
        "(BERT, RoBERTa, ELECTRA, XLM-R, DistilBERT, Llama and their like have them)"
    )
