# SPDX-License-Identifier: Apache-2.0
"""A module that separates the parameters of an inner problem from those of an outer problem.

In a bilevel problem an inner module depends on tensors of the outer problem: a learned initialization, another network,
a learned regularizer.  If they were stored as usual, ``parameters()`` would include them and the inner optimizer would
train them.  :class:`MetaGradientModule` recognizes them by identity: all arguments of the constructor are meta.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from torchopt import tree
from torchopt.graphs import carries_graph


class MetaInputs(NamedTuple):
    """The arguments of the constructor of a :class:`MetaGradientModule`, compared by identity.

    Args:
        meta_parameters: The tensors that require grad, and all parameters of ``meta_modules``.
        meta_modules: The modules in training mode, with all their submodules.
    """

    meta_parameters: set[Tensor]
    meta_modules: set[nn.Module]

    @classmethod
    def of(cls, arguments: Any) -> MetaInputs:
        """Collect the meta inputs among the leaves of a tree of constructor arguments."""
        inputs = cls(set(), set())
        for leaf in tree.leaves(arguments):
            if carries_graph(leaf):
                inputs.meta_parameters.add(leaf)
            elif isinstance(leaf, nn.Module) and leaf.training:
                inputs.meta_modules.update(leaf.modules())
                inputs.meta_parameters.update(leaf.parameters())
        return inputs

    def holds_parameter(self, value: Tensor) -> bool:
        """Whether ``value`` is meta, also if it was added to a meta-module later."""
        return value in self.meta_parameters or any(
            value is param for module in self.meta_modules for param in module.parameters(recurse=False)
        )


class MetaGradientModule(nn.Module):
    r"""A module whose constructor arguments are meta: the module uses them, and an outer problem trains them.

    The inner problem trains the parameters :math:`\theta` of the module, the outer problem the meta-parameters
    :math:`\phi`.  The kind of an attribute depends on the origin of its value:

    * a tensor that requires grad is a *meta-parameter* if it was among the constructor's arguments or belongs to a
      module among them, else an ordinary parameter.  It need not be a :class:`torch.nn.Parameter`: it may have a graph;
    * a module is a *meta-module* if it was (or is part of) an argument in **training** mode, else an ordinary child.
      A module in eval mode is considered fixed and is not meta;
    * everything else is stored as in :class:`torch.nn.Module`.  This includes a frozen :class:`torch.nn.Parameter`,
      which stays in ``parameters()`` and ``state_dict()``.

    ``parameters()``, ``modules()``, ``state_dict()``, ``repr()``, ``to()``, ``double()``,
    ``train()``, ``zero_grad()`` and ``requires_grad_()`` apply to the ordinary members only. The outer
    problem owns the meta members, so it moves, casts, saves and zeroes them. A
    meta-module that is *inside* an ordinary child (for example wrapped in
    :class:`torch.nn.Sequential`) counts as part of that child; assign it directly.

    ``copy.deepcopy`` copies meta members as well, so that the copy no longer depends on the outer
    problem's tensors; ``torchopt.module_clone(module, by='reference')`` keeps them shared.

    Args:
        *args: The arguments of the subclass, including trees (tuples, lists, dicts, ...) of tensors and modules.
        **kwargs: Likewise.

    Example:
        >>> import torch, torchopt
        >>> from torch import nn
        >>> class Inner(torchopt.nn.MetaGradientModule):
        ...     def __init__(self, backbone, log_penalty):
        ...         super().__init__()
        ...         self.backbone = backbone
        ...         self.log_penalty = log_penalty
        ...         self.head = nn.Linear(3, 1)
        ...
        ...     def forward(self, x):
        ...         return self.head(self.backbone(x))
        >>> inner = Inner(nn.Linear(2, 3), torch.zeros((), requires_grad=True))
        >>> [name for name, _ in inner.named_parameters()]
        ['head.weight', 'head.bias']
        >>> [name for name, _ in inner.named_meta_parameters()]
        ['log_penalty', 'backbone.weight', 'backbone.bias']
    """

    _meta_inputs: MetaInputs
    _meta_parameters: MutableMapping[str, Tensor | None]
    _meta_modules: MutableMapping[str, nn.Module | None]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments of the constructor, before any code of the subclass runs."""
        self = super().__new__(cls)
        # Not by __setattr__ of nn.Module, whose containers do not exist yet.
        object.__setattr__(self, '_meta_inputs', MetaInputs.of((args, kwargs)))
        object.__setattr__(self, '_meta_parameters', OrderedDict())
        object.__setattr__(self, '_meta_modules', OrderedDict())
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Prepare the containers; subclasses call this before they assign tensors or modules."""
        super().__init__()

    # -- attributes --------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Look up parameters, buffers, modules, meta-parameters, meta-modules, in this order."""
        for kind in ('_parameters', '_buffers', '_modules', '_meta_parameters', '_meta_modules'):
            container = self.__dict__.get(kind)
            if container is not None and name in container:
                return container[name]
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')

    def __setattr__(self, name: str, value: Any) -> None:
        """Store a value according to its origin; see the class."""
        if isinstance(value, nn.Parameter) or (carries_graph(value) and not isinstance(value, nn.Buffer)):
            if '_parameters' not in self.__dict__:
                raise AttributeError('cannot assign parameters before Module.__init__() call')
            if self._meta_inputs.holds_parameter(value):
                self._claim('meta-parameter', name, self._meta_parameters)
                self._meta_parameters[name] = value
            else:
                self._claim('parameter', name, self._parameters)
                self._store_parameter(name, value)
        elif isinstance(value, nn.Module):
            if '_modules' not in self.__dict__:
                raise AttributeError('cannot assign module before Module.__init__() call')
            if value in self._meta_inputs.meta_modules:
                self._claim('meta-module', name, self._meta_modules)
                self._meta_modules[name] = value
            else:
                self._claim('module', name, self._modules)
                super().__setattr__(name, value)
        else:
            for kind, expected, container in (
                ('parameter', 'torch.Tensor that requires grad', self.__dict__.get('_parameters', {})),
                ('meta-parameter', 'torch.Tensor that requires grad', self._meta_parameters),
                ('child module', 'torch.nn.Module', self.__dict__.get('_modules', {})),
                ('child meta-module', 'torch.nn.Module', self._meta_modules),
            ):
                if name in container:
                    if value is not None:
                        raise TypeError(
                            f'cannot assign {torch.typename(value)!r} as {kind} {name!r} ({expected} or None expected)'
                        )
                    container[name] = None
                    return
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete a member of any kind."""
        for container in (self._meta_parameters, self._meta_modules):
            if name in container and name not in {*self.__dict__, *self._parameters, *self._buffers, *self._modules}:
                del container[name]
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        """The names of the attributes, including meta members."""
        meta = (name for kind in (self._meta_parameters, self._meta_modules) for name in kind)
        ordinary = super().__dir__()  # type: ignore[no-untyped-call]
        return sorted({*ordinary, *(name for name in meta if not name[0].isdigit())})

    def _claim(self, kind: str, name: str, home: MutableMapping[str, Any]) -> None:
        """Check that ``name`` may be a member of ``home``, then remove it everywhere else."""
        if name not in home and hasattr(type(self), name):
            raise KeyError(f'attribute {name!r} already exists')
        _check_name(kind, name)
        others: tuple[MutableMapping[str, Any], ...] = (
            self.__dict__,
            self._parameters,
            self._buffers,
            self._modules,
            self._meta_parameters,
            self._meta_modules,
        )
        for container in others:
            if container is not home:
                container.pop(name, None)
        self._non_persistent_buffers_set.discard(name)

    def _store_parameter(self, name: str, value: Tensor) -> None:
        if isinstance(value, nn.Parameter) and value.grad_fn is None:
            super().register_parameter(name, value)  # runs the global registration hooks of PyTorch
        else:
            self._parameters[name] = value  # type: ignore[assignment]  # a tensor with a graph is a parameter here

    # -- registration ------------------------------------------------------------------------------

    def register_parameter(self, name: str, param: Tensor | None) -> None:
        """Add an ordinary parameter.

        Args:
            name: Its attribute name: a non-empty string without a dot that is not taken.
            param: A tensor that requires grad, leaf or not, or None to reserve the name.

        Raises:
            TypeError: ``name`` is not a string or ``param`` not a tensor.
            KeyError: ``name`` is empty, has a dot, or is taken.
            ValueError: ``param`` does not require grad, or is a meta-parameter.
        """
        if '_parameters' not in self.__dict__:
            raise AttributeError('cannot assign parameter before Module.__init__() call')
        self._check_registration('parameter', name, param, self._parameters)
        if param is None:
            self._parameters[name] = None
            return
        if self._meta_inputs.holds_parameter(param):
            raise ValueError(
                f'cannot assign Tensor that is a meta-parameter to parameter {name!r}. '
                'Use self.register_meta_parameter() instead.'
            )
        self._store_parameter(name, param)

    def register_meta_parameter(self, name: str, param: Tensor | None) -> None:
        """Add a meta-parameter, also one that was not an argument of the constructor.

        The arguments and errors are those of :meth:`register_parameter`.
        """
        if '_parameters' not in self.__dict__:
            raise AttributeError('cannot assign meta-parameter before Module.__init__() call')
        self._check_registration('meta-parameter', name, param, self._meta_parameters)
        self._meta_parameters[name] = param

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add an ordinary child module; ``register_module`` is the same.

        Args:
            name: Its attribute name: a non-empty string without a dot that is not taken.
            module: The child, or None to reserve the name.

        Raises:
            TypeError: ``name`` is not a string or ``module`` not a module.
            KeyError: ``name`` is empty, has a dot, or is taken.
            ValueError: ``module`` is a meta-module.
        """
        self._check_module_registration('module', name, module, self.__dict__.get('_modules'))
        if module is not None and module in self._meta_inputs.meta_modules:
            raise ValueError(
                f'cannot assign module that is a meta-module to module {name!r}. Use self.add_meta_module() instead.'
            )
        super().add_module(name, module)

    def register_module(self, name: str, module: nn.Module | None) -> None:
        """Add an ordinary child module; the same as :meth:`add_module`."""
        self.add_module(name, module)

    def add_meta_module(self, name: str, meta_module: nn.Module | None) -> None:
        """Add a meta-module, also one that was not an argument of the constructor.

        The arguments and errors are those of :meth:`add_module`; ``register_meta_module`` is the same.
        """
        home = self._meta_modules if '_modules' in self.__dict__ else None
        self._check_module_registration('meta-module', name, meta_module, home)
        self._meta_modules[name] = meta_module

    def register_meta_module(self, name: str, meta_module: nn.Module | None) -> None:
        """Add a meta-module; the same as :meth:`add_meta_module`."""
        self.add_meta_module(name, meta_module)

    def _check_registration(self, kind: str, name: str, param: Any, home: MutableMapping[str, Any]) -> None:
        _check_name(kind, name)
        if hasattr(self, name) and name not in home:
            raise KeyError(f'attribute {name!r} already exists')
        if param is None:
            return
        if not isinstance(param, Tensor):
            raise TypeError(
                f'cannot assign {torch.typename(param)!r} object to {kind} {name!r} (torch.Tensor or None required)'
            )
        if not param.requires_grad:
            raise ValueError(
                f'cannot assign Tensor that does not require grad to {kind} {name!r}. '
                'Call requires_grad_() on it, or store it with register_buffer().'
            )

    def _check_module_registration(
        self, kind: str, name: str, module: Any, home: MutableMapping[str, Any] | None
    ) -> None:
        if home is None:
            raise AttributeError('cannot assign module before Module.__init__() call')
        if not isinstance(module, nn.Module) and module is not None:
            raise TypeError(f'{torch.typename(module)} is not a Module subclass')
        _check_name(kind, name)
        if hasattr(self, name) and name not in home:
            raise KeyError(f'attribute {name!r} already exists')

    # -- iteration ---------------------------------------------------------------------------------

    def meta_parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        """Iterate over the meta-parameters, each tensor once; see :meth:`named_meta_parameters`.

        Args:
            recurse: Whether to include those of meta-modules and of child modules.
        """
        return (param for _, param in self.named_meta_parameters(recurse=recurse))

    def named_meta_parameters(self, prefix: str = '', recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the meta-parameters and their dotted names, each tensor once.

        The order is: the meta-parameters of this module, the parameters of each meta-module, then the meta-parameters
        of :class:`MetaGradientModule` instances among the ordinary descendants and inside the meta-modules.

        Args:
            prefix: Put before every name, followed by a dot.
            recurse: False for the meta-parameters of this module only.

        Example:
            >>> import torch, torchopt
            >>> module = torchopt.nn.MetaGradientModule()
            >>> module.register_meta_parameter('phi', torch.ones(2, requires_grad=True))
            >>> [name for name, _ in module.named_meta_parameters(prefix='net')]
            ['net.phi']
        """
        return _unique(_named_meta_parameters(self, prefix, set()) if recurse else _own(self._meta_parameters, prefix))

    def meta_children(self) -> Iterator[nn.Module]:
        """Iterate over the immediate meta-modules, each once."""
        return (module for _, module in self.named_meta_children())

    def named_meta_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over the immediate meta-modules and their names, each module once."""
        return _unique(_own(self._meta_modules, ''))

    def meta_modules(self) -> Iterator[nn.Module]:
        """Iterate over all meta-modules, each once; see :meth:`named_meta_modules`."""
        return (module for _, module in self.named_meta_modules())

    def named_meta_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = '', remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over the meta-modules and all their submodules, with dotted names.

        They include meta-modules of ordinary descendants and of meta-modules, but not this module.

        Args:
            memo: The modules not to yield; grows as the iteration proceeds.
            prefix: Put before every name, followed by a dot.
            remove_duplicate: Whether to yield each module once.
        """
        return _named_meta_modules(self, set() if memo is None else memo, prefix, remove_duplicate, set())


def _check_name(kind: str, name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f'{kind} name should be a string. Got {torch.typename(name)}')
    if '.' in name:
        raise KeyError(f"{kind} name can't contain '.', got: {name!r}")
    if name == '':
        raise KeyError(f"{kind} name can't be empty string ''")


def _own(container: MutableMapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in container.items():
        if value is not None:
            yield (f'{prefix}.{name}' if prefix else name), value


def _unique(named: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield each object once, with its first name."""
    seen = set()
    for name, value in named:
        if value not in seen:
            seen.add(value)
            yield name, value


def _holders(module: nn.Module, prefix: str, visited: set[nn.Module]) -> Iterator[tuple[str, MetaGradientModule]]:
    """The modules with meta members in ``module``, each once; ``visited`` ends cycles."""
    for path, holder in module.named_modules(prefix=prefix):
        if isinstance(holder, MetaGradientModule) and holder not in visited:
            visited.add(holder)
            yield path, holder


def _named_meta_parameters(module: nn.Module, prefix: str, visited: set[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for path, holder in _holders(module, prefix, visited):
        yield from _own(holder._meta_parameters, path)
        for name, child in _own(holder._meta_modules, path):
            yield from child.named_parameters(prefix=name)
            yield from _named_meta_parameters(child, name, visited)


def _named_meta_modules(
    module: nn.Module, memo: set[nn.Module], prefix: str, remove_duplicate: bool, visited: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    for path, holder in _holders(module, prefix, visited):
        for name, child in _own(holder._meta_modules, path):
            yield from child.named_modules(memo, name, remove_duplicate)
            yield from _named_meta_modules(child, memo, name, remove_duplicate, visited)
