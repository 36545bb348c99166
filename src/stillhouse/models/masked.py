"""Masked autoencoders over vision transformers (He et al. 2021, arXiv 2111.06377), and classifiers that begin with theirs.

The encoder sees a few patches of an image, a light decoder tells the others' pixels. Which patches are seen is drawn for an
item at a step (`noise`), so that teacher and student see the same, however a batch is split and wherever a run goes on.

Differs from the authors' code: the tables of positions begin as sines and cosines, and are learned from there.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.run import Run, RunError
from ..core.signal import Batch
from .earlier import Continued
from .toys import Kept, sizes_of
from .vision import TransformerBlock, VisionTransformer, ViT


@dataclass(frozen=True, kw_only=True)
class Masked(Kept):
    """An encoder and the decoder that pre-training needs; as a classifier it is the encoder with its own, untrained head."""

    encoder: ViT = field(default_factory=ViT)
    width: int = 32  # of the decoder
    depth: int = 2  # of the decoder
    heads: int = 4  # of the decoder
    weights: str | None = None  # a folder that a run left of such a model (artifacts/STAGE/data); None: from scratch

    def __post_init__(self) -> None:
        if self.width % self.heads or self.depth < 1:
            raise ValueError(
                f"a decoder has a width that its heads divide and at least one block, not width {self.width}, "
                f"{self.heads} heads and depth {self.depth}"
            )
        if self.encoder.distilled:
            raise ValueError("an encoder gets its distillation token after pre-training: Pretrained(distilled=true)")

    def build(self, run: Run) -> MaskedAutoencoder:
        """Images `[B, C, H, W]` to the encoder's logits `[B, classes]`."""
        if self.weights is not None:
            return self.load(Path(self.weights), run)
        shape, classes = sizes_of(run, self.encoder.shape, self.encoder.classes)
        if len(shape) != 3:
            raise RunError(f"a masked autoencoder reads images [C, H, W], and the items here are {list(shape)}")
        encoder = replace(self.encoder, shape=shape, classes=classes).build(run)
        assert isinstance(encoder, VisionTransformer)
        return MaskedAutoencoder(self, encoder, shape)

    def load(self, folder: Path, run: Run) -> MaskedAutoencoder:
        """With the weights in a folder; RunError if they do not fit."""
        module = Kept.load(replace(self, weights=None), folder, run)
        assert isinstance(module, MaskedAutoencoder)
        return module


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A classifier that begins with the encoder of a masked autoencoder; its heads and its distillation token are new."""

    stage: str | None = None  # that pre-trained it; None: it begins as the recipe's student does, for comparison
    distilled: bool = False  # with a distillation token
    dropout: float = 0.0

    def build(self, run: Run) -> nn.Module:
        """Images `[B, C, H, W]` to logits `[B, classes]`."""
        spec = self._spec(run)
        before = (spec.build(run) if self.stage is None else spec.load(run.path(self.stage), run)).encoder
        module = self._plain(run).build(run)
        assert isinstance(module, VisionTransformer)
        kept = before.tokens
        with torch.no_grad():
            for name, value in before.state_dict().items():
                if name == "extra":
                    module.get_parameter(name)[:, :kept] = value
                elif name == "position":  # the new token, if there is one, stands between the old ones and the patches
                    module.position[:, :kept], module.position[:, module.tokens :] = value[:, :kept], value[:, kept:]
                elif not name.startswith("head"):
                    module.get_parameter(name).copy_(value)
        return module

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """As a vision transformer's."""
        self._plain(run).save(module, folder, run)

    def load(self, folder: Path, run: Run) -> nn.Module:
        """As a vision transformer's."""
        return self._plain(run).load(folder, run)

    def _spec(self, run: Run) -> Masked:
        """Of what the stage trains: its own student, or the recipe's."""
        spec = getattr(run.recipe.stages.get(self.stage), "student", None)
        while spec is None or isinstance(spec, Continued):
            spec = (spec and spec.spec) or run.recipe.student
        if not isinstance(spec, Masked):
            raise RunError(f"a pre-trained encoder comes from models.masked.Masked, not from {type(spec).__name__}")
        return spec

    def _plain(self, run: Run) -> ViT:
        return replace(self._spec(run).encoder, distilled=self.distilled, dropout=self.dropout)


class MaskedAutoencoder(nn.Module):
    """The encoder, and a decoder of its own width that also sees where something is hidden."""

    def __init__(self, spec: Masked, encoder: VisionTransformer, shape: tuple[int, int, int]):
        super().__init__()
        self.encoder, self.shape, self.patch = encoder, shape, spec.encoder.patch
        self.grid = shape[1] // self.patch, shape[2] // self.patch
        self.patches = self.grid[0] * self.grid[1]
        self.tokens = encoder.tokens  # in front of the patches
        self.into = nn.Linear(spec.encoder.width, spec.width)
        self.mask = nn.Parameter(torch.zeros(1, 1, spec.width))  # what stands where a patch is hidden
        nn.init.trunc_normal_(self.mask, std=0.02)
        self.position = nn.Parameter(torch.zeros(1, self.tokens + self.patches, spec.width))
        self.blocks = nn.ModuleList(
            [TransformerBlock(spec.width, spec.heads, 4 * spec.width, 0.0) for _ in range(spec.depth)]
        )
        self.norm = nn.LayerNorm(spec.width)
        self.predict = nn.Linear(spec.width, self.patch**2 * shape[0])
        with torch.no_grad():
            for table in (encoder.position, self.position):
                table[:, : self.tokens] = 0.0
                table[:, self.tokens :] = waves(self.grid, table.shape[-1])

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to the logits `[B, classes]` of the encoder's head."""
        said = self.encoder(images)
        assert isinstance(said, Tensor)
        return said

    def encode(self, images: Tensor, kept: Tensor | None = None, *, blocks: int | None = None) -> list[Tensor]:
        """What each of the first `blocks` blocks gives, `[B, tokens + K, D]`, before the encoder's norm.

        kept [B, K]: the numbers of the patches that are seen; None: all of them.
        """
        encoder = self.encoder
        x = encoder.stem(images.to(encoder.head.weight.dtype)).flatten(2).transpose(1, 2)
        x = x + encoder.position[:, self.tokens :]
        if kept is not None:
            x = picked(x, kept)
        if encoder.extra is not None:
            x = torch.cat([(encoder.extra + encoder.position[:, : self.tokens]).expand(len(x), -1, -1), x], 1)
        return _through(encoder.blocks, blocks, x)

    def decode(self, encoded: Tensor, kept: Tensor, *, blocks: int | None = None) -> list[Tensor]:
        """What each of the decoder's first `blocks` blocks gives, `[B, tokens + N, width]`, before its norm.

        encoded [B, tokens + K, D]: what the encoder's last block gives of the patches kept [B, K].
        """
        x = self.into(self.encoder.norm(encoded))
        seen = x[:, self.tokens :]
        whole = self.mask.to(x.dtype).expand(len(x), self.patches, -1)
        whole = whole.scatter(1, kept[..., None].expand(-1, -1, x.shape[-1]), seen)
        return _through(self.blocks, blocks, torch.cat([x[:, : self.tokens], whole], 1) + self.position)

    def reconstruct(self, decoded: Tensor) -> Tensor:
        """What the decoder's last block gives to every patch's pixels `[B, N, C · patch²]`."""
        return self.predict(self.norm(decoded))[:, self.tokens :]

    def summary(self, images: Tensor) -> Tensor:
        """What a head would read of whole images `[B, D]`: the class token after the norm, or the patches' mean."""
        x = self.encoder.norm(self.encode(images)[-1])
        return x[:, 0] if self.tokens else x.mean(1)

    def pixel_gap(self, images: Tensor, decoded: Tensor, kept: Tensor, *, normalised: bool = True) -> Tensor:
        """The mean squared error of the pixels of the hidden patches `[B]`, in at least float32.

        normalised: every patch's pixels at mean 0 and variance 1 (with n - 1, and 1e-6 added), as the paper likes it best.
        """
        wanted = patchify(images, self.patch)
        wanted = wanted.to(torch.promote_types(wanted.dtype, torch.float32))
        if normalised:
            variance = wanted.var(-1, keepdim=True) if wanted.shape[-1] > 1 else torch.zeros_like(wanted)
            wanted = (wanted - wanted.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()
        gap = (self.reconstruct(decoded).to(wanted.dtype) - wanted).square().mean(-1)
        away = hidden(kept, self.patches)
        return (gap * away).sum(1) / away.sum(1)


def _through(blocks: nn.ModuleList, first: int | None, x: Tensor) -> list[Tensor]:
    given: list[Tensor] = []
    for block in list(blocks)[:first]:
        x = block(x)
        given.append(x)
    return given


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images `[B, C, H, W]` to their patches `[B, N, C · patch²]`, row after row."""
    parts = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, C, rows, patch, columns, patch]
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def noise(batch: Batch, patches: int, run: Run) -> Tensor:
    """Uniform numbers `[B, N]` for the patches of each item: they depend on the run's seed, the item and the step alone.

    An item is its number in the data, or its content where the data do not number their items.
    """
    images: Tensor = batch["inputs"]
    items = batch.get("items")
    keys = [_content(image) for image in images] if items is None else items.tolist()
    drawn = [torch.rand(patches, generator=run.rng("mask", key)) for key in keys]
    return torch.stack(drawn).to(images.device) if drawn else images.new_zeros(0, patches)


def _content(image: Tensor) -> int:
    return zlib.crc32(image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def visible(drawn: Tensor, ratio: float) -> Tensor:
    """The numbers `[B, K]` of the patches with the lowest draws [B, N]: a share `1 - ratio`, rounded down, at least one seen
    and one hidden."""
    count = drawn.shape[1]
    seen = int(count * (1 - ratio) + 1e-6)  # 100 patches at 0.9 are 10, not 9
    return drawn.argsort(dim=1, stable=True)[:, : min(max(seen, 1), count - 1)]


def hidden(kept: Tensor, patches: int) -> Tensor:
    """`[B, N]`, 1 where a patch is not seen."""
    return torch.ones(len(kept), patches, device=kept.device).scatter(1, kept, 0.0)


def picked(x: Tensor, kept: Tensor) -> Tensor:
    """Of tokens `[B, N, D]` those with the numbers `[B, K]`."""
    return x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))


def waves(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of a patch's row and column `[N, width]`, wavelengths from 2π to 20,000π; what is left over is 0."""
    quarter = width // 4
    speed = 10_000.0 ** (-torch.arange(quarter) / max(quarter, 1))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.flatten()[:, None] * speed for place in (columns, rows)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1)
    return nn.functional.pad(table, (0, width - table.shape[1]))
