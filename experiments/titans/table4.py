"""Titans, table 4: what a sequence of human DNA is, five datasets of GenomicsBenchmarks (arXiv 2501.00663).

    python -m nested_jax sweep experiments/titans/table4.py --config.data.task.path=~/.genomic_benchmarks
    python -m nested_jax table experiments/titans/table4.py
    python -m nested_jax train --config=experiments/titans/table4.py:lmm/cohn --config.data.task.path=FOLDER

Variants are `ROW/DATASET@SIZE`: `lmm/cohn`, `transformer++/ocr`, `lmm@tiny` (random DNA and a motif, for tests only).
The sequences are not part of the project; without a path, a run says how to get them. `test/sequence` is the top-1
accuracy, `validation/sequence` that on a tenth of the training sequences, by which learning rates are chosen.

The paper's models are pre-trained on DNA. So can these be: `ROW/genome@SIZE` is the model of a row as a language model
of bases, and every other run may begin with its parameters:

    python -m nested_jax train --config=experiments/titans/table4.py:lmm/genome --config.data.path=hg38.fa.gz \\
        --workdir=genome
    python -m nested_jax sweep experiments/titans/table4.py --config.data.task.path=FOLDER \\
        --config.parameters_from=genome --rows=lmm

Its bits per byte are bits per base, of which 2 are chance.

At "small" models have two blocks of width 64 and 190,000 parameters. The paper prints no size, tokens, hardware or
hours; its baselines are numbers of Arora et al. 2024, its set-up is that of Nguyen et al. 2024.

Differs from the paper: sizes and steps, and nothing is pre-trained unless one does so; the class is told at the last
base by the language model's head; sequences longer than 512 bases are cut (500 and 251 in the datasets of one length).
"""

from nested_jax.data import FastaConfig, TaskConfig
from nested_jax.data.dna import GenomicsBenchmark, Motif
from nested_jax.train.comparison import Published, Row, Sweep, variant
from nested_jax.train.experiment import Experiment, SampleConfig
from nested_jax.train.optimizer import Group, OptimizerConfig

SYMBOLS = 8
BENCHMARKS = {
    "cohn": GenomicsBenchmark(dataset="human_enhancers_cohn", length=500),
    "enhancers": GenomicsBenchmark(dataset="human_enhancers_ensembl", length=512),
    "regulatory": GenomicsBenchmark(dataset="human_ensembl_regulatory", length=512, classes=3),
    "promoters": GenomicsBenchmark(dataset="human_nontata_promoters", length=251),
    "ocr": GenomicsBenchmark(dataset="human_ocr_ensembl", length=512),
}
PARTS = {
    "cohn": "Enhancer Cohn",
    "enhancers": "Enhancer Ens",
    "regulatory": "Human Reg.",
    "promoters": "Non-TATA promoters",
    "ocr": "Human OCR Ens.",
}
NUMBERS = {
    "CNN": (69.5, 68.9, 93.3, 84.6, 68.0),
    "DNABERT": (74.0, 85.7, 88.1, 85.6, 75.1),
    "GPT": (70.5, 83.5, 91.5, 87.7, 73.0),
    "HyenaDNA": (74.2, 89.2, 93.8, 96.6, 80.9),
    "transformer++": (73.4, 89.5, 89.9, 94.4, 79.5),
    "Based": (74.6, 89.5, 89.5, 96.8, 79.0),
    "lmm": (75.2, 89.6, 89.3, 96.6, 79.9),
}

RESULT = Published(
    source="Titans, arXiv 2501.00663, table 4 (top-1 accuracy in %; size not printed)",
    columns=PARTS,
    values={row: dict(zip(PARTS, numbers, strict=True)) for row, numbers in NUMBERS.items()}
    | {"Mamba": {"cohn": 73.0, "promoters": 96.6}},
    measured={part: f"{part}:test/sequence" for part in PARTS},
    unit=100,
)
SWEEP = Sweep(
    seeds=(0, 1, 2),
    grid={"optimizer.learning_rate": ("1e-3", "3e-4")},
    select="validation/sequence",
    differs={"small": "size and steps, nothing pre-trained; see the experiment's docstring"},
)
ROWS = {
    "lmm": Row("Neural memory (LMM)", "titans-lmm"),
    "transformer++": Row("Transformer++", "transformer++"),
    "gated-deltanet": Row("Gated DeltaNet", "gated-deltanet"),
}


def get_config(arg: str = "") -> Experiment:
    """The experiment of a row on a dataset, or on a genome, at a size; see the file's docstring."""
    row, part, size = variant(ROWS, arg, (*PARTS, "genome"))
    steps, batch = (20, 4) if size == "tiny" else (1_000, 32)
    if part == "genome":
        data = FastaConfig(sequence_length=32 if size == "tiny" else 512, batch_size=batch)
    else:
        data = TaskConfig(task=Motif() if size == "tiny" else BENCHMARKS[part], batch_size=batch)
    fast = Group(parameters="gates|initial/learning_rate", learning_rate_factor=3, weight_decay=0.0)
    return Experiment(
        model=ROWS[row].model(size, vocab_size=SYMBOLS),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=steps // 10, weight_decay=0.1, groups=(fast,)),
        steps=steps,
        log_every=max(steps // 10, 1),
        eval_every=0,
        final_bytes=2_000_000 if part == "genome" and size != "tiny" else None,
        checkpoint_every=max(steps // 4, 1),
        keep=1,
        sample=SampleConfig(prompt="ATG", length=60),
    )
