"""Documents: formats, order, what is left out, reading from any place, and errors that say what is expected."""

import gzip
import json
import os

import numpy as np
import pytest

from nested_jax.data import documents as module
from nested_jax.data.documents import documents, find, fraction, read

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:
    pyarrow = None

needs_pyarrow = pytest.mark.skipif(pyarrow is None, reason="pip install 'nested_jax[parquet]' runs it")

TEXTS = [f"document {i}: " + "é" * (i % 5) for i in range(23)]


def jsonl(texts, field="text"):
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts))


def write_corpus(root, kind):
    """Three files of TEXTS, in several parts."""
    root.mkdir(exist_ok=True)
    for number, part in enumerate((TEXTS[:10], TEXTS[10:11], TEXTS[11:])):
        name = root / f"{number:03d}"
        if kind == "jsonl":
            name.with_suffix(".jsonl").write_text(jsonl(part))
        elif kind == "jsonl.gz":
            name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(jsonl(part).encode()))
        elif kind == "jsonl.zst":
            packed = pyarrow.Codec("zstd").compress(jsonl(part).encode()).to_pybytes()
            more = pyarrow.Codec("zstd").compress(b"\n").to_pybytes()
            name.with_suffix(".jsonl.zst").write_bytes(packed + more)
        elif kind == "parquet":
            table = pyarrow.table({"id": list(range(len(part))), "text": part})
            pyarrow.parquet.write_table(table, name.with_suffix(".parquet"), row_group_size=4)
    if kind == "text":
        for number, text in enumerate(TEXTS):
            (root / f"{number:03d}.txt").write_text(text)
    return str(root)


KINDS = [
    "text",
    "jsonl",
    "jsonl.gz",
    pytest.param("jsonl.zst", marks=needs_pyarrow),
    pytest.param("parquet", marks=needs_pyarrow),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_documents_in_order_and_from_any_place(tmp_path, kind):
    corpus = find(write_corpus(tmp_path / "corpus", kind))
    assert corpus.kind == kind.split(".")[0]
    found = list(read(corpus))
    assert [document.text for document in found] == TEXTS
    places = [document.place for document in found]
    assert places == sorted(set(places))
    for index, (file, record) in enumerate(places):
        assert list(read(corpus, (file, record))) == found[index:]
        assert list(read(corpus, (file, record + 1))) == found[index + 1 :]
    how_far = [document.read for document in found]
    assert how_far == sorted(how_far)
    assert how_far[-1] == sum(corpus.files.values())


@needs_pyarrow
def test_parquet_skips_row_groups_and_takes_one_column(tmp_path, monkeypatch):
    corpus = find(write_corpus(tmp_path / "corpus", "parquet"))
    groups, original = [], pyarrow.parquet.ParquetFile.iter_batches

    def watched(file, *args, row_groups, columns, **kwargs):
        groups.append((row_groups, columns))
        return original(file, *args, row_groups=row_groups, columns=columns, **kwargs)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", watched)
    assert next(read(corpus, (2, 8))).text == TEXTS[19]
    assert groups == [([2], ["text"])]


def test_the_fraction_is_of_the_path_of_a_file_and_of_the_text_of_a_record(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("same")
    (tmp_path / "b.jsonl").write_text(jsonl(["same", "same"]))
    (one,) = [d for d in documents(str(tmp_path), format="text") if d.text == "same"]
    assert one.fraction == fraction("sub/a.txt")
    assert [d.fraction for d in documents(str(tmp_path / "b.jsonl"))] == [fraction("same")] * 2
    assert fraction("same") == 0x0967115F2813A3541EAEF77DE9D9D5773F1C0C04314B0BBFE4FF3B3B1C55B5D5 / 2**256


def test_what_is_no_text_is_left_out(tmp_path):
    lines = [{"text": "a"}, {"text": ""}, {"text": None}, {"text": "lone \ud800 half"}, {"text": "b"}]
    (tmp_path / "x.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n  \n")
    assert [d.text for d in documents(str(tmp_path / "x.jsonl"))] == ["a", "lone \ufffd half", "b"]
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, data in {"a": b"\xe9t\xe9", "b": b"binary\0", "c": b"", ".d": b"hidden", "e": b"e"}.items():
        (folder / name).write_bytes(data)
    found = [d.text for d in documents(str(folder))]
    assert [text.encode("utf-8", "surrogateescape") for text in found] == [b"\xe9t\xe9", b"e"]


@needs_pyarrow
def test_parquet_nulls_other_widths_and_bad_utf8(tmp_path):
    table = pyarrow.table({"body": pyarrow.array(["a", None, "", "b"], pyarrow.large_string())})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert [d.text for d in documents(str(tmp_path / "x.parquet"), field="body")] == ["a", "b"]
    bad = pyarrow.array([b"\xff!"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "y.parquet")
    assert [d.text for d in documents(str(tmp_path / "y.parquet"))] == ["\udcff!"]


def test_the_kind_of_a_folder_is_that_of_most_bytes(tmp_path):
    for name in ("README.md", "LICENSE", "authors.txt"):
        (tmp_path / name).write_text("about the data")
    (tmp_path / "a.jsonl").write_text(jsonl(["x" * 100]))
    (tmp_path / "b.JSONL").write_text(jsonl(["y" * 100]))
    assert list(find(str(tmp_path)).files) == ["a.jsonl", "b.JSONL"]
    (tmp_path / "source.py").write_text("z" * 1000)
    assert find(str(tmp_path)).kind == "text"
    assert len(find(str(tmp_path)).files) == 6
    assert list(find(str(tmp_path), format="jsonl").files) == ["a.jsonl", "b.JSONL"]
    (tmp_path / "c.json").write_text(jsonl(["w"]))
    assert "c.json" in find(str(tmp_path), format="jsonl").files
    assert find(str(tmp_path / "a.jsonl"), format="text").kind == "text"
    assert next(documents(str(tmp_path / "c.json"), format="jsonl")).text == "w"


def test_a_sample_takes_text_files_in_another_fixed_order(tmp_path):
    path = write_corpus(tmp_path / "corpus", "text")
    plain, sample = list(find(path).files), list(find(path, sample=True).files)
    assert sorted(sample) == plain
    assert sample != plain
    assert sample == list(find(path, sample=True).files)
    corpus = write_corpus(tmp_path / "lines", "jsonl")
    assert list(find(corpus, sample=True).files) == list(find(corpus).files)


def test_the_fingerprint_follows_names_sizes_and_times(tmp_path):
    path = tmp_path / "corpus"
    first = find(write_corpus(path, "jsonl")).fingerprint()
    assert find(str(path)).fingerprint() == first
    os.utime(path / "000.jsonl", ns=(1, 1))
    second = find(str(path)).fingerprint()
    (path / "002.jsonl").rename(path / "003.jsonl")
    third = find(str(path)).fingerprint()
    assert len({first, second, third}) == 3


def test_a_missing_path_shows_the_layouts(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder") as error:
        documents(str(tmp_path / "nowhere"))
    for part in ("sample/10BT", "000_00000.parquet", "hf download HuggingFaceFW/fineweb-edu", "x.jsonl"):
        assert part in str(error.value)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"no parquet file \(.parquet\) among 1 files in(.|\n)*fineweb"):
        documents(str(tmp_path), format="parquet")
    with pytest.raises(ValueError, match="expected one of auto, text, jsonl, parquet, got 'csv'"):
        documents(str(tmp_path), format="csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x"}', r"x.jsonl, line 2: expected an object with the field 'text', got the fields body\n"),
        ('["x"]', "line 2: expected an object with the field 'text', got a list"),
        ('{"text": 7}', "line 2: expected text in 'text', got a int"),
        ('{"text": "cut of', "line 2: expected a JSON object on a line of its own"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "good"}\n' + line)
    stream = documents(str(path))
    assert next(stream).text == "good"
    with pytest.raises(ValueError, match=message):
        next(stream)


def test_a_file_cut_short_is_an_error(tmp_path):
    data = gzip.compress(jsonl([np.random.default_rng(0).bytes(100).hex() for _ in range(100)]).encode())
    (tmp_path / "x.jsonl.gz").write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"cannot read .*x.jsonl.gz: Compressed file ended"):
        list(documents(str(tmp_path / "x.jsonl.gz")))


@needs_pyarrow
def test_bad_tables_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "score": [1]}), path)
    with pytest.raises(ValueError, match=r"expected a column 'text', got the columns body \(string\), score \(int64\)"):
        next(documents(str(path)))
    with pytest.raises(ValueError, match="expected text in the column 'score', got int64"):
        next(documents(str(path), field="score"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"data.path: cannot read .*x.parquet"):
        next(documents(str(path), field="body"))


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.zst"])
def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, name):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"x\..* needs PyArrow: pip install 'nested_jax\[parquet\]'"):
        next(documents(str(tmp_path / name)))
