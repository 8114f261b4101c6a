"""The rules that papers name, as compositions of parts: Titans (13-14), Muon, Omega (Atlas 9-10), Atlas (32-33).

In all of them g_t is the gradient that comes in, θ the gate `learning_rate`, η `momentum` and α `decay`, the fraction
forgotten. A gate without a constant is given at every step. All raise ValueError for a constant out of range.
"""

from collections.abc import Sequence

import jax

from nested_jax.rules._compose import chain
from nested_jax.rules._parts import momentum as momentum_rule
from nested_jax.rules._parts import newton_schulz, retention, scale_by_learning_rate
from nested_jax.rules._rule import Rule

Gate = jax.typing.ArrayLike | None
Coefficients = str | Sequence[Sequence[float]]


def gradient_descent(learning_rate: Gate = None) -> Rule:
    r"""Gradient descent; as a memory with an l2 objective, the delta rule.

    .. math::
      W_t = W_{t-1} - \theta_t\, g_t

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.

    Returns:
      `scale_by_learning_rate`, as a chain of one.

    Example:
      >>> gradient_descent(0.1)
      chain(scale_by_learning_rate(learning_rate=0.1))

    References:
      Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025, equations (8-9): gradient descent as
      a memory. Yang et al., `DeltaNet <https://arxiv.org/abs/2406.06484>`_, 2024: the linear memory.
    """
    return chain(scale_by_learning_rate(learning_rate))


def gated_gradient_descent(learning_rate: Gate = None, decay: Gate = None) -> Rule:
    r"""Gradient descent that forgets.

    .. math::
      W_t = (1 - \alpha_t)\, W_{t-1} - \theta_t\, g_t

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten; None if it is given at every step.

    Returns:
      `scale_by_learning_rate` → `retention`.

    Example:
      >>> gated_gradient_descent(0.1)
      chain(scale_by_learning_rate(learning_rate=0.1), retention())

    References:
      Behrouz et al., `Titans <https://arxiv.org/abs/2501.00663>`_, 2025, equations (8) and (13) without momentum.
      Yang et al., `Gated DeltaNet <https://arxiv.org/abs/2412.06464>`_, 2024: the same links on a linear memory, with
      the gradient taken at the weights that have already decayed.
    """
    return chain(scale_by_learning_rate(learning_rate), retention(decay))


def titans(learning_rate: Gate = None, momentum: Gate = None, decay: Gate = None) -> Rule:
    r"""The update of the neural long-term memory of Titans: past surprise, momentary surprise, forgetting.

    .. math::
      S_t = \eta_t S_{t-1} - \theta_t\, g_t, \qquad W_t = (1 - \alpha_t)\, W_{t-1} + S_t

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: η in [0, 1]; None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten, as Titans prints it; None if it is given at every step.

    Returns:
      `scale_by_learning_rate` → `momentum` → `retention`.

    Example:
      >>> titans(momentum=0.9)
      chain(scale_by_learning_rate(), momentum(momentum=0.9), retention())

    References:
      Behrouz et al., `Titans <https://arxiv.org/abs/2501.00663>`_, 2025, equations (13-14).

    .. note::
      `omega` puts the learning rate after the momentum: the two differ once the learning rate changes from step to
      step.
    """
    return chain(scale_by_learning_rate(learning_rate), momentum_rule(momentum), retention(decay))


def muon(
    learning_rate: Gate = None,
    momentum: Gate = None,
    *,
    nesterov: bool = False,
    coefficients: Coefficients = "muon",
    steps: int = 5,
) -> Rule:
    r"""Momentum, orthogonalised.

    .. math::
      S_t = \eta_t S_{t-1} + g_t, \qquad W_t = W_{t-1} - \theta_t\, \mathrm{NewtonSchulz}(S_t)

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: η in [0, 1] (Jordan et al.: 0.95); None if it is given at every step.
      nesterov: whether the momentum looks ahead, as Jordan et al. do.
      coefficients: of the Newton-Schulz iteration, see `newton_schulz`.
      steps: Newton-Schulz iterations, at least 1.

    Returns:
      `momentum` → `newton_schulz` → `scale_by_learning_rate`, for weights that are matrices. The learning rate closes
      the chain so that it is an optimizer by itself (our choice; without it, Muon is the first two links).

    Example:
      >>> muon(0.02, 0.95, nesterov=True).links[0]
      momentum(momentum=0.95, nesterov=True)

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024. Behrouz et al., `Nested Learning
      <https://arxiv.org/abs/2512.24695>`_, 2025, equation (42).

    .. note::
      `optax.contrib.muon` averages gradients with bias correction, sends vectors to Adam and scales by the matrix's
      shape; here the gradients are summed, no factor is put in for the shape, and vectors are refused.
    """
    return chain(
        momentum_rule(momentum, nesterov=nesterov),
        newton_schulz(coefficients, steps),
        scale_by_learning_rate(learning_rate),
    )


def omega(learning_rate: Gate = None, momentum: Gate = None, decay: Gate = None) -> Rule:
    r"""The update of OmegaNet, once the gradient sums over a window.

    .. math::
      S_t = \eta_t S_{t-1} + g_t, \qquad W_t = (1 - \alpha_t)\, W_{t-1} - \theta_t\, S_t

    The Omega rule itself is in the gradient, which is that of the last c tokens' losses: the option `window` of a
    memory, not of its rule.

    Args:
      learning_rate: θ, at least 0; None if it is given at every step.
      momentum: η in [0, 1], 0 in the paper's equation (10); None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten. The paper prints the fraction kept, 1 - α. None if it is given at
        every step.

    Returns:
      `momentum` → `scale_by_learning_rate` → `retention`: `atlas` without Newton-Schulz.

    Example:
      >>> omega(0.1, 0.9)
      chain(momentum(momentum=0.9), scale_by_learning_rate(learning_rate=0.1), retention())

    References:
      Behrouz et al., `Atlas <https://arxiv.org/abs/2505.23735>`_, 2025, equations (9-10) and (12-13).
    """
    return chain(momentum_rule(momentum), scale_by_learning_rate(learning_rate), retention(decay))


def atlas(
    learning_rate: Gate = None,
    momentum: Gate = None,
    decay: Gate = None,
    *,
    coefficients: Coefficients = "muon",
    steps: int = 5,
) -> Rule:
    r"""The update of Atlas: Muon that forgets.

    .. math::
      S_t = \eta_t S_{t-1} + g_t, \qquad
      W_t = (1 - \alpha_t)\, W_{t-1} - \theta_t\, \mathrm{NewtonSchulz}(S_t)

    This is the main text's form, with the learning rate outside. The appendix (57-58) has it inside the sum, where
    Newton-Schulz takes away all but the ratios of one step's to another's.

    Args:
      learning_rate: θ, at least 0 (Atlas writes η); None if it is given at every step.
      momentum: η in [0, 1] (Atlas writes θ); None if it is given at every step.
      decay: α in [0, 1], the fraction forgotten. Atlas writes α for the fraction kept, 1 - α. None if it is given at
        every step.
      coefficients: of the Newton-Schulz iteration, see `newton_schulz`; the paper does not say, Muon's are our choice.
      steps: Newton-Schulz iterations, at least 1.

    Returns:
      `momentum` → `newton_schulz` → `scale_by_learning_rate` → `retention`, for weights that are matrices.

    Example:
      >>> atlas(steps=3)
      chain(momentum(), newton_schulz(steps=3), scale_by_learning_rate(), retention())

    References:
      Behrouz et al., `Atlas <https://arxiv.org/abs/2505.23735>`_, 2025, equations (32-33).
    """
    return chain(
        momentum_rule(momentum),
        newton_schulz(coefficients, steps),
        scale_by_learning_rate(learning_rate),
        retention(decay),
    )
