# SPDX-License-Identifier: Apache-2.0
"""The choice between the native engine and plain torch."""

from __future__ import annotations

from torchopt import _C
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory


@factory
def with_native(tx: GradientTransformation, native: bool) -> ElementwiseTransformation:
    """Force an elementwise transformation to use the native engine, or to avoid it.

    Args:
        tx: The transformation.
        native: If True, ``update`` raises if the engine cannot run; if False, it computes in plain torch.

    Raises:
        TypeError: If the transformation is not elementwise.
        RuntimeError: If ``native`` is true and no engine can run here.
    """
    if not isinstance(tx, ElementwiseTransformation):
        raise TypeError(f'{tx!r} is not elementwise; only such transformations run on the native engine.')
    if native:
        _C.require()
    return ElementwiseTransformation(tx.init, lambda state: tx.prepare(state)._replace(native=native), *tx.requires)
