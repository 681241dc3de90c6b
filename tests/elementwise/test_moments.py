# SPDX-License-Identifier: Apache-2.0
"""First moments, and apply_rule: None, storage, dtypes, and errors before anything changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from torchopt import elementwise, tree


def heavy_ball(g: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    new_m = 0.5 * m + g
    return -new_m, new_m, v + g * g


def example() -> tuple[Any, Any, Any]:
    g = {'a': torch.tensor([1.0, 2.0]), 'b': None, 'c': (torch.tensor(3.0),)}
    m = {'a': torch.ones(2), 'b': torch.ones(4), 'c': (torch.ones(()),)}
    v = {'a': torch.zeros(2), 'b': torch.zeros(4), 'c': (torch.zeros(()),)}
    return g, m, v


@pytest.mark.parametrize('inplace', [False, True])
def test_values_and_the_none_rule(inplace: bool) -> None:
    g, m, v = example()
    kept = m['b'], v['b']
    updates, new_m, new_v = elementwise.apply_rule(heavy_ball, g, m, v, inplace=inplace)
    assert updates['b'] is None
    assert (new_m['b'], new_v['b']) == kept  # the very same tensors
    assert new_m['b'].tolist() == [1.0] * 4
    assert new_m['a'].tolist() == [1.5, 2.5]
    assert new_v['a'].tolist() == [1.0, 4.0]
    assert updates['c'][0].item() == -3.5


def test_inplace_keeps_the_storage_and_the_pure_way_does_not_touch_it() -> None:
    g, m, v = example()
    before = tree.map(torch.clone, (g, m, v))
    _, pure_m, _ = elementwise.apply_rule(heavy_ball, g, m, v)
    assert bool(tree.allclose((g, m, v), before))
    assert pure_m['a'].data_ptr() != m['a'].data_ptr()
    _, laid_m, laid_v = elementwise.apply_rule(heavy_ball, g, m, v, inplace=True)
    assert laid_m['a'] is m['a']
    assert laid_v['c'][0] is v['c'][0]
    assert bool(tree.allclose(laid_m, pure_m))
    assert bool(tree.allclose(g, before[0]))


def test_inplace_stays_outside_of_autograd() -> None:
    g = {'w': torch.ones(2, requires_grad=True)}
    m = {'w': torch.zeros(2)}
    updates, new_m = elementwise.apply_rule(lambda g, m: (g, m + g), g, m, inplace=True)
    assert not new_m['w'].requires_grad
    assert updates['w'] is g['w']


def test_the_pure_way_is_differentiable() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    updates, new_m = elementwise.apply_rule(lambda g, m: (g * m, m + g), [w], [torch.ones(2)])
    (gradient,) = torch.autograd.grad((updates[0] * new_m[0]).sum(), w)
    assert gradient.tolist() == [3.0, 5.0]  # d/dw w (1 + w)


def test_expanded_moments_are_replaced() -> None:
    m = [torch.zeros(()).expand(3)]
    _, new = elementwise.apply_rule(lambda g, m: (g, m + g), [torch.arange(3.0)], m, inplace=True)
    assert new[0].tolist() == [0.0, 1.0, 2.0]
    assert m[0].tolist() == [0.0, 0.0, 0.0]


def test_transposed_moments_are_written_in_place() -> None:
    m = [torch.zeros(2, 3).T]
    _, new = elementwise.apply_rule(lambda g, m: (g, m + g), [torch.ones(3, 2)], m, inplace=True)
    assert new[0] is m[0]
    assert m[0].sum().item() == 6.0


@pytest.mark.parametrize('inplace', [False, True])
def test_moments_keep_their_dtype(inplace: bool) -> None:
    g = [torch.ones(2, dtype=torch.float32)]
    for dtype in (torch.bfloat16, torch.float64):
        m = [torch.zeros(2, dtype=dtype)]
        _, new = elementwise.apply_rule(lambda g, m: (g, m.float() + g), g, m, inplace=inplace)
        assert new[0].dtype == dtype


def test_reads_are_handed_over_and_not_returned() -> None:
    out = elementwise.apply_rule(lambda g, p: (g + p,), {'w': torch.ones(1)}, reads=[{'w': torch.ones(1)}])
    assert len(out) == 1
    assert out[0]['w'].item() == 2.0


def test_empty_trees() -> None:
    assert elementwise.apply_rule(heavy_ball, {}, {}, {}) == ({}, {}, {})
    assert elementwise.apply_rule(heavy_ball, [None], [None], [None]) == ([None], [None], [None])


FAULTS = {
    'shape of a moment': (
        {'a': torch.ones(2), 'c': torch.ones(3)},
        {'a': torch.ones(2), 'c': torch.ones(4)},
        ValueError,
        r"updates\['c'\] has shape \(3,\).*its state has shape \(4,\)",
    ),
    'missing moment': (
        {'a': torch.ones(2), 'c': torch.ones(3)},
        {'a': torch.ones(2)},
        ValueError,
        r"state\['c'\].*missing",
    ),
    'None for a moment': (
        {'a': torch.ones(2), 'c': torch.ones(3)},
        {'a': torch.ones(2), 'c': None},
        ValueError,
        r"updates\['c'\].*its state is None",
    ),
    'integer update': (
        {'a': torch.ones(2), 'c': torch.ones(3, dtype=torch.int64)},
        {'a': torch.ones(2), 'c': torch.ones(3)},
        TypeError,
        r"updates\['c'\] has dtype torch.int64",
    ),
    'number for an update': (
        {'a': torch.ones(2), 'c': 1.0},
        {'a': torch.ones(2), 'c': torch.ones(())},
        TypeError,
        r"updates\['c'\] is a float",
    ),
}


@pytest.mark.parametrize(('g', 'm', 'error', 'message'), FAULTS.values(), ids=FAULTS)
def test_errors_come_before_anything_changes(g: Any, m: Any, error: Any, message: str) -> None:
    def rule(g: Any, m: Any) -> Any:
        raise AssertionError('the rule was called')

    before = tree.map(torch.clone, m)
    with pytest.raises(error, match=message):
        elementwise.apply_rule(rule, g, m, inplace=True)
    assert bool(tree.allclose(m, before))


def test_a_parameter_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"updates\['w'\].*its params has shape \(3,\)"):
        elementwise.apply_rule(lambda g, p: (g,), {'w': torch.ones(2)}, reads=[{'w': torch.ones(3)}])


@pytest.mark.parametrize('value', [0.0, 0.5])
def test_first_moments(value: float) -> None:
    params = {'h': torch.ones(2, dtype=torch.bfloat16), 'n': None, 'z': torch.ones(3, dtype=torch.complex64)}
    made = elementwise.full_moment(params, value)
    assert (made['h'].dtype, made['n'], made['z'].dtype) == (torch.bfloat16, None, torch.complex64)
    assert made['h'].tolist() == [value] * 2
    assert elementwise.full_moment(params, value, real=True)['z'].dtype == torch.float32
    assert elementwise.full_moment(params, value, dtype=torch.float64)['h'].dtype == torch.float64
    learned = elementwise.full_moment(params, value, requires_grad=True)['h']
    assert learned.requires_grad
    assert learned.is_leaf


def test_first_moments_of_integers_are_refused() -> None:
    params = {'b': None, 'w': [torch.ones(1), torch.ones(1, dtype=torch.int64)]}
    with pytest.raises(TypeError, match=r"params\['w'\]\[1\] has dtype torch.int64"):
        elementwise.zero_moment(params)


class State(NamedTuple):
    mu: Any
    nu: Any


@pytest.mark.parametrize('inplace', [False, True])
def test_apply_rule_compiles_without_graph_breaks(inplace: bool) -> None:
    def step(g: Any, state: State) -> tuple[Any, State]:
        g, mu, nu = elementwise.apply_rule(heavy_ball, g, state.mu, state.nu, inplace=inplace)
        return g, State(mu, nu)

    torch.compiler.reset()
    g, m, v = example()
    expected = step(g, State(*tree.map(torch.clone, (m, v))))
    found = torch.compile(step, fullgraph=True, backend='aot_eager')(g, State(m, v))
    assert tree.structure(found) == tree.structure(expected)
    assert bool(tree.allclose(found, expected))
    if inplace:
        assert bool(tree.allclose(m, expected[1].mu))


def test_apply_rule_under_vmap() -> None:
    g = {'w': torch.arange(6.0).reshape(3, 2)}
    m = {'w': torch.ones(3, 2)}
    found = torch.func.vmap(lambda g, m: elementwise.apply_rule(lambda g, m: (-g, m + g), g, m))(g, m)
    assert found[0]['w'].equal(-g['w'])
    assert found[1]['w'].equal(m['w'] + g['w'])
