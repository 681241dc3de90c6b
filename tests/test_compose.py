# SPDX-License-Identifier: Apache-2.0
"""Everything functional works under grad, vmap, jvp and compilation, for all kinds of dtypes."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import torchopt
from tests.cases import CASES
from tests.oracle import DECOUPLED, unrolled
from torchopt import tree

IDS = [c.name for c in CASES]
RATES = torch.tensor([0.1, 0.02, 0.3], dtype=torch.float64)


def net_params(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {'hidden': {'w': draw(3, 5), 'b': draw(5)}, 'out': [draw(5, 1), draw()]}


def net_loss(params, x, y):
    hidden = torch.tanh(x @ params['hidden']['w'] + params['hidden']['b'])
    return ((hidden @ params['out'][0])[:, 0] + params['out'][1] - y).square().mean()


def small_params():
    """Two leaves in a tree of the same kinds, since tracing takes a time in proportion to the leaves."""
    return {'hidden': {'w': net_params()['hidden']['w'][:, 0]}, 'out': [net_params()['out'][1]]}


def small_loss(params, x, y):
    return (torch.tanh(x @ params['hidden']['w']) + params['out'][0] - y).square().mean()


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64).to(dtype)
    return x, x.sum(1).sin()


def adapted_loss(tx, params, x, y, steps=3, loss=net_loss):
    """The loss after some inner steps, a function of the initial parameters."""
    state = tx.init(params)
    for _ in range(steps):
        grads = grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        params = torchopt.apply_updates(params, updates)
    return loss(params, x, y)


def assert_close(a, b, **tolerance):
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, **tolerance)


def by_autograd(tx, params, x, y):
    """The same meta-gradient by plain autograd, without torch.func."""
    start = tree.map(lambda p: p.clone().requires_grad_(), params)
    inner, state = start, tx.init(start)
    for _ in range(3):
        leaves, spec = tree.flatten(inner)
        grads = torch.autograd.grad(net_loss(inner, x, y), leaves, create_graph=True)
        updates, state = tx.update(tree.unflatten(spec, grads), state, inner)
        inner = torchopt.apply_updates(inner, updates, inplace=False)
    leaves, spec = tree.flatten(start)
    return tree.unflatten(spec, torch.autograd.grad(net_loss(inner, x, y), leaves))


@pytest.mark.parametrize('case', CASES, ids=IDS)
def test_func_grad_equals_autograd(case):
    params, (x, y) = net_params(), data()
    tx = case.make()
    found = grad(lambda p: adapted_loss(tx, p, x, y))(params)
    assert_close(found, by_autograd(tx, params, x, y), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('case', CASES, ids=IDS)
def test_vmap_over_an_ensemble_with_its_own_learning_rates(case):
    params, (x, y) = net_params(), data()
    ensemble = tree.map(lambda p: torch.stack([p, 0.5 * p, -p]), params)

    def train(params, lr):
        tx = case.make(lr=lr)
        state = tx.init(params)
        for _ in range(7):
            updates, state = tx.update(grad(net_loss)(params, x, y), state, params)
            params = torchopt.apply_updates(params, updates)
        return params

    together = vmap(train)(ensemble, RATES)
    for i, lr in enumerate(RATES.tolist()):
        alone = train(tree.map(lambda p, i=i: p[i], ensemble), lr)
        assert_close(tree.map(lambda p, i=i: p[i], together), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('case', CASES, ids=IDS)
def test_vmap_of_init_and_update_carries_the_state(case):
    """The state comes out of one vmap and goes into the next, its count with a batch dimension."""
    params = net_params()
    ensemble = tree.map(lambda p: torch.stack([p, 2 * p]), params)
    tx = case.make()
    batched, state = vmap(tx.init)(ensemble), tx.init(params)
    for _ in range(8):
        updates, batched = vmap(tx.update)(ensemble, batched, ensemble)
        alone, state = tx.update(params, state, params)
    assert_close(tree.map(lambda u: u[0], updates), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('case', CASES, ids=IDS)
def test_jvp_equals_the_gradient_along_the_tangent(case):
    params, (x, y) = net_params(), data()
    tangent = tree.map(lambda p: p.cos(), params)
    tx = case.make()
    _, slope = jvp(lambda p: adapted_loss(tx, p, x, y), (params,), (tangent,))
    gradient = by_autograd(tx, params, x, y)
    wanted = sum((g * v).sum() for g, v in zip(tree.leaves(gradient), tree.leaves(tangent)))
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-10)


def test_forward_and_reverse_jacobians_agree_in_the_learning_rate():
    def final(lr):
        tx, p = torchopt.adam(lr), torch.tensor([0.3, -0.7], dtype=torch.float64)
        state = tx.init(p)
        for _ in range(4):
            u, state = tx.update(p.sin(), state)
            p = torchopt.apply_updates(p, u)
        return p

    lr = torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(jacfwd(final)(lr), jacrev(final)(lr))


@pytest.mark.parametrize('name', ['lr', 'b1', 'b2', 'eps', 'eps_root', 'weight_decay'])
def test_every_hyper_parameter_of_adam_can_be_learned(name):
    values = {'lr': 0.1, 'b1': 0.8, 'b2': 0.95, 'eps': 1e-2, 'eps_root': 1e-2, 'weight_decay': 0.1}

    def final(value):
        p = torch.tensor([0.3, -0.7], dtype=torch.float64)
        tx = torchopt.adam(**{**values, name: value})
        state = tx.init(p)
        for _ in range(4):
            u, state = tx.update(p.sin(), state, p)
            p = torchopt.apply_updates(p, u)
        return p

    value = torch.tensor(values[name], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(final, (value,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(final, (value,))


# Tracing takes seconds: each rule is compiled once, and once with a schedule; a meta-gradient, which takes ten times as
# long, for rules that differ in kind. What breaks a graph shows in any backend: the first rule is compiled by AOT
# autograd too, the others by Dynamo alone, which takes half the time.
TRACED = list({c.alias: c for c in CASES if not callable(c.options['lr'])}.values())
TRACED += [c for c in CASES if callable(c.options['lr'])][:1]
DIFFERENTIATED = [c for c in TRACED if c.alias in {'sgd', 'adam', 'rmsprop', 'radam', 'adagrad'}]


@pytest.mark.parametrize('case', TRACED, ids=[c.name for c in TRACED])
def test_a_step_compiles_without_graph_breaks(case):
    params, backend = (net_params(), 'aot_eager') if case is TRACED[0] else (small_params(), 'eager')
    assert_steps_compile(case.make(), params, backend, rtol=1e-9, atol=1e-11)


def assert_steps_compile(tx, params, backend, **tolerance):
    torch._dynamo.reset()
    step = torch.compile(tx.update, fullgraph=True, backend=backend)
    compiled = plain = tx.init(params)
    for _ in range(2):
        updates, compiled = step(params, compiled, params)
        wanted, plain = tx.update(params, plain, params)
        assert_close((updates, compiled), (wanted, plain), **tolerance)


@pytest.mark.parametrize('case', DIFFERENTIATED, ids=[c.name for c in DIFFERENTIATED])
def test_a_meta_gradient_compiles_without_graph_breaks(case):
    params, (x, y) = small_params(), data()
    tx = case.make()

    def meta_gradient(p):
        return grad(lambda q: adapted_loss(tx, q, x, y, steps=2, loss=small_loss))(p)

    torch._dynamo.reset()
    backend = 'aot_eager' if case is DIFFERENTIATED[0] else 'eager'
    compiled = torch.compile(meta_gradient, fullgraph=True, backend=backend)
    assert_close(compiled(params), meta_gradient(params), rtol=1e-9, atol=1e-11)


@pytest.mark.long
def test_inductor_compiles_a_whole_meta_gradient():
    # In float64, since Adam's 1 / sqrt(v) amplifies the rounding of float32 beyond 1e-6 of single elements.
    params, (x, y) = small_params(), data()
    tx = torchopt.adam(0.05)

    def meta_gradient(p):
        return grad(lambda q: adapted_loss(tx, q, x, y, steps=2, loss=small_loss))(p)

    torch._dynamo.reset()
    compiled = torch.compile(meta_gradient, fullgraph=True)
    assert_close(compiled(params), meta_gradient(params), rtol=1e-8, atol=1e-10)


def test_a_compiled_step_is_compiled_once():
    """The count is a tensor, so that the second step does not compile anew."""
    params = net_params()
    tx = torchopt.adamw(torchopt.schedule.linear_schedule(0.1, 0.0, 10))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(tx.update, fullgraph=True, backend=backend)
    compiled = plain = tx.init(params)
    for _ in range(4):
        updates, compiled = step(params, compiled, params)
        wanted, plain = tx.update(params, plain, params)
        assert_close(updates, wanted, rtol=1e-12, atol=1e-14)
    assert len(graphs) == 1


@pytest.mark.parametrize('case', CASES, ids=IDS)
def test_bfloat16_follows_float64(case):
    """bfloat16 keeps 8 bits: some percent of the way that the parameters went, over a few steps."""
    exact, (x, y) = net_params(), data()
    low = tree.map(lambda p: p.to(torch.bfloat16), exact)
    exact = tree.map(lambda p: p.to(torch.float64), low)
    tx = case.make()
    start, states = exact, (tx.init(exact), tx.init(low))
    for _ in range(5):
        grads = grad(net_loss)(exact, x, y)
        u, s = tx.update(grads, states[0], exact)
        v, t = tx.update(tree.map(lambda g: g.to(torch.bfloat16), grads), states[1], low)
        exact, low = torchopt.apply_updates(exact, u), torchopt.apply_updates(low, v)
        states = (s, t)
    for p, q, first in zip(tree.leaves(exact), tree.leaves(low), tree.leaves(start)):
        assert q.dtype is torch.bfloat16
        way = max(float((p - first).norm()), 1e-2 * float(first.norm()))
        assert float((q.double() - p).norm()) < 0.05 * way + 0.01 * float(p.norm())
    assert {m.dtype for m in tree.leaves(states[1]) if m.dim()} <= {torch.bfloat16}


def complex_gradient(p):
    return (p - (1 + 2j)) * (0.5 + 0.1j)


@pytest.mark.parametrize('case', CASES, ids=IDS)
@pytest.mark.parametrize('dtype', [torch.complex64, torch.complex128], ids=str)
def test_complex_parameters(case, dtype):
    """Complex moments by the paper's equations with |g|^2 for the square, first steps in numbers."""
    p = torch.tensor([1.0 - 1.0j, 0.5j, 2.0], dtype=dtype)
    tx = case.make()
    state = tx.init(p)
    first, state = tx.update(complex_gradient(p), state, p)
    assert first.dtype is dtype
    real = case.make()
    modulus = complex_gradient(p).abs()
    if not case.options.get('weight_decay') and case.alias not in DECOUPLED:
        # Without decay, the first update has the phase of the gradient and the size of that of its modulus.
        size, _ = real.update(modulus, real.init(modulus), modulus)
        wanted = size * complex_gradient(p) / modulus
        torch.testing.assert_close(first, wanted.to(dtype), rtol=1e-5, atol=1e-6)
    for _ in range(200):
        p = torchopt.apply_updates(p, first)
        first, state = tx.update(complex_gradient(p), state, p)
    assert p.isfinite().all()
    second = [m for m in tree.leaves(state) if m.dim() and not m.is_complex()]
    has_second_moment = case.alias not in {'sgd', 'lion'}
    assert bool(second) == has_second_moment
    real_part = torch.view_as_real(p.detach())
    assert real_part.dtype.to_complex() is dtype


def test_complex_gradients_pass_gradcheck():
    p = torch.tensor([1.0 - 1.0j, 0.5j], dtype=torch.complex128, requires_grad=True)

    def final(p):
        tx = torchopt.adam(0.1)
        state = tx.init(p)
        for _ in range(3):
            u, state = tx.update(complex_gradient(p), state)
            p = torchopt.apply_updates(p, u, inplace=False)
        return p

    assert torch.autograd.gradcheck(final, (p,))


def test_strided_and_expanded_gradients():
    """A gradient may be any view: transposed, or expanded from a single number."""
    p = torch.randn(4, 3, dtype=torch.float64)
    for g in (torch.randn(3, 4, dtype=torch.float64).t(), torch.tensor(2.0).double().expand(4, 3)):
        tx = torchopt.adamw(0.1)
        for inplace in (False, True):
            u, state = tx.update([g], tx.init([p]), [p], inplace=inplace)
            v, _ = tx.update([g.contiguous()], tx.init([p]), [p])
            torch.testing.assert_close(u, v, rtol=0, atol=0)
            u, state = tx.update([g], state, [p], inplace=inplace)


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_the_oracle_itself_moves(name):
    """The hand-written equations do something, so that agreement with them means something."""
    p = torch.ones(2, dtype=torch.float64)
    assert (unrolled(name, lambda q: q, p, 0.1, 5) < 0.95).all()


COMBINED = {
    'mask of booleans': torchopt.adamw(0.1, mask={'w': True, 'b': False}),
    'mask from the parameters': torchopt.adamw(0.1, mask=lambda ps: {k: p.dim() > 0 for k, p in ps.items()}),
    'partition': torchopt.partition({'x': torchopt.sgd(0.1), 'y': torchopt.adam()}, {'w': 'x', 'b': 'y'}),
    'partition with a label that no leaf has': torchopt.partition(
        {'x': torchopt.sgd(0.1), 'y': torchopt.adam()}, {'w': 'x', 'b': 'x'}
    ),
    'mask that hides all': torchopt.adamw(0.1, mask={'w': False, 'b': False}),
    'named_chain': torchopt.named_chain(('a', torchopt.nan_to_num()), ('b', torchopt.adamax())),
    'chain_flat': torchopt.combine.chain_flat(torchopt.radam()),
    'clippers': torchopt.chain(
        torchopt.clip_grad_norm(1.0),
        torchopt.clip.clip(0.3),
        torchopt.clip.clip_by_global_norm(0.5),
        torchopt.clip.clip_by_block_rms(0.1),
        torchopt.clip.adaptive_grad_clip(0.1),
    ),
}


@pytest.mark.parametrize('name', COMBINED)
def test_what_combines_compiles(name):
    params = {'w': torch.tensor([0.3, -0.7], dtype=torch.float64), 'b': torch.tensor(2.0).double()}
    assert_steps_compile(COMBINED[name], params, 'eager', rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    'make',
    [
        torchopt.sgd,
        torchopt.adamw,
        torchopt.adagrad,
        lambda *, learning_rate: torchopt.combine.chain_flat(torchopt.adam(learning_rate)),
    ],
    ids=['sgd', 'adamw', 'adagrad', 'a chain in another transformation'],
)
def test_an_optimizer_can_be_made_inside_of_a_compiled_function(make):
    """As under jax.jit, with a learning rate that is an argument."""
    p = {'w': torch.tensor([0.3, -0.7], dtype=torch.float64)}

    def slope(lr):
        def final(lr):
            tx = make(learning_rate=lr)
            state, q = tx.init(p), p
            for _ in range(2):
                updates, state = tx.update({'w': q['w'].sin()}, state, q)
                q = torchopt.apply_updates(q, updates)
            return q['w'].sum()

        return grad(final)(lr)

    torch._dynamo.reset()
    lr = torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(slope, fullgraph=True, backend='eager')(lr), slope(lr))


@pytest.mark.parametrize('case', CASES, ids=IDS)
def test_no_step_waits_for_a_device(case):
    """Tensors without data: who read a value from them would fail."""
    params = tree.map(lambda p: p.to('meta'), net_params())
    tx = case.make()
    for inplace in (False, True):
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(tree.map(torch.clone, params), state, params, inplace=inplace)
        assert all(u.device.type == 'meta' for u in tree.leaves(updates))
