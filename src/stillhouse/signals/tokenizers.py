"""Which tokenizer signals were made with: stored ids mean nothing under another one."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of the vocabulary: tokens and their ids, as `check_tokenizers` compares them."""
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries, ensure_ascii=False).encode()).hexdigest()


def classes_of(tokenizer: Any) -> int:
    """The classes that a token can have; rows of a head beyond them only pad it."""
    return 1 + max(tokenizer.get_vocab().values())
