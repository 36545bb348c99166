"""Methods that compare features; what they share is in `methods/layers.py`."""

from ..layers import *  # noqa: F403  until every file takes it from there
from ..layers import Beside, Compared, Pairs, Seen, compared, equation, matched, total  # noqa: F401
