"""What a language model remembers of a batch of texts while it is continued: keys and values, in buffers with room."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from torch import Tensor


class Past:
    """The keys and values of one layer, each `[B, heads, T, d]`, in buffers that grow by half when they are full."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, with those of the new tokens, `[B, heads, n, d]`, at the end."""
        begin, self.length = self.length, self.length + keys.shape[2]
        if not self.buffers or self.length > self.buffers[0].shape[2]:
            room = self.length + self.length // 2 + 8
            bigger = [new.new_empty(*new.shape[:2], room, new.shape[3]) for new in (keys, values)]
            for small, big in zip(self.buffers, bigger, strict=False):
                big[:, :, :begin] = small[:, :, :begin]
            self.buffers = bigger
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, begin : self.length] = new
        return self.seen()

    def seen(self) -> tuple[Tensor, Tensor]:
        """Views of all keys and values so far."""
        keys, values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, or with copies of them."""
        self.buffers = [buffer[rows.to(buffer.device)] for buffer in self.buffers]


class KeyValues:
    """What the layers of one of our own models remember."""

    def __init__(self, depth: int):
        self.blocks = [Past() for _ in range(depth)]

    def batch_select_indices(self, rows: Tensor) -> None:
        """Go on with these rows only, or with copies of them (the name that transformers' caches use)."""
        for past in self.blocks:
            past.keep(rows)


def with_room(cache: Any) -> Any:
    """A transformers cache whose layers that see everything write into buffers with room.

    Its own layers copy all keys and values to a new place for every token; those with a window stay as they are.
    """
    plain, roomy = _layers()
    cache.layers = [roomy() if type(layer) is plain else layer for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is plain:  # layers that are made when they are met
        cache.layer_class_to_replicate = roomy
    return cache


@lru_cache(maxsize=1)
def _layers() -> tuple[type, type]:
    """Transformers' layer, and ours; made here, since transformers takes seconds to import."""
    plain: Any = importlib.import_module("transformers.cache_utils").DynamicLayer

    class Roomy(plain):
        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            super().lazy_initialization(key_states, value_states)
            self.past = Past()

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self.past.extend(key_states, value_states)
            return self.keys, self.values

        def batch_select_indices(self, indices: Tensor) -> None:
            if self.is_initialized:
                self.past.keep(indices)
                self.keys, self.values = self.past.seen()

    return plain, Roomy
