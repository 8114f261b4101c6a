"""Prepared data: what is on disk, that a killed preparation ends up the same, that no other data is taken for it."""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nested_jax.data import pace
from nested_jax.data import prepared as module
from nested_jax.data.documents import find, fraction
from nested_jax.data.prepared import HALVES, open_prepared, prepare
from nested_jax.data.tokenizers import Bytes

TEXTS = [f"document {i} " + "é" * (i % 7) + "x" * (i * 37 % 50) for i in range(60)]


class Words:
    """A tokenizer that gives numbers to words, counts its calls and can be made to die."""

    end: int | None = 0

    def __init__(self, vocab_size=50_000, die_at=None):
        self.name, self.vocab_size = f"words-{vocab_size}", vocab_size
        self.calls, self.die_at = 0, die_at

    def encode(self, text):
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        return np.array([1 + sum(word.encode()) % 40_000 for word in text.split()], np.int32)

    def decode(self, tokens):
        return " ".join(map(str, tokens))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(module.os, "fsync", lambda number: None)


def lines(path, texts=TEXTS):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return find(str(path))


def silent(line):
    pass


def run(corpus, tokenizer, cache, say=silent, **settings):
    return prepare(corpus, tokenizer, cache, **{"validation_fraction": 0.3, "say": say, **settings})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


def test_documents_are_told_apart_by_their_fraction_and_end_with_the_end_token(tmp_path):
    tokenizer = Words()
    found = run(lines(tmp_path / "x.jsonl"), tokenizer, tmp_path / "cache")
    assert found.split == "document"
    for name in HALVES:
        half = getattr(found, name)
        texts = [text for text in TEXTS if (fraction(text) < 0.3) == (name == "validation")]
        expected = [np.append(tokenizer.encode(text), 0) for text in texts]
        np.testing.assert_array_equal(half.tokens, np.concatenate(expected))
        np.testing.assert_array_equal(half.begins, np.cumsum([0, *map(len, expected)]))
        assert half.bytes == sum(len(text.encode()) for text in texts)
        chain = hashlib.sha256().digest()
        for one in expected:
            chain = hashlib.sha256(chain + one.astype("<u2").tobytes()).digest()
        assert half.digest == chain.hex()
        assert (half.tokens.dtype, half.begins.dtype) == (np.uint16, np.int64)
        assert isinstance(half.tokens, np.memmap)
        assert not half.tokens.flags.writeable
    assert sorted(contents(found.folder)) == [
        "index.json",
        "train.begins",
        "train.tokens",
        "validation.begins",
        "validation.tokens",
    ]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50_000, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_the_type_of_tokens_follows_the_vocabulary(tmp_path, vocab_size, dtype):
    found = run(lines(tmp_path / "x.jsonl"), Words(vocab_size), tmp_path)
    assert found.train.tokens.dtype == dtype


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="tokenizer: expected tokens below its vocab_size 300, got"):
        run(lines(tmp_path / "x.jsonl"), Words(300), tmp_path)


def test_bytes_are_kept_as_they_are(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    data = {f"{i:02d}.txt": bytes([1 + i]) * 20 + b"\xff" for i in range(40)}
    for name, text in data.items():
        (folder / name).write_bytes(text)
    found = run(find(str(folder)), Bytes(), tmp_path / "cache")
    for name in HALVES:
        half = getattr(found, name)
        chosen = b"".join(text for file, text in data.items() if (fraction(file) < 0.3) == (name == "validation"))
        assert (half.tokens.tobytes(), half.bytes, half.tokens.dtype) == (chosen, len(chosen), np.uint8)


def test_what_is_prepared_is_not_prepared_again(tmp_path):
    corpus = lines(tmp_path / "x.jsonl")
    first, tokenizer, said = run(corpus, Words(), tmp_path / "cache"), Words(), []
    second = run(corpus, tokenizer, tmp_path / "cache", said.append)
    assert (second.folder, tokenizer.calls, said) == (first.folder, 0, [])
    assert second.train.digest == first.train.digest != first.validation.digest
    np.testing.assert_array_equal(second.train.tokens, open_prepared(first.folder).train.tokens)


def test_other_data_or_settings_have_a_cache_of_their_own(tmp_path):
    corpus, cache = lines(tmp_path / "x.jsonl"), tmp_path / "cache"
    other_end = Words()
    other_end.end = None
    folders = {
        run(corpus, Words(), cache).folder,
        run(corpus, Words(40_001), cache).folder,
        run(corpus, other_end, cache).folder,
        run(corpus, Words(), cache, validation_fraction=0.31).folder,
        run(corpus, Words(), cache, max_bytes=1000).folder,
        run(find(str(tmp_path / "x.jsonl"), format="text"), Words(), cache).folder,
    }
    os.utime(tmp_path / "x.jsonl", ns=(1, 1))
    folders.add(run(corpus, Words(), cache).folder)
    assert len(folders) == 7


@pytest.mark.parametrize("die_at", [1, 2, 30, 47, 60, 61, 90])
@pytest.mark.parametrize("kind", ["document", "position"])
def test_a_killed_preparation_ends_up_the_same(tmp_path, monkeypatch, die_at, kind):
    monkeypatch.setattr(module, "BLOCK", 200)
    texts = TEXTS if kind == "document" else [text for text in TEXTS if fraction(text) >= 0.3]
    corpus = lines(tmp_path / "x.jsonl", texts)
    whole, calls = run(corpus, Words(), tmp_path / "whole"), Words()
    assert whole.split == kind
    try:
        run(corpus, Words(die_at=die_at), tmp_path / "cache")
    except KeyboardInterrupt:
        (partial,) = (tmp_path / "cache").glob("*.partial")
        assert not (partial / "index.json").exists()
        for path in partial.iterdir():
            if path.suffix in (".tokens", ".begins"):
                with path.open("ab") as file:
                    file.write(b"half a block")
    again = run(corpus, calls, tmp_path / "cache")
    assert contents(again.folder) == contents(whole.folder)
    assert list((tmp_path / "cache").glob("*.partial")) == []
    if kind == "document" and die_at > 30:
        assert calls.calls < 60 - 30 + 13  # what was saved is not done again


def test_killed_between_the_index_and_the_renaming(tmp_path, monkeypatch):
    corpus = lines(tmp_path / "x.jsonl")
    whole = contents(run(corpus, Words(), tmp_path / "whole").folder)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, Words(), tmp_path / "cache")
    tokenizer = Words()
    assert contents(run(corpus, tokenizer, tmp_path / "cache").folder) == whole
    assert tokenizer.calls == 0


def test_the_size_of_blocks_leaves_no_trace(tmp_path, monkeypatch):
    corpus = lines(tmp_path / "x.jsonl")
    whole = contents(run(corpus, Words(), tmp_path / "one").folder)
    monkeypatch.setattr(module, "BLOCK", 1)
    assert contents(run(corpus, Words(), tmp_path / "two").folder) == whole


def test_few_documents_are_cut_by_position_between_characters(tmp_path):
    (tmp_path / "book.txt").write_text("a" * 75 + "é" * 10 + "b" * 5)
    found = run(find(str(tmp_path / "book.txt")), Bytes(), tmp_path / "cache", validation_fraction=0.24)
    assert found.split == "position"
    assert found.train.tokens.tobytes().decode() == "a" * 75
    found = run(find(str(tmp_path / "book.txt")), Bytes(), tmp_path / "cache", validation_fraction=0.2)
    assert found.train.tokens.tobytes().decode() == "a" * 75 + "é" * 2  # 80 of 100 bytes would halve a character
    assert found.validation.tokens.tobytes().decode() == "é" * 8 + "b" * 5


def test_max_bytes_takes_the_first_documents_and_cuts_the_last(tmp_path, monkeypatch):
    corpus = lines(tmp_path / "x.jsonl", [f"{i:03d}" * 10 for i in range(50)])
    said = []
    monkeypatch.setattr(pace, "SECONDS", 0)
    monkeypatch.setattr(module, "BLOCK", 100)
    found = run(corpus, Bytes(), tmp_path / "cache", said.append, max_bytes=1000, validation_fraction=0.4)
    assert found.train.bytes + found.validation.bytes == 1000
    halves = (found.train, found.validation)
    taken = [bytes(half.tokens[a:b]) for half in halves for a, b in itertools.pairwise(half.begins)]
    assert sorted(taken) == [f"{i:03d}".encode() * 10 for i in range(33)] + [b"033" * 3 + b"0"]
    assert any("96%" in line for line in said)


def test_progress_is_said_in_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 500)
    monkeypatch.setattr(pace, "SECONDS", 0)
    corpus, said = lines(tmp_path / "x.jsonl"), []
    with pytest.raises(KeyboardInterrupt):
        run(corpus, Words(die_at=40), tmp_path / "cache", said.append)
    assert said[0] == f"preparing {tmp_path}/x.jsonl: 1 jsonl files, 0.0 MB, tokenizer words-50000"
    assert all(word in said[1] for word in (" documents, ", " tokens, ", " MB/s, ", "%, ", " left"))
    assert len(said) > 2
    said.clear()
    run(corpus, Words(), tmp_path / "cache", said.append)
    assert said[1].startswith("going on after ")
    assert said[-1].startswith(f"prepared in {tmp_path}/cache/x.jsonl-words-50000-")
    monkeypatch.setattr(pace, "SECONDS", 100)
    said.clear()
    run(corpus, Words(), tmp_path / "other", said.append)
    assert len(said) == 2


def test_another_process_is_waited_for(tmp_path):
    corpus, said, cache = lines(tmp_path / "x.jsonl"), [], tmp_path / "cache"
    folder = run(corpus, Words(), cache).folder
    hidden = folder.rename(tmp_path / "hidden")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tokenizer, found = Words(), []
        thread = threading.Thread(target=lambda: found.append(run(corpus, tokenizer, cache, said.append)))
        thread.start()
        while not said:
            time.sleep(0.01)
        assert said[0].startswith("waiting for another process")
        hidden.rename(folder)
    thread.join(10)
    assert (found[0].folder, tokenizer.calls) == (folder, 0)


def test_a_filesystem_without_locks_is_named(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"lock: its filesystem has no locks \(Function not implemented\): choose"):
        run(lines(tmp_path / "x.jsonl"), Words(), tmp_path / "cache")


def test_damaged_caches_are_refused(tmp_path):
    corpus = lines(tmp_path / "x.jsonl")
    folder = run(corpus, Words(), tmp_path).folder
    tokens = folder / "train.tokens"
    data = tokens.read_bytes()
    tokens.write_bytes(data[:-2])
    with pytest.raises(ValueError, match=rf"train.tokens: expected {len(data):,} bytes, got {len(data) - 2}: delete"):
        run(corpus, Words(), tmp_path)
    tokens.unlink()
    with pytest.raises(ValueError, match=r"train.tokens: expected .* bytes, got None"):
        run(corpus, Words(), tmp_path)
    tokens.write_bytes(data)
    index = folder / "index.json"
    stored = index.read_text()
    index.write_text(stored.replace('"tokenizer": "words-50000"', '"tokenizer": "others"'))
    with pytest.raises(ValueError, match=r"was made from .*others.*, expected .*words-50000"):
        run(corpus, Words(), tmp_path)
    index.write_text(stored.replace('"format": 1', '"format": 0'))
    with pytest.raises(ValueError, match="was made from"):
        open_prepared(folder)
    index.unlink()
    with pytest.raises(ValueError, match="is no prepared data, delete it"):
        run(corpus, Words(), tmp_path)


def test_a_damaged_beginning_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 200)
    corpus = lines(tmp_path / "x.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run(corpus, Words(die_at=30), tmp_path / "cache")
    (tokens,) = (tmp_path / "cache").glob("*.partial/train.tokens")
    tokens.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train.tokens: expected .* bytes or more, got 0: delete .*partial"):
        run(corpus, Words(), tmp_path / "cache")


def test_a_corpus_without_text(tmp_path):
    with pytest.raises(ValueError, match=r"data.path: no text in .*x.jsonl: looked at 1 jsonl files"):
        run(lines(tmp_path / "x.jsonl", ["", ""]), Words(), tmp_path / "cache")


KILLED = """
import sys, time
from nested_jax.data.documents import find
from nested_jax.data.tokenizers import Bytes
from nested_jax.data import prepared
class Slow(Bytes):
    def encode(self, text):
        time.sleep(0.02)
        return super().encode(text)
prepared.BLOCK = 200
prepared.prepare(find(sys.argv[1]), Slow(), sys.argv[2], validation_fraction=0.3)
"""


@pytest.mark.slow
def test_killed_from_outside_it_ends_up_the_same(tmp_path):
    corpus = lines(tmp_path / "x.jsonl")
    whole = run(corpus, Bytes(), tmp_path / "whole")
    cache = tmp_path / "cache"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "x.jsonl"), str(cache)])
        while not list(cache.glob("*.partial/progress.json")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert contents(run(corpus, Bytes(), cache).folder) == contents(whole.folder)
