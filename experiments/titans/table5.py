"""Titans, table 5: what the parts of the neural memory are worth (arXiv 2501.00663; 400M parameters, 15B tokens).

    python -m nested_jax sweep --config=experiments/titans/table5.py --seeds=0,1,2
    python -m nested_jax table --config=experiments/titans/table5.py
    python -m nested_jax train --config=experiments/titans/table5.py:mag

Variants are rows, each at a size: `mag` and `mag@small` (190k parameters on the sources of the standard library, byte
by byte, a minute on a CPU), `mag@tiny` (for tests), `mag@400m` (the paper's size and hyperparameters; bring a text of
15B tokens and a pod). All rows of a size have the same number of parameters to within 3 %, by the width of their
feed-forward layers, and the same tokens in the same order.

Measured at "small" with the two commands (2 cores of an AMD EPYC virtual machine, jax 0.10.2, 2026-11-23; 300 steps of
1,024 bytes, seeds 0-2, about a minute each; bits per byte on 199,936 validation bytes; changes of the loss in percent,
the published ones of the logarithm of the perplexity, ours paired by seed):

=====================  =========  =========  ===================  ========
row                    published  bits/byte  change (range)       sign
=====================  =========  =========  ===================  ========
LMM                               2.713
+Attn (MAC)            -0.38      2.935      7.2 (6.2 to 9.4)     opposite
+Attn (MAG)            -1.51      2.833      4.4 (2.4 to 5.9)     opposite
+Attn (MAL)            -1.26      3.198      17.9 (15.5 to 18.3)  opposite
Linear memory          1.62       2.759      0.2 (-0.2 to 2.1)    unclear
w/o convolution        1.87       3.386      24.6 (22.5 to 25.5)  same
w/o momentum           2.14       2.720      0.1 (0.0 to 0.3)     same
w/o weight decay       2.20       2.725      0.0 (-1.4 to 0.7)    unclear
w/o persistent memory  0.69       2.887      0.8 (0.5 to 2.1)     same
=====================  =========  =========  ===================  ========

So this budget does not show what attention adds: with 300 steps a model mostly learns which byte follows which, which
convolutions give at once and attention does not.

Differs from the paper at "small": size, text and metric (bits per byte of held-out source files, not the mean of two
perplexities); no learning rate is tuned, for any row. Our LMM has no persistent tokens (learned initial weights
take their place), so "w/o persistent memory" is taken from MAG, and compared with MAG.
"""

import dataclasses

import nested_jax as nj
from nested_jax.models import AttentionConfig, MemoryConfig, ModelConfig
from nested_jax.train.comparison import Published, Row, changed_memory, compare, without_convolution
from nested_jax.train.experiment import Experiment

RESULT = Published(
    source="Titans, arXiv 2501.00663, table 5 (400M parameters, 15B tokens)",
    columns={"perplexity": "perplexity, mean of Wikitext and LAMBADA"},
    values={
        "lmm": {"perplexity": 27.01},
        "mac": {"perplexity": 26.67},
        "mag": {"perplexity": 25.70},
        "mal": {"perplexity": 25.91},
        "linear": {"perplexity": 28.49},
        "no-convolution": {"perplexity": 28.73},
        "no-momentum": {"perplexity": 28.98},
        "no-decay": {"perplexity": 29.04},
        "no-persistent": {"perplexity": 27.63},
    },
    base="lmm",
    bases={"no-persistent": "mag"},
)


def linear(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, network=nj.networks.Linear())


def no_momentum(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, rule=nj.rules.titans(momentum=0.0))


def no_decay(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, rule=nj.rules.titans(decay=0.0))


def no_persistent(config: ModelConfig) -> dict[str, AttentionConfig]:
    return {"attention": dataclasses.replace(config.attention, persistent=0)}


ROWS = {
    "lmm": Row("LMM", "titans-lmm"),
    "mac": Row("+Attn (MAC)", "titans-mac"),
    "mag": Row("+Attn (MAG)", "titans-mag"),
    "mal": Row("+Attn (MAL)", "titans-mal"),
    "linear": Row("Linear memory", "titans-lmm", linear),
    "no-convolution": Row("w/o convolution", "titans-lmm", without_convolution),
    "no-momentum": Row("w/o momentum", "titans-lmm", no_momentum),
    "no-decay": Row("w/o weight decay", "titans-lmm", no_decay),
    "no-persistent": Row("w/o persistent memory", "titans-mag", no_persistent),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    return compare(ROWS, arg)
