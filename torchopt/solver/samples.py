# SPDX-License-Identifier: Apache-2.0
"""A function evaluated for some samples of the batch that ``torch.vmap`` makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from torchopt import tree
from torchopt.columns import is_batched, of_all_samples


class SomeSamples:
    """``fun(x, args, kwargs)``, which returns the value, the gradient, and more, evaluated for some samples of a batch.

    A ``torch.vmap`` inside that of the batch has only these samples.  A function that has values of the batch not from
    its data, but from variables around it, gives results of both batches.  One sample shows whether it does; if so, it
    is not evaluated in this way again.
    """

    def __init__(self, fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> None:
        self.fun, self.size = fun, size
        self.data = tree.Selection((args, kwargs), is_batched)
        self.works: bool | None = None

    def __call__(self, x: Any, samples: Any) -> tuple[Any, Any] | None:
        """Values and gradients of the samples with these numbers, given the vectors of all samples.

        It returns None if that is not possible, or no faster.
        """
        if 2 * len(samples) > self.size:
            return None
        if self.works is None:
            self.works = self._of(x, samples[:1]) is not None
        return self._of(x, samples) if self.works else None

    def _of(self, x: Any, samples: Any) -> tuple[Any, Any] | None:
        chosen = torch.from_numpy(samples)
        given = [of_all_samples(leaf, self.size) for leaf in self.data.selected]
        given = [leaf.index_select(0, chosen.to(leaf.device)) for leaf in given]

        def of_sample(x: torch.Tensor, given: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            value, gradient, *_ = self.fun(x, *self.data.replace(given))
            return value, gradient

        batch: Any = retrieve_current_functorch_interpreter()
        try:
            found = torch.vmap(of_sample, randomness=batch.randomness())(torch.from_numpy(x[samples]), given)
        except RuntimeError:  # the function itself fails for all samples too, with an error of its own
            return None
        if any(map(is_batched, found)):
            return None
        value, gradient = (part.numpy(force=True) for part in found)
        return value.astype(np.float64), gradient
