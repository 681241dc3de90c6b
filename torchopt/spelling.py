# SPDX-License-Identifier: Apache-2.0
"""Names: of arguments that have two, that of TorchOpt and that of Optax; and errors for unknown ones."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, ParamSpec, TypeVar

from torch.nn import Module, Parameter
from typing_extensions import TypedDict

__all__ = [
    'OptaxAdam',
    'OptaxRate',
    'OptaxRmsProp',
    'absent',
    'also_spelled',
    'check_names',
    'check_names_of',
    'instead_of',
    'renamer_of',
    'names_checked',
    'no_such_name',
    'suggesting',
    'takes_only_a_function',
]

_P = ParamSpec('_P')
_T = TypeVar('_T')


class OptaxRate(TypedDict, total=False):
    """Optax's name for ``lr``."""

    learning_rate: Any


class OptaxAdam(OptaxRate, total=False):
    """Optax's names for ``lr`` and for the two ``betas``."""

    b1: Any
    b2: Any


class OptaxRmsProp(OptaxRate, total=False):
    """Optax's names for ``lr`` and ``alpha``."""

    decay: Any


_RENAMERS: weakref.WeakKeyDictionary[Any, Callable[..., dict[str, Any]]] = weakref.WeakKeyDictionary()


def renamer_of(function: Any) -> Callable[..., dict[str, Any]] | None:
    """The renaming of the arguments of a function that :func:`also_spelled` decorates; None for other functions.

    ``renamer(given, defaults=None)`` renames keyword arguments to their first names.  If only a part of an argument is
    given (``b1`` alone), the rest comes from the defaults.
    """
    return _RENAMERS.get(function) if isinstance(function, FunctionType) else None


def also_spelled(**second_names: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let a function accept second names for some of its arguments.

    ``also_spelled(learning_rate='lr', b1='betas.0')`` accepts ``learning_rate=`` for ``lr=``, and ``b1=`` for the first
    entry of ``betas=``.  The function declares ``**optax`` for the type checker only; it is always empty.

    Raises:
        TypeError: Raised by the decorated function if an argument is given under both names, or a name is unknown.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        full = inspect.signature(function)
        parameters = [p for p in full.parameters.values() if p.kind is not p.VAR_KEYWORD]
        positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        known = {p.name for p in parameters} | set(second_names)

        def first_names(given: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
            if not second_names.keys() & given.keys():
                return given
            defaults = defaults or {}
            named = {name: value for name, value in given.items() if name not in second_names}
            entries: dict[str, list[Any]] = {}
            for second in [name for name in second_names if name in given]:
                first, _, index = second_names[second].partition('.')
                if first in given:
                    raise TypeError(
                        f'{function.__name__}() got both {first!r} and {second!r}, which mean the same. Pass one.'
                    )
                if index:
                    default = defaults.get(first, full.parameters[first].default)
                    whole = entries.setdefault(first, list(default))
                    whole[int(index)] = given[second]
                else:
                    named[first] = given[second]
            return {**named, **{first: tuple(whole) for first, whole in entries.items()}}

        @functools.wraps(function)
        def accept(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            if not kwargs.keys() <= known:
                _check_first(function, args)
                check_names(function.__name__, kwargs, [*(p.name for p in parameters), *second_names])
            try:
                if not second_names.keys() & kwargs.keys():
                    return function(*args, **kwargs)
                given = dict(zip(positional, args))
                for name in given.keys() & kwargs.keys():
                    raise TypeError(f'{function.__name__}() got multiple values for argument {name!r}')
                rest: Any = args[len(positional) :]  # too many: Python raises the error
                return function(*rest, **first_names({**given, **kwargs}))
            except (TypeError, ValueError):
                _check_first(function, args)
                raise

        _RENAMERS[accept] = first_names
        accept.__signature__ = full.replace(parameters=parameters)  # type: ignore[attr-defined]
        return accept

    return decorate


def check_names(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Require that keyword arguments are known.

    Raises:
        TypeError: If a name is unknown; the message says which name was probably meant, or what to use instead.

    Example:
        >>> from torchopt.spelling import check_names
        >>> check_names('solve', ['max_iter'], ['tol', 'maxiter'])
        Traceback (most recent call last):
            ...
        TypeError: solve() got an unexpected keyword argument 'max_iter'. Did you mean 'maxiter'? It takes tol, maxiter.
    """
    known = list(known)
    for name in given:
        if name not in known:
            hints = [instead_of(name) or _guess(name, known), f'It takes {", ".join(known)}.']
            problem = f'{function}() got an unexpected keyword argument {name!r}.'
            raise TypeError(' '.join([problem, *filter(None, hints)]))


def instead_of(name: str) -> str | None:
    """What to use instead of an option of ``torch.optim`` that is no argument here, if it is one."""
    return _NO_COUNTERPART.get(name)


def suggesting(function: Callable[_P, _T], *, takes_hyperparameters: bool = True) -> Callable[_P, _T]:
    """Let errors of a function say which argument was probably meant, or that it does not take the parameters."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError):
            if takes_hyperparameters:
                _check_first(function, args)
            check_names_of(function, kwargs)
            raise

    return call


def names_checked(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let errors of a function say which argument was probably meant."""
    return suggesting(function, takes_hyperparameters=False)


def takes_only_a_function(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let the errors of a transform of functions say that arguments belong to the function that it returns."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if len(args) + len(kwargs) > 1:
            name = function.__name__
            raise TypeError(
                f'{name}() takes a function only, and returns a function: call {name}(fun)(x), not {name}(fun, x).'
            )
        return function(*args, **kwargs)

    return call


def check_names_of(function: Callable[..., Any], given: Iterable[str]) -> None:
    """Like :func:`check_names`, for the names that a function takes; any name is fine if it takes all."""
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
        check_names(function.__name__, given, known)


def absent(owner: object, name: str, hints: Mapping[str, str]) -> AttributeError:
    """The error of ``__getattr__`` for an attribute that does not exist; ``hints`` say what to use instead."""
    hint = f'. {hints[name]}' if name in hints else ''
    if isinstance(owner, ModuleType):
        whose = f'module {owner.__name__!r}'
    else:
        kind = next(cls.__name__ for cls in type(owner).__mro__ if not cls.__name__.startswith('_'))
        whose = f'{kind!r} object'
    return AttributeError(f'{whose} has no attribute {name!r}{hint}', name=name, obj=owner)


def no_such_name(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error for a name that a module does not have; for names of ``torch.optim`` it says what to use instead."""
    hint = _NAMES_OF_TORCH.get(name, '')
    rule = name.lower().removeprefix('meta')
    if not hint and name != name.lower() and rule in known:
        wrapped = (
            f'MetaOptimizer(module, torchopt.{rule}(...))'
            if name.startswith('Meta')
            else f'Optimizer(params, torchopt.{rule}(...))'
        )
        hint = f'It has no class of its own: use torchopt.{wrapped}.'
    return absent(sys.modules[module], name, {name: hint} if hint else {})


def _check_first(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Require that the first argument is a hyper-parameter, and not the parameters, as for a class."""
    first = args[0] if args else None
    if isinstance(first, (Iterator, Module)) or any(isinstance(x, Parameter) and x.dim() > 0 for x in _held(first)):
        _, package, *_ = *function.__module__.split('.'), ''
        place = {'alias': 'torchopt', 'compat': 'optax'}.get(package, f'torchopt.{package}')
        call = f'{place}.{function.__name__}(...)'
        remedy = f'use torchopt.Optimizer(params, {call}), or a class such as torchopt.Adam'
        if package == 'schedule':
            remedy = f'pass the schedule as the learning rate: torchopt.Adam(params, lr={call})'
        raise TypeError(
            f'{function.__name__}() takes hyper-parameters only, not the parameters to train. To train them in place, '
            f'{remedy}.'
        ) from None


def _held(x: Any) -> Iterator[Any]:
    """What nested lists, tuples and dicts hold."""
    if isinstance(x, Mapping):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        for entry in x:
            yield from _held(entry)
    else:
        yield x


def _guess(name: str, known: list[str]) -> str | None:
    for near in difflib.get_close_matches(name, {*known, *itertools.chain(*_SYNONYMS)}, n=3):
        same = [other for group in _SYNONYMS if near in group for other in group]
        if meant := [other for other in dict.fromkeys([near, *same]) if other in known]:
            return f'Did you mean {" or ".join(map(repr, meant))}?'
    return None


_SYNONYMS = [
    names.split()
    for names in (
        'lr learning_rate stepsize step_size',
        'betas b1 b2',
        'beta1 b1 betas',
        'beta2 b2 betas',
        'eps epsilon',
        'alpha decay rho decay_rate',
        'decay_rate gamma',
        'weight_decay wd decay',
        'mask weight_decay_mask',
        'momentum beta decay',
        'max_norm clip_norm max_grad_norm max_delta',
        'maxiter max_iter max_iters max_steps num_steps niter iterations',
        'tol tolerance tolerance_grad ftol gtol atol rtol',
        'history_size memory_size',
        'linesearch line_search line_search_fn',
        'fun f function objective residual_fun fixed_point_fun optimality_fun',
        'init init_params x0',
        'init_value initial_value peak_value base_lr',
        'end_value final_value eta_min',
        'transition_steps decay_steps num_steps steps total_steps T_max step_size',
        'transition_begin start_step last_epoch',
        'key seed rng',
    )
]
"""Names of the same argument, in this library and in others."""

_NAMES_OF_TORCH = {
    'ASGD': 'It has no counterpart; torch.optim.swa_utils.AveragedModel averages the parameters of any optimizer.',
    'Muon': 'Use torchopt.Optimizer(params, torchopt.contrib.muon(...)).',
    'SparseAdam': 'Only dense gradients are supported: pass sparse=False to the layer, and use torchopt.Adam.',
    'clip_grad_norm_': 'torch.nn.utils.clip_grad_norm_ works with every optimizer; torchopt.clip_grad_norm is a '
    'transformation, for torchopt.chain.',
    'clip_grad_value_': 'torch.nn.utils.clip_grad_value_ works with every optimizer; torchopt.clip.clip is a '
    'transformation, for torchopt.chain.',
    'lr_scheduler': 'The schedulers of torch.optim.lr_scheduler work with the classes, such as torchopt.Adam; '
    'torchopt.schedule has functions of the step count, which every learning rate may be.',
    'swa_utils': 'Use torch.optim.swa_utils.',
}
"""Names of ``torch.optim`` and of ``torch.nn.utils`` that are none here, and what to use instead."""

_NO_COUNTERPART = {
    'amsgrad': 'AMSGrad is an optimizer of its own: use torchopt.amsgrad, as a class by torchopt.Optimizer(params, '
    'torchopt.amsgrad(...)). It has the numbers of Optax, not of torch.optim: it takes the maximum after the bias '
    'correction.',
    'capturable': 'It has no counterpart. Leave it out.',
    'decoupled_weight_decay': 'Adam with decoupled weight decay is adamw or AdamW, and NAdam is nadamw. For another '
    'rule, chain for example torchopt.transform.scale_by_radam(), torchopt.transform.add_decayed_weights(weight_decay) '
    'and torchopt.transform.scale_by_learning_rate(lr).',
    'differentiable': 'For differentiable steps, use the function (such as torchopt.adam), or a class such as '
    'torchopt.MetaAdam.',
    'foreach': 'Leave it out: steps run natively for all parameters at once where they can.',
    'fused': 'Leave it out: steps run natively for all parameters at once where they can.',
    'maximize': 'Negate the loss, or put torchopt.transform.scale(-1.0) first in a chain.',
}
"""Options of ``torch.optim`` that are no arguments here, and what to use instead."""
