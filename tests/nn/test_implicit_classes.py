# SPDX-License-Identifier: Apache-2.0
"""How a class becomes an implicit one: what it has to define, what is derived, what is inherited."""

from __future__ import annotations

import abc
import functools
import re

import pytest
import torch
from torch import nn

import torchopt
from tests.nn.ridge import Ridge, X, Y, close, f64, gradient, penalty, ridge
from torchopt.diff.implicit.nn.module import enable_implicit_gradients, make_optimality_from_objective
from torchopt.linear_solve import solve_cg, solve_lu, solve_normal_cg
from torchopt.nn import ImplicitMetaGradientModule, MetaGradientModule

# -- definitions -------------------------------------------------------------------------------------------------------

NEITHER = 'ImplicitMetaGradientModule requires either an optimality() method or an objective() method'


def method(self, *args):
    raise AssertionError('never called')


REFUSED = {
    'neither': ({}, NEITHER),
    'static optimality': ({'optimality': staticmethod(method)}, 'method optimality() must not be a staticmethod.'),
    'class optimality': ({'optimality': classmethod(method)}, 'method optimality() must not be a classmethod.'),
    'optimality is data': ({'optimality': 3}, 'method optimality() must be callable.'),
    'optimality is data, with objective': (
        {'optimality': 3, 'objective': method},
        'method optimality() must be callable.',
    ),
    'static objective': ({'objective': staticmethod(method)}, 'method objective() must not be a staticmethod.'),
    'class objective': ({'objective': classmethod(method)}, 'method objective() must not be a classmethod.'),
    'objective is data': ({'objective': 'x'}, 'method objective() must be callable.'),
    'objective is None': ({'objective': None}, 'method objective() must be callable.'),
}


@pytest.mark.parametrize(('body', 'text'), REFUSED.values(), ids=REFUSED)
def test_refused_when_the_class_is_made(body, text):
    with pytest.raises(TypeError, match=re.escape(text)):
        type('Net', (ImplicitMetaGradientModule,), {'solve': method, **body})


def test_other_class_arguments_are_refused():
    with pytest.raises(TypeError, match='keyword argument'):
        type('Net', (ImplicitMetaGradientModule,), {'solve': method, 'objective': method}, other=1)


def test_a_class_without_solve_is_abstract():
    class Net(ImplicitMetaGradientModule):
        def objective(self):
            raise NotImplementedError

    with pytest.raises(TypeError, match="Can't instantiate abstract class"):
        Net()
    with pytest.raises(TypeError, match="Can't instantiate abstract class"):
        ImplicitMetaGradientModule()


def test_an_abstract_class_between():
    class Between(ImplicitMetaGradientModule, linear_solve=solve_lu()):
        objective = Ridge.objective
        __init__ = Ridge.__init__

        @abc.abstractmethod
        def solve(self, x, y):
            """Solve."""

    with pytest.raises(TypeError, match="Can't instantiate abstract class"):
        Between(penalty())

    class Net(Between):
        def __init__(self, penalty):
            MetaGradientModule.__init__(self)
            self.penalty = penalty
            self.w = nn.Parameter(torch.zeros(3, dtype=f64))

        def solve(self, x, y):
            with torch.no_grad():
                self.w.copy_(ridge(x, y, self.penalty))

    check(Net)


FLAGS = {
    'objective': ({'objective': method}, (False, True)),
    'optimality': ({'optimality': method}, (True, False)),
    'both': ({'objective': method, 'optimality': method}, (True, True)),
}


@pytest.mark.parametrize(('body', 'flags'), FLAGS.values(), ids=FLAGS)
def test_flags(body, flags):
    kind = type('Net', (ImplicitMetaGradientModule,), {'solve': method, **body})
    assert (kind._custom_optimality, kind._custom_objective) == flags
    heir = type('Heir', (kind,), {})
    assert (heir._custom_optimality, heir._custom_objective) == flags


def test_the_wrapped_solve_keeps_its_metadata():
    class Net(Ridge):
        def solve(self, x, y, steps: int = 3):
            """Solve it."""

    assert Net.solve.__doc__ == 'Solve it.' and Net.solve.__name__ == 'solve'
    assert Net.solve.__implicit_gradients_enabled__ is True
    assert Net.solve.__annotations__ == {'steps': 'int'}


def test_the_two_steps_by_themselves():
    with pytest.raises(TypeError, match=re.escape('Implicit gradients are already enabled for the `solve` method.')):
        enable_implicit_gradients(Ridge)

    class OnlyOptimality(ImplicitMetaGradientModule):
        optimality = solve = method

    class Foreign(nn.Module):
        pass

    for kind in (OnlyOptimality, Foreign):
        with pytest.raises(TypeError, match=re.escape('The objective function is not defined.')):
            make_optimality_from_objective(kind)

    class Plain(MetaGradientModule):
        linear_solve = None
        _custom_optimality = False
        objective = Ridge.objective

        def __init__(self, penalty):
            super().__init__()
            self.penalty = penalty
            self.w = nn.Parameter(torch.zeros(3, dtype=f64))

        def solve(self, x, y):
            with torch.no_grad():
                self.w.copy_(ridge(x, y, self.penalty))

    assert enable_implicit_gradients(make_optimality_from_objective(Plain)) is Plain
    check(Plain, rtol=1e-4)
    net = Plain(penalty())
    close(net.optimality(X, Y), gradient(net.objective(X, Y), net.w))


def test_names_of_the_package():
    for room in (torchopt.nn, torchopt.diff, torchopt.diff.implicit, torchopt.diff.implicit.nn):
        assert room.ImplicitMetaGradientModule is ImplicitMetaGradientModule


# -- inheritance -------------------------------------------------------------------------------------------------------


def check(kind, target=lambda y: y, **tolerance):
    """Solve, and compare with the closed form for another right-hand side."""
    phi = penalty()
    net = kind(phi)
    net.solve(X, Y)
    close(net.w, ridge(X, target(Y), phi), **tolerance)
    close(gradient(net.w.sum(), phi), gradient(ridge(X, target(Y), phi).sum(), phi), **tolerance)


def test_a_subclass_that_adds_nothing():
    class Heir(Ridge):
        pass

    assert Heir.solve is Ridge.solve
    check(Heir)


def test_a_subclass_that_calls_super_solve():
    calls = []

    class Heir(Ridge):
        def solve(self, x, y):
            calls.append(self.w.is_leaf)
            super().solve(x, 0 * y)
            calls.append(self.w.is_leaf)
            super().solve(x, y)

    class HeirOfHeir(Heir):
        def solve(self, x, y):
            super().solve(x, y)

    for kind in (Heir, HeirOfHeir):
        check(kind)
        assert calls == [True, True]
        calls.clear()


def test_a_subclass_with_another_objective():
    class Heir(Ridge):
        def objective(self, x, y):
            return super().objective(x, 3 * y)

        def solve(self, x, y):
            super().solve(x, 3 * y)

    check(Heir, lambda y: 3 * y)


def test_a_subclass_with_an_optimality_of_its_own():
    class Heir(Ridge):
        def optimality(self, x, y):
            return x.mT @ (x @ self.w - y) + self.penalty * self.w

        def objective(self, x, y):
            raise AssertionError('optimality comes first')

    class Scaled(Heir):
        def optimality(self, x, y):
            return 5 * super().optimality(x, y)

    for kind in (Heir, Scaled):
        assert kind._custom_optimality
        check(kind)


def test_a_subclass_can_use_the_derived_optimality():
    class Heir(Ridge):
        def optimality(self, x, y):
            return tuple(2 * g for g in super().optimality(x, y))

    check(Heir)


def test_solve_from_a_class_beside():
    class Solves:
        def solve(self, x, y):
            with torch.no_grad():
                self.w.copy_(ridge(x, y, self.penalty))

    class Net(Solves, ImplicitMetaGradientModule, linear_solve=solve_lu()):
        objective = Ridge.objective

        def __init__(self, penalty):
            super().__init__()
            self.penalty = penalty
            self.w = nn.Parameter(torch.zeros(3, dtype=f64))

    check(Net)
    assert not hasattr(Solves.solve, '__implicit_gradients_enabled__')


def test_solve_borrowed_from_another_implicit_class():
    class Net(ImplicitMetaGradientModule, linear_solve=solve_lu()):
        objective, solve = Ridge.objective, Ridge.solve

        def __init__(self, penalty):
            super().__init__()
            self.penalty = penalty
            self.w = nn.Parameter(torch.zeros(3, dtype=f64))

    check(Net)


def test_linear_solve_is_inherited_and_overridden():
    used = []

    def counting(name, solver):
        @functools.wraps(solver)
        def solve(matvec, b):
            used.append(name)
            return solver(matvec, b)

        return solve

    class First(Ridge, linear_solve=counting('first', solve_lu())):
        pass

    class Heir(First):
        pass

    class Second(First, linear_solve=counting('second', solve_cg(rtol=1e-12))):
        pass

    class Unset(First, linear_solve=None):
        pass

    for kind, name in ((First, 'first'), (Heir, 'first'), (Second, 'second'), (Unset, 'first'), (First, 'first')):
        check(kind)
        assert used == [name]
        used.clear()
    assert First.linear_solve is Heir.linear_solve is not Second.linear_solve
    assert ImplicitMetaGradientModule.linear_solve is None


def test_a_bad_linear_solve_is_told_when_it_fails():
    class Weak(Ridge, linear_solve=solve_normal_cg(maxiter=1)):
        pass

    phi = penalty()
    net = Weak(phi)
    net.solve(X, Y)
    with pytest.warns(torchopt.linear_solve.LinearSolveWarning, match='reached maxiter'):
        gradient(net.w.sum(), phi)
