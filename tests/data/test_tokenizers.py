"""Tokenizers: bytes, and Hugging Face files of which only the text's own tokens count."""

import json

import numpy as np
import pytest

from nested_jax.data import tokenizers as module
from nested_jax.data.tokenizers import Bytes, HuggingFace, encode_each, load

try:
    import tokenizers
except ImportError:
    tokenizers = None

needs_tokenizers = pytest.mark.skipif(tokenizers is None, reason="pip install 'nested_jax[tokenizers]' runs it")

TEXT = "the cat and the dog and the naïve bird: 猫\n"


def write_tokenizer(folder, special=("<pad>", "<|endoftext|>", "<s>")):
    """A byte-level BPE that would cut, pad and frame a text if it were asked for more than the text's tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=284, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    if "<s>" in special:
        number = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", number)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_bytes_keep_every_byte():
    raw = bytes(range(256)) + "é猫".encode()
    found = Bytes().encode(raw.decode("utf-8", "surrogateescape"))
    assert found.dtype == np.int32
    assert bytes(found.astype(np.uint8)) == raw
    assert Bytes().decode(np.array([104, 255])) == "h\ufffd"
    assert isinstance(load(None), Bytes)
    assert isinstance(load("bytes"), Bytes)
    with pytest.raises(ValueError, match="end: expected None for bytes"):
        load("bytes", "</s>")


@needs_tokenizers
def test_only_the_text_becomes_tokens(tmp_path):
    tokenizer = HuggingFace(write_tokenizer(tmp_path / "own"))
    for text in (TEXT, TEXT * 50, "", "one <|endoftext|> two <s>", "unseen: Ωß"):
        tokens = tokenizer.encode(text)
        assert tokens.dtype == np.int32
        assert tokenizer.decode(tokens) == text
        assert not set(tokens.tolist()) & {0, 1, 2}
        assert tokens.max(initial=0) < tokenizer.vocab_size
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode())
    assert tokenizer.decode(tokenizer.encode("a\udcffb")) == "a\ufffdb"
    for text, tokens in zip(("a", TEXT), encode_each(tokenizer, ["a", TEXT]), strict=True):
        np.testing.assert_array_equal(tokens, tokenizer.encode(text))


@needs_tokenizers
def test_the_end_of_a_document(tmp_path):
    file = write_tokenizer(tmp_path / "own")
    assert HuggingFace(file).end == 1
    assert HuggingFace(file.parent).decode([1]) == "<|endoftext|>"
    assert load(str(file), "<s>").end == 2
    config = file.with_name("tokenizer_config.json")
    for value in ("<pad>", {"content": "<pad>", "special": True}):
        config.write_text(json.dumps({"eos_token": value}))
        assert HuggingFace(file).end == 0
        assert HuggingFace(file, "<s>").end == 2
    config.write_text(json.dumps({"eos_token": None}))
    assert HuggingFace(file).end == 1
    with pytest.raises(ValueError, match=r"end: expected a token of .*tokenizer.json, which has 284, got '</s>'"):
        HuggingFace(file, "</s>")
    assert HuggingFace(write_tokenizer(tmp_path / "none", special=("<pad>",))).end is None


@needs_tokenizers
def test_the_name_and_the_size_follow_the_file(tmp_path):
    file = write_tokenizer(tmp_path / "own")
    first = HuggingFace(file)
    assert first.name.startswith("own-")
    assert HuggingFace(file.parent).name == first.name
    assert first.vocab_size == 284
    content = json.loads(file.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 284, "content": "<extra>"})
    file.write_text(json.dumps(content))
    second = HuggingFace(file)
    assert second.vocab_size == 285
    assert second.name != first.name


def test_a_missing_file_says_how_to_get_one(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match="tokenizer: no such file: ") as error:
            load(str(path))
        assert "hf download openai-community/gpt2 tokenizer.json" in str(error.value)


@needs_tokenizers
def test_a_file_of_something_else(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer: .*tokenizer.json is no tokenizer.json: "):
        load(str(tmp_path))


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"needs the package: pip install 'nested_jax\[tokenizers\]'"):
        load(str(tmp_path))
