"""Atlas, table 6: what the parts of Atlas are worth (arXiv 2505.23735; 760M parameters, 30B tokens).

    python -m nested_jax sweep --config=experiments/atlas/table6.py --seeds=0,1,2
    python -m nested_jax table --config=experiments/atlas/table6.py
    python -m nested_jax train --config=experiments/atlas/table6.py:no-muon

Variants are rows, each at a size: `no-muon` and `no-muon@small` (190k parameters on the sources of the standard
library, byte by byte, minutes on a CPU), `no-muon@tiny` (for tests), `no-muon@760m` (the paper's size and
hyperparameters; bring a text of 30B tokens and a pod). All rows of a size have the same number of parameters to within
3 %, by the width of their feed-forward layers, and the same tokens in the same order.

Measured with one block, 300 steps of 256 bytes and 103,148 to 104,543 parameters, as Newton-Schulz for every token
takes minutes on a CPU (2 cores of an AMD EPYC virtual machine, jax 0.10.2, 2026-11-23; seeds 0-2; bits per byte on
199,936 validation bytes, context 128; changes in percent as in `experiments/titans/table5.py`):

    python -m nested_jax sweep --config=experiments/atlas/table6.py --seeds=0,1,2 --config.model.layers=1
    (and --config.data.batch_size=2 --config.data.sequence_length=128 in the same line)

======================  =========  =========  =====================  ========
row                     published  bits/byte  change (range)         sign
======================  =========  =========  =====================  ========
Atlas                              3.084
+Gated MLP memory       -0.74      3.120      1.2 (0.2 to 1.6)       opposite
+Attn (MAG)             -0.12      3.239      5.0 (3.7 to 5.1)       opposite
+Attn (MAL)             0.48       3.436      11.6 (11.1 to 11.7)    same
Linear memory           1.73       3.122      -0.1 (-0.4 to 1.4)     unclear
w/o Muon                -0.54      3.083      0.2 (-0.4 to 0.2)      unclear
c = 1                   3.20       3.151      1.2 (1.2 to 2.4)       same
w/o polynomial mapping  3.45       3.056      -1.3 (-3.2 to -0.7)    opposite
======================  =========  =========  =====================  ========

What the windows add shows; what attention and the gated memory add does not at this budget, and without the polynomial
map keys have 16 features here and 4 with it, which is more than the map gives back.

Differs from the paper at "small": size, text and metric (bits per byte of held-out source files, not the mean of two
perplexities); windows of 4 tokens; 4 features of a key before the polynomial map, which without it are 16; no learning
rate is tuned, for any row.
"""

import dataclasses

import nested_jax as nj
from nested_jax.models import MemoryConfig, ModelConfig
from nested_jax.train.comparison import Published, Row, changed_memory, compare, shortened, training, variant
from nested_jax.train.experiment import Experiment

RESULT = Published(
    source="Atlas, arXiv 2505.23735, table 6 (760M parameters, 30B tokens)",
    columns={"perplexity": "perplexity, mean of Wikitext and LAMBADA"},
    values={
        "atlas": {"perplexity": 19.97},
        "gated-mlp": {"perplexity": 19.53},
        "mag": {"perplexity": 19.90},
        "mal": {"perplexity": 20.26},
        "linear": {"perplexity": 21.03},
        "no-muon": {"perplexity": 19.65},
        "one-token": {"perplexity": 21.98},
        "no-polynomial": {"perplexity": 22.14},
    },
    base="atlas",
)


def linear(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, network=nj.networks.Linear())


def one_token(config: ModelConfig) -> dict[str, MemoryConfig]:
    return changed_memory(config, window=1)


def no_polynomial(config: ModelConfig) -> dict[str, MemoryConfig]:
    return {"memory": dataclasses.replace(config.memory, features=None, key_dim=None)}


ROWS = {
    "atlas": Row("Atlas", "atlas"),
    "gated-mlp": Row("+Gated MLP memory", "atlas++"),
    "mag": Row("+Attn (MAG)", "atlas-mag"),
    "mal": Row("+Attn (MAL)", "atlas-mal"),
    "linear": Row("Linear memory", "atlas", linear),
    "no-muon": Row("w/o Muon", "omeganet"),
    "one-token": Row("c = 1", "atlas", one_token),
    "no-polynomial": Row("w/o polynomial mapping", "atlas", no_polynomial),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row at a size; see the file's docstring."""
    row, _, size = variant(ROWS, arg)
    if size == "small":
        return shortened(training(ROWS[row].model(size, layers=1), size))
    return compare(ROWS, arg)
