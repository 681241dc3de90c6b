# SPDX-License-Identifier: Apache-2.0
"""Modules whose trained parameters are an implicit function of the meta-parameters."""

from __future__ import annotations

import abc
import copy
import functools
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from torchopt import checks
from torchopt.graphs import detach_graph
from torchopt.implicit_diff.binding import refuse_hidden_parameters
from torchopt.implicit_diff.custom_root import find_root, wants_derivative
from torchopt.kinds import kind_of
from torchopt.levels import eager, in_transform
from torchopt.nn.meta_module import MetaGradientModule
from torchopt.nn.reparametrize import reparametrize

_ENABLED = '__implicit_gradients_enabled__'


class ImplicitMetaGradientModule(MetaGradientModule, abc.ABC):
    r"""A module whose ``solve`` solves an inner problem; its parameters are then an implicit function.

    A subclass defines

    * ``solve(*args, **kwargs)``, which trains the parameters by any method;
    * ``objective(*args, **kwargs)``, the 0-d tensor :math:`L(\theta, \phi)` that it minimizes; or
    * ``optimality(*args, **kwargs)``, which is zero at the solution, :math:`F(\theta, \phi) = 0`: a tuple with one
      tensor for each parameter that requires grad, in the order of ``named_parameters()``, or a dict by their names.
      Without it :math:`F = \partial_\theta L`.

    After ``solve`` the parameters :math:`\theta^\star` are tensors whose derivative is that of the implicit function,

    .. math:: \mathrm{d}\theta^\star = -(\partial_\theta F)^{-1}\, \partial_\phi F\, \mathrm{d}\phi,

    with respect to the meta-parameters :math:`\phi` (see :class:`MetaGradientModule`), to arguments of ``solve`` that
    require grad, and to all other tensors that ``objective`` or ``optimality`` uses.  Reverse mode, forward mode and
    higher derivatives work as in :func:`torchopt.implicit_diff.custom_root`.

    While ``solve`` runs, the parameters are leaves that can be trained in place, the same objects in every call.  The
    meta-parameters are constants, so nothing accumulates in their ``grad``.  ``solve`` runs with gradients enabled.  It
    may write into parameters in place, such as by ``self.w.copy_(...)``, also outside ``torch.no_grad()``.  The memory
    for the derivative does not depend on the number of steps of ``solve``.

    ``objective`` or ``optimality`` is evaluated again when the derivative is computed, on a copy of the module that has
    the attributes and buffers of the time of ``solve``.  Frozen parameters, and tensors, lists and dicts in attributes,
    are shared with the module and must not be changed in place before.

    Class arguments:
        linear_solve: The linear solver for the derivative, such as ``torchopt.linear_solve.solve_cg(maxiter=10)``;
            if None, as for :func:`torchopt.implicit_diff.custom_root`.  Subclasses inherit it.

    Args:
        *args: See :class:`MetaGradientModule`: tensors and modules passed to the constructor are meta.
        **kwargs: Likewise.

    Raises:
        TypeError: If a subclass has neither ``optimality`` nor ``objective``, or has it as a static or class method.
        RuntimeError: When ``solve`` is called, if there are no parameters or no meta-parameters.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.linear_solve import solve_cg
        >>> class Ridge(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solve_cg()):
        ...     def __init__(self, penalty):
        ...         super().__init__()
        ...         self.penalty = penalty
        ...         self.w = torch.nn.Parameter(torch.zeros(()))
        ...
        ...     def objective(self, x, y):
        ...         return ((self.w * x - y) ** 2).sum() + self.penalty * self.w**2
        ...
        ...     def solve(self, x, y):
        ...         optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        ...         for _ in range(100):
        ...             optimizer.zero_grad()
        ...             self.objective(x, y).backward()
        ...             optimizer.step()
        >>> penalty = torch.tensor(1.0, requires_grad=True)
        >>> inner = Ridge(penalty)
        >>> inner.solve(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
        >>> torch.autograd.grad(inner.w, penalty)  # w = 10 / (5 + penalty)
        (tensor(-0.2778),)

    References:
        Rajeswaran et al., *Meta-Learning with Implicit Gradients*, 2019 (arXiv 1909.04630).
    """

    linear_solve: ClassVar[Callable[..., Any] | None] = None
    _custom_optimality: ClassVar[bool]
    _custom_objective: ClassVar[bool]

    def __init_subclass__(cls, linear_solve: Callable[..., Any] | None = None, **kwargs: Any) -> None:
        """Check the methods, derive ``optimality`` if missing, and wrap ``solve`` unless inherited."""
        super().__init_subclass__(**kwargs)
        checks.linear_solver('linear_solve', linear_solve)
        if linear_solve is not None:
            cls.linear_solve = staticmethod(linear_solve)
        _check_methods(cls)
        if not cls._custom_optimality and 'optimality' not in vars(cls) and not hasattr(cls.optimality, '__derived__'):
            make_optimality_from_objective(cls)
        if not any(hasattr(cls.solve, mark) for mark in (_ENABLED, '__isabstractmethod__')):
            enable_implicit_gradients(cls)

    @abc.abstractmethod
    def solve(self, *args: Any, **kwargs: Any) -> Any:
        """Train the parameters of the module in place; the result is returned without a graph."""

    def objective(self, *args: Any, **kwargs: Any) -> Tensor:
        """The function that ``solve`` minimizes, a 0-d tensor."""
        raise NotImplementedError

    def optimality(self, *args: Any, **kwargs: Any) -> Any:
        """The optimality conditions, zero at the solution: one tensor like each parameter that requires grad."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the solution with its graph, and the leaves, to which an optimizer in ``solve`` may refer."""
        moved = {name: fn(p) for name, p in self.named_parameters(recurse=recurse) if not p.is_leaf}
        _restore_leaves(self, moved)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        _put(self, moved)
        return self

    def __getstate__(self) -> Any:
        """Pickle leaves with the values of the solution, since a graph cannot be pickled."""
        shell = _shell(self, {id(self): self})
        _restore_leaves(shell)
        return nn.Module.__getstate__(shell)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy whose parameters are leaves with the values of the solution; ``module_clone`` may keep the graph."""
        solution = {name: p for name, p in self.named_parameters() if not p.is_leaf}
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        if not all(id(p) in memo for p in solution.values()):
            copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
            return copied
        # The caller has already put copies of all tensors, including the leaves, into memo.
        copied.__setstate__(copy.deepcopy(nn.Module.__getstate__(self), memo))  # type: ignore[no-untyped-call]
        _restore_leaves(copied, [name for name in solution if memo[id(solution[name])].is_leaf])
        return copied

    def __copy__(self) -> Self:
        """A shallow copy, which shares all tensors and their graphs."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied


def _check_methods(cls: type[ImplicitMetaGradientModule]) -> None:
    base = ImplicitMetaGradientModule

    def definition(name: str) -> Any:
        return next(vars(c)[name] for c in cls.__mro__ if name in vars(c))

    def is_own(name: str) -> bool:
        return definition(name) is not vars(base)[name] and not hasattr(definition(name), '__derived__')

    cls._custom_optimality, cls._custom_objective = is_own('optimality'), is_own('objective')
    if not (cls._custom_optimality or cls._custom_objective):
        raise TypeError(
            'ImplicitMetaGradientModule requires either an optimality() method or an objective() method'
            f'; {cls.__name__} defines neither.'
        )
    name = 'optimality' if cls._custom_optimality else 'objective'
    found = definition(name)
    if isinstance(found, staticmethod):
        raise TypeError(f'method {name}() must not be a staticmethod. Define it as a method with self.')
    if isinstance(found, classmethod):
        raise TypeError(f'method {name}() must not be a classmethod. Define it as a method with self.')
    if not callable(found):
        raise TypeError(f'method {name}() must be callable. It is {kind_of(found)}.')


def make_optimality_from_objective(cls: type[ImplicitMetaGradientModule]) -> type[ImplicitMetaGradientModule]:
    """Derive ``optimality``, in the class itself, as the gradient of ``objective`` with respect to the parameters.

    Raises:
        TypeError: If it has no ``objective``.
    """
    if getattr(cls, 'objective', None) in (None, ImplicitMetaGradientModule.objective):
        raise TypeError('The objective function is not defined.')

    def optimality(self: ImplicitMetaGradientModule, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The gradient of the objective with respect to the parameters that require grad, a tuple in their order."""
        params = _parameters(self)
        _meta_parameters(self)
        return tuple(_gradient_of_objective(self, params, args, kwargs).values())

    optimality.__derived__ = True  # type: ignore[attr-defined]
    cls.optimality = optimality  # type: ignore[method-assign]
    return cls


def enable_implicit_gradients(cls: type[ImplicitMetaGradientModule]) -> type[ImplicitMetaGradientModule]:
    """Wrap ``solve``, in the class itself, so that the trained parameters have implicit gradients.

    Raises:
        TypeError: If the class is already wrapped.
    """
    method = cls.solve
    if getattr(method, _ENABLED, False):
        raise TypeError('Implicit gradients are already enabled for the `solve` method.')

    @eager
    @functools.wraps(method)
    def solve(self: ImplicitMetaGradientModule, *args: Any, **kwargs: Any) -> Any:
        if vars(self).get('_is_solving'):  # through super().solve() of a subclass
            return method(self, *args, **kwargs)
        return _solve(self, method, args, kwargs)

    setattr(solve, _ENABLED, True)
    cls.solve = solve  # type: ignore[method-assign]
    return cls


def _solve(
    module: ImplicitMetaGradientModule, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    refuse_hidden_parameters((args, kwargs))
    names, meta, kind = list(_parameters(module)), _meta_parameters(module), type(module)
    before = dict(module.named_parameters())
    leaves = _restore_leaves(module)
    problem: ImplicitMetaGradientModule | None = None

    def train(_: Any, meta: Mapping[str, Tensor], args: Any, kwargs: Any) -> tuple[dict[str, Tensor], Any]:
        nonlocal problem
        object.__setattr__(module, '_is_solving', True)
        try:
            with reparametrize(module, meta), torch.enable_grad(), _Writes():
                returned = method(module, *args, **kwargs)
        finally:
            object.__setattr__(module, '_is_solving', False)
        trained = dict(module.named_parameters())
        if missing := [name for name in names if name not in trained]:
            raise RuntimeError(f'solve() removed the parameters {missing}; it must keep all parameters.')
        problem = _twin(module)
        return {name: trained[name] for name in names}, returned

    def optimality(params: dict[str, Tensor], meta: dict[str, Tensor], args: Any, kwargs: Any) -> dict[str, Tensor]:
        assert problem is not None  # set by train
        with reparametrize(problem, {**params, **meta}):
            if not kind._custom_optimality:
                return _gradient_of_objective(problem, params, args, kwargs)
            return _by_name(kind.optimality(problem, *args, **kwargs), names)

    try:
        solution, returned = find_root(
            train, optimality, None, (None, meta, args, kwargs), {}, has_aux=True, solve=kind.linear_solve
        )
    except BaseException:
        _put(module, before)
        raise
    leaves = {name: p for name, p in module.named_parameters() if p.is_leaf} | leaves
    object.__setattr__(module, '_leaves', {name: leaves[name] for name in names if name in leaves})
    if any(map(wants_derivative, solution.values())):
        _put(module, solution)
    else:  # under no_grad, or if all meta-parameters are frozen, the parameters stay leaves
        _restore_leaves(module)
    return returned


def _put(module: nn.Module, new: Mapping[str, Tensor]) -> None:
    """Replace the parameters with these names, and all parameters tied to them."""
    replacement = {id(p): new[name] for name, p in module.named_parameters() if name in new}
    for part in module.modules():
        places: dict[str, Any] = part._parameters
        places.update({name: replacement[id(p)] for name, p in places.items() if id(p) in replacement})


# Parts of torch's messages on in-place writes to tensors that require grad, with gradients enabled.
_REFUSALS = ('leaf Variable that requires grad', "don't support automatic differentiation")


class _Writes(TorchFunctionMode):
    """Allow in-place writes into parameters, which autograd refuses outside ``torch.no_grad()``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation; if it is refused, which is before it does anything, without recording it."""
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if not any(text in str(error) for text in _REFUSALS):
                raise
        with torch.no_grad():
            return func(*args, **(kwargs or {}))


def _restore_leaves(module: nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Make the leaves of the previous call parameters again, with the current values; by default for all non-leaves."""
    known: dict[str, Tensor] = vars(module).get('_leaves', {})
    leaves = {}
    for name, p in module.named_parameters():
        if p.is_leaf if names is None else name not in names:
            continue
        leaf = known.get(name)
        if leaf is None or not leaf.is_leaf or _kind(leaf) != _kind(p):
            leaf = nn.Parameter(p.detach().clone())
        else:
            with torch.no_grad():
                leaf.copy_(p)
        leaves[name] = leaf
    _put(module, leaves)
    return leaves


def _kind(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.dtype, x.device


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    params: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not params:
        raise RuntimeError('The module has no parameters.')
    return params


def _meta_parameters(module: MetaGradientModule) -> dict[str, Tensor]:
    meta = dict(module.named_meta_parameters())
    if not meta:
        raise RuntimeError('The module has no meta-parameters.')
    return meta


def _gradient_of_objective(
    module: ImplicitMetaGradientModule, params: dict[str, Tensor], args: Any, kwargs: Any
) -> dict[str, Tensor]:
    def objective(params: dict[str, Tensor]) -> Tensor:
        with reparametrize(module, params):
            value = module.objective(*args, **kwargs)
        if not isinstance(value, Tensor) or value.dim():
            found = f'one of shape {tuple(value.shape)}' if isinstance(value, Tensor) else kind_of(value)
            raise TypeError(f'objective() should return a 0-d tensor; it returned {found}.')
        return value

    if in_transform() or torch.is_inference_mode_enabled():  # where autograd records nothing
        return torch.func.grad(objective)(params)
    # Unlike torch.func.grad, torch.autograd.grad allows changes of buffers, as in batch normalization.
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        at = {
            name: p.view_as(p) if again and p.requires_grad else detach_graph(p).requires_grad_()
            for name, p in params.items()
        }
        value = objective(at)
    if not value.requires_grad:
        return {name: torch.zeros_like(p) for name, p in params.items()}
    grads = torch.autograd.grad(value, list(at.values()), create_graph=again, allow_unused=True, materialize_grads=True)
    return dict(zip(at, grads))


def _by_name(result: Any, names: Sequence[str]) -> dict[str, Any]:
    """The result of a custom ``optimality`` as a dict by the names of the parameters."""
    if isinstance(result, Mapping):
        if set(result) != set(names):
            raise ValueError(f'optimality() returned a dict with the keys {list(result)}; expected {list(names)}.')
        return dict(result)
    if isinstance(result, Iterable) and not isinstance(result, Tensor):
        values = list(result)
    else:
        values = [result]
    if len(values) != len(names):
        raise ValueError(
            f'optimality() returned {len(values)} tensors for {len(names)} parameters; expected one for each of '
            f'{list(names)}, in this order, or a dict by name.'
        )
    return dict(zip(names, values))


def _twin(module: ImplicitMetaGradientModule) -> ImplicitMetaGradientModule:
    """A copy of the module with copied submodules and buffers, and parameters without a graph; the rest is shared.

    The graph of the solution keeps this copy to evaluate the optimality function.  If it kept the module, which refers
    to the solution, the reference cycle would never be freed.  Buffers are copied since an evaluation may change them.
    """
    twin: ImplicitMetaGradientModule = _shell(module, {})
    object.__setattr__(twin, '_leaves', {})
    _put(twin, {name: p.detach() for name, p in twin.named_parameters() if p.requires_grad})
    clones: dict[int, Tensor] = {}
    for part in {*twin.modules(), *twin.meta_modules()}:
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = clones.setdefault(id(buffer), buffer.detach().clone())
    return twin


_MEMBERS = ('_parameters', '_buffers', '_modules', '_meta_parameters', '_meta_modules')


def _shell(module: Any, shells: dict[int, Any]) -> Any:
    shell = object.__new__(type(module))
    shells.setdefault(id(module), shell)
    for name, value in vars(module).items():
        if name in ('_meta_inputs', '_compiled_call_impl'):  # the compiled call refers to the original module
            copied = value if name == '_meta_inputs' else None
        elif name in _MEMBERS:
            copied = copy.copy(value)
            copied.update({k: _shell_of(v, shells) for k, v in value.items()})
        else:
            copied = _shell_of(value, shells)
        object.__setattr__(shell, name, copied)
    if isinstance(compiled := vars(shell).get('_modules', {}).get('_orig_mod'), nn.Module):  # made by torch.compile
        object.__setattr__(shell, 'forward', compiled)
    return shell


def _shell_of(value: Any, shells: dict[int, Any]) -> Any:
    """Replace modules by their copies, also in methods, functions and containers; return anything else unchanged."""
    if isinstance(value, nn.Module):
        return shells[id(value)] if id(value) in shells else _shell(value, shells)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return types.MethodType(value.__func__, _shell_of(value.__self__, shells))
    if isinstance(value, types.FunctionType) and value.__closure__:
        return _with_cells(value, [_cell_of(cell, shells) for cell in value.__closure__])
    if isinstance(value, functools.partial):
        held = value.func, value.args, value.keywords
        func, args, keywords = (_shell_of(part, shells) for part in held)
        return (
            value if all(a is b for a, b in zip((func, args, keywords), held)) else type(value)(func, *args, **keywords)
        )
    if isinstance(value, dict):
        changed = {k: c for k, v in value.items() if (c := _shell_of(v, shells)) is not v}
        if not changed:
            return value
        copied = copy.copy(value)
        copied.update(changed)
        return copied
    if type(value) in (list, tuple, set):
        parts = [_shell_of(v, shells) for v in value]
        return value if all(a is b for a, b in zip(parts, value)) else type(value)(parts)
    return value


def _cell_of(cell: types.CellType, shells: dict[int, Any]) -> types.CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # an empty cell
        return cell
    # Replace only modules, since functions may refer to each other in cycles.
    copied = _shell_of(held, shells) if isinstance(held, nn.Module) else held
    return cell if copied is held else types.CellType(copied)


def _with_cells(function: types.FunctionType, cells: list[types.CellType]) -> types.FunctionType:
    if all(a is b for a, b in zip(cells, function.__closure__ or ())):
        return function
    copied = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    vars(copied).update(vars(function))
    return copied
