"""One of two processes that train together: `python ranks.py RANK FOLDER`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))

from core import lab  # noqa: E402
from core.test_engine import CRITIC, SGD, scripted  # noqa: E402
from stillhouse.core.engine import EngineError  # noqa: E402
from stillhouse.core.run import Run  # noqa: E402

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    method = lab.Alternating()
    for accumulate in (1, 2):
        for dtype in (torch.float32, torch.float64):
            weights = lab.trained(folder / f"run{rank}", accumulate, method=method, dtype=dtype, optim=SGD, optims=CRITIC)
            torch.save(weights, folder / f"{accumulate}_{dtype}_{rank}.pt")
    try:
        scripted(Run(folder / f"run{rank}", device=torch.device("cpu")), [("student", 1.0, 1)] * (1 + rank))
    except EngineError as error:
        (folder / f"error{rank}").write_text(str(error))
    dist.destroy_process_group()
