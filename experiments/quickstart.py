"""A byte-level Titans language model on the Python standard library's own source files.

LMM blocks (a memory layer, then a SwiGLU layer); the memory is a 2-layer MLP that learns while it reads, by the Titans
rule with gates per token. The matrices are trained by `nj.rules.muon`: the same kind of rule, one level up.

    python -m nested_jax train --config=experiments/quickstart.py
    python -m nested_jax train --config=experiments/quickstart.py --config.data.path=FILE_OR_DIR --workdir=runs/mine

Hardware: 2 CPU cores (AMD EPYC virtual machine, jax 0.10.2, 2026-11-22). Time: 3 min 14 s, compilation and evaluation
included. Expect, on the 826,368 validation bytes of Python 3.11.7's library: 2.020 bits per byte, beside 4.471
(unigram), 3.454 (bigram), 2.582 (trigram) and 1.717 (xz). It is trained on contexts of 256 bytes and loses on longer
ones: 2.08 at 256, 2.12 at 1,024, 2.67 at 4,096, by

    python -m nested_jax eval --config=experiments/quickstart.py --contexts=256,1024,4096 --bytes=200000
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
