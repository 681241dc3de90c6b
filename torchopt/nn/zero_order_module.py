# SPDX-License-Identifier: Apache-2.0
"""Modules with zero-order gradients, which are estimated from values of the objective.

Class keywords choose the estimator (``class Net(ZeroOrderGradientModule, method='antithetic', num_samples=100)``).
``sample`` draws the directions; ``forward`` is the objective, which need not be differentiable.
"""

from __future__ import annotations

import abc
import contextvars
import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from torchopt.levels import eager, in_transform
from torchopt.nn.reparametrize import reparametrize
from torchopt.typing import Numeric, Samplable
from torchopt.zero_order_diff import zero_order

_MARK = '__zero_order_gradients_enabled__'
_LOOPS = '_zero_order_loops'
_OPTIONS = ('method', 'num_samples', 'sigma', 'vectorize', 'chunk_size', 'generator', 'seed')

# The modules whose objective is being evaluated: during this, forward is not wrapped, also if called by super().
_evaluating: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar('evaluating', default=frozenset())


class ZeroOrderGradientModule(nn.Module, Samplable):
    """A module that computes an objective, with zero-order gradients with respect to its parameters.

    Subclasses define ``forward``, which returns a 0-d tensor, and ``sample``, which draws directions; see
    :func:`torchopt.diff.zero_order`.  All parameters that require grad are perturbed together; other inputs get no
    gradient.  Buffers that ``forward`` changes, such as running averages, change once per call; the samples use copies.

    With ``sample = torch.distributions.Normal(0.0, 1.0).sample`` in the body of the class the directions are known to
    be normal, so second derivatives exist.  A subclass of a concrete subclass inherits its ``forward`` and
    its options, and may override them.

    Args:
        method: The estimator, ``'naive'`` by default.  This and the following are class keywords.
        num_samples: The number of directions, 1 by default.
        sigma: The scale of the perturbations, 1.0 by default.
        vectorize: Whether to evaluate several samples at once; by default if possible.
        chunk_size: The number of directions in memory at the same time.
        generator: The generator from which directions are drawn.
        seed: Draw the same directions in every backward pass.

    Raises:
        TypeError: If the class has an unknown keyword, or has no ``forward`` or ``sample`` when it is instantiated.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch
        >>> from torchopt.nn.zero_order_module import ZeroOrderGradientModule
        >>> class Errors(ZeroOrderGradientModule, method='antithetic', num_samples=1000, sigma=0.5):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(2, 1, bias=False)
        ...
        ...     def forward(self, x, y):
        ...         return ((self.linear(x)[:, 0] > 0) != y).float().mean()
        ...
        ...     def sample(self, sample_shape=torch.Size()):
        ...         return torch.randn(sample_shape)
        >>> _ = torch.manual_seed(0)
        >>> net = Errors()
        >>> loss = net(torch.eye(2), torch.tensor([True, True]))
        >>> grads = torch.autograd.grad(loss, net.parameters())
        >>> bool((grads[0] < 0).all())
        True
    """

    _zero_order_options: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, /, **options: Any) -> None:
        """Check the options and wrap the ``forward`` that the class itself defines."""
        super().__init_subclass__()
        _set_options(cls, options)
        own = cls.__dict__.get('forward')
        if own is not None and not getattr(own, _MARK, False) and not getattr(own, '__isabstractmethod__', False):
            enable_zero_order_gradients(cls)

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The objective, a 0-d tensor."""

    @abc.abstractmethod
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor | list[Numeric]:  # noqa: B008
        """Draw directions: a tensor of this shape from a symmetric distribution with variance one."""


_Module = TypeVar('_Module', bound=type[ZeroOrderGradientModule])


def _set_options(cls: type[ZeroOrderGradientModule], given: dict[str, Any]) -> None:
    unknown = sorted(given.keys() - set(_OPTIONS))
    if unknown:
        raise TypeError(
            f'{cls.__name__} has an unknown class keyword, {unknown[0]!r}; expected some of {", ".join(_OPTIONS)}. '
            f'For other options, decorate a function with torchopt.diff.zero_order.'
        )
    options = {**cls._zero_order_options, **given}
    zero_order(torch.randn, **options)  # raises if an option is out of its range
    cls._zero_order_options = options


@eager
def _estimated(
    module: ZeroOrderGradientModule, forward: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    params = dict(module.named_parameters())
    if not params:
        raise RuntimeError('The module has no parameters. Register at least one in __init__, as an nn.Parameter.')
    options = dict(type(module)._zero_order_options)
    if module.__dict__.get(_LOOPS) and options.get('vectorize') is None:
        options['vectorize'] = False
    return zero_order(module.sample, argnums=0, **options)(_Objective(module, forward))(params, args, kwargs)


class _Objective:
    """The forward of a module as a function of its parameters, during one call of the module."""

    def __init__(self, module: ZeroOrderGradientModule, forward: Callable[..., Tensor]) -> None:
        self.module, self.forward, self.is_sample = module, forward, False

    def __call__(self, params: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        # The first evaluation is that of the call itself, which may change buffers.
        buffers = {name: x.clone() for name, x in self.module.named_buffers()} if self.is_sample else {}
        self.is_sample = True
        token = _evaluating.set(_evaluating.get() | {id(self.module)})
        try:
            with reparametrize(self.module, {**params, **buffers}):
                return self.forward(self.module, *args, **kwargs)
        except Exception:
            if in_transform():
                self.module.__dict__[_LOOPS] = True  # the next call need not try
            raise
        finally:
            _evaluating.reset(token)


def enable_zero_order_gradients(
    cls: _Module, method: str | None = None, num_samples: int | None = None, sigma: float | None = None, **options: Any
) -> _Module:
    """Wrap the ``forward`` of a class; :class:`ZeroOrderGradientModule` does this for its subclasses.

    Args:
        cls: The class.
        method: The estimator; options that are not given have the values of the class keywords.
        num_samples: The number of directions.
        sigma: The scale of the perturbations.
        **options: The other class keywords.

    Raises:
        TypeError: If ``forward`` is already wrapped.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch
        >>> from torchopt.nn.zero_order_module import ZeroOrderGradientModule, enable_zero_order_gradients
        >>> class Net(ZeroOrderGradientModule):
        ...     def forward(self):
        ...         return torch.zeros(())
        >>> enable_zero_order_gradients(Net)
        Traceback (most recent call last):
            ...
        TypeError: Zero-order gradient estimation is already enabled for the `forward` method. ...
    """
    forward: Callable[..., Tensor] = cls.forward
    if getattr(forward, _MARK, False):
        raise TypeError(
            'Zero-order gradient estimation is already enabled for the `forward` method. Do not call '
            'enable_zero_order_gradients for subclasses of ZeroOrderGradientModule; pass options as class keywords.'
        )
    given = {'method': method, 'num_samples': num_samples, 'sigma': sigma}
    _set_options(cls, {**{name: x for name, x in given.items() if x is not None}, **options})

    @functools.wraps(forward)
    def wrapped(self: ZeroOrderGradientModule, *args: Any, **kwargs: Any) -> Tensor:
        if id(self) in _evaluating.get():
            return forward(self, *args, **kwargs)
        return _estimated(self, forward, args, kwargs)

    setattr(wrapped, _MARK, True)
    cls.forward = wrapped  # type: ignore[method-assign]
    return cls
