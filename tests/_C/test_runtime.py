# SPDX-License-Identifier: Apache-2.0
"""The engine in a process: threads, forks, instruction sets, the switch, the exchange interface."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import torchopt
from tests._C.cases import AFFINES, BY_NAME, CASES, SHAPES, assert_same, columns, draw, flat, native, watched
from torchopt import _C, rules
from torchopt._C import fused

kernels = _C._kernels
F32, F64 = torch.float32, torch.float64
each_case = pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def core(case, shapes=SHAPES['mixed'], dtype=F32):
    """Values in place and out of place, gradients of leaves and of coefficients, tangents."""
    affine = AFFINES['everything']
    g, moments, p = columns(case, shapes, dtype)
    inputs = [x.requires_grad_() for x in flat([g, *moments, p])]
    partials, coefs = case.learned()
    moved = flat(native(affine.around(partials), g, moments, p, onto=True))
    found = [*moved]
    pairs = [(y, torch.cos(37 * y).detach()) for y in moved if y.requires_grad]
    first = torch.autograd.grad([y for y, _ in pairs], [*coefs, *inputs], [c for _, c in pairs], materialize_grads=True)
    found += first
    fixed = flat(native(affine.around(case.partials()), g, moments, p, onto=True))
    (rest, *more) = torch.autograd.grad(sum(y.sum() for y in fixed), inputs, create_graph=True, materialize_grads=True)
    if rest.requires_grad:
        found += torch.autograd.grad(sum((x**2).sum() for x in (rest, *more)), inputs, materialize_grads=True)
    g, moments, p = columns(case, shapes, dtype)
    found += flat(native(affine.around(case.partials()), g, moments, p, inplace=True, onto=True))
    return [x.detach() for x in found]


# --- threads --------------------------------------------------------------------------------------------------------


@each_case
def test_results_do_not_depend_on_the_number_of_threads(case, threads):
    """To the bit, sums over elements included."""
    shapes = [(3,), (17_001, 2), (1025,)]
    threads(1)
    alone = core(case, shapes)
    for n in (2, 3):
        threads(n)
        for x, y in zip(core(case, shapes), alone, strict=True):
            assert torch.equal(x, y)
    assert all(x.isfinite().all() for x in alone)


def test_several_python_threads_at_once(threads):
    threads(2)
    wanted = {case.name: core(case, [(40_000,), (7,)]) for case in CASES[::4]}
    wrong = []

    def work(k):
        for i in range(6):
            case = CASES[::4][(i + k) % len(wanted)]
            if not all(map(torch.equal, core(case, [(40_000,), (7,)]), wanted[case.name])):
                wrong.append(case.name)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


def digest(tensors):
    return hashlib.sha256(b''.join(x.numpy().tobytes() for x in tensors)).hexdigest()


def stepped():
    """A step without a graph: torch's autograd does not work in a fork once it has used a CUDA device."""
    g, moments, p = columns(BY_NAME['adam'], [(100_000,)], F32)
    return flat(native(AFFINES['everything'].around(BY_NAME['adam'].partials()), g, moments, p, onto=True))


def in_a_child(queue):
    with watched() as watch:
        found = stepped()
    queue.put((watch.refusals, digest(found)))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork here')
@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_a_child_of_fork_computes(threads):
    """After a parallel region in the parent, whose threads the child does not have."""
    threads(4)
    wanted = digest(stepped())
    torch.set_num_threads(1)  # torch's own parallel regions are not what is tested
    context = multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    child = context.Process(target=in_a_child, args=(queue,))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        pytest.fail('the child hangs')
    assert child.exitcode == 0
    refusals, found = queue.get()
    assert not refusals
    assert found == wanted


# --- instruction sets, and reading tensors without the exchange interface -------------------------------------------


@each_case
def test_instruction_sets_agree(case):
    best = _C.build_info()['instruction_set']
    here = core(case)
    try:
        for name in ('baseline', 'x86-64-v3', 'x86-64-v4'):
            if kernels.use_instruction_set(name):
                assert _C.build_info()['instruction_set'] == name
                assert_same(core(case), here, 2e-4)
    finally:
        assert kernels.use_instruction_set(best)
    assert all(map(torch.equal, core(case), here))


def test_unknown_instruction_sets():
    best = _C.build_info()['instruction_set']
    assert not kernels.use_instruction_set('no such')
    assert _C.build_info()['instruction_set'] == best


@pytest.fixture
def without_exchange():
    kernels.open(torch, False)
    yield
    kernels.open(torch)


@each_case
def test_values_without_the_exchange_interface(case, without_exchange):
    """As with torch releases that have none."""
    for dtype in (F32, torch.bfloat16):
        by_attributes = core(case, dtype=dtype)
        kernels.open(torch)
        assert all(map(torch.equal, by_attributes, core(case, dtype=dtype)))
        kernels.open(torch, False)


@pytest.mark.parametrize('shape', [(), (1,), (3,), (2, 3)], ids=str)
def test_odd_tensors_without_the_exchange_interface(shape, without_exchange):
    tx = torchopt.sgd(0.1, momentum=0.9)
    x = draw('~', shape, 0, F32)
    negated = torch.complex(x, x).conj().imag
    assert_same(tx.update([negated], tx.init([x]))[0], [0.1 * x], 1e-6)
    for odd in (x.to('meta'), torch.complex(x, x), x.as_subclass(type('Sub', (torch.Tensor,), {}))):
        u, _ = tx.update([odd], tx.init([odd]))
        assert u[0].shape == shape
    assert_same(tx.update([torch._efficientzerotensor(shape)], tx.init([x]))[0], [torch.zeros(shape)], 0.0)
    with pytest.raises(RuntimeError, match='sparse'):
        tx.update([torch.eye(3).to_sparse()], tx.init([torch.eye(3)]))
    expanded = torch.ones(1).expand(3)
    assert_same(tx.update([expanded], tx.init([torch.ones(3)]))[0], [torch.full((3,), -0.1)], 1e-7)


# --- the switch, and what is told about the engine ------------------------------------------------------------------

SCRIPT = """
import json, torch, torchopt
from torchopt import _C
p = [torch.linspace(-1, 1, 7)]
tx = torchopt.adamw(0.1)
state = tx.init(p)
for _ in range(3):
    updates, state = tx.update([torch.sin(3 * x) for x in p], state, p)
    p = torchopt.apply_updates(p, updates)
message = ''
try:
    torchopt.adam(0.1, use_accelerated_op=True)
except RuntimeError as error:
    message = str(error)
print(json.dumps([_C.is_available(), _C.build_info()['enabled'], _C.fused._run is None, p[0].tolist(), message]))
"""


def test_the_environment_switches_the_engine_off():
    path = os.pathsep.join([str(Path(torchopt.__file__).parents[1]), *sys.path])
    environment = {**os.environ, _C.SWITCH: 'OFF', 'PYTHONPATH': path}
    out = subprocess.run(
        [sys.executable, '-c', SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    *off, values, message = json.loads(out.stdout)
    assert off == [False, False, True]
    assert _C.SWITCH in message
    p, tx = [torch.linspace(-1, 1, 7)], torchopt.adamw(0.1)
    state = tx.init(p)
    for _ in range(3):
        updates, state = tx.update([torch.sin(3 * x) for x in p], state, p)
        p = torchopt.apply_updates(p, updates)
    assert_same(p, [torch.tensor(values)], 1e-6)


def test_the_catalogue_is_that_of_the_reference():
    found = kernels.catalogue()
    assert set(rules.RULES.values()) | {'rms+trace', 'stddev+trace'} == set(found)
    by_name = {name: rule for rule, name in rules.RULES.items()}
    for name, orders in found.items():
        partials = [by_name[part] for part in name.split('+')]
        moments = sum(rules.count_moments(rule) for rule in partials)
        coefs = 4 + sum(len(rules.coefficients(rule)) for rule in partials)
        step, results = moments + 2, moments + 1
        assert [tuple(order) for order in orders] == [
            (step, results, coefs, 0),
            (step + results, step, coefs, 0),
            (step + results, step, coefs, coefs),
            (2 * step + results, step + results, coefs, 0),
            (2 * step, results, coefs, 0),
        ]


def test_is_available():
    assert _C.is_available()
    assert _C.is_available('cpu')
    assert _C.is_available(torch.device('cpu'))
    assert _C.is_available(['cpu', torch.device('cpu')])
    assert not _C.is_available('meta')
    assert not _C.is_available(['cpu', 'meta'])
    assert not _C.is_available('no such device')
    cuda = kernels.cuda_devices() > 0
    assert _C.is_available(0) == _C.is_available('cuda') == _C.is_available('cuda:0') == cuda
    assert not _C.is_available(10_000)
    for bad in (1.5, True, [None], ['cpu', 2.0]):
        with pytest.raises(TypeError):
            _C.is_available(bad)
    info = _C.build_info()
    assert info['compiled'] is info['enabled'] is True
    assert info['cuda'] or not cuda


def test_bad_calls_of_the_module_raise():
    for arguments in (
        (-1, 0, [], [], (), None, 1, False),
        (0, 9, [], [], (), None, 1, False),
        (0, 0, [], [], (), None, 1, False),
        (0, 0, [[torch.ones(1)], None], [-1], (1.0,), None, 1, False),
        (0, 0, [[torch.ones(1)], [None, None]], [-1], (1.0, 0.0, 1.0, 0.0), None, 1, False),
        (0, 0, [[torch.ones(1)], None], [-1], (1.0, 0.0, 1.0, 0.0), [-1], 1, False),
    ):
        with pytest.raises(ValueError):
            kernels.run(*arguments)
    assert fused._run is not None
