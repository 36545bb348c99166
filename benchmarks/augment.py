"""Images changed a second, for every change and for the usual chains, beside a training step of a small ResNet.

    python benchmarks/augment.py            # writes results/augment.json

One thread, 128 images at a time, of random content. A change is timed as training asks for it: a batch of a split, drawn,
changed and standardised; `nothing` is the same batch without changes. The step is forward, backward and SGD of a ResNet-8
(He et al. 2016: 16, 32 and 64 channels, one block each). CPU time, because others may use the machine; the median of the
repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse.data import pixels
from stillhouse.data.augment import Augment
from stillhouse.data.images import Images

HERE = Path(__file__).resolve().parent
SHAPES = ((3, 32, 32), (1, 28, 28))
CHAINS: dict[str, Augment | None] = {
    "nothing": None,
    "shift": Augment(shift=4),
    "shift, zero border": Augment(shift=4, border="zero"),
    "flip": Augment(flip=True),
    "resized crop": Augment(crop=0.3),
    "brightness": Augment(brightness=0.4),
    "contrast": Augment(contrast=0.4),
    "saturation": Augment(saturation=0.4),
    "cutout": Augment(cutout=0.5),
    **{f"operation {kind}": Augment(operations=1, kinds=(kind,)) for kind in pixels.OPERATIONS[1:]},
    "RandAugment(2)": Augment(operations=2),
    "mixup": Augment(mixup=1.0),
    "CutMix": Augment(cutmix=1.0),
    "shift + flip": Augment(shift=4, flip=True),
    "shift + flip + RandAugment(2)": Augment(shift=4, flip=True, operations=2),
    "shift + flip + RandAugment(2) + CutMix": Augment(shift=4, flip=True, operations=2, cutmix=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "augment.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    told: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__, "threads": 1,
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "batch": args.batch,
        "repeats": args.repeats, "unit": "images per second of CPU time", "shapes": {},
    }  # fmt: skip
    for shape in SHAPES:
        training = measured(step_of(shape, args.batch), args)
        speeds = {name: measured(batch_of(shape, augment, args.batch), args) for name, augment in CHAINS.items()}
        cost = {name: training / speed for name, speed in speeds.items()}  # of a step's time
        told["shapes"]["x".join(map(str, shape))] = {
            "training step": round(training), "speed": {name: round(speed) for name, speed in speeds.items()},
            "share of a step": {name: round(value, 4) for name, value in cost.items()},
        }  # fmt: skip
        print(f"{shape}: a ResNet-8 trains on {training:,.0f} images/s")
        for name, speed in speeds.items():
            print(f"  {name:40} {speed:12,.0f} images/s {cost[name]:8.1%} of a step")
    args.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def measured(work: Callable[[int], None], args: argparse.Namespace) -> float:
    """Images a second."""
    work(0)
    times: list[float] = []
    for number in range(args.repeats):
        began = time.process_time()
        work(number)
        times.append(time.process_time() - began)
    return args.batch / statistics.median(times)


def batch_of(shape: tuple[int, ...], augment: Augment | None, size: int) -> Callable[[int], None]:
    pictures = torch.randint(0, 256, (size * 8, *shape), dtype=torch.uint8)
    labels, flat = torch.arange(size * 8) % 10, torch.full((shape[0], 1, 1), 127.0)
    split = Images(pictures, labels, tuple("0123456789"), flat, flat / 2, augment=augment)

    def work(number: int) -> None:
        split.batch(range(size), number)

    return work


def step_of(shape: tuple[int, ...], size: int) -> Callable[[int], None]:
    network = ResNet8(shape[0])
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    images, labels = torch.randn(size, *shape), torch.arange(size) % 10

    def work(number: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return work


class Block(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        stride = 1 if inside == outside else 2
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)])
        self.past = nn.Identity() if stride == 1 else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        return (y + self.past(x)).relu()


class ResNet8(nn.Sequential):
    def __init__(self, channels: int):
        stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        blocks = [Block(16, 16), Block(16, 32), Block(32, 64)]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


if __name__ == "__main__":
    main()
