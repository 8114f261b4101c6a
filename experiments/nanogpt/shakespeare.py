"""nanoGPT's recipe for a CPU: characters of Shakespeare, with attention and with each memory in its place.

    python -m nested_jax sweep experiments/nanogpt/shakespeare.py --config.data.path=input.txt --seeds=0,1,2
    python -m nested_jax table experiments/nanogpt/shakespeare.py --config.data.path=input.txt
    python -m nested_jax train --config=experiments/nanogpt/shakespeare.py:titans-lmm --config.data.path=input.txt

The text is tiny Shakespeare, 1,115,394 ASCII characters, so that a byte is a character; it is
`data/tinyshakespeare/input.txt` of karpathy/char-rnn. The recipe, `config/train_shakespeare_char.py` of
karpathy/nanoGPT with the README's options for a CPU: 4 layers of width 128 with 4 heads, 12 sequences of 64 characters,
2,000 steps, 0.80 million parameters, no dropout; "a loss of only 1.88" nats per character on the last tenth. All rows
have that many parameters, by the width of their feed-forward layers. `:tiny` trains on the standard library's sources,
for tests.

Measured (2026-11-25 and 26, one seed, one core of an AMD EPYC virtual machine; the runs are in
`experiments/nanogpt/shakespeare.jsonl`), nats per character: Titans LMM 1.59, Yaad 1.61, DeltaNet and LSTM 1.62,
OmegaNet, Moneta, Memora and Gated DeltaNet 1.63, attention 1.64, Titans MAG 1.68, linear attention 1.69. Their times
cannot be compared: other runs shared the core.

Differs from the recipe: rotary positions, SwiGLU and RMSNorm in the row with attention; the loss is over all of the
last tenth, not over 20 batches of 12; 256 symbols, of which the text has 65.
"""

import math

from nested_jax.data import TextConfig
from nested_jax.models import Size
from nested_jax.train.comparison import Published, Row, Sweep, variant
from nested_jax.train.experiment import Experiment, SampleConfig
from nested_jax.train.optimizer import Group, OptimizerConfig

RESULT = Published(
    source="karpathy/nanoGPT, README (validation loss in nats per character)",
    columns={"loss": "nats per character"},
    values={"attention": {"loss": 1.88}},
    measured={"loss": "bits_per_byte"},
    unit=math.log(2),
)
SWEEP = Sweep(differs={"small": "positions, feed-forward layers and what the loss is taken over; see the docstring"})
ROWS = {
    "attention": Row("Attention", "transformer++"),
    "titans-lmm": Row("Titans LMM", "titans-lmm"),
    "titans-mag": Row("Titans MAG", "titans-mag"),
    "omeganet": Row("OmegaNet", "omeganet"),
    "moneta": Row("Moneta", "moneta"),
    "yaad": Row("Yaad", "yaad"),
    "memora": Row("Memora", "memora"),
    "deltanet": Row("DeltaNet", "deltanet"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
    "linear-attention": Row("Linear attention", "linear-attention"),
    "lstm": Row("LSTM", "lstm"),
}
SIZE = Size(4, 128, 4, 804_096, vocabulary=256, chunk=16, omega=4, window=64, large=64, key_dim=8, periods=(64, 16))


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row; see the file's docstring."""
    row, _, size = variant(ROWS, arg)
    tiny, steps = size == "tiny", 20 if size == "tiny" else 2_000
    data = TextConfig(path=None if tiny else "input.txt", sequence_length=64, batch_size=12)
    if tiny:
        data = TextConfig(sequence_length=32, batch_size=4, max_bytes=100_000)
    return Experiment(
        model=ROWS[row].model("tiny" if tiny else SIZE),
        data=data,
        optimizer=OptimizerConfig(
            rule="optax.adam",
            arguments={"b1": 0.9, "b2": 0.99},
            learning_rate=1e-3,
            warmup=steps // 20,
            weight_decay=0.1,
            groups=(Group(parameters="scale|bias|gates|initial", weight_decay=0.0),),
        ),
        steps=steps,
        log_every=max(steps // 10, 1),
        eval_every=0,
        final_bytes=4_000 if tiny else None,
        checkpoint_every=max(steps // 4, 1),
        keep=1,
        sample=SampleConfig(prompt="\n", length=300),
    )
