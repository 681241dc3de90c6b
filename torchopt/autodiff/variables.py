# SPDX-License-Identifier: Apache-2.0
"""A Python function together with the current values of the variables that it reads.

A function that is called again later must read the variables of its first call.  In

.. code-block:: python

    for x, y in batches:
        optimizer.step(lambda: loss(net(x), y))

all functions share the variables ``x`` and ``y``, which hold the last batch when the backward pass begins.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any


class Remembered:
    """The variables that a function reads: its closure, its globals, and those of the functions among them.

    Objects are stored, not copied: changes in place, for example of a list, are not undone.  The functions that a
    solver holds count as variables of its methods.

    Args:
        fun: A function, a method, or a ``functools.partial`` of one; other callables have no variables.
    """

    def __init__(self, fun: Callable[..., Any]) -> None:
        self.fun = fun
        self.functions: dict[int, types.FunctionType] = {}
        self.cells: dict[int, tuple[types.CellType, Any]] = {}
        self.globals: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.solvers: dict[int, Any] = {}
        self._look_at(fun)

    def _look_at(self, value: Any) -> None:
        f, owner = _function_of(value)
        if f is not None and id(f) not in self.functions:
            self._visit(f)
        if _is_of_solvers(type(owner)) and id(owner) not in self.solvers:  # type: ignore[arg-type]
            self.solvers[id(owner)] = owner
            for attribute in vars(owner).values():
                self._look_at(attribute)

    def _visit(self, f: types.FunctionType) -> None:
        self.functions[id(f)] = f
        read: list[Any] = []
        for cell in f.__closure__ or ():
            if id(cell) not in self.cells:
                content = _content(cell)
                self.cells[id(cell)] = (cell, content)
                read.append(content)
        if not f.__module__ or f.__module__.partition('.')[0] not in _LIBRARIES:
            values = {n: f.__globals__[n] for n in _names(f.__code__) if n in f.__globals__}
            self.globals.setdefault(id(f.__globals__), (f.__globals__, {}))[1].update(values)
            # Only functions of the same script, since those of other modules read no variables of its loops.
            read += [v for v in values.values() if getattr(v, '__globals__', None) is f.__globals__]
        for value in read:
            self._look_at(value)

    def again(self) -> Callable[..., Any]:
        """The function with variables of its own, which have the stored values."""
        if self._is_unchanged():
            return self.fun  # no copy, which torch.compile would not recognize
        return self.with_values(lambda content: content)

    def with_values(self, replace: Callable[[Any], Any]) -> Callable[..., Any]:
        """The function with variables of its own, whose values are computed from the stored ones."""
        names = {
            key: {**original, **{name: replace(value) for name, value in read.items()}}
            for key, (original, read) in self.globals.items()
        }
        return self._copy(names, replace)

    def values(self) -> Iterator[Any]:
        """The stored values."""
        for _, content in self.cells.values():
            yield content
        for _, read in self.globals.values():
            yield from read.values()
        for f in self.functions.values():
            yield from (f.__defaults__, f.__kwdefaults__)

    def _is_unchanged(self) -> bool:
        return all(_content(cell) is content for cell, content in self.cells.values()) and all(
            original.get(name) is value for original, read in self.globals.values() for name, value in read.items()
        )

    def replaced(self, replace: Callable[[Any], Any]) -> Callable[..., Any]:
        """The function with other values of the variables in its closure; its globals are shared."""
        return self._copy({}, replace)

    def _copy(self, names: dict[int, dict[str, Any]], replace: Callable[[Any], Any]) -> Callable[..., Any]:
        if not self.functions:
            return self.fun
        cells = {key: types.CellType() for key in self.cells}
        copies: dict[int, Any] = {key: object.__new__(type(x)) for key, x in self.solvers.items()}
        for key, f in self.functions.items():
            closure = tuple(cells[id(cell)] for cell in f.__closure__) if f.__closure__ else None
            copy = types.FunctionType(
                f.__code__, names.get(id(f.__globals__), f.__globals__), f.__name__, replace(f.__defaults__), closure
            )
            copy.__kwdefaults__ = replace(f.__kwdefaults__)
            copy.__dict__.update(f.__dict__)
            copies[key] = copy
        for key, x in self.solvers.items():
            vars(copies[key]).update({name: _with_copies(value, copies) for name, value in vars(x).items()})
        for key, (_, content) in self.cells.items():
            if content is not _EMPTY:
                cells[key].cell_contents = _with_copies(replace(content), copies)
        for values in names.values():
            for name, value in values.items():
                if isinstance(value, types.FunctionType) and id(value) in copies:
                    values[name] = copies[id(value)]
        return _with_copies(self.fun, copies)


_EMPTY = object()
_LIBRARIES = ('torch', 'torchopt')


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value
        return _EMPTY


def _function_of(x: Any) -> tuple[types.FunctionType | None, Any]:
    """The Python function behind a callable, and the object of a method; another object itself."""
    owner = None
    while True:
        if isinstance(x, functools.partial):
            x = x.func
        elif isinstance(x, types.MethodType):
            x, owner = x.__func__, x.__self__
        else:
            return (x, owner) if isinstance(x, types.FunctionType) else (None, x)


@functools.lru_cache(maxsize=1024)
def _is_of_solvers(kind: type) -> bool:
    """Whether a class is a solver, or an objective that it holds; not a result or a status."""
    return any(str(base.__module__).startswith('torchopt.solver.') for base in kind.__mro__) and not issubclass(
        kind, (tuple, enum.Enum)
    )


def _with_copies(x: Any, copies: dict[int, Any]) -> Any:
    """A callable or a solver over the copies of its functions, if there are some; other values unchanged."""
    if isinstance(x, types.MethodType):
        return types.MethodType(_with_copies(x.__func__, copies), copies.get(id(x.__self__), x.__self__))
    if type(x) is functools.partial:
        return functools.partial(_with_copies(x.func, copies), *x.args, **x.keywords)
    return copies.get(id(x), x)


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The global names that a function and the functions in it may read."""
    return tuple(dict.fromkeys(_walk(code)))


def _walk(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _walk(constant)
