# SPDX-License-Identifier: Apache-2.0
r"""Smoothing by perturbation: the average of a function over random inputs, which is differentiable.

For a function :math:`f`, a noise distribution with density :math:`\mu` and a scale :math:`\sigma`,

.. math::
    f_\sigma(x) = \mathbb{E}_{z \sim \mu}\, f(x + \sigma z)

is differentiable even if :math:`f` is piecewise constant.  Value and derivatives are estimated from values of :math:`f`
at ``num_samples`` points.  Unlike this module, :mod:`torchopt.zero_order_diff` returns the value of the function
itself and estimates only the gradient, for scalar objectives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from torchopt import checks, dtypes, levels, tree
from torchopt.dtypes import DTypeLike, as_dtype
from torchopt.kinds import described, kind_of
from torchopt.spelling import names_checked
from torchopt.tree.random import Key, seed_or_generator

__all__ = [
    'Gumbel',
    'MultiNormalDiagFromLogScale',
    'Noise',
    'Normal',
    'make_perturbed_argmax',
    'make_perturbed_fun',
    'make_perturbed_max',
    'multi_normal',
]


class Noise(Protocol):
    """A noise distribution whose density is positive and smooth on the whole line.

    Example:
        >>> import torch
        >>> from torchopt.perturbations import Noise
        >>> class Logistic(Noise):
        ...     def sample(self, key, sample_shape=(), dtype=None, device=None):
        ...         return torch.rand(sample_shape, generator=key, dtype=dtype, device=device).logit()
        ...
        ...     def log_prob(self, inputs):
        ...         return -inputs - 2 * torch.nn.functional.softplus(-inputs)
        >>> Logistic().log_prob(torch.tensor(0.0)).exp()
        tensor(0.2500)
    """

    def sample(
        self,
        key: Key,
        sample_shape: Sequence[int] = (),
        dtype: DTypeLike | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw a tensor of independent numbers."""

    def log_prob(self, inputs: Tensor) -> Tensor:
        """The logarithm of the density at each element, up to a constant; differentiable."""


class Normal(Noise):
    """The standard normal distribution.

    Example:
        >>> import torch
        >>> from torchopt.perturbations import Normal
        >>> Normal().log_prob(torch.tensor(2.0)), Normal().sample(0, (2, 3)).shape
        (tensor(-2.), torch.Size([2, 3]))
    """

    def sample(
        self,
        key: Key,
        sample_shape: Sequence[int] = (),
        dtype: DTypeLike | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw a tensor of independent numbers."""
        generator = _generator(key, device)
        return torch.randn(tuple(sample_shape), generator=generator, dtype=_dtype(dtype), device=generator.device)

    def log_prob(self, inputs: Tensor) -> Tensor:
        r""":math:`-z^2/2`, the logarithm of the density up to a constant."""
        return -0.5 * inputs * inputs


class Gumbel(Noise):
    """The standard Gumbel distribution; the argmax of scores with this noise has the distribution softmax(scores).

    Example:
        >>> import torch
        >>> from torchopt.perturbations import Gumbel
        >>> Gumbel().log_prob(torch.tensor(0.0)), Gumbel().sample(0, (2, 3)).shape
        (tensor(-1.), torch.Size([2, 3]))
    """

    def sample(
        self,
        key: Key,
        sample_shape: Sequence[int] = (),
        dtype: DTypeLike | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw a tensor of independent numbers."""
        generator = _generator(key, device)
        uniform = torch.rand(tuple(sample_shape), generator=generator, dtype=_dtype(dtype), device=generator.device)
        # Zero would give -inf; the smallest normal number is much smaller than all other numbers that are drawn.
        return -(-uniform.clamp_min(torch.finfo(uniform.dtype).tiny).log()).log()

    def log_prob(self, inputs: Tensor) -> Tensor:
        r""":math:`-z - e^{-z}`, the logarithm of the density."""
        return -inputs - (-inputs).exp()


class MultiNormalDiagFromLogScale:
    r"""Independent normal distributions, parametrized by the logarithms of their standard deviations.

    Args:
        loc: The means :math:`\mu`, a tensor.
        log_scale: The logarithms of the standard deviations, :math:`\log \sigma`, of a shape that broadcasts.

    Example:
        >>> import torch
        >>> from torchopt.perturbations import MultiNormalDiagFromLogScale
        >>> normal = MultiNormalDiagFromLogScale(torch.zeros(2), torch.zeros(2))
        >>> normal.log_prob(torch.zeros(2)).exp()  # 1 / 2 pi
        tensor(0.1592)
    """

    def __init__(self, loc: Any, log_scale: Any) -> None:
        self._log_scale = torch.as_tensor(log_scale)
        self._scale = self._log_scale.exp()
        self._mean = torch.as_tensor(loc)
        self._param_shape = (self._scale + self._mean).shape

    def sample(self, shape: Sequence[int], key: Key) -> Tensor:
        """Draw samples, differentiable with respect to the parameters.

        Args:
            shape: The shape of the batch; that of the parameters is appended.
            key: A seed, or a generator.
        """
        dtype = torch.promote_types(self._mean.dtype, self._scale.dtype)
        noise = Normal().sample(key, (*shape, *self._param_shape), dtype, self._mean.device)
        return noise * self._scale + self._mean

    def log_prob(self, x: Any) -> Tensor:
        r"""The logarithm of the density at :math:`x`, summed over the dimensions of the parameters."""
        z = (torch.as_tensor(x) - self._mean) / self._scale
        each = Normal().log_prob(z) - self._log_scale - 0.5 * math.log(2.0 * math.pi)
        dims = len(self._param_shape)
        return each.sum(dim=tuple(range(-dims, 0))) if dims else each

    @property
    def log_scale(self) -> Tensor:
        """The logarithms of the standard deviations."""
        return self._log_scale

    @property
    def params(self) -> list[Tensor]:
        """The means, and the logarithms of the standard deviations."""
        return [self._mean, self._log_scale]


def multi_normal(loc: Any, log_scale: Any) -> MultiNormalDiagFromLogScale:
    """The distribution :class:`MultiNormalDiagFromLogScale`, with the same arguments.

    Example:
        >>> import torch
        >>> from torchopt.perturbations import multi_normal
        >>> multi_normal(torch.zeros(2), torch.zeros(2)).sample((3,), key=0).shape
        torch.Size([3, 2])
    """
    return MultiNormalDiagFromLogScale(loc, log_scale)


def _dtype(dtype: DTypeLike | None) -> torch.dtype | None:
    return None if dtype is None else as_dtype(dtype)


def _generator(key: Key, device: torch.device | None) -> torch.Generator:
    source = seed_or_generator(key)
    if isinstance(source, torch.Generator):
        return source
    return torch.Generator(torch.get_default_device() if device is None else device).manual_seed(source)


@names_checked
def make_perturbed_fun(
    fun: Callable[[Any], Any],
    num_samples: int = 1000,
    sigma: float = 0.1,
    noise: Noise = Gumbel(),  # noqa: B008
    use_baseline: bool = True,
) -> Callable[[Key, Any], Any]:
    r"""Smooth a function by perturbing its argument.

    With :math:`z_i \sim \mu` and the score :math:`s_i = -\nabla \log \mu(z_i)`, the value and the derivative are

    .. math::
        \frac{1}{n} \sum_i f(x + \sigma z_i), \qquad
        \frac{1}{n \sigma} \sum_i \big(f(x + \sigma z_i) - f(x)\big)\, s_i^\top

    (without :math:`f(x)` if there is no baseline), unbiased estimates of those of :math:`f_\sigma`.  Automatic
    differentiation gives unbiased derivatives of every order: each value is multiplied by the factor :math:`\mu(\tilde
    z_i) / \mu(z_i)`, whose value is 1, where :math:`\tilde z_i` is a function of :math:`x`.

    Args:
        fun: A function from a tree of floating-point tensors to a tree of them.  Only its values are used; it is
            evaluated with :func:`torch.func.vmap` if that works, and in a loop otherwise.
        num_samples: The number of samples :math:`n \ge 1`.
        sigma: The scale :math:`\sigma > 0` of the noise.
        noise: The distribution: :class:`Gumbel`, :class:`Normal`, or another object with ``sample(key, sample_shape,
            dtype, device)`` and a differentiable ``log_prob(inputs)``.
        use_baseline: Subtract the value at the unperturbed argument, for a smaller variance at one more evaluation.

    Returns:
        A function of a key (a seed or a :class:`torch.Generator`) and the argument.  The same seed gives the same
        noise, and all elements of a batch under ``vmap`` get the same noise.

    Raises:
        TypeError: If ``num_samples`` is not an int.
        ValueError: If ``num_samples`` or ``sigma`` is not positive.

    Example:
        >>> import torch
        >>> from torchopt.perturbations import Normal, make_perturbed_fun
        >>> smooth = make_perturbed_fun(lambda x: (x > 0).float(), 100_000, 0.5, Normal())
        >>> x = torch.tensor(0.0, requires_grad=True)
        >>> value = smooth(0, x)
        >>> (slope,) = torch.autograd.grad(value, x)
        >>> abs(value.item() - 0.5) < 0.01, abs(slope.item() - 0.798) < 0.02  # the normal distribution of scale 0.5
        (True, True)

    References:
        Berthet et al., `Learning with differentiable perturbed optimizers <https://arxiv.org/abs/2002.08676>`_, 2020.

        Foerster et al., `DiCE: the infinitely differentiable Monte Carlo estimator
        <https://arxiv.org/abs/1802.05098>`_, 2018.
    """
    _check(num_samples, sigma)

    def smooth(key: Key, x: Any) -> Any:
        z, y = _perturb(key, x, num_samples, sigma, noise)
        # The value is z, and the derivative is that of (y - x) / sigma with y = x + sigma z constant.
        moving = tree.map(lambda x, z: z - (x - x.detach()) / sigma, x, z)
        log_probs = tree.leaves(tree.map(lambda m: _total(noise.log_prob(m)), moving))
        log_prob = functools.reduce(torch.add, log_probs)
        weight = (log_prob - log_prob.detach()).exp()
        outputs = _at_each(fun, y, num_samples)
        if not use_baseline:
            return tree.map(lambda out: _weighted_mean(weight, out), outputs)
        center = tree.map(_number, fun(tree.map(lambda x: x.detach(), x)))
        return tree.map(lambda out, c: _weighted_mean(weight, out - c) + c, outputs, center)

    return smooth


@names_checked
def make_perturbed_argmax(
    argmax_fun: Callable[[Tensor], Tensor],
    num_samples: int = 1000,
    sigma: float = 0.1,
    noise: Noise = Gumbel(),  # noqa: B008
    control_variate: bool = False,
) -> Callable[[Tensor, Key], Tensor]:
    r"""Smooth the maximizer of a linear function, such as a one-hot argmax or a ranking.

    It is :func:`make_perturbed_fun` with the arguments and defaults of JAXopt.  For the one-hot argmax and Gumbel noise
    the expected value is :math:`\mathrm{softmax}(x / \sigma)`.

    Args:
        argmax_fun: A function from scores to a point of the same shape,
            :math:`\arg\max_{y \in C} \langle x, y \rangle`.
        num_samples: The number of samples.
        sigma: The scale of the noise.
        noise: The distribution.
        control_variate: Subtract ``argmax_fun(x)`` in the derivative, which reduces the variance.

    Returns:
        A function of the scores and a key (an int, the seed, or a :class:`torch.Generator`).

    Raises:
        TypeError: If ``num_samples`` is not an int.
        ValueError: If ``num_samples`` or ``sigma`` is not positive.

    Example:
        >>> import torch
        >>> from torchopt.perturbations import make_perturbed_argmax
        >>> def one_hot_argmax(x):
        ...     return torch.nn.functional.one_hot(x.argmax(), x.shape[0]).to(x.dtype)
        >>> x = torch.tensor([0.1, 0.3, 0.2])
        >>> argmax = make_perturbed_argmax(one_hot_argmax, num_samples=10_000, sigma=0.5)
        >>> bool((argmax(x, 0) - (x / 0.5).softmax(0)).abs().max() < 0.02)
        True
    """
    smooth = make_perturbed_fun(argmax_fun, num_samples, sigma, noise, use_baseline=control_variate)
    return lambda inputs, rng: smooth(rng, inputs)


@names_checked
def make_perturbed_max(
    argmax_fun: Callable[[Tensor], Tensor],
    num_samples: int = 1000,
    sigma: float = 0.1,
    noise: Noise = Gumbel(),  # noqa: B008
) -> Callable[[Tensor, Key], Tensor]:
    r"""Smooth the maximum of a linear function, whose derivative is the argmax.

    .. math::
        F_\sigma(x) = \mathbb{E} \max_{y \in C} \langle x + \sigma z, y \rangle, \qquad
        \nabla F_\sigma(x) = \mathbb{E} \arg\max_{y \in C} \langle x + \sigma z, y \rangle

    The gradient is the mean of the results of ``argmax_fun``, which has a smaller variance than an estimate from the
    values.  The second derivative is that of :func:`make_perturbed_argmax` with the same noise.

    The arguments, the result and the errors are those of :func:`make_perturbed_argmax`.

    Example:
        >>> import torch
        >>> from torchopt.perturbations import make_perturbed_max
        >>> def one_hot_argmax(x):
        ...     return torch.nn.functional.one_hot(x.argmax(), x.shape[0]).to(x.dtype)
        >>> x = torch.tensor([0.1, 0.3, 0.2], requires_grad=True)
        >>> maximum = make_perturbed_max(one_hot_argmax, num_samples=1000, sigma=0.5)
        >>> (grad,) = torch.autograd.grad(maximum(x, 0), x)
        >>> round(grad.sum().item(), 4)
        1.0
    """
    _check(num_samples, sigma)

    def smooth(inputs: Tensor, rng: Key) -> Tensor:
        z, y = _perturb(rng, inputs, num_samples, sigma, noise)
        points = _at_each(argmax_fun, y, num_samples)
        value = _total(y * points).mean()
        moving = z - (inputs - inputs.detach()) / sigma
        log_prob = _total(noise.log_prob(moving))
        slope = _weighted_mean((log_prob - log_prob.detach()).exp(), points)
        return cast(Tensor, levels.apply_function(_WithSlope, value, inputs, slope))

    return smooth


class _WithSlope(torch.autograd.Function):
    """A value whose gradient is given as a differentiable tensor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, inputs: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        return None, cotangent * ctx.saved_tensors[0], None

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor, __: Any) -> Tensor:
        return (ctx.saved_tensors[0] * tangent).sum()


def _check(num_samples: Any, sigma: Any) -> None:
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise TypeError(f'Invalid num_samples: {described(num_samples)}; expected an int >= 1.')
    if num_samples < 1:
        raise ValueError(f'Invalid num_samples: {num_samples}; expected an int >= 1.')
    checks.positive('sigma', sigma)


def _perturb(key: Key, x: Any, num_samples: int, sigma: float, noise: Noise) -> tuple[Any, Any]:
    """The noise and the perturbed arguments, without a graph, with the samples along the first dimension."""
    for path, leaf in tree.flatten_with_path(x):
        if leaf is not None and not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            kind = f'of dtype {leaf.dtype}' if isinstance(leaf, Tensor) else kind_of(leaf)
            raise TypeError(f'Invalid argument: x{path} is {kind}; expected a tensor of a real floating dtype.')
        if leaf is not None:
            checks.perturbation('sigma', sigma, leaf)

    def sample(key: Key, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return noise.sample(key, shape, dtype, device)

    # Inside transforms, draw the noise only once, outside of them, since a key always gives the same noise.
    with temporarily_clear_interpreter_stack():
        shapes = tree.map(lambda x: torch.empty(num_samples, *x.shape, dtype=x.dtype, device=x.device), x)
        z = tree.random_like(key, shapes, sample)
    return z, tree.map(lambda x, z: x.detach() + sigma * z, x, z)


def _at_each(fun: Callable[[Any], Any], y: Any, num_samples: int) -> Any:
    """The values at all samples, without a graph."""
    try:
        outputs = torch.func.vmap(fun, randomness='different')(y)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # not supported by vmap, or an error of fun, which the loop will raise again
        rows = [fun(tree.map(functools.partial(torch.select, dim=0, index=i), y)) for i in range(num_samples)]
        outputs = tree.map(lambda *outs: torch.stack(outs), *rows)
    return tree.map(_number, outputs)


def _number(out: Tensor) -> Tensor:
    """A value without a graph; integers and bools are converted to floats, which can be averaged."""
    return out.detach() if dtypes.is_inexact(out) else out.detach().to(torch.get_default_dtype())


def _total(x: Tensor) -> Tensor:
    """The sum over all but the first dimension."""
    return x.reshape(x.shape[0], -1).sum(1)


def _weighted_mean(weight: Tensor, x: Tensor) -> Tensor:
    return (weight.to(x.dtype).reshape(-1, *(1 for _ in x.shape[1:])) * x).mean(0)
