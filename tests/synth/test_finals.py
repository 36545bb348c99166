"""What texts say in the end."""

from __future__ import annotations

import pytest

from stillhouse.synth.finals import Final


@pytest.mark.parametrize(
    ("final", "text", "truth", "right"),
    [
        (Final(), "3+4=7\nAnswer: 7", "7", True),
        (Final(), "Answer: 7\n\nWait.\n\nAnswer: 8", "7", False),
        (Final(), "so \\boxed{7}", "#### 7", True),
        (Final(), "", "7", False),
        (Final(), " \n", "7", False),
        (Final(pattern=r"#(\d+)$"), "3+4=7#7", "7", True),
        (Final(pattern=r"#(\d+)$"), "3+4=7#7", "2+5=7#7", True),
        (Final(pattern=r"#(\d+)$"), "3+4=7", "7", False),  # it says nothing in the end
        (Final(pattern=r"#(\d+)$"), "3+4=7#8", "7", False),
        (Final(check="choice"), "Answer: (b)", "B", True),
        (Final(check="exact"), "Answer: Ñandú.", "ñandú", True),
        (Final(check="exact", pattern="<a>(.*)</a>"), "<a>x</a><a>y</a>", "x", False),
    ],
)
def test_by_hand(final: Final, text: str, truth: str, right: bool) -> None:
    assert final.right(text, truth) is right


def test_no_expression() -> None:
    with pytest.raises(ValueError, match="no regular expression"):
        Final(pattern="(")
