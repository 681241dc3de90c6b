# SPDX-License-Identifier: Apache-2.0
"""What methods ask of a step before anything is written: their own state, parameters, real numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torchopt import tree
from torchopt.refusal import Check, expects_params, expects_state

__all__ = ['expects', 'require_real']

_Update = TypeVar('_Update', bound=Callable[..., tuple[Any, Any]])


def expects(kind: type, purpose: str, then: Check | None = None) -> Callable[[_Update], _Update]:
    """Let an ``update`` refuse the state of another transformation, and to work without parameters.

    Args:
        kind: The class of its own states.
        purpose: What it needs the parameters for.
        then: What else to ask before a step in place.
    """

    def decorate(update: _Update) -> _Update:
        with_params = expects_params(purpose)(update)
        needs = getattr(with_params, 'preflight', None)

        def ask(state: Any, params: Any = None) -> None:
            for check in (needs, then):
                if check is not None:
                    check(state, params)

        return expects_state(kind, ask)(with_params)

    return decorate


def require_real(params: Any, method: str) -> None:
    """Refuse complex parameters.

    Raises:
        TypeError: If there are any; the message names the path of the first.
    """
    for path, p in tree.flatten_with_path(params):
        if p is not None and p.is_complex():
            raise TypeError(
                f'params{path} is complex ({p.dtype}), but {method} compares numbers. Wrap it in '
                f'torchopt.contrib.split_real_and_imaginary.'
            )
