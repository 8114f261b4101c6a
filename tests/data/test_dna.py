"""DNA: letters, FASTA files by hand, folders of classes as a task, and what is said where data is missing."""

import dataclasses
import gzip

import numpy as np
import pytest

from nested_jax.data import FastaConfig, load_fasta, load_text
from nested_jax.data.dna import Bases, GenomicsBenchmark, Motif

FASTA = b">one first\nACGT\nacgt\n\n>two\r\nNNTTRA\r\n"


def fasta(tmp_path, data, name="a.fa", **fields):
    (tmp_path / name).write_bytes(data)
    given = {"sequence_length": 2, "batch_size": 2, "validation_fraction": 0.25} | fields
    return FastaConfig(path=str(tmp_path / name), **given)


def read(config):
    text = load_fasta(config, say=lambda _: None)
    return [Bases().decode(part) for part in (text.train, text.validation)]


def test_letters():
    tokenizer = Bases()
    assert tokenizer.encode("ACGTNacgtnRYSWKMBDHVU").tolist() == [*range(5), *range(5), *[4] * 11]
    assert tokenizer.decode(tokenizer.encode("ttagN")) == "TTAGN"
    assert tokenizer.decode(np.array([0, 7])) == "A?"
    with pytest.raises(ValueError, match="text: expected bases, one of ACGTRYSWKMBDHVUN, got b'e'"):
        tokenizer.encode("ACe")


def test_sequences_by_hand(tmp_path):
    """The last quarter of each is validation: two of eight bases, then two of six (1.5, rounded to even)."""
    assert read(fasta(tmp_path, FASTA)) == ["ACGTACNNTT", "GTNA"]
    text = load_fasta(fasta(tmp_path, FASTA), say=lambda _: None)
    assert (text.train.dtype, text.bytes_per_token, text.tokenizer.vocab_size) == (np.uint8, 1, 5)
    assert "2 sequences, 10 bases train, 4 validation" in text.description
    assert read(fasta(tmp_path, gzip.compress(FASTA), "a.fa.gz")) == ["ACGTACNNTT", "GTNA"]
    assert read(fasta(tmp_path, FASTA, max_bytes=8, sequence_length=1)) == ["ACGTAC", "GT"]
    assert read(fasta(tmp_path, FASTA, max_bytes=9, sequence_length=1)) == ["ACGTACN", "GT"]


def test_gaps_of_an_assembly_are_left_out(tmp_path):
    data = b">x\n" + b"N" * 100 + b"ACGT" + b"n" * 250 + b"TTTT" + b"N" * 99 + b"GG"
    assert "".join(read(fasta(tmp_path, data))) == "ACGTTTTT" + "N" * 99 + "GG"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"ACGT\n>x\nACGT\n", "begins with b'ACGT.n', not with >"),
        (b">x\nACGT\nAC-T\n", "a.fa, sequence 'x': expected bases, .*got b'-'"),
        (b"", "has 0 training and 0 validation bases"),
        (b">x\nACGTAC\n", r"has 4 training and 2 validation bases; batches of 2 rows of 2 \+ 1 need at least 5 and 3"),
    ],
)
def test_a_bad_file_is_named(data, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read(fasta(tmp_path, data))


def test_missing_and_damaged_files_are_explained(tmp_path):
    for path in (None, str(tmp_path / "no.fa")):
        with pytest.raises(ValueError, match=r"(?s)data.path: expected a FASTA file, got .*>chr1\n.*curl -O https"):
            read(FastaConfig(path=path))
    with pytest.raises(ValueError, match=r"b\.fa\.gz cannot be read"):
        read(fasta(tmp_path, gzip.compress(FASTA)[:-12], "b.fa.gz"))
    with pytest.raises(ValueError, match="packed: expected False for bases, got True"):
        FastaConfig(packed=True).validate()


def test_bases_are_never_read_as_the_bytes_of_a_text(tmp_path):
    with pytest.raises(ValueError, match="text: expected bases"):
        load_text(fasta(tmp_path, FASTA * 20))


SEQUENCES = {"negative": ["AC", "ACGT", "TTTTTTT"], "positive": ["GAGG", "g", "CCGA", "TTGT", "NNA"]}


@pytest.fixture
def benchmark(tmp_path):
    for part, shift in (("train", ""), ("test", "T")):
        for name, sequences in SEQUENCES.items():
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number, sequence in enumerate(sequences):
                (folder / f"{9 + number}.txt").write_text(shift + sequence + "\n")
    return GenomicsBenchmark(dataset="data", path=str(tmp_path), length=6, validation_fraction=0.25)


def shown(found):
    """Sequences and classes, as pairs; what is behind the place that is asked for is zeros."""
    pairs = []
    for inputs, targets, trained, scored in zip(*found, strict=True):
        (place,) = np.flatnonzero(scored)
        assert trained.tolist() == scored.tolist()
        assert not inputs[place + 1 :].any()
        pairs.append((Bases().decode(inputs[: place + 1]), int(targets[place])))
    return pairs


def test_a_class_is_asked_for_at_the_last_base(benchmark):
    test = benchmark.tests()["test"]
    assert test.inputs.shape == (8, 6)
    assert shown(test) == [
        *[("TAC", 5), ("TACGT", 5), ("TTTTTT", 5)],
        *[("TGAGG", 6), ("TG", 6), ("TCCGA", 6), ("TTTGT", 6), ("TNNA", 6)],
    ]
    assert benchmark.vocab_size == 7


def test_validation_is_a_share_of_training_that_is_not_trained_on(benchmark):
    train, validation = shown(benchmark.train(0)), shown(benchmark.tests()["validation"])
    assert len(validation) == 2
    every = [(s[:6].upper(), 5 + place) for place, name in enumerate(SEQUENCES) for s in SEQUENCES[name]]
    assert sorted(train + validation) == sorted(every)
    assert list(benchmark.tests()) == ["validation", "test"]
    assert benchmark.train(0).digest() == benchmark.train(1).digest()


def test_the_folder_itself_is_a_path(benchmark):
    inner = dataclasses.replace(benchmark, path=f"{benchmark.path}/data")
    assert inner.train(0).digest() == benchmark.train(0).digest()


def test_missing_data_is_explained(benchmark, tmp_path):
    for path, said in ((None, "expected the folder of data, got None"), (str(tmp_path / "x"), "no train sequences of")):
        with pytest.raises(ValueError, match=said) as error:
            dataclasses.replace(benchmark, path=path).train(0)
        assert "human_enhancers_cohn/train/positive/0.txt" in str(error.value)
        assert "pip install genomic-benchmarks" in str(error.value)
    with pytest.raises(ValueError, match=r"expected 3 folders of classes in .*train, got \['negative', 'positive'\]"):
        dataclasses.replace(benchmark, classes=3).train(0)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "expected a sequence in .*9.txt, got an empty one"), ("ACX", "9.txt: expected bases, .*got b'X'")],
)
def test_a_bad_sequence_is_named(benchmark, tmp_path, text, said):
    (tmp_path / "data/train/negative/9.txt").write_text(text)
    with pytest.raises(ValueError, match=said):
        benchmark.train(0)


def test_a_class_without_sequences_is_named(benchmark, tmp_path):
    for file in (tmp_path / "data/train/positive").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"no \*\.txt in \['.*positive'\]"):
        benchmark.train(0)


@pytest.mark.parametrize(
    ("field", "value"), [("classes", 1), ("length", 0), ("validation_fraction", 0.0), ("validation_fraction", 1.0)]
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        GenomicsBenchmark(**{field: value})


def test_the_motif_is_what_is_asked_for():
    task = Motif(train_examples=400)
    for found in (task.train(0), *task.tests().values()):
        answers = [("TATA" in sequence, answer == 6) for sequence, answer in shown(found)]
        assert all(has == said for has, said in answers)
        assert 0.4 < np.mean([said for _, said in answers]) < 0.7
    assert task.train(1).digest() != task.train(0).digest()
    assert [Motif().train(0).digest(), *(t.digest() for t in Motif().tests().values())] == [
        "e3ff02e117500999",
        "afb57976e9dbf370",
        "0511e899c1831ec8",
    ]
