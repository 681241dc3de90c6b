# SPDX-License-Identifier: Apache-2.0
"""Defects and limits of TorchOpt 0.7.3 that are gone: one test for each, which fails on the old behaviour.

They count as in the specification of 0.7.3.  Q4 belongs to zero-order differentiation, Q8 to test_module_state.py.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt import transform, tree
from torchopt.base import EmptyState, GradientTransformation, UninitializedState

f64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=f64)


def run(tx: GradientTransformation, params: Any, grads: list[Any], state: Any = None) -> tuple[list[Any], Any]:
    """The updates of several steps, and the last state."""
    state = tx.init(params) if state is None else state
    found = []
    for g in grads:
        updates, state = tx.update(g, state, params)
        found.append(updates)
    return found, state


def exactly(x: Any, y: Any) -> None:
    torch.testing.assert_close(x, y, rtol=0.0, atol=0.0)


# --- Q1: the first step of momentum is not damped, for every state of one transformation ------------------------------


def test_q1_every_state_has_its_own_first_step() -> None:
    tx = transform.trace(momentum=0.9, dampening=0.5)
    g = [tensor(2.0)]
    for _ in range(2):
        found, _ = run(tx, g, [g, g])
        exactly(found, [[tensor(2.0)], [tensor(2.0 * 0.9 + 1.0)]])


def test_q1_every_group_has_its_own_first_step() -> None:
    p, q = (nn.Parameter(tensor(1.0, -2.0)) for _ in range(2))
    optimizer = torchopt.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    optimizer.add_param_group([q])
    r = nn.Parameter(tensor(1.0, -2.0))
    reference = torch.optim.SGD([r], lr=0.1, momentum=0.9, dampening=0.5)
    for step in range(3):
        for x in (p, q, r):
            x.grad = tensor(0.5, 3.0) * (step + 1)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(p, r, rtol=1e-14, atol=0.0)
        exactly(p, q)


# --- Q2: masks may be prefixes, None is everywhere --------------------------------------------------------------------


def test_q2_prefix_masks() -> None:
    p = {'a': {'w': tensor(1.0), 'b': tensor(2.0)}, 'c': [tensor(3.0)]}
    for mask in ({'a': True, 'c': False}, lambda tree: {'a': True, 'c': False}):
        (found,), _ = run(torchopt.masked(transform.scale(-2.0), mask), p, [p])
        exactly(found, {'a': {'w': tensor(-2.0), 'b': tensor(-4.0)}, 'c': [tensor(3.0)]})


def test_q2_no_mask() -> None:
    p = {'a': tensor(1.0), 'b': [tensor(2.0)]}
    for mask in (None, True):
        (found,), _ = run(torchopt.masked(transform.scale(-2.0), mask), p, [p])
        exactly(found, {'a': tensor(-2.0), 'b': [tensor(-4.0)]})


# --- Q3: the mask of adamw masks --------------------------------------------------------------------------------------

P3 = {'w': tensor(2.0, -1.0), 'b': tensor(5.0)}
MASKS: dict[str, tuple[Any, Any]] = {
    'dict': (P3, {'w': True, 'b': False}),
    'dict in another order': (P3, {'b': False, 'w': True}),
    'function': (P3, lambda p: tree.map(lambda x: x.numel() > 1, p)),
    'list': ([P3['w'], P3['b']], [True, False]),
    'function over a list': ([P3['w'], P3['b']], lambda p: [x.numel() > 1 for x in p]),
}


@pytest.mark.parametrize('name', MASKS)
def test_q3_mask_of_adamw(name: str) -> None:
    p, mask = MASKS[name]
    g = tree.map(lambda x: torch.ones_like(x) * 0.5, p)
    (masked,), _ = run(torchopt.adamw(0.1, weight_decay=0.5, mask=mask), p, [g])
    (everywhere,), _ = run(torchopt.adamw(0.1, weight_decay=0.5), p, [g])
    (nowhere,), _ = run(torchopt.adam(0.1), p, [g])
    w, b = ('w', 'b') if isinstance(p, dict) else (0, 1)
    exactly(masked[w], everywhere[w])
    exactly(masked[b], nowhere[b])
    assert not torch.equal(everywhere[b], nowhere[b])


@pytest.mark.parametrize('mask', [[True, False], lambda params: [p.dim() > 1 for p in params]])
def test_q3_mask_of_the_face(mask: Any) -> None:
    nets = [nn.Linear(2, 1).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    first = torchopt.AdamW(nets[0].parameters(), lr=0.1, weight_decay=0.5, mask=mask)
    second = torch.optim.AdamW(
        [{'params': [nets[1].weight], 'weight_decay': 0.5}, {'params': [nets[1].bias], 'weight_decay': 0.0}], lr=0.1
    )
    for _ in range(4):
        for net, optimizer in zip(nets, (first, second), strict=True):
            optimizer.zero_grad()
            net(torch.ones(3, 2, dtype=f64)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(list(nets[0].parameters()), list(nets[1].parameters()), rtol=1e-12, atol=1e-14)


def test_q3_mask_of_the_meta_face() -> None:
    net = nn.Linear(2, 1).double()
    start = copy.deepcopy(net)
    meta = torchopt.MetaAdamW(net, lr=0.1, weight_decay=0.5, mask={'weight': True, 'bias': False})
    meta.step(net(torch.ones(3, 2, dtype=f64)).sum())
    torch.testing.assert_close(net.bias, start.bias - 0.1, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(net.weight, start.weight - 0.1 * (1.0 + 0.5 * start.weight), rtol=1e-7, atol=0.0)


# --- Q5, Q6: None leaves a leaf alone, for this step only -------------------------------------------------------------

WITH_NONE: dict[str, Callable[[], GradientTransformation]] = {
    'sgd': lambda: torchopt.sgd(0.1, momentum=0.9),
    'sgd damped': lambda: torchopt.sgd(0.1, momentum=0.9, dampening=0.5),
    'sgd nesterov': lambda: torchopt.sgd(0.1, momentum=0.9, nesterov=True),
    'adam': torchopt.adam,
    'adamw': torchopt.adamw,
    'adamax': torchopt.adamax,
    'radam': torchopt.radam,
    'adadelta': torchopt.adadelta,
    'adagrad': torchopt.adagrad,
    'rmsprop': lambda: torchopt.rmsprop(momentum=0.9),
    'rmsprop centered': lambda: torchopt.rmsprop(centered=True),
}


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('name', WITH_NONE)
def test_q5_q6_none_is_no_update(name: str, inplace: bool) -> None:
    tx, p = WITH_NONE[name](), {'w': tensor(1.0, 2.0), 'v': tensor(3.0)}
    g = {'w': tensor(0.5, -1.0), 'v': tensor(2.0)}
    _, state = run(tx, p, [g, g])
    before = tree.map(torch.clone, [s for s in tree.leaves(state) if s.shape == (2,)])
    updates, state = tx.update({'w': None, 'v': g['v']}, state, p, inplace=inplace)
    assert updates['w'] is None
    assert updates['v'] is not None
    exactly([s for s in tree.leaves(state) if s.shape == (2,)], before)
    updates, _ = tx.update(g, state, p)
    assert updates['w'].abs().min() > 0.0


def test_q5_momentum_goes_on_after_none() -> None:
    tx, g = transform.trace(0.5), [tensor(1.0)]
    found, _ = run(tx, g, [g, [None], g])
    exactly(found, [[tensor(1.0)], [None], [tensor(1.5)]])


# --- Q7: clip_grad_norm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('norm_type', ['inf', float('inf'), 1.0, 2, 2.5])
def test_q7_norms(norm_type: Any) -> None:
    g = [tensor(3.0, -40.0), tensor(5.0)]
    twins = [nn.Parameter(torch.zeros_like(x)) for x in g]
    for twin, x in zip(twins, g, strict=True):
        twin.grad = x.clone()
    nn.utils.clip_grad_norm_(twins, 2.0, norm_type=float(norm_type))
    (found,), _ = run(torchopt.clip_grad_norm(2.0, norm_type), g, [g])
    torch.testing.assert_close(found, [twin.grad for twin in twins], rtol=1e-14, atol=0.0)


def test_q7_no_synchronization() -> None:
    """Under vmap there is no number to read."""
    tx, g = torchopt.clip_grad_norm(1.0), torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=f64)
    found = torch.func.vmap(lambda x: tx.update([x], EmptyState())[0][0])(g)
    torch.testing.assert_close(found, torch.stack([tensor(0.6, 0.8), g[1]]), rtol=1e-6, atol=0.0)


# --- Q9: groups -------------------------------------------------------------------------------------------------------


def test_q9_groups_have_their_own_options() -> None:
    ours, theirs = ([nn.Parameter(tensor(1.0, -2.0)) for _ in range(2)] for _ in range(2))
    faces = [
        cls([{'params': [p], 'lr': 0.5}, {'params': q, 'betas': (0.5, 0.6), 'weight_decay': 0.1}], lr=0.01)
        for cls, (p, q) in ((torchopt.Adam, ours), (torch.optim.Adam, theirs))
    ]
    assert [len(group['params']) for group in faces[0].param_groups] == [1, 1]
    for step in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = tensor(0.5, 1.0) - step
        for face in faces:
            face.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0.0)


def test_q9_numbers_are_no_parameters() -> None:
    with pytest.raises(TypeError, match=r'params\[1\] is 0\.1'):
        torchopt.Adam([nn.Parameter(tensor(1.0)), 0.1])


# --- Q10, Q11: frozen and tied parameters in MetaOptimizer ------------------------------------------------------------


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(2, 2, dtype=f64)
        self.decode = nn.Linear(2, 2, dtype=f64)
        self.decode.weight = self.encode.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.tanh(self.encode(x)))


def test_q10_frozen_parameters_are_skipped() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    net[0].requires_grad_(False)
    frozen, trained = list(net[0].parameters()), list(net[1].parameters())
    meta = torchopt.MetaAdam(net, lr=0.1)
    for _ in range(2):
        meta.step(net(torch.ones(3, 2, dtype=f64)).square().sum())
    assert all(p is q for p, q in zip(net[0].parameters(), frozen, strict=True))
    assert all(not torch.equal(p, q) for p, q in zip(net[1].parameters(), trained, strict=True))


def test_q11_tied_weights_stay_tied() -> None:
    net = Tied()
    w = net.encode.weight
    x = torch.linspace(-1.0, 1.0, 6, dtype=f64).reshape(3, 2)
    (g,) = torch.autograd.grad(net(x).square().sum(), [w])
    meta = torchopt.MetaSGD(net, lr=0.1)
    meta.step(net(x).square().sum())
    assert net.encode.weight is net.decode.weight
    torch.testing.assert_close(net.encode.weight, w - 0.1 * g, rtol=1e-13, atol=1e-15)
    meta.step(net(x).square().sum())
    assert net.encode.weight is net.decode.weight
    assert len(list(net.parameters())) == 3


# --- Q12: FuncOptimizer takes any tree --------------------------------------------------------------------------------


def test_q12_nested_trees() -> None:
    p = {'layers': [(tensor(1.0), tensor(2.0)), {'w': tensor(3.0)}], 'none': None}
    p = tree.map(lambda x: x.requires_grad_(), p)
    loss = sum((x**2).sum() for x in tree.leaves(p))
    new = torchopt.FuncOptimizer(torchopt.sgd(0.25)).step(loss, p)
    exactly(new, {'layers': [(tensor(0.5), tensor(1.0)), {'w': tensor(1.5)}], 'none': None})


# --- Q17: corrections in double precision -----------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'RAdam', 'Adamax'])
def test_q17_float64_is_float64(name: str) -> None:
    p, q = (nn.Parameter(tensor(1.0, -2.0, 0.5)) for _ in range(2))
    options: dict[str, Any] = {'lr': 0.1, 'betas': (0.9, 0.999), 'eps': 1e-8, 'weight_decay': 0.01}
    ours = getattr(torchopt, name)([p], **options)
    theirs = getattr(torch.optim, name)([q], **options)
    for step in range(10):
        p.grad = q.grad = tensor(0.3, -1.0, 2.0) * (1.0 + step)
        ours.step()
        theirs.step()
        torch.testing.assert_close(p, q, rtol=1e-13, atol=0.0)


# --- Q14: concrete implicit modules can be subclassed -----------------------------------------------------------------


class Root(torchopt.nn.ImplicitMetaGradientModule):
    """The square root of a meta-parameter."""

    def __init__(self, phi: torch.Tensor) -> None:
        super().__init__()
        self.phi = phi
        self.x = nn.Parameter(torch.ones((), dtype=f64))

    def optimality(self) -> tuple[torch.Tensor]:
        return (self.x**2 - self.phi,)

    def solve(self) -> None:
        with torch.no_grad():
            self.x.copy_(self.phi.sqrt())


def test_q14_subclasses_of_concrete_implicit_modules() -> None:
    class Heir(Root):
        """Without a solve of its own."""

    class HeirOfHeir(Heir):
        def solve(self) -> None:
            super().solve()

    for kind in (Heir, HeirOfHeir):
        phi = torch.tensor(9.0, dtype=f64, requires_grad=True)
        net = kind(phi)
        net.solve()
        torch.testing.assert_close(torch.autograd.grad(net.x, phi)[0], torch.tensor(1 / 6, dtype=f64))


# --- Q15: keyword-only arguments of solvers ---------------------------------------------------------------------------


def test_q15_keyword_only_arguments_of_a_solver() -> None:
    @torchopt.diff.implicit.custom_root(lambda x, a, *, b: x**2 - a * b)
    def solve(x: Any, a: torch.Tensor, *, b: torch.Tensor, steps: int = 3) -> torch.Tensor:
        assert steps == 4  # an option of the solver alone
        return (a * b).sqrt()

    a, b = tensor(4.0, 1.0).requires_grad_(), tensor(9.0, 4.0).requires_grad_()
    found = torch.autograd.grad(solve(None, a, b=b, steps=4).sum(), (a, b))
    torch.testing.assert_close(found, torch.autograd.grad((a * b).sqrt().sum(), (a, b)), rtol=1e-5, atol=0.0)


# --- Q18: unknowns without dimensions ---------------------------------------------------------------------------------

SOLVERS: dict[str, Callable[..., Any]] = {
    name: getattr(torchopt.linear_solve, name)() for name in torchopt.linear_solve.__all__ if name.startswith('solve_')
}


@pytest.mark.parametrize('name', [*SOLVERS, 'default'])
def test_q18_a_root_without_dimensions_has_a_gradient(name: str) -> None:
    @torchopt.diff.implicit.custom_root(lambda x, a: x**2 - a, argnums=1, solve=SOLVERS.get(name))
    def solve(x: Any, a: torch.Tensor) -> torch.Tensor:
        return a.sqrt()

    a = torch.tensor(9.0, dtype=f64, requires_grad=True)
    (found,) = torch.autograd.grad(solve(None, a), a)
    torch.testing.assert_close(found, torch.tensor(1 / 6, dtype=f64))


@pytest.mark.parametrize('name', SOLVERS)
def test_q18_a_solution_without_dimensions(name: str) -> None:
    found = SOLVERS[name](lambda x: 4 * x, torch.tensor(2.0, dtype=f64))
    torch.testing.assert_close(found, torch.tensor(0.5, dtype=f64))
    found = torchopt.linalg.cg(lambda x: 4 * x, torch.tensor(2.0, dtype=f64))
    torch.testing.assert_close(found, torch.tensor(0.5, dtype=f64))


# --- Q19: conjugate gradients have implicit derivatives ---------------------------------------------------------------


def test_q19_the_gradient_in_a_parameter_of_the_matrix() -> None:
    """The step sizes of the iteration depend on the matrix, too."""
    b = tensor(1.0, 2.0).requires_grad_()
    s = torch.tensor(0.5, dtype=f64, requires_grad=True)

    def matrix(s: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.stack([2 + s, s]), torch.stack([s, 3 - s])])

    def expected(s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(matrix(s), b)

    truth = torch.autograd.grad(expected(s, b).sin().sum(), (s, b))
    calls: list[Callable[[], Any]] = [
        lambda: torchopt.linalg.cg(matrix(s), b),
        lambda: torchopt.linalg.cg(lambda x: matrix(s) @ x, b),
        lambda: torchopt.linear_solve.solve_cg()(lambda x: matrix(s) @ x, b),
        lambda: torchopt.linear_solve.solve_normal_cg()(lambda x: matrix(s) @ x, b),
    ]
    for call in calls:
        found = torch.autograd.grad(call().sin().sum(), (s, b))
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=0.0)


# --- Q20: the series of ns has one term more than that of ns_inv ------------------------------------------------------


@pytest.mark.parametrize('terms', [0, 1, 4])
def test_q20_ns_has_one_term_more_than_ns_inv(terms: int) -> None:
    """The numbers are those of 0.7.3."""
    A = torch.tensor([[1.2, 0.3], [-0.1, 0.8]], dtype=f64)
    b = tensor(1.0, -2.0)
    sums = [torch.linalg.matrix_power(torch.eye(2, dtype=f64) - A, k) for k in range(terms + 1)]
    torch.testing.assert_close(torchopt.linalg.ns(A, b, terms), sum(sums) @ b)
    torch.testing.assert_close(torchopt.linalg.ns_inv(A, terms + 1), sum(sums))
    torch.testing.assert_close(torchopt.linalg.ns_inv(A, terms) @ b + sums[-1] @ b, torchopt.linalg.ns(A, b, terms))


# --- Q21: blocks that are coupled -------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', SOLVERS)
def test_q21_leaves_that_are_coupled(name: str) -> None:
    b = {'a': tensor(1.0, 2.0), 'b': tensor(-1.0, 3.0)}

    def matvec(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {'a': 2 * x['a'] + 0.5 * x['b'], 'b': 2 * x['b'] + 0.5 * x['a']}

    found = SOLVERS[name](matvec, b)
    expected = {'a': (2 * b['a'] - 0.5 * b['b']) / 3.75, 'b': (2 * b['b'] - 0.5 * b['a']) / 3.75}
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


# --- Limits: schedulers, copies, files, compilation -------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    'StepLR': lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    'ExponentialLR': lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.8),
    'CosineAnnealingLR': lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=5),
    'LambdaLR': lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda t: 1.0 / (1 + t), lambda t: 0.5**t]),
    'OneCycleLR': lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=10),
}


@pytest.mark.parametrize('name', SCHEDULERS)
def test_schedulers_of_torch(name: str) -> None:
    """OneCycleLR moves the betas as well."""
    ours, theirs = ([nn.Parameter(tensor(1.0, -2.0)) for _ in range(2)] for _ in range(2))
    faces = [
        cls([{'params': [p]}, {'params': [q], 'lr': 0.02}], lr=0.1)
        for cls, (p, q) in ((torchopt.Adam, ours), (torch.optim.Adam, theirs))
    ]
    schedulers = [SCHEDULERS[name](face) for face in faces]
    for step in range(9):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = tensor(0.5, 1.0) - step
        for face, scheduler in zip(faces, schedulers, strict=True):
            face.step()
            scheduler.step()
        assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)


def halve(count: Any) -> Any:
    """A schedule that can be pickled."""
    return 0.1 * 0.5**count


def matrices(params: Any) -> Any:
    """A mask that can be pickled."""
    return tree.map(lambda p: p.dim() > 1, params)


PICKLED: dict[str, Callable[[], GradientTransformation]] = {
    **WITH_NONE,
    'schedule': lambda: torchopt.adam(halve),
    'schedule of ours': lambda: torchopt.adam(torchopt.schedule.linear_schedule(0.1, 0.01, 5)),
    'tensor': lambda: torchopt.sgd(torch.tensor(0.1, dtype=f64), maximize=True),
    'decay': lambda: torchopt.adamw(weight_decay=0.1, mask=matrices),
    'chain': lambda: torchopt.chain(
        torchopt.clip_grad_norm(0.5), torchopt.adam(weight_decay=0.1), transform.scale(2.0)
    ),
    'chain of identities': lambda: torchopt.chain(torchopt.base.identity(), torchopt.base.identity()),
    'identity': torchopt.base.identity,
    'chain_flat': lambda: torchopt.combine.chain_flat(torchopt.adam()),
    'named_chain': lambda: torchopt.named_chain(('a', torchopt.adam()), ('b', transform.scale(2.0))),
    'masked': lambda: torchopt.masked(torchopt.adam(), {'w': True, 'b': False}),
    'masked by a function': lambda: torchopt.masked(torchopt.adam(), matrices),
    'partition': lambda: torchopt.partition({'x': torchopt.adam(), 'y': torchopt.sgd(0.1)}, {'w': 'x', 'b': 'y'}),
    'nan_to_num': lambda: torchopt.nan_to_num(1.0),
    'clip': lambda: torchopt.clip.adaptive_grad_clip(0.1),
}


@pytest.mark.parametrize('copier', [copy.deepcopy, copy.copy, lambda tx: pickle.loads(pickle.dumps(tx))])
@pytest.mark.parametrize('name', PICKLED)
def test_presets_can_be_copied_and_pickled(name: str, copier: Callable[[Any], Any]) -> None:
    p = {'w': torch.linspace(-1.0, 2.0, 6, dtype=f64).reshape(2, 3), 'b': tensor(1.0, 2.0)}
    grads = [tree.map(lambda x, k=k: torch.cos(x + k), p) for k in range(4)]
    tx = PICKLED[name]()
    twin = copier(tx)
    assert type(twin) is type(tx)
    found, state = run(tx, p, grads)
    again, twin_state = run(twin, p, grads)
    exactly(found, again)
    assert tree.structure(state) == tree.structure(twin_state)
    # One goes on from the state of the other.
    exactly(run(twin, p, grads, state)[0], run(tx, p, grads, twin_state)[0])


@pytest.mark.parametrize('name', PICKLED)
def test_states_load_with_weights_only(name: str) -> None:
    p = {'w': torch.ones(2, 3, dtype=f64), 'b': tensor(1.0, 2.0)}
    tx = PICKLED[name]()
    _, state = run(tx, p, [p, p])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert tree.structure(loaded) == tree.structure(state)
    exactly(tree.leaves(loaded), tree.leaves(state))
    exactly(run(tx, p, [p], loaded)[0], run(tx, p, [p], state)[0])


def test_state_dicts_load_with_weights_only() -> None:
    net = nn.Linear(2, 1).double()
    optimizer = torchopt.AdamW(net.parameters(), mask=[True, False])
    fresh = optimizer.state_dict()
    net(torch.ones(2, dtype=f64)).sum().backward()
    optimizer.step()
    for states in (fresh, optimizer.state_dict()):
        file = io.BytesIO()
        torch.save(states, file)
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))


def test_every_state_class_is_known_to_torch() -> None:
    """A state class that is added to the package must be loadable too."""
    known = set(torch.serialization.get_safe_globals())
    classes = {
        c
        for module in (torchopt.base, transform)
        for name, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, tuple) and not issubclass(c, GradientTransformation) and name.endswith(('State', 'Node'))
    }
    assert {EmptyState, UninitializedState, transform.MaskedNode, transform.TraceState} < classes
    assert classes <= known


COMPILED = {
    **{name: WITH_NONE[name] for name in ('sgd damped', 'adam', 'radam', 'adadelta', 'rmsprop centered')},
    'schedule': lambda: torchopt.adagrad(torchopt.schedule.exponential_decay(0.1, 0.9)),
    'clip': lambda: torchopt.chain(torchopt.clip_grad_norm(0.5), torchopt.adamax()),
}


@pytest.mark.parametrize('name', COMPILED)
def test_update_compiles_without_graph_breaks(name: str) -> None:
    tx = COMPILED[name]()
    p = {'w': torch.linspace(-1.0, 2.0, 6, dtype=f64).reshape(2, 3), 'b': [tensor(1.0, 2.0)]}

    @torch.compile(fullgraph=True, backend='aot_eager')
    def two_steps(p: Any, state: Any) -> Any:
        for _ in range(2):
            updates, state = tx.update(tree.map(torch.cos, p), state, p)
            p = torchopt.apply_updates(p, updates, inplace=False)
        return p, state

    expected, state = p, tx.init(p)
    for _ in range(2):
        updates, state = tx.update(tree.map(torch.cos, expected), state, expected)
        expected = torchopt.apply_updates(expected, updates, inplace=False)
    torch._dynamo.reset()
    found, compiled_state = two_steps(p, tx.init(p))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(tree.leaves(compiled_state), tree.leaves(state), rtol=1e-12, atol=1e-14)


def test_q8_recovering_by_reference_shares_tensors_and_by_copy_does_not() -> None:
    net = nn.Linear(2, 2)
    for by, shared in (('reference', True), ('copy', False), ('deepcopy', False)):
        state = torchopt.extract_state_dict(net, by=by)
        kept = next(iter(state.params[0].values()))
        assert (kept is net.weight) is shared
        torchopt.recover_state_dict(net, state)
        assert net.weight is kept, 'the module takes the tensors of the state themselves'
        net = nn.Linear(2, 2)
