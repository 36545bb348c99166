"""The bytes of DistillKit's offline data sets (arcee-ai/DistillKit), decoded from what its code writes.

Two encodings of the k likeliest classes of a token, by falling probability:

    new     `bytepacked_indices`   k ids of b bits each, the highest bit first, b = ceil(log2 d); zeros fill the last byte
            `compressed_logprobs`  exact_k floats | one coefficient per term | per bin: a scale, then integers of
                                   `element_bits` bits, packed as the ids are
    legacy  `packed_indices`       64 // b ids in each 64-bit word, the first in the lowest bits
            `exact_values`, `coeffs`   exact_k values; the coefficients of a polynomial in the rank, counted from 1

Ranks beyond exact_k are a sum of terms in t = 0, 1, ... (or 0 to 1 with `normalize_t`) plus the residual of their bin.
With `delta_encoding` each number is the step from the one before. Steps are added in float64 here, where DistillKit's
own decoder rounds the sum to `exact_dtype`; and terms of 16 bits are multiplied in float32 if no residuals stand on them,
where it can overflow. In float32 the same numbers come out, to 1e-6; the ids are the same for every config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy
import torch

from ..core.recipe import nearest
from ..core.run import RunError

FLOATS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}  # bytes
NEW, LEGACY, PLAIN = (
    ("compressed_logprobs", "bytepacked_indices"),
    ("packed_indices", "exact_values", "coeffs"),
    ("top_values", "token_ids"),
)
MOST_BITS = 62  # of one integer; DistillKit's own arithmetic overflows beyond


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Residuals of the next `num_elements` ranks: one scale, and an integer each."""

    scale_dtype: str
    element_bits: int
    num_elements: int

    def __post_init__(self) -> None:
        _check_float(self.scale_dtype)
        if not 1 <= self.element_bits <= MOST_BITS:
            raise RunError(f"residual_bins with {self.element_bits} bits an element: between 1 and {MOST_BITS} can be read")

    @property
    def packed(self) -> int:
        """Bytes of the integers."""
        return (self.num_elements * self.element_bits + 7) // 8


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The new encoding, as `logprob_compressor` or `compression_config.yaml` describes it."""

    d: int  # classes
    k: int
    exact_k: int
    residual_bins: tuple[Bin, ...] = ()
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] | None = None  # powers of t, "sqrt" or "exp"
    term_dtype: str = "float32"
    delta_encoding: bool = True
    error_diffusion: bool = False  # changes what is written, not how it is read
    normalize_t: bool = False

    def __post_init__(self) -> None:
        _check_float(self.exact_dtype)
        _check_float(self.term_dtype)
        if not 0 <= self.exact_k <= self.k or sum(b.num_elements for b in self.residual_bins) > self.k - self.exact_k:
            raise RunError("a compression config must have exact_k + all num_elements <= k")
        if self.exact_k < self.k and not self.polynomial_terms and not self.residual_bins:
            raise RunError("a compression config with exact_k < k needs polynomial_terms or residual_bins")
        if wrong := [t for t in self.polynomial_terms or () if not isinstance(t, int) and t not in ("sqrt", "exp")]:
            raise RunError(f"polynomial_terms are powers, 'sqrt' or 'exp', not {wrong[0]!r}")

    @property
    def bits(self) -> int:
        """Of one id, as DistillKit counts them: in float32."""
        return int(torch.tensor(self.d, dtype=torch.float32).log2().ceil().item())

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of a token's log-probabilities and of its ids."""
        bins = sum(FLOATS[b.scale_dtype] + b.packed for b in self.residual_bins)
        terms = len(self.polynomial_terms or ()) * FLOATS[self.term_dtype]
        return self.exact_k * FLOATS[self.exact_dtype] + terms + bins, (self.k * self.bits + 7) // 8

    def ids(self, data: Any) -> Any:
        """`[n, k]` from the bytes `[n, widths[1]]`."""
        return unpack(data, self.bits, self.k)

    def logs(self, data: Any) -> Any:
        """Log-probabilities `[n, k]` in float64 from the bytes `[n, widths[0]]`; not finite where the bytes are not."""
        at = 0

        def read(size: int) -> Any:
            nonlocal at
            at += size
            return data[:, at - size : at]

        n, tail = len(data), self.k - self.exact_k
        exact = floats(read(self.exact_k * FLOATS[self.exact_dtype]), self.exact_dtype)
        rest = numpy.zeros((n, tail))
        terms = self.polynomial_terms or ()
        if terms:
            rest += self._curve(floats(read(len(terms) * FLOATS[self.term_dtype]), self.term_dtype), tail)
        rank = 0
        for b in self.residual_bins:
            scale = floats(read(FLOATS[b.scale_dtype]), b.scale_dtype)
            found = unpack(read(b.packed), b.element_bits, b.num_elements).astype(numpy.float64)
            found = found * 2 - 1 if b.element_bits == 1 else found - 2 ** (b.element_bits - 1)
            rest[:, rank : rank + b.num_elements] += found * scale
            rank += b.num_elements
        every = numpy.concatenate([exact, rest], -1)
        return every.cumsum(-1) if self.delta_encoding else every

    def _curve(self, coefficients: Any, steps: int) -> Any:
        """The fitted terms `[n, steps]`. Rounded as the encoder rounded them if residuals stand on them, else not."""
        t = torch.linspace(0, 1, steps) if self.normalize_t else torch.arange(steps, dtype=torch.float32)
        columns = [t**p if isinstance(p, int) else getattr(torch, p)(t) for p in self.polynomial_terms or ()]
        half = FLOATS[self.term_dtype] == 2
        dtype = torch.float32 if half and not self.residual_bins else getattr(torch, self.term_dtype)
        x = torch.stack(columns, -1).to(dtype)
        return (x * torch.from_numpy(coefficients).to(dtype).unsqueeze(-2)).sum(-1).double().numpy()


@dataclass(frozen=True, kw_only=True)
class Legacy:
    """The legacy encoding, as `legacy_logit_compression` describes it."""

    vocab_size: int
    k: int
    exact_k: int
    polynomial_degree: int
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: str = "float32"

    @property
    def bits(self) -> int:
        """Of one id."""
        return int(torch.tensor(self.vocab_size, dtype=torch.float32).log2().ceil().item())

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers a token in `packed_indices`, `exact_values` and `coeffs`."""
        terms = self.polynomial_degree + 1 + self.with_sqrt_term if self.exact_k < self.k else 0
        return -(-self.k // (64 // self.bits)), self.exact_k, terms

    def ids(self, words: Any) -> Any:
        """`[n, k]` from 64-bit words."""
        words = words.astype(numpy.int64, copy=False).view(numpy.uint64)[..., None]
        shifts = (numpy.arange(64 // self.bits) * self.bits).astype(numpy.uint64)
        found = (words >> shifts) & numpy.uint64((1 << self.bits) - 1)
        return found.reshape(len(words), -1)[:, : self.k].astype(numpy.int64)

    def logs(self, exact: Any, coefficients: Any) -> Any:
        """Values `[n, k]` in float64: log-probabilities, or logits less their mean if the set was made from logits."""
        a = numpy.arange(1, self.k - self.exact_k + 1, dtype=numpy.float64)
        powers = [-i if self.invert_polynomial else i for i in range(self.polynomial_degree + 1)]
        columns = [a**p for p in powers] + ([numpy.sqrt(a)] if self.with_sqrt_term else [])
        exact = exact.astype(numpy.float64)
        if self.exact_k == self.k:
            return exact
        return numpy.concatenate([exact, coefficients.astype(numpy.float64) @ numpy.stack(columns)], -1)


def unpack(data: Any, bits: int, count: int) -> Any:
    """`count` integers of `bits` bits from the bytes `[n, B]`, the highest bit of each first: `[n, count]`."""
    ones = numpy.unpackbits(numpy.ascontiguousarray(data), axis=-1, count=bits * count).reshape(len(data), count, bits)
    found = numpy.zeros((len(data), count), numpy.int64)
    for bit in range(bits):
        found = (found << 1) | ones[..., bit]
    return found


def floats(data: Any, dtype: str) -> Any:
    """Little-endian floats from the bytes `[n, B]`, in float64."""
    data = numpy.ascontiguousarray(data)
    size = FLOATS[dtype]
    if not data.shape[-1]:
        return numpy.zeros((len(data), 0))
    if dtype == "bfloat16":
        return (data.view("<u2").astype("<u4") << 16).view("<f4").astype(numpy.float64)
    return data.view(f"<f{size}").astype(numpy.float64)


def packing_of(config: str | Path | Mapping[str, Any] | None, data: Path) -> Quantized | Legacy:
    """The encoding that a config tells of: a mapping, a YAML or JSON file, or `compression_config.yaml` beside the data.

    A training config of DistillKit will do: its `logprob_compressor` or `legacy_logit_compression` is taken. RunError
    if there is none or it makes no sense.
    """
    where = "the compression config"
    if not isinstance(config, Mapping):
        file = Path(config) if config is not None else _beside(data)
        config, where = _read(file), str(file)
    told = config.get("teacher", config)
    told = told.get("logprob_compressor") or told.get("legacy_logit_compression") or told
    kind: Any = Legacy if "polynomial_degree" in told else Quantized
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(told) - known):
        raise RunError(f"{where}: no {unknown[0]!r} in DistillKit's compression{nearest(unknown[0], known)}")
    values = dict(told)
    try:
        if kind is Quantized:
            values["residual_bins"] = tuple(Bin(**b) for b in values.get("residual_bins") or ())
            terms = values.get("polynomial_terms")
            values["polynomial_terms"] = None if terms is None else tuple(terms)
        return kind(**values)
    except TypeError as error:
        raise RunError(f"{where}: {str(error).partition('() ')[2] or error}") from error
    except RunError as error:
        raise RunError(f"{where}: {error}") from error


def _beside(data: Path) -> Path:
    folder = data if data.is_dir() else data.parent
    for name in ("compression_config.yaml", "compression_config.yml", "compression_config.json"):
        if (folder / name).is_file():
            return folder / name
    raise RunError(f"{folder} has no compression_config.yaml: name the config that DistillKit compressed {data.name} with")


def _read(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"cannot read {file}: {str(error).splitlines()[0]}") from error
    if not isinstance(found, Mapping):
        raise RunError(f"{file} must hold a compression config: d, k, exact_k ...")
    return found


def _check_float(name: str) -> None:
    if name not in FLOATS:
        raise RunError(f"no float {name!r} in DistillKit's compression{nearest(name, FLOATS)}")
