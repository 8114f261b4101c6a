"""Reading a corpus: what is read, how it is split, and what bad input is told."""

import dataclasses
import hashlib
import json
import os
import pathlib
import textwrap

import numpy as np
import pytest

from nested_jax.data import TextConfig, load_text

try:
    import tokenizers
except ImportError:
    tokenizers = None

SMALL = {"sequence_length": 4, "batch_size": 2}


def write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root)


def fraction(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def many(count=40):
    return {f"sub{i % 3}/f{i}.txt": f"file {i} holds this text\n".encode() for i in range(count)}


def test_files_are_split_by_the_hash_of_their_relative_path(tmp_path):
    files = many()
    text = load_text(TextConfig(path=write(tmp_path, files), validation_fraction=0.3, **SMALL))
    train = b"".join(files[name] for name in sorted(files) if fraction(name) >= 0.3)
    validation = b"".join(files[name] for name in sorted(files) if fraction(name) < 0.3)
    assert (text.train.tobytes(), text.validation.tobytes()) == (train, validation)
    assert text.files == 40
    assert text.train.dtype == text.validation.dtype == np.uint8
    assert "40 files" in text.description
    assert "by file" in text.description


def test_a_file_keeps_its_side_when_the_folder_moves_or_grows(tmp_path):
    one = load_text(TextConfig(path=write(tmp_path / "one", many(30)), validation_fraction=0.3, **SMALL))
    two = load_text(TextConfig(path=write(tmp_path / "two", many(60)), validation_fraction=0.3, **SMALL))
    held_out = set(one.validation.tobytes().splitlines())
    assert held_out < set(two.validation.tobytes().splitlines())


def test_a_single_file_is_split_by_position(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(bytes(range(1, 101)))
    text = load_text(TextConfig(path=str(path), validation_fraction=0.1, **SMALL))
    assert text.train.tolist() == list(range(1, 91))
    assert text.validation.tolist() == list(range(91, 101))
    assert "by position" in text.description


def test_a_folder_of_few_files_is_split_by_position_in_each(tmp_path):
    root = write(tmp_path, {"a.txt": b"a" * 50, "b.txt": b"b" * 50})
    text = load_text(TextConfig(path=root, validation_fraction=0.1, **SMALL))
    assert (text.train.tobytes(), text.validation.tobytes()) == (b"a" * 45 + b"b" * 45, b"aaaaabbbbb")
    assert "by position" in text.description


def test_binary_hidden_cached_and_empty_files_are_left_out(tmp_path):
    junk = {
        ".hidden": b"h" * 50,
        ".git/x": b"g" * 50,
        "__pycache__/y": b"p" * 50,
        "image": b"\x89PNG\0" * 10,
        "empty": b"",
    }
    root = write(tmp_path, {"t.txt": b"t" * 100, "latin": b"\xe9" * 100, **junk})
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    text = load_text(TextConfig(path=root, validation_fraction=0.1, **SMALL))
    assert text.files == 2
    assert set(text.train.tobytes() + text.validation.tobytes()) == set(b"t\xe9")


def test_max_bytes_bounds_what_is_read(tmp_path):
    root = write(tmp_path, many())
    whole = load_text(TextConfig(path=root, validation_fraction=0.3, **SMALL))
    part = load_text(TextConfig(path=root, validation_fraction=0.3, max_bytes=500, **SMALL))
    assert len(part.train) + len(part.validation) == 500
    assert set(part.train.tobytes().splitlines()[:-1]) < set(whole.train.tobytes().splitlines())
    assert (
        part.train.tobytes()
        == load_text(TextConfig(path=root, validation_fraction=0.3, max_bytes=500, **SMALL)).train.tobytes()
    )


def test_the_standard_library_is_there_without_tests_and_packages():
    text = load_text(TextConfig())
    assert len(text.train) > 2_000_000
    assert 0.03 < len(text.validation) / len(text.train) < 0.3
    assert textwrap.__doc__.encode() in text.train.tobytes() + text.validation.tobytes()
    assert pytest.__doc__.encode() not in text.train.tobytes() + text.validation.tobytes()
    again = load_text(TextConfig())
    np.testing.assert_array_equal(text.train, again.train)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "data.path: no such file or folder: .*nowhere"),
        ({}, "data.path: no text in .*: looked at 0 files"),
        ({"x": b"\0" * 100}, "data.path: no text in .*: looked at 1 files"),
        ({"x": b"short"}, "need at least 9 and 5"),
    ],
)
def test_bad_folders(tmp_path, files, message):
    path = write(tmp_path, files) if files is not None else str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=message):
        load_text(TextConfig(path=path, **SMALL))


def test_an_unreadable_file_or_folder_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"sub/secret.txt": b"x" * 100})
    opened, scanned = pathlib.Path.open, os.scandir

    def refuse_file(path, *args, **kwargs):
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    def refuse_folder(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scanned(path)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", refuse_file)
        with pytest.raises(ValueError, match=r"cannot read .*sub/secret.txt: Permission denied"):
            load_text(TextConfig(path=str(tmp_path), **SMALL))
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse_folder)
        with pytest.raises(ValueError, match=r"cannot read folder .*sub: Permission denied"):
            load_text(TextConfig(path=str(tmp_path), **SMALL))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence_length", 0),
        ("batch_size", 0),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("seed", -1),
        ("max_bytes", 0),
        ("format", "csv"),
        ("end_token", "</s>"),
    ],
)
def test_fields_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        TextConfig(**{field: value}).validate()


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    return str(path)


def silent(line):
    pass


def test_json_lines_are_documents_split_by_their_text(tmp_path):
    texts = [f"text number {i}" for i in range(40)]
    path = jsonl(tmp_path / "x.jsonl", texts)
    config = TextConfig(path=path, field="body", cache=str(tmp_path / "cache"), validation_fraction=0.3, **SMALL)
    text = load_text(config, say=silent)
    assert text.train.tobytes().decode() == "".join(one for one in texts if fraction(one) >= 0.3)
    assert text.validation.tobytes().decode() == "".join(one for one in texts if fraction(one) < 0.3)
    assert (text.bytes_per_token, text.tokenizer.name, text.files) == (1.0, "bytes", 1)
    assert text.train_begins[-1] == len(text.train)
    assert text.validation_begins[-1] == len(text.validation)
    assert len(text.digest) == 16
    for part in ("1 jsonl files", "tokenizer bytes", "split by document", str(tmp_path / "cache")):
        assert part in text.description
    assert load_text(dataclasses.replace(config, seed=7, sequence_length=5), say=silent).digest == text.digest
    one = dataclasses.replace(config, path=jsonl(tmp_path / "y.jsonl", ["only one text " * 3]), batch_size=1)
    assert "split by position" in load_text(one, say=silent).description


def test_packing_plain_files_keeps_where_they_begin(tmp_path):
    files = many()
    config = TextConfig(path=write(tmp_path / "corpus", files), validation_fraction=0.3, cache=str(tmp_path), **SMALL)
    plain, text = load_text(config), load_text(dataclasses.replace(config, packed=True), say=silent)
    assert (plain.train_begins, plain.digest, plain.bytes_per_token) == (None, None, 1.0)
    np.testing.assert_array_equal(plain.train, text.train)
    np.testing.assert_array_equal(plain.validation, text.validation)
    chosen = [files[name] for name in sorted(files) if fraction(name) >= 0.3]
    np.testing.assert_array_equal(text.train_begins, np.cumsum([0, *map(len, chosen)]))
    limited = dataclasses.replace(config, max_bytes=500)
    packed = load_text(dataclasses.replace(limited, packed=True), say=silent)
    assert len(packed.train) + len(packed.validation) == 500
    assert sorted(packed.train.tobytes()) == sorted(load_text(limited).train.tobytes())


@pytest.mark.skipif(tokenizers is None, reason="pip install 'nested_jax[tokenizers]' runs it")
def test_tokens_of_the_same_files_and_their_bytes(tmp_path):
    vocabulary = {"<unk>": 0, "</s>": 1, "file": 2, "holds": 3, "this": 4, "text": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    files = many(45)
    config = TextConfig(
        path=write(tmp_path / "corpus", files), tokenizer=str(tmp_path), cache=str(tmp_path / "cache"), **SMALL
    )
    config = dataclasses.replace(config, validation_fraction=0.3)
    text = load_text(config, say=silent)
    held_out = [files[name] for name in sorted(files) if fraction(name) < 0.3]
    assert sum(map(len, held_out)) / len(held_out) != sum(map(len, files.values())) / len(files)
    assert text.validation.tolist() == [2, 0, 3, 4, 5, 1] * len(held_out)
    assert text.validation.dtype == np.uint8
    assert text.bytes_per_token == sum(map(len, held_out)) / (6 * len(held_out))
    assert text.tokenizer.end == 1
    other = load_text(dataclasses.replace(config, end_token="<unk>"), say=silent)
    assert other.validation.tolist() == [2, 0, 3, 4, 5, 0] * len(held_out)
    assert other.digest != text.digest
    with pytest.raises(ValueError, match="validation tokens; batches of 2 rows of 4000"):
        load_text(dataclasses.replace(config, sequence_length=4000), say=silent)


def test_caches_are_in_the_users_folder_if_no_other_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = jsonl(tmp_path / "x.jsonl", [f"text number {i}" for i in range(40)])
    said = []
    load_text(TextConfig(path=path, field="body", **SMALL), say=said.append)
    assert said[-1].startswith(f"prepared in {tmp_path}/xdg/nested_jax/x.jsonl-bytes-")


def test_the_plain_bytes_are_those_of_before(tmp_path):
    """Folders of files and the order of samples are a promise to checkpoints."""
    root = write(tmp_path, many(97))
    for limit, digest in ((None, "ea77a235878881f1"), (700, "98677001958173a3")):
        text = load_text(TextConfig(path=root, validation_fraction=0.3, max_bytes=limit, **SMALL))
        found = hashlib.sha256(text.train.tobytes() + b"|" + text.validation.tobytes()).hexdigest()[:16]
        assert found == digest
