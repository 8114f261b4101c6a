"""A byte-level Titans language model on the Python standard library's own source files.

LMM blocks (a memory layer, then a SwiGLU layer); the memory is a 2-layer MLP that learns while it reads, by the Titans
rule with gates per token. The matrices are trained by `nj.rules.muon`: the same kind of rule, one level up.

    python -m nested_jax train --config=experiments/quickstart.py
    python -m nested_jax train --config=experiments/quickstart.py --config.data.path=FILE_OR_DIR --workdir=runs/mine

Hardware: 2 CPU cores. Time: 3.5 minutes, compilation and evaluation included (seen on a machine with other work on it).
Expect, on the 826,368 validation bytes of Python 3.11.7's library: 2.02 bits per byte, beside 4.47 (unigram), 3.45
(bigram), 2.58 (trigram) and 1.72 (xz). It is trained on contexts of 256 bytes: on 98,304 of those bytes it has 2.11 at
a context of 64, 2.06 at 256, 2.10 at 1,024 and 2.81 at 4,096.
"""

import nested_jax as nj
from nested_jax.data import TextConfig
from nested_jax.models import MemoryConfig, ModelConfig
from nested_jax.train.experiment import Experiment, SampleConfig
from nested_jax.train.optimizer import Group, OptimizerConfig


def get_config(arg: str = "") -> Experiment:
    """Variants: "" (the run described above) and "tiny" (seconds; for tests)."""
    if arg not in ("", "tiny"):
        raise ValueError(f"quickstart has the variants '' and 'tiny', got {arg!r}")
    tiny = arg == "tiny"
    memory = nj.Memory(
        network=nj.networks.MLP(depth=2, expansion=2 if tiny else 4),
        objective=nj.objectives.l2,
        rule=nj.rules.titans(),
        chunk_size=8 if tiny else 64,
    )
    not_matrices = Group(
        parameters="embedding|scale|bias|convolve|gates|initial",
        rule="optax.adam",
        arguments={"b1": 0.9, "b2": 0.95},
        learning_rate=4e-3,
    )
    return Experiment(
        model=ModelConfig(
            dim=32 if tiny else 128,
            layers=1 if tiny else 2,
            blocks=("memory",),
            memory=MemoryConfig(memory=memory, heads=2 if tiny else 4),
        ),
        data=TextConfig(
            sequence_length=32 if tiny else 256,
            batch_size=4 if tiny else 8,
            max_bytes=200_000 if tiny else None,
        ),
        optimizer=OptimizerConfig(
            rule=nj.rules.muon,
            arguments={"momentum": 0.95, "nesterov": True},
            learning_rate=0.04,
            warmup=5 if tiny else 30,
            weight_decay=0.05,
            groups=(not_matrices,),
        ),
        steps=20 if tiny else 500,
        log_every=5 if tiny else 20,
        eval_every=10 if tiny else 100,
        eval_windows=8 if tiny else 32,
        final_bytes=4000 if tiny else None,
        checkpoint_every=10 if tiny else 100,
        sample=SampleConfig(prompt="def ", length=32 if tiny else 400),
    )
