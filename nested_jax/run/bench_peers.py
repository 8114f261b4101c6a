"""`bench scan --peers`: our memory layer beside the NeuralMemory of the PyPI package titans-pytorch 0.5.5.

Both map [2, 1024, 256] to the same shape through 4 heads of width 64, each an MLP of depth 2 and expansion 4 with
residual and norm, gates per token, gradients frozen over chunks of 64; forward+backward reaches all parameters and the
input. Ours runs without its convolution, which the peer does not have. What still differs:

- The peer materialises every chunk's weights and takes its momentum and decay from averages over a chunk, one step per
  chunk; queries read the weights of the chunk before. Our `step_per="chunk"` is the nearest to that. Our layer with a
  step per token is exact in all gates at every token, which the peer does not offer.
- The peer normalises its input (RMSNorm, once to write and once to read). Ours passes q, k and v through SiLU and makes
  q and k of length one.
- Behind the memory the peer has one sigmoid gate per head; ours an RMSNorm per head and a SiLU gate of all features,
  one more [256, 256] product.
- The peer's learning rates start near zero here (`init_adaptive_step_bias`): at its defaults random input makes it
  diverge.

The peer's products run on all cores. Ours do too, but by one JAX device per core with the batch split over them; and
the process keeps freed memory, for both (:mod:`nested_jax.run.host`).

Compare on an idle machine. Where other programs compete for the cores, the peer's threads wait for each other and it
looks several times slower than it is; the load average is printed for that reason.
"""

import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import nested_jax as nj
from nested_jax.models import MemoryConfig
from nested_jax.models.memory_layer import MemoryLayer
from nested_jax.run import host
from nested_jax.run.text_table import text_table
from nested_jax.run.timing import Compiled, interleave, ratio
from nested_jax.train import sharding

BATCH, TOKENS, DIM, HEADS, HEAD_DIM, CHUNK = 2, 1024, 256, 4, 64, 64
PEER = "titans-pytorch"
HEADINGS = ("layer", "pass", "ms", "× faster", "range", "compile s", "temp MiB")


def peer(threads: int) -> tuple[dict[str, Callable[[], None]], str]:
    """The peer's calls by pass, and its versions.

    Raises:
      ValueError: if the package is not installed.
    """
    try:
        import titans_pytorch  # pyrefly: ignore[missing-import]
        import torch  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise ValueError(f"--peers needs the packages to compare with: pip install -e '.[peers]' ({error})") from None
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = titans_pytorch.NeuralMemory(
        dim=DIM, chunk_size=CHUNK, batch_size=CHUNK, dim_head=HEAD_DIM, heads=HEADS, init_adaptive_step_bias=-5.0
    )
    x = torch.randn(BATCH, TOKENS, DIM, requires_grad=True)

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x)[0].sin().sum().backward()

    return {"forward": forward, "forward+backward": both}, f"torch {torch.__version__}"


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU by `erf`, as the peer has it; `jax.nn.gelu` takes `erfc`, which is slower."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def ours(**options) -> dict[str, Callable[[], None]]:
    """Our layer's calls by pass, the batch split over the devices; `options` go to the memory."""
    network = nj.networks.MLP(depth=2, expansion=4, norm=True, activation=gelu)
    memory = nj.Memory(network=network, rule=nj.rules.titans(), chunk_size=CHUNK, **options)
    layer = MemoryLayer(MemoryConfig(memory=memory, heads=HEADS, head_dim=HEAD_DIM, conv=0), DIM)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=math.gcd(BATCH, len(jax.devices()))))
    x = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, DIM))
    params = jax.device_put(layer.init(jax.random.key(1), x), NamedSharding(mesh, P()))
    x = jax.device_put(x, NamedSharding(mesh, sharding.BATCH))

    def forward(params, x):
        return layer.apply(params, x)[0]

    both = jax.grad(lambda params, x: jnp.sum(jnp.sin(forward(params, x))), argnums=(0, 1))
    return {"forward": Compiled(forward, (params, x)), "forward+backward": Compiled(both, (params, x))}


def table(rounds: int) -> str:
    """The comparison as text.

    Args:
      rounds: interleaved rounds, >= 1.

    Raises:
      ValueError: if the peer is not installed.
    """
    load = os.getloadavg()[0]
    threads = host.cores()
    theirs, versions = peer(threads)
    layers = {
        f"{PEER} 0.5.5": theirs,
        "ours, step per token": ours(),
        "ours, step per chunk": ours(step_per="chunk", read="start"),
    }
    calls = {(name, what): call for name, passes in layers.items() for what, call in passes.items()}
    measured = interleave(calls, rounds)
    rows = []
    for (name, what), result in sorted(measured.items(), key=lambda item: item[0][1]):
        middle, least, greatest = ratio(measured[next(iter(layers)), what], result)
        compiled = isinstance(calls[name, what], Compiled)
        rows.append(
            [
                name,
                what,
                f"{1e3 * result.median:.0f}",
                f"{middle:.2f}",
                f"{least:.2f}-{greatest:.2f}",
                f"{result.compile_seconds:.1f}" if compiled else "–",
                f"{(result.temporary_bytes or 0) / 2**20:.0f}" if compiled else "–",
            ]
        )
    title = f"B{BATCH} T{TOKENS} D{DIM}, {HEADS} heads × {HEAD_DIM}, MLP depth 2 × 4, chunk {CHUNK}, f32, {versions}"
    how = f"{threads} threads each, medians of {rounds} interleaved rounds, load average {load:.1f} at the start"
    return f"{title}, {how}\n\n{text_table(HEADINGS, rows)}"
