"""Reading a corpus: what is read, how it is split, and what bad input is told."""

import hashlib
import os
import pathlib
import textwrap

import numpy as np
import pytest

from nested_jax.data import TextConfig, load_text

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
    ],
)
def test_fields_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        TextConfig(**{field: value}).validate()
