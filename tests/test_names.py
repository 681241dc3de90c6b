# SPDX-License-Identifier: Apache-2.0
"""Every public name of TorchOpt 0.7.3 exists here, and takes the arguments that it took there.

``data/torchopt-0.7.3.tsv`` lists them: module, name, kind, signature.
"""

from __future__ import annotations

import ast
import csv
import functools
import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import torchopt

LIST = Path(__file__).parent / 'data' / 'torchopt-0.7.3.tsv'

# torch.nn.Module's own methods, which differ from release to release of torch; tests/nn tests those that are ours.
TORCH_OWNED = 'torch.nn'

# Arguments that differ on purpose: (name, argument) -> our default, or None for "any".
OTHER_DEFAULTS = {
    # The engine is used wherever it can be, so the flag has three values: automatic (None), forced, forbidden.
    'use_accelerated_op': None
}
OTHER_DEFAULTS_OF = {
    # None decides by the role of each parameter; True would write into the tensors of functional code.
    ('apply_updates', 'inplace'): None,
    # None is the attribute set_to_none, which is False as there; interop makes it True, as torch.optim has it.
    ('Optimizer.zero_grad', 'set_to_none'): None,
    # It must be given; None raises an error that says more than Python's.
    ('MetaOptimizer.step', 'loss'): None,
    # It had to be given; None is whatever requires a gradient.
    ('custom_root', 'argnums'): None,
}
OTHER_NAMES_OF = {
    # torch.optim's name, since dict groups are understood now.
    ('Optimizer.add_param_group', 'params'): 'param_group'
}
# What the list shows as `**kwargs`: the options that these took, which a solver of ours takes beside matvec and b.
OPTIONS = {  # atol=None stands for the 0.0 of 0.7.3; given as zero, it asks for truncation
    'solve_cg': '(*, ridge=None, init=None, rtol=None, atol=None, maxiter=None, M=None)',
    'solve_normal_cg': '(*, ridge=None, init=None, rtol=None, atol=None, maxiter=None, M=None)',
    'solve_inv': '(*, ridge=None, ns=False, maxiter=None, alpha=None)',
}
# Namedtuples that are made from something else than their fields; the list shows the fields.
OTHER_CONSTRUCTORS = {'ChainedGradientTransformation': '(*transformations)', 'IdentityGradientTransformation': '()'}
# Protocols and generic classes: the list shows the signature that Python gives them.
WITHOUT_SIGNATURE = {'TransformInitFn', 'TransformUpdateFn'}


class Name(NamedTuple):
    """One line of the list."""

    module: str
    name: str
    kind: str
    signature: str

    def __str__(self) -> str:
        return f'{self.module}.{self.name}'


def read() -> list[Name]:
    with LIST.open(encoding='utf-8', newline='') as file:
        return [Name(*row) for row in csv.reader(file, delimiter='\t', quoting=csv.QUOTE_NONE)]


def is_artefact(name: Name) -> bool:
    """Whether the name is only there because a module imported it for its own annotations."""
    home = {'GradientTransformation': 'base', 'ChainedGradientTransformation': 'base', 'EmptyState': 'base'}
    home |= {'identity': 'base', 'TYPE_CHECKING': 'typing', 'T': 'typing', 'ModuleState': 'utils'}
    module = name.module.removeprefix('torchopt').removeprefix('.')
    return name.name in home and bool(module) and home[name.name] != module


NAMES = read()
PROMISED = [name for name in NAMES if not is_artefact(name)]


def find(name: Name) -> Any:
    return functools.reduce(getattr, name.name.split('.'), importlib.import_module(name.module))


def test_the_list_is_whole() -> None:
    assert len(NAMES) == 748
    assert len(PROMISED) > 300
    assert {name.kind for name in PROMISED} == {
        'class',
        'method',
        'function',
        'namedtuple',
        'bool',
        'int',
        'str',
        'lock',
    }


@pytest.mark.parametrize('name', PROMISED, ids=str)
def test_exists(name: Name) -> None:
    found = find(name)
    if name.kind in ('function', 'method'):
        assert callable(found)
    elif name.kind in ('class', 'namedtuple'):
        assert inspect.isclass(found)
        assert name.kind != 'namedtuple' or hasattr(found, '_fields')


class Argument(NamedTuple):
    """One argument of a signature; a default is compared by what it prints as.  Names after stars do not matter."""

    name: str
    kind: str
    default: str


def listed(signature: str) -> list[Argument]:
    args = ast.parse(f'def f{signature}: pass').body[0].args  # type: ignore[attr-defined]
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    found = [Argument(a.arg, 'positional', show(d)) for a, d in zip(plain, defaults, strict=True)]
    if args.vararg:
        found.append(Argument('', '*', ''))
    found += [Argument(a.arg, 'keyword', show(d)) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        found.append(Argument('', '**', ''))
    return found


def show(default: ast.expr | None) -> str:
    try:
        return '' if default is None else repr(ast.literal_eval(default))
    except ValueError:
        return ast.unparse(default)


KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: 'positional',
    inspect.Parameter.POSITIONAL_OR_KEYWORD: 'positional',
    inspect.Parameter.VAR_POSITIONAL: '*',
    inspect.Parameter.KEYWORD_ONLY: 'keyword',
    inspect.Parameter.VAR_KEYWORD: '**',
}


def ours(found: Any) -> list[Argument]:
    return [
        Argument(
            '' if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) else p.name,
            KINDS[p.kind],
            '' if p.default is p.empty else getattr(p.default, '__name__', None) or repr(p.default),
        )
        for p in inspect.signature(found).parameters.values()
    ]


def is_torchs_own(found: Any) -> bool:
    return (getattr(found, '__module__', None) or '').startswith(TORCH_OWNED)


WITH_SIGNATURE = [
    name
    for name in PROMISED
    if name.signature and name.name not in WITHOUT_SIGNATURE and name.kind in ('function', 'method', 'class')
]


@pytest.mark.parametrize('name', WITH_SIGNATURE, ids=str)
def test_takes_the_arguments(name: Name) -> None:
    found = find(name)
    if is_torchs_own(found):
        return
    expected = [as_it_is_here(name, a) for a in listed(OPTIONS.get(name.name, name.signature))]
    here = ours(found)
    # What was positional comes first, in the same order; what we added comes after it, and is optional.
    first = [a for a in expected if a.kind in ('positional', '*')]
    assert here[: len(first)] == first
    for added in here[len(first) :]:
        assert added in expected or added.default or added.kind in ('*', '**'), f'{added.name} is required'
        if added.kind == 'positional':
            assert not any(a.kind == '*' for a in first)
    for argument in expected:
        also = argument._replace(kind='positional') if argument.kind == 'keyword' else argument
        assert argument in here or also in here, f'{argument} is missing from {here}'


@pytest.mark.parametrize('name', [name for name in PROMISED if name.kind == 'namedtuple'], ids=str)
def test_has_the_fields(name: Name) -> None:
    found, fields = find(name), tuple(a.name for a in listed(name.signature))
    assert found._fields == fields
    signature = OTHER_CONSTRUCTORS.get(name.name)
    assert [a.name for a in ours(found)] == [a.name for a in listed(signature or name.signature)]


def as_it_is_here(name: Name, argument: Argument) -> Argument:
    """The argument with the differences that are on purpose."""
    function = name.name.split('.')[-1]
    if argument.name in OTHER_DEFAULTS:
        return argument._replace(default=repr(OTHER_DEFAULTS[argument.name]))
    owner = getattr(importlib.import_module(name.module), name.name.split('.')[0])
    bases = inspect.getmro(owner) if inspect.isclass(owner) else ()
    for key in (function, *(f'{base.__name__}.{function}' for base in bases)):
        if (key, argument.name) in OTHER_DEFAULTS_OF:
            return argument._replace(default=repr(OTHER_DEFAULTS_OF[key, argument.name]))
    if inspect.isclass(owner) and issubclass(owner, torchopt.Optimizer):
        return argument._replace(name=OTHER_NAMES_OF.get((f'Optimizer.{function}', argument.name), argument.name))
    return argument


def test_the_differences_are_needed() -> None:
    """A difference that is none any more leaves the tables."""
    arguments = {
        (key, a.name) for n in WITH_SIGNATURE for a in listed(n.signature) for key in (n.name.split('.')[-1], n.name)
    }
    assert set(OTHER_DEFAULTS) <= {argument for _, argument in arguments}
    assert set(OTHER_DEFAULTS_OF) <= arguments
    assert {n.name for n in NAMES if n.module == 'torchopt.linear_solve' and n.signature == '(**kwargs)'} == set(
        OPTIONS
    )
    assert 'param_group' in inspect.signature(torchopt.Optimizer.add_param_group).parameters


IMPLICIT = """
torchopt.diff: ImplicitMetaGradientModule ZeroOrderGradientModule implicit zero_order
torchopt.diff.implicit: ImplicitMetaGradientModule custom_root nn
torchopt.diff.implicit.nn: ImplicitMetaGradientModule
torchopt.diff.implicit.nn.module: enable_implicit_gradients make_optimality_from_objective
torchopt.linalg: cg ns ns_inv
torchopt.linear_solve: solve_cg solve_inv solve_normal_cg
torchopt.nn: ImplicitMetaGradientModule ZeroOrderGradientModule
"""


@pytest.mark.parametrize('line', IMPLICIT.strip().splitlines(), ids=lambda line: line.split(':')[0])
def test_implicit_differentiation_is_where_it_was(line: str) -> None:
    room, _, names = line.partition(': ')
    module = importlib.import_module(room)
    for name in names.split():
        assert hasattr(module, name), name
        assert name in module.__all__


def test_modules_are_bound_by_the_import() -> None:
    modules = {name.module.split('.')[1] for name in NAMES if '.' in name.module}
    for module in sorted(modules | {'typing', 'version', 'transform', 'update', 'utils'}):
        assert inspect.ismodule(getattr(torchopt, module)), module


SPELLINGS = [('AdaDelta', 'Adadelta'), ('AdaGrad', 'Adagrad'), ('AdaMax', 'Adamax'), ('RMSProp', 'RMSprop')]


@pytest.mark.parametrize(('first', 'second'), SPELLINGS)
def test_spellings_are_one_object(first: str, second: str) -> None:
    for room in (torchopt, torchopt.optim):
        assert getattr(room, first) is getattr(room, second)
    for room in (torchopt, torchopt.optim.meta):
        assert getattr(room, f'Meta{first}') is getattr(room, f'Meta{second}')


TYPING = """
GradientTransformation ChainedGradientTransformation EmptyState UninitializedState Params Updates OptState
Scalar Numeric Schedule ScalarOrSchedule PyTree Tensor OptionalTensor ListOfTensors TupleOfTensors
SequenceOfTensors TensorOrTensors TensorTree ListOfOptionalTensors TupleOfOptionalTensors
SequenceOfOptionalTensors OptionalTensorOrOptionalTensors OptionalTensorTree TensorContainer
ModuleTensorContainers Future LinearSolver Device Size Distribution SampleFunc Samplable
"""


@pytest.mark.parametrize('name', TYPING.split())
def test_typing(name: str) -> None:
    assert hasattr(torchopt.typing, name)
    assert name in torchopt.typing.__all__


@pytest.mark.parametrize('name', ['__version__', '__license__', '__author__', '__release__'])
def test_version(name: str) -> None:
    assert hasattr(torchopt.version, name)
    assert torchopt.__version__ == torchopt.version.__version__
