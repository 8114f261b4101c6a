"""The autoencoder tells a sequence from its last token's features alone."""

import jax
import jax.numpy as jnp
import numpy as np

from nested_jax.models import AttentionConfig, AutoEncoder, AutoEncoderConfig, LanguageModel, ModelConfig


def test_answers_are_made_of_the_last_features_and_the_place(x64):
    options = {"vocab_size": 7, "dim": 8, "layers": 1, "blocks": ("attention",), "dtype": "float64"}
    options["attention"] = AttentionConfig(heads=2)
    model, plain = AutoEncoder(AutoEncoderConfig(**options)), LanguageModel(ModelConfig(**options))
    tokens = jnp.array([[1, 2, 3, 4, 5]])
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    logits, _ = model.apply({"params": params}, tokens)

    own = {name: value for name, value in params.items() if not name.startswith("decoder")}
    hidden, _ = plain.apply({"params": own}, tokens, method="read")
    last = np.asarray(hidden)[0, -1]
    for place in range(5):
        angle = place * 1e4 ** (-np.arange(4) / 4)
        told = last + np.concatenate([np.sin(angle), np.cos(angle)])
        for number in range(2):
            layer = params[f"decoder_{number}"]
            told = np.asarray(jax.nn.gelu(told @ layer["kernel"] + layer["bias"]))
        normed = told / np.sqrt(np.mean(told**2) + 1e-6) * params["norm"]["scale"]
        np.testing.assert_allclose(logits[0, place], normed @ params["embedding"].T, atol=1e-6)
