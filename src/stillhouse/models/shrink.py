"""A student cut from its teacher: fewer layers, fewer hidden channels, fewer feed-forward neurons."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.engine import to_device
from ..core.run import Run, RunError
from .heal import healed
from .hub import CausalLM, HubLM, StageLM, layers_of, save_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


HEALED = "healed.safetensors"  # of the artifact `cut`: down-projections by layer


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """A model cut from another. What is left out is chosen on a few training rows, or named.

    Layers: `influence` drops, one at a time, the layer whose output is most like its input (mean cosine similarity of
    the residual stream over tokens, as in ShortGPT, Men et al. 2024, arXiv 2403.03853), measuring again after each
    drop; `even` keeps evenly spaced layers, first and last included. Channels and neurons: those of largest mean
    absolute activation. Where layers of a Llama-like model are dropped, those in front of a gap are then fitted to close
    it (see `heal`). Choice and fit are kept in the run as artifact `cut`, so that every arm gets the same student.
    """

    of: HubLM | StageLM
    layers: int | None = None  # how many to keep; None: all
    width: int | None = None  # hidden channels to keep (Llama-like models)
    ffn: int | None = None  # feed-forward neurons to keep (Llama-like models)
    choose: Literal["influence", "even"] = "influence"
    keep: tuple[int, ...] = ()  # the layers to keep, instead of choosing
    rows: int = 3  # training rows that the choice looks at
    heal: int = 32  # training rows that the layers in front of gaps are fitted on; 0: no fit

    def build(self, run: Run) -> CausalLM:
        """The cut model, untrained."""
        module = self.of.build(run)
        if not run.done("cut"):
            self._cut(module, run)
        cut = run.load_json("cut")
        layers: Any = layers_of(module)
        for name, weight in load_file(run.path("cut") / HEALED).items():
            layers[int(name)].mlp.down_proj.weight.data.copy_(weight)
        keep_layers(module, cut["layers"])
        if cut["channels"] is not None or cut["neurons"] is not None:
            narrow(module, cut["channels"], cut["neurons"])
        return module

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """As `HubLM.save`."""
        save_model(module, folder, self.tokenizer(run))

    def load(self, folder: Path, run: Run) -> CausalLM:
        """As `HubLM.load`."""
        return self.of.load(folder, run)

    def tokenizer(self, run: Run) -> PreTrainedTokenizerBase:
        """The tokenizer of the model it is cut from."""
        return self.of.tokenizer(run)

    def _cut(self, module: CausalLM, run: Run) -> None:
        """Choose, fit, and write both down."""
        depth = len(layers_of(module))
        wanted = len(self.keep) or (depth if self.layers is None else self.layers)
        if not 1 <= wanted <= depth:
            raise RunError(f"cannot keep {wanted} of {depth} layers")
        if len(set(self.keep)) < len(self.keep) or any(not 0 <= k < depth for k in self.keep):
            raise RunError(f"keep names layers from 0 to {depth - 1}, each once, not {'+'.join(map(str, self.keep))}")
        narrower = self.width is not None or self.ffn is not None
        heals = wanted < depth and self.heal > 0 and is_llama(module)
        looks = heals or narrower or (wanted < depth and not self.keep and self.choose == "influence")
        inputs = self._inputs(run) if looks else []
        module.to(run.device).eval()
        if self.keep:
            kept = sorted(self.keep)
        elif self.choose == "even" or wanted == depth:
            kept = [round(i * (depth - 1) / max(1, wanted - 1)) for i in range(wanted)]
        else:
            kept = influential_layers(module, inputs[: self.rows], wanted)
        channels = neurons = None
        if narrower:
            channels, neurons = busiest(module, inputs[: self.rows], kept, self.width, self.ffn)
        weights = healed(module, kept, inputs[: self.heal]) if heals else {}
        with run.artifact("cut", kind="cut") as folder:
            save_file({str(k): w.cpu().contiguous() for k, w in weights.items()}, folder / HEALED)
            cut = {"layers": kept, "channels": channels, "neurons": neurons}
            (folder / "value.json").write_text(json.dumps(cut), encoding="utf-8")

    def _inputs(self, run: Run) -> list[dict[str, Tensor]]:
        """The first training rows, one batch each."""
        source = run.sources()["train"]
        items = range(min(max(self.rows, self.heal), len(source)))
        return [to_device(source.batch([i], 0)["inputs"], run.device) for i in items]


def keep_layers(module: CausalLM, kept: Sequence[int]) -> None:
    """Drop all other layers, in place; cache indices and the configuration follow."""
    old = layers_of(module)
    new = nn.ModuleList(old[i] for i in kept)
    for index, layer in enumerate(new):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                setattr(part, "layer_idx", index)  # noqa: B010 - to the type checker every attribute is a tensor
    owner: Any = module.decoder
    setattr(owner, "layers" if hasattr(owner, "layers") else "h", new)
    config = module.config
    config.num_hidden_layers = len(new)
    types = getattr(config, "layer_types", None)
    if types:
        config.layer_types = [types[i] for i in kept]


@torch.no_grad()
def influential_layers(module: CausalLM, inputs: Sequence[dict[str, Tensor]], keep: int) -> list[int]:
    """The layers left after dropping, one at a time, the one that changes the residual stream least."""
    layers = layers_of(module)
    alive = list(range(len(layers)))
    while len(alive) > keep:
        similarity = torch.zeros(len(layers))
        with _only(module, layers, alive), _watch(layers, alive, similarity):
            for each in inputs:
                module(**each)
        # The first layer builds the stream and the last one feeds the head: dropping them is never the cheapest.
        alive.remove(max(alive[1:-1] or alive, key=lambda i: float(similarity[i])))
    return alive


@contextmanager
def _only(module: CausalLM, layers: nn.ModuleList, alive: Sequence[int]) -> Iterator[None]:
    owner: Any = module.decoder
    name = "layers" if hasattr(owner, "layers") else "h"
    count = module.config.num_hidden_layers
    setattr(owner, name, nn.ModuleList(layers[i] for i in alive))
    module.config.num_hidden_layers = len(alive)
    try:
        yield
    finally:
        setattr(owner, name, layers)
        module.config.num_hidden_layers = count


@contextmanager
def _watch(layers: nn.ModuleList, alive: Sequence[int], similarity: Tensor) -> Iterator[None]:
    def hook(index: int):
        def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            similarity[index] += torch.cosine_similarity(before.float(), after.float(), dim=-1).mean().cpu()

        return see

    handles = [layers[i].register_forward_hook(hook(i), with_kwargs=True) for i in alive]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")  # fmt: skip


def is_llama(module: CausalLM) -> bool:
    """Whether the layers are those of Llama: attention and a gated MLP, each after a norm and added as they are."""
    layer: Any = layers_of(module)[0]
    extra = [n for n, _ in layer.named_parameters() if not n.startswith(_LLAMA)]
    plain = getattr(module.config, "residual_multiplier", 1.0) == 1.0
    return plain and not extra and hasattr(getattr(layer, "mlp", None), "gate_proj")


def _check_llama(module: CausalLM) -> None:
    if not is_llama(module):
        raise RunError(f"width and ffn cut Llama-like models only, not {type(module.model).__name__}; cut layers instead")


@torch.no_grad()
def busiest(
    module: CausalLM, inputs: Sequence[dict[str, Tensor]], kept: Sequence[int], width: int | None, ffn: int | None
) -> tuple[list[int] | None, list[list[int]] | None]:
    """The hidden channels (one choice for all layers) and each kept layer's neurons with the largest activations."""
    _check_llama(module)
    layers = layers_of(module)
    config = module.config
    for name, wanted, have in (("width", width, config.hidden_size), ("ffn", ffn, config.intermediate_size)):
        if wanted is not None and not 1 <= wanted <= have:
            raise RunError(f"cannot keep {name}={wanted} of {have}")
    heads = config.num_attention_heads
    if width is not None and width % heads:  # transformers refuses to save or load such a configuration
        near = [k for k in (width // heads * heads, -(-width // heads) * heads) if k]
        raise RunError(f"width must be a multiple of the {heads} heads: take {' or '.join(map(str, near))}, not {width}")
    stream = torch.zeros(config.hidden_size)
    inner = {i: torch.zeros(config.intermediate_size) for i in kept}

    def see_inner(index: int):
        def see(layer: nn.Module, args: tuple[Any, ...]) -> None:
            inner[index].add_(args[0].float().abs().flatten(0, -2).mean(0).cpu())

        return see

    def see_stream(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        stream.add_(output.float().abs().flatten(0, -2).mean(0).cpu())  # after the norm: each channel on one scale

    handles = [layers[i].mlp.down_proj.register_forward_pre_hook(see_inner(i)) for i in kept]  # type: ignore[union-attr]
    handles += [layers[i].post_attention_layernorm.register_forward_hook(see_stream) for i in kept]  # type: ignore[union-attr]
    try:
        for each in inputs:
            module(**each)
    finally:
        for handle in handles:
            handle.remove()
    channels = None if width is None else sorted(stream.topk(width).indices.tolist())
    neurons = None if ffn is None else [sorted(inner[i].topk(ffn).indices.tolist()) for i in kept]
    return channels, neurons


@torch.no_grad()
def narrow(module: CausalLM, channels: Sequence[int] | None, neurons: Sequence[Sequence[int]] | None) -> None:
    """Keep these hidden channels and, per layer, these neurons, in place. Heads and their size stay."""
    _check_llama(module)
    config = module.config
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for number, layer in enumerate(layers_of(module)):
        part: Any = layer
        if neurons is not None:
            index = torch.tensor(neurons[number])
            _slice(part.mlp.gate_proj, rows=index)
            _slice(part.mlp.up_proj, rows=index)
            _slice(part.mlp.down_proj, columns=index)
        if channels is not None:
            index = torch.tensor(channels)
            for linear in (part.self_attn.q_proj, part.self_attn.k_proj, part.self_attn.v_proj):
                _slice(linear, columns=index)
            for linear in (part.mlp.gate_proj, part.mlp.up_proj):
                _slice(linear, columns=index)
            for linear in (part.self_attn.o_proj, part.mlp.down_proj):
                _slice(linear, rows=index)
            for norm in (part.input_layernorm, part.post_attention_layernorm):
                norm.weight = nn.Parameter(norm.weight[index].clone())
    if neurons is not None:
        config.intermediate_size = len(neurons[0])
    if channels is not None:
        index = torch.tensor(channels)
        decoder: Any = module.decoder
        decoder.norm.weight = nn.Parameter(decoder.norm.weight[index].clone())
        embedding: Any = module.model.get_input_embeddings()
        embedding.weight = nn.Parameter(embedding.weight[:, index].clone())
        embedding.embedding_dim = len(index)
        head: Any = module.model.get_output_embeddings()
        if config.tie_word_embeddings:
            head.weight = embedding.weight
            head.in_features = len(index)
        else:
            _slice(head, columns=index)
        config.hidden_size = len(index)


def _slice(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    weight = linear.weight if rows is None else linear.weight[rows]
    weight = weight if columns is None else weight[:, columns]
    linear.weight = nn.Parameter(weight.clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None and rows is not None:
        linear.bias = nn.Parameter(linear.bias[rows].clone())


def shrink_of(of: HubLM | StageLM, wish: str) -> Shrink:
    """`layers=10`, `layers=10,width=384,ffn=1024`, `layers=12,choose=even`: what `--student shrink:...` says."""
    fields: dict[str, Any] = {}
    for part in filter(None, wish.split(",")):
        key, _, value = part.partition("=")
        if key in ("layers", "width", "ffn", "rows", "heal") and value.isdigit():
            fields[key] = int(value)
        elif key == "choose" and value in ("influence", "even"):
            fields[key] = value
        elif key == "keep" and all(v.isdigit() for v in value.split("+")):
            fields[key] = tuple(int(v) for v in value.split("+"))
        else:
            raise RunError(f"cannot read {part!r} in shrink:{wish}; write for example shrink:layers=10,width=384")
    if not fields.keys() & {"layers", "width", "ffn", "keep"}:
        raise RunError("say what to cut: shrink:layers=10, shrink:width=384, shrink:ffn=1024 or a mix of them")
    return Shrink(of=copy.deepcopy(of), **fields)
