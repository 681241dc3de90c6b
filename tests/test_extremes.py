# SPDX-License-Identifier: Apache-2.0
"""Where squares overflow or vanish, in half precision, and at exactly zero: values, and derivatives of both modes."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.autograd import forward_ad

import torchopt
from tests.cases import CASES
from tests.contrib import contrib_cases
from tests.transform import optax_cases
from torchopt import alias, base, clip, contrib, norms, projections, transform, tree
from torchopt.compat import optax as compat
from torchopt.contrib.newton_schulz import orthogonalize
from torchopt.elementwise import leaf_norm

F16, BF16, F32, F64, C64 = torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Norms ---------------------------------------------------------------------------------------------------------------

NORMS = {
    'tree.norm': lambda x: tree.norm({'a': x[:2], 'none': None, 'b': [x[2:], x[:0]]}),
    'tree.norm, of zeros too': lambda x: tree.norm([x, torch.zeros_like(x)]),
    'global_norm': lambda x: compat.global_norm([x]),
    'safe_norm': lambda x: norms.safe_norm(x, 0.0),
    'safe_norm, axis': lambda x: norms.safe_norm(x[:, None], 0.0, axis=0)[0],
    'safe_root_mean_squares': lambda x: norms.safe_root_mean_squares(x, 0.0) * x.numel() ** 0.5,
    'leaf_norm': leaf_norm,
    'unitwise_norm': lambda x: clip.unitwise_norm(x)[0],
    'unitwise_norm, rows': lambda x: clip.unitwise_norm(torch.stack([x, 0 * x]))[0, 0],
}
SCALES = [(F32, 1e-30), (F32, 1e30), (F64, 1e-200), (F64, 1e200), (C64, 1e-30), (C64, 1e30), (F32, 1.0)]


@pytest.mark.parametrize(('dtype', 'scale'), SCALES, ids=str)
@pytest.mark.parametrize('norm', NORMS.values(), ids=NORMS)
def test_norms_at_every_scale(norm, dtype, scale):
    """Closed forms: the derivative is the direction u, the second one (1 - u u') / norm."""
    unit = draw(5, dtype=dtype)
    length = torch.linalg.vector_norm(unit)
    u = unit / length
    v = draw(5, seed=1, dtype=dtype)
    along = (u.conj() * v).real.sum()
    x = (scale * unit).requires_grad_()
    close = {'rtol': 1e-5, 'atol': 1e-6}

    value = norm(x)
    torch.testing.assert_close(value.detach() / scale, length, **close)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    torch.testing.assert_close(first.detach(), u, **close)
    (second,) = torch.autograd.grad((first.conj() * v).real.sum(), x)
    torch.testing.assert_close(second * scale, (v - u * along) / length, **close)
    x = x.detach()
    torch.testing.assert_close(norm(x) / scale, length, **close)
    torch.testing.assert_close(torch.func.grad(norm)(x), u, **close)
    torch.testing.assert_close(torch.func.jvp(norm, (x,), (v,))[1], along, check_dtype=False, **close)
    with forward_ad.dual_level():
        dual = norm(forward_ad.make_dual(x, v))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, along, **close)
    together = torch.func.vmap(norm)(torch.stack([x, 0.0 * x, 1e-3 * x]))
    torch.testing.assert_close(together / scale, torch.stack([length, 0.0 * length, 1e-3 * length]), **close)


@pytest.mark.parametrize('norm', NORMS.values(), ids=NORMS)
def test_norms_at_zero_have_derivatives_of_zero(norm):
    x, v = torch.zeros(5, dtype=F64, requires_grad=True), draw(5)
    (first,) = torch.autograd.grad(norm(x), x, create_graph=True)
    assert not first.any()
    if first.requires_grad:
        assert not torch.autograd.grad(first @ v, x)[0].any()
    x = x.detach()
    assert not torch.func.hessian(norm)(x).any()
    with forward_ad.dual_level():
        assert not forward_ad.unpack_dual(norm(forward_ad.make_dual(x, v))).tangent.any()


@pytest.mark.parametrize('dtype', [F32, F64, C64], ids=str)
@pytest.mark.parametrize('norm', NORMS.values(), ids=NORMS)
def test_norms_of_what_is_not_finite(norm, dtype):
    assert norm(torch.tensor([1.0, torch.inf, 0.0, 2.0, 3.0], dtype=dtype)) == torch.inf
    assert norm(torch.tensor([1.0, torch.nan, 0.0, 2.0, 3.0], dtype=dtype)).isnan()


def test_the_second_derivative_of_a_squared_norm_at_zero():
    hessian = torch.func.hessian(lambda x: tree.norm([x], squared=True))(torch.zeros(3, dtype=F64))
    torch.testing.assert_close(hessian, 2.0 * torch.eye(3, dtype=F64))


@pytest.mark.parametrize('dtype', [F16, BF16], ids=str)
@pytest.mark.parametrize('norm', NORMS.values(), ids=NORMS)
def test_norms_in_half_precision(norm, dtype):
    x = torch.full((100_000,), 100.0, dtype=dtype)
    value = norm(x)
    assert value.dtype in (dtype, F32)
    torch.testing.assert_close(value.double(), torch.tensor(1e2 * 1e5**0.5, dtype=F64), rtol=1e-2, atol=0)


# Steps ---------------------------------------------------------------------------------------------------------------


def transformed(make):
    return lambda s: lambda g, p: make(s).update([g], make(s).init([p]), [p])[0][0]


STEPS = {
    'clip_grad_norm': transformed(
        lambda s: clip.clip_grad_norm(max(s, 1.0))
    ),  # which adds 1e-6 to the norm, as torch does
    'clip_grad_norm, order 3': transformed(lambda s: clip.clip_grad_norm(max(s, 1.0), 3.0)),
    'clip_by_global_norm, to one': transformed(lambda s: clip.clip_by_global_norm(1.0)),
    'clip_by_global_norm': transformed(clip.clip_by_global_norm),
    'clip_by_block_rms': transformed(lambda s: clip.clip_by_block_rms(0.1 * s)),
    'adaptive_grad_clip': transformed(lambda s: clip.adaptive_grad_clip(0.1 if s > 1.0 else 10.0, 0.0)),
    'normalize_by_update_norm': transformed(lambda s: transform.normalize_by_update_norm(s, 0.0)),
    'normalize': transformed(lambda s: contrib.normalize()),
    'scale_by_trust_ratio': transformed(lambda s: transform.scale_by_trust_ratio()),
    'lars': transformed(lambda s: alias.lars(0.1, 0.1)),
    'fromage': transformed(lambda s: alias.fromage(0.1, 0.0)),
    'scale_by_param_block_norm': transformed(
        lambda s: torchopt.chain(transform.scale(1 / s), transform.scale_by_param_block_norm(0.0))
    ),
    'scale_by_param_block_rms': transformed(
        lambda s: torchopt.chain(transform.scale(1 / s), transform.scale_by_param_block_rms(0.0))
    ),
    'per_example_global_norm_clip': lambda s: lambda g, p: clip.per_example_global_norm_clip([g], s)[0][0],
    'per_example_layer_norm_clip': lambda s: lambda g, p: clip.per_example_layer_norm_clip([g], s)[0][0],
    'orthogonalize': lambda s: lambda g, p: orthogonalize(g[None], [(1.5, -0.5, 0.0)] * 3, eps=0.0)[0],
    'projection_l2_ball': lambda s: lambda g, p: projections.projection_l2_ball(g, s),
    'projection_l2_ball, of one': lambda s: lambda g, p: projections.projection_l2_ball(g),
    'projection_l2_sphere': lambda s: lambda g, p: projections.projection_l2_sphere(g, s),
    'projection_l2_sphere, of one': lambda s: lambda g, p: projections.projection_l2_sphere(g),
}


@pytest.mark.parametrize('scale', [1e-30, 1e30])
@pytest.mark.parametrize('make', STEPS.values(), ids=STEPS)
def test_steps_at_every_scale(make, scale):
    """In float32 as in float64, which the squares of float32 do not leave."""
    found = {}
    step = make(scale)
    for dtype in (F32, F64):
        g, p = ((scale * draw(3, 4, seed=i)).to(dtype).requires_grad_() for i in range(2))
        directions = [(scale * draw(3, 4, seed=i)).to(dtype) for i in (2, 3)]
        u = step(g, p)
        c = draw(*u.shape, seed=4).to(dtype)
        reverse = torch.autograd.grad((u * c).sum(), (g, p), materialize_grads=True, allow_unused=True)
        _, forward = torch.func.jvp(step, (g.detach(), p.detach()), tuple(directions))
        found[dtype] = [u.detach(), *reverse, forward]
    for x, y in zip(found[F32], found[F64]):
        size = y.abs().max().clamp(min=1e-300)
        torch.testing.assert_close(x.double() / size, y / size, rtol=1e-4, atol=1e-5)


HALVES = {
    **{name: make(1.0) for name, make in STEPS.items() if 'per_example' not in name and name != 'orthogonalize'},
    'normalize_by_update_norm': transformed(lambda s: transform.normalize_by_update_norm())(1.0),
    'polyak': lambda g, p: transform.scale_by_polyak().update([g], (), [p], value=torch.tensor(1.0))[0][0],
    'novograd': transformed(lambda s: alias.novograd(0.1))(1.0),
    'scale_by_distance_over_gradients': transformed(lambda s: transform.scale_by_distance_over_gradients())(1.0),
    'dog': transformed(lambda s: contrib.dog())(1.0),
    'dowg': transformed(lambda s: contrib.dowg())(1.0),
    'prodigy': transformed(lambda s: contrib.prodigy(0.1))(1.0),
    'dadapt_adamw': transformed(lambda s: contrib.dadapt_adamw(0.1))(1.0),
    'momo': lambda g, p: contrib.momo().update([g], contrib.momo().init([p]), [p], value=torch.tensor(1e5))[0][0],
    'mechanize': transformed(lambda s: contrib.mechanize(torchopt.sgd(0.1)))(1.0),
    'per_example_global_norm_clip': lambda g, p: clip.per_example_global_norm_clip([g[None]], 1.0)[0][0],
    'per_example_layer_norm_clip': lambda g, p: clip.per_example_layer_norm_clip([g[None]], 1.0)[0][0],
}


HALF_CASES = [
    pytest.param(step, dtype, value, id=f'{name}-{dtype}-{value}')
    for name, step in HALVES.items()
    for dtype in (F16, BF16)
    for value in (2.0, 0.0)
    # Every point of a sphere is as near to its centre.  The second moment of Prodigy, scaled by the square of 1e-6, is
    # below what a float16 can hold.
    if not (value == 0.0 and 'sphere' in name) and not (name == 'prodigy' and dtype is F16)
]


@pytest.mark.parametrize(('step', 'dtype', 'value'), HALF_CASES)
def test_steps_in_half_precision(step, dtype, value):
    """As in float64; of the gradient zero the step is that of float64 too, and no NaN."""
    g, p = torch.full((100_000,), value, dtype=dtype), torch.full((100_000,), 3.0, dtype=dtype)
    u = step(g, p)
    wanted = step(g.double(), p.double())
    assert u.dtype is dtype
    torch.testing.assert_close(u.double(), wanted, rtol=2e-2, atol=3e-6)


@pytest.mark.parametrize('dtype', [F16, BF16], ids=str)
@pytest.mark.parametrize(
    'name', ['adam', 'adamw', 'adamax', 'adadelta', 'adagrad', 'radam', 'rmsprop', 'yogi', 'adabelief']
)
def test_plain_torch_computes_half_precision_in_single_as_the_engine_does(name, dtype):
    """Epsilons of 1e-8 and decay rates of 0.999, also as tensors, are not rounded away."""
    make = getattr(torchopt, name)
    p = torch.linspace(-1.0, 1.0, 7).to(dtype)
    options = {'lr': 0.1} if 'lr' in inspect.signature(make).parameters else {'learning_rate': 0.1}
    results = []
    for native in (True, False):
        tx = make(**options)
        params, state = [p], tx.init([p])
        for t in range(4):
            g = torch.sin(3.0 * p.float() * t).to(dtype)
            grads = [g] if native else [g.as_subclass(Plain)]
            updates, state = tx.update(grads, state, params)
            params = [torch.Tensor.as_subclass(x, torch.Tensor) for x in torchopt.apply_updates(params, updates)]
        results.append(params[0])
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-3)


class Plain(torch.Tensor):
    """A subclass, for which the engine does not run."""


# Zero ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('bound', [1.0, 0.0])
def test_clip_by_global_norm_at_zero(bound):
    """Within a bound it is the identity; a bound of zero makes everything zero."""
    g = torch.zeros(2, dtype=F64, requires_grad=True)
    c = torch.tensor(bound, dtype=F64, requires_grad=True)

    def update(g, c):
        return clip.clip_by_global_norm(c).update([g], ())[0][0]

    assert update(g, c).tolist() == [0.0, 0.0]
    for derive in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.equal(derive(update)(g.detach(), c.detach()), bound * torch.eye(2, dtype=F64))
        assert not derive(update, 1)(g.detach(), c.detach()).any()
    for x in torch.autograd.grad(update(g, c).sum(), (g, c)):
        assert x.isfinite().all()


@pytest.mark.parametrize('inner', [clip.clip_by_global_norm, clip.clip_by_block_rms, clip.clip_grad_norm])
def test_learned_bounds_behind_steps_that_wait(inner):
    """Where all gradients are zero, as those that `apply_every` holds back, and a leaf has no elements."""
    bound, phi = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.5, 1.5))

    def loss(bound, phi):
        tx = torchopt.chain(transform.apply_every(2), inner(bound), torchopt.sgd(0.1))
        p = [torch.ones(2, dtype=F64), torch.zeros(0, dtype=F64)]
        state = tx.init(p)
        for _ in range(4):
            updates, state = tx.update([phi * x for x in p], state, p)
            p = torchopt.apply_updates(p, updates, inplace=False)
        return p[0].square().sum()

    found = torch.autograd.grad(loss(bound, phi), (bound, phi))
    assert found[0] < 0
    assert found[1].isfinite()
    if inner is not clip.clip_grad_norm:  # whose norm counts as a constant
        assert torch.autograd.gradcheck(loss, (bound, phi), check_forward_ad=True)


def test_both_modes_take_the_norm_of_clip_grad_norm_for_a_constant():
    g, v = torch.tensor([3.0, 4.0], dtype=F64), draw(2)

    def update(g):
        return torchopt.clip_grad_norm(1.0).update([g], ())[0][0]

    wanted = torch.eye(2, dtype=F64) / (5.0 + 1e-6)
    torch.testing.assert_close(torch.func.jacrev(update)(g), wanted)
    torch.testing.assert_close(torch.func.jacfwd(update)(g), wanted)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(update(forward_ad.make_dual(g, v))).tangent, wanted @ v)


def table():
    """All optimizers and transformations that are smooth at zero or nearly so."""
    made = {case.name: case.make for case in CASES}
    made |= {f'{case.name}, plain': lambda case=case: plainly(case) for case in CASES}
    made |= {
        row.name: lambda row=row: row.make(optax_cases.OURS) for row in optax_cases.ROWS if row.smooth and row.any_tree
    }
    made |= {
        f'contrib.{row.name}': lambda row=row: row.make(contrib_cases.OURS)
        for row in contrib_cases.ROWS
        if row.first and row.whole and row.shape == 'any' and 'galore' not in row.name  # zeros have no singular vectors
    }
    made |= {
        'rmsprop, corrected': lambda: alias.rmsprop(0.1, bias_correction=True),
        'optimistic_adam_v2': lambda: alias.optimistic_adam_v2(0.1),
        'clip_by_global_norm': lambda: clip.clip_by_global_norm(1.0),
        'adaptive_grad_clip': lambda: clip.adaptive_grad_clip(0.1),
        'lamb': lambda: alias.lamb(0.1),
        'lars': lambda: alias.lars(0.1),
        'fromage': lambda: alias.fromage(0.1),
        'adafactor': lambda: alias.adafactor(0.1),
        'sm3': lambda: alias.sm3(0.1),
        'adan': lambda: alias.adan(0.1),
        'novograd': lambda: alias.novograd(0.1),
    }
    return made


def plainly(case):
    native = 'use_accelerated_op' in inspect.signature(getattr(torchopt, case.alias)).parameters
    return case.make(**({'use_accelerated_op': False} if native else {}))


TABLE = table()


@pytest.mark.parametrize('name', TABLE)
def test_forward_mode_at_gradients_of_zero_equals_reverse_mode(name):
    """Dual numbers of torch, `func.jvp` and reverse mode, over two steps from moments of zero."""
    tx = base.with_extra_args_support(TABLE[name]())
    params = [draw(3, 2), draw(2, seed=1)]
    start = tx.init(params)

    def run(*grads):
        state, taken = start, []
        for _ in range(2):
            updates, state = tx.update([*grads], state, params, value=torch.tensor(2.0, dtype=F64))
            taken += updates
        return torch.cat([u.reshape(-1) for u in taken])

    grads = (torch.zeros(3, 2, dtype=F64), torch.tensor([0.0, 0.7], dtype=F64))
    directions = (draw(3, 2, seed=3), draw(2, seed=4))
    _, wanted = torch.func.jvp(run, grads, directions)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(run(*map(forward_ad.make_dual, grads, directions))).tangent
    assert wanted.isfinite().all()
    torch.testing.assert_close(torch.zeros_like(wanted) if found is None else found, wanted)
    c = draw(*wanted.shape, seed=5)
    _, pull = torch.func.vjp(run, *grads)
    reverse = sum((x * v).sum() for x, v in zip(pull(c), directions))
    torch.testing.assert_close(reverse, (wanted * c).sum())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('gradient', [2.0, 0.1, 0.01])
def test_prodigy_in_half_precision_is_that_in_double(dtype, gradient):
    """Its moments are of gradients times a distance of 1e-6, whose squares half precision does not hold."""

    def steps(kind):
        tx, p = contrib.prodigy(1.0), torch.ones(10, dtype=kind)
        state, found = tx.init(p), []
        for k in range(3):
            u, state = tx.update(torch.full((10,), gradient * (k + 1), dtype=dtype).to(kind), state, p)
            assert u.dtype == kind
            found.append(u.double())
        return torch.stack(found)

    torch.testing.assert_close(steps(dtype), steps(torch.float64), rtol=0.06, atol=0)
