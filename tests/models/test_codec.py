"""The codec: lengths, tokens that can be decoded, and what its parts see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from language import run_of
from stillhouse.core.run import RunError
from stillhouse.data.toys import Clusters
from stillhouse.data.waves import Chords
from stillhouse.models.codec import Codec, Decoder, Encoder, Listener, SignalCodec

SPEC = Codec(strides=(3, 2), width=8, latent=5, semantic=6, acoustic=4, levels=3)
DATA = Chords(classes=3, length=48, train=12, valid=6, test=6)


def codec(**settings: Any) -> SignalCodec:
    torch.manual_seed(0)
    return SignalCodec(Codec(**{"strides": (3, 2), "width": 8, "latent": 5, "semantic": 6, "acoustic": 4, **settings}))


@pytest.mark.parametrize("strides", [(2,), (3,), (5, 2), (2, 3, 4)])
@pytest.mark.parametrize("length", [60, 61, 7])
def test_lengths(strides: tuple[int, ...], length: int):
    made = Encoder(4, strides)(torch.randn(2, 1, length))
    hop = torch.tensor(strides).prod()
    assert made.shape == (2, 4, -(-length // hop))
    assert Decoder(4, 6, strides)(made.transpose(1, 2), length).shape == (2, 1, length)
    whole = Decoder(4, 6, strides)(made.transpose(1, 2), 10_000)
    assert whole.shape[-1] == made.shape[-1] * hop  # every step gives as many samples as it stands for


@pytest.mark.parametrize("attention", [0, 1])
def test_tokens_say_everything_that_comes_back(attention: int):
    module, x = codec(levels=3, attention=attention), torch.randn(2, 1, 32)
    coded = module(x)
    assert coded.tokens.shape == (2, 6, 4) and int(coded.tokens[..., 0].max()) < 6 and int(coded.tokens[..., 1:].max()) < 4
    assert torch.allclose(module.decode(coded.tokens, 32), coded.heard, atol=1e-5)
    assert module.decode(coded.tokens).shape == (2, 1, 36)


def test_what_is_decoded_is_the_sum():
    module, x = codec(), torch.randn(2, 1, 36)
    coded = module(x)
    wanted = module.decoder(coded.semantic.vectors + coded.acoustic.vectors, 36)
    assert torch.equal(coded.heard, wanted)
    coded.heard.sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.abs().sum() > 0) for e in module.encoders for p in e.parameters() if p.ndim > 1
    )


def test_a_signal_is_heard_alike_alone_and_among_others():
    module, x = codec(attention=1), torch.randn(4, 1, 36)
    assert torch.allclose(module(x).semantic.vectors[1:2], module(x[1:2]).semantic.vectors, atol=1e-5)


def test_attention_reaches_the_whole_signal_and_convolutions_do_not():
    x = torch.randn(1, 1, 600)
    changed = x.clone()
    changed[..., -6:] += 3.0
    for attention, reached in ((0, False), (1, True)):
        module = codec(attention=attention)
        first, second = (module.vectors(s)[0][0, 0] for s in (x, changed))
        assert torch.allclose(first, second, atol=1e-6) != reached


def test_codebooks_are_fitted_to_signals():
    module, x = codec(), torch.randn(40, 1, 36)
    with torch.no_grad():
        for book in module.books:
            book.books[0].vectors.mul_(0.1).add_(100.0)
    assert module.refit(x, torch.Generator().manual_seed(0)) > 6
    for _ in range(3):
        module.refit(x, torch.Generator().manual_seed(0))
    assert int(module(x).semantic.codes.unique().numel()) == 6
    assert float(module(x).semantic.commitment.mean()) < float(module.vectors(x)[0].var())


def test_kept_as_it_is(tmp_path: Path):
    run = run_of(tmp_path / "run", SPEC, data=DATA)
    for spec in (SPEC, Listener(width=8)):
        module = spec.build(run).eval()
        (tmp_path / str(type(spec).__name__)).mkdir()
        spec.save(module, tmp_path / type(spec).__name__, run)
        again = spec.load(tmp_path / type(spec).__name__, run).eval()
        assert all(torch.equal(a, again.state_dict()[name]) for name, a in module.state_dict().items())
    with pytest.raises(RunError, match="do not fit"):
        Codec(width=16).load(tmp_path / "Codec", run)


def test_the_classifier_hears_features_in_time(tmp_path: Path):
    run = run_of(tmp_path / "run", SPEC, data=DATA)
    module = Listener(width=8, stride=4).build(run)
    x = torch.randn(2, 1, 48)
    assert module.body(x).shape[:2] == (2, 8) and module(x).shape == (2, 3)
    assert torch.allclose(module(x), module.head(module.body(x).mean(-1)))


def test_low_precision_and_few_items():
    module = codec(levels=2).to(torch.bfloat16)
    coded = module(torch.randn(1, 1, 36))
    coded.heard.float().sum().backward()
    assert bool(coded.heard.isfinite().all()) and module(torch.zeros(0, 1, 36)).heard.shape == (0, 1, 36)


def test_refusals(tmp_path: Path):
    run = run_of(tmp_path / "run", SPEC, data=Clusters())
    for spec in (SPEC, Listener()):
        with pytest.raises(RunError, match=r"reads signals \[1, T\], and the items of these data are \[8\]"):
            spec.build(run)
    for wrong in ({"strides": ()}, {"levels": 0}, {"semantic": 1}, {"attention": 1, "width": 10, "heads": 2}):
        with pytest.raises(ValueError, match="are 1 or more|2 codes or more|multiple of twice"):
            Codec(**wrong)
    with pytest.raises(ValueError, match="1 or more"):
        Listener(depth=0)
