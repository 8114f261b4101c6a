"""What accelerators can do at most, by their vendors' pages, and topologies made of them: `v5p:4x4x4`, `h100:8`.

Rates are per chip and dense. TPU numbers are those of Google's pages, read on the day that stands beside them (of
tpu7x the HBM's and the links' bandwidth from memory); GPU numbers those of NVIDIA's data sheets as others repeat them
(where a sheet prints rates with sparsity, half of them), TF32 rates and network ports from memory: check them before
money depends on them. Products of float32 numbers at the highest precision take six passes
of bfloat16 on a TPU and the CUDA cores on a GPU; at the default precision they take one pass on a TPU and TF32 on a
GPU. Interconnect is what a chip can send: half of the printed "bidirectional" or total bandwidth.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      flops: FLOP/s of products of "bfloat16", "float32" (default precision) and "highest" (float32, exact).
      memory: bytes of HBM.
      bandwidth: bytes/s of HBM.
      link: bytes/s that a chip sends to the others of its node (of a TPU: of its slice).
      node: chips that `link` joins; None for a whole TPU slice.
      network: bytes/s that a chip sends out of its node; None where there is nothing outside.
      devices: devices that JAX sees per chip.
      sides: of a slice, 2 or 3, each 1, 2 or a multiple of 4; None where there are no slices.
      source: where the numbers are from, and when they were read.
    """

    flops: Mapping[str, float]
    memory: float
    bandwidth: float
    link: float
    node: int | None = None
    network: float | None = None
    devices: int = 1
    sides: int | None = None
    source: str

    def sends(self, kind: str, group: int) -> float:
        """Bytes/s at which a chip sends in a collective.

        Beyond a node, rings of reductions and gathers enter and leave it over all its network ports at once, so that a
        chip's share is the slower of its link and the ports together; what goes from chip to chip has its own port.

        Args:
          kind: of collective, as HLO names it.
          group: chips that take part.
        """
        if self.node is None or self.network is None or group <= self.node:
            return self.link
        if kind in ("all-to-all", "collective-permute"):
            return self.network
        return min(self.link, self.node * self.network)


def _tpu(
    bfloat16: float, memory: float, bandwidth: float, both_ways: float, page: str, sides: int, devices: int = 1
) -> Chip:
    rates = {"bfloat16": bfloat16, "float32": bfloat16, "highest": bfloat16 / 6}
    source = f"https://docs.cloud.google.com/tpu/docs/{page}, 2026-11-25"
    memory, link = memory * GIB, both_ways / 2
    return Chip(flops=rates, memory=memory, bandwidth=bandwidth, link=link, devices=devices, sides=sides, source=source)


def _gpu(rates: tuple[float, float, float], memory: float, bandwidth: float, both: float, port: float, page: str):
    return Chip(
        flops=dict(zip(("bfloat16", "float32", "highest"), rates, strict=True)),
        memory=memory,
        bandwidth=bandwidth,
        link=both / 2,
        node=8,
        network=port,
        source=f"https://www.nvidia.com/en-us/data-center/{page}/, as others repeat its numbers; not read there",
    )


CHIPS: Mapping[str, Chip] = {
    "v5e": _tpu(197e12, 16, 819e9, 400e9, "v5e", 2),
    "v5p": _tpu(459e12, 95, 2765e9, 1200e9, "v5p", 3),
    "v6e": _tpu(918e12, 32, 1638e9, 800e9, "v6e", 2),
    "tpu7x": _tpu(2307e12, 192, 7380e9, 1200e9, "tpu7x", 3, devices=2),
    "a100": _gpu((312e12, 156e12, 19.5e12), 80e9, 2039e9, 600e9, 25e9, "a100"),
    "h100": _gpu((989e12, 494e12, 67e12), 80e9, 3350e9, 900e9, 50e9, "h100"),
    "h200": _gpu((989e12, 494e12, 67e12), 141e9, 4800e9, 900e9, 50e9, "h200"),
}
"""By the name a topology begins with: TPUs as Google Cloud calls them; GPUs are SXM, eight to a node (HGX), with one
network port per GPU (DGX: 200 Gbit/s beside an A100, 400 beside an H100 or H200)."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are joined.

    Attributes:
      name: as it was written.
      chip: which.
      shape: of the torus, or the number of GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many chips."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """How many devices JAX sees."""
        return self.chips * self.chip.devices

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu can compile for it."""
        return self.chip.node is None


def topology(name: str) -> Topology:
    """Reads a topology.

    Args:
      name: `CHIP:AxB`, `CHIP:AxBxC` or `CHIP:N`, the chip one of `CHIPS`.

    Raises:
      ValueError: for another chip, or a shape that it does not come in.

    Example:
      >>> topology("v5p:4x4x4").chips, topology("h100:8").is_tpu
      (64, False)
    """
    chip, _, shape = name.partition(":")
    if chip not in CHIPS:
        raise ValueError(f"topology: expected CHIP:SHAPE with a chip among {', '.join(CHIPS)}, got {name!r}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ValueError(f"topology: expected a shape like 4x4 or 8 after {chip}:, got {name!r}")
    sides, expected = tuple(map(int, shape.split("x"))), CHIPS[chip].sides
    if expected is not None and (len(sides) != expected or any(side > 2 and side % 4 for side in sides)):
        raise ValueError(f"topology: expected {expected} sides of 1, 2 or a multiple of 4 after {chip}:, got {name!r}")
    if expected is None and len(sides) != 1:
        raise ValueError(f"topology: expected a number of GPUs after {chip}:, got {name!r}")
    return Topology(name, CHIPS[chip], sides)
