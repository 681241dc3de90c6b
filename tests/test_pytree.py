# SPDX-License-Identifier: Apache-2.0
"""The tree utilities of TorchOpt 0.7.3."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import optree
import pytest
import torch

from torchopt import pytree

X = {'a': torch.tensor([1.0, 2.0]), 'none': None, 'b': (torch.tensor(3.0),)}
Y = {'a': torch.tensor([4.0, 5.0]), 'none': None, 'b': (torch.tensor(6.0),)}

SIGNATURES = {
    'acc_add': '(*args)',
    'acc_matmul': '(*args)',
    'acc_mul': '(*args)',
    'tree_add': '(*trees)',
    'tree_add_scalar_mul': '(tree_x, tree_y, alpha=None)',
    'tree_as_rref': '(tree)',
    'tree_flatten_as_tuple': "(tree, is_leaf=None, *, none_is_leaf=False, namespace='')",
    'tree_local_value': '(rref_tree)',
    'tree_matmul': '(*trees)',
    'tree_mul': '(*trees)',
    'tree_neg': '(tree)',
    'tree_pos': '(tree)',
    'tree_scalar_mul': '(scalar, multiplicand_tree)',
    'tree_sub': '(minuend_tree, subtrahend_tree)',
    'tree_sub_scalar_mul': '(tree_x, tree_y, alpha=None)',
    'tree_to_here': '(rref_tree, timeout=-1.0)',
    'tree_truediv': '(dividend_tree, divisor_tree)',
    'tree_vdot_real': '(tree_x, tree_y)',
    'tree_wait': '(future_tree)',
}


@pytest.mark.parametrize('name', SIGNATURES)
def test_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(pytree, name)).parameters.values()
    plain = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
    assert str(plain) == SIGNATURES[name]


def test_everything_of_optree_is_here() -> None:
    for name in optree.__all__:
        assert getattr(pytree, name) is getattr(optree, name)
    assert set(optree.__all__) < set(pytree.__all__)
    assert pytree.typing is optree.typing
    assert len(set(pytree.__all__)) == len(pytree.__all__)
    assert all(hasattr(pytree, name) for name in pytree.__all__)
    assert {'tree_as_rref', 'tree_to_here'} <= set(pytree.__all__)
    assert 'tree_local_value' not in pytree.__all__


def values(tree: Any) -> Any:
    return optree.tree_map(lambda x: x.tolist() if isinstance(x, torch.Tensor) else x, tree)


ARITHMETIC = {
    'pos': (lambda: pytree.tree_pos(X), [1.0, 2.0], 3.0),
    'neg': (lambda: pytree.tree_neg(X), [-1.0, -2.0], -3.0),
    'add': (lambda: pytree.tree_add(X, Y), [5.0, 7.0], 9.0),
    'add one': (lambda: pytree.tree_add(X), [1.0, 2.0], 3.0),
    'add three': (lambda: pytree.tree_add(X, Y, X), [6.0, 9.0], 12.0),
    'sub': (lambda: pytree.tree_sub(X, Y), [-3.0, -3.0], -3.0),
    'mul': (lambda: pytree.tree_mul(X, Y, Y), [16.0, 50.0], 108.0),
    'truediv': (lambda: pytree.tree_truediv(Y, X), [4.0, 2.5], 2.0),
    'scalar_mul': (lambda: pytree.tree_scalar_mul(2, X), [2.0, 4.0], 6.0),
    'add_scalar_mul': (lambda: pytree.tree_add_scalar_mul(X, Y, 2.0), [9.0, 12.0], 15.0),
    'add_scalar_mul of none': (lambda: pytree.tree_add_scalar_mul(X, Y), [5.0, 7.0], 9.0),
    'sub_scalar_mul': (lambda: pytree.tree_sub_scalar_mul(X, Y, 2.0), [-7.0, -8.0], -9.0),
    'sub_scalar_mul of none': (lambda: pytree.tree_sub_scalar_mul(X, Y), [-3.0, -3.0], -3.0),
    'alpha is a tensor': (lambda: pytree.tree_add_scalar_mul(X, Y, torch.tensor(2.0)), [9.0, 12.0], 15.0),
}


@pytest.mark.parametrize(('call', 'a', 'b'), ARITHMETIC.values(), ids=ARITHMETIC)
def test_arithmetic(call: Any, a: Any, b: Any) -> None:
    assert values(call()) == {'a': a, 'none': None, 'b': (b,)}


def test_a_tensor_alpha_gets_its_gradient_and_does_not_widen_leaves() -> None:
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for f, sign in ((pytree.tree_add_scalar_mul, 1), (pytree.tree_sub_scalar_mul, -1)):
        out = f(X, Y, alpha)
        assert out['b'][0].dtype == torch.float32
        (gradient,) = torch.autograd.grad(out['a'].sum() + out['b'][0], alpha)
        assert gradient.item() == sign * 15.0


def test_matmul() -> None:
    a = torch.arange(4.0).reshape(2, 2)
    assert pytree.tree_matmul([a], [a], [a])[0].equal(a @ a @ a)


def test_numbers_are_leaves_too() -> None:
    assert pytree.tree_mul([1, 2], [3, 4]) == [3, 8]
    assert (pytree.acc_add(1, 2, 3), pytree.acc_mul(2, 3, 4)) == (6, 24)
    with pytest.raises(TypeError):
        pytree.acc_add()


def test_flatten_as_tuple() -> None:
    leaves, spec = pytree.tree_flatten_as_tuple({'a': 1, 'none': None})
    assert leaves == (1,)
    assert pytree.tree_unflatten(spec, leaves) == {'a': 1, 'none': None}
    assert pytree.tree_flatten_as_tuple({'a': 1, 'none': None}, none_is_leaf=True)[0] == (1, None)
    assert pytree.tree_flatten_as_tuple([[1], [2]], lambda x: x == [1])[0] == ([1], 2)


def test_vdot_real() -> None:
    assert pytree.tree_vdot_real(X, Y) == 32.0
    assert type(pytree.tree_vdot_real(X, Y)) is float
    z = {'z': torch.tensor([1.0 + 2.0j, 3.0j])}
    assert pytree.tree_vdot_real(z, z) == 14.0
    assert pytree.tree_vdot_real({'z': torch.tensor([1.0, 2.0])}, z) == 1.0
    assert pytree.tree_vdot_real({}, {}) == 0.0
    with pytest.raises(ValueError, match=r"\['a'\]"):
        pytree.tree_vdot_real({'a': torch.ones(2)}, {'a': torch.ones(3)})


def test_wait() -> None:
    futures = {'a': torch.futures.Future(), 'none': None, 'b': [torch.futures.Future()]}
    later = threading.Timer(0.01, lambda: [f.set_result(i) for i, f in enumerate(optree.tree_leaves(futures))])
    later.start()
    assert pytree.tree_wait(futures) == {'a': 0, 'none': None, 'b': [1]}
    later.join()


def test_wait_for_what_is_made_of_futures() -> None:
    first = torch.futures.Future()
    tree = {'then': first.then(lambda f: f.value() + 1), 'all': torch.futures.collect_all([first]), 'first': first}
    first.set_result(1)
    found = pytree.tree_wait(tree)
    assert (found['then'], found['all'][0].value(), found['first']) == (2, 1, 1)
    with pytest.raises(RuntimeError, match='ZeroDivisionError'):
        pytree.tree_wait([first.then(lambda f: 1 / 0)])


def test_wait_raises_what_a_future_raised_and_names_what_is_no_future() -> None:
    failed = torch.futures.Future()
    failed.set_exception(ArithmeticError('lost'))
    with pytest.raises(ArithmeticError, match='lost'):
        pytree.tree_wait([failed])
    with pytest.raises(TypeError, match=r"future_tree\['a'\]\[0\] is an int"):
        pytree.tree_wait({'a': [3]})


def test_remote_references() -> None:
    class Reference:
        def __init__(self, value: Any) -> None:
            self.value = value

        def to_here(self, timeout: float) -> Any:
            return self.value, timeout

        def local_value(self) -> Any:
            return self.value

    references = {'a': Reference(1), 'none': None}
    assert pytree.tree_to_here(references) == {'a': (1, -1.0), 'none': None}
    assert pytree.tree_to_here(references, timeout=3.0) == {'a': (1, 3.0), 'none': None}
    assert pytree.tree_local_value(references) == {'a': 1, 'none': None}
