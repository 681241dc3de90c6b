# SPDX-License-Identifier: Apache-2.0
"""Releases of torch without an internal function that torchopt calls: a substitute, or a clear error."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.variables.misc import AutogradFunctionVariable

from torchopt.loop import scan


def test_without_the_function_that_grad_calls() -> None:
    script = (
        'import torch\n'
        'del torch.autograd.graph._engine_run_backward\n'
        'import torchopt\n'
        'w = torch.tensor([1.0, 2.0], requires_grad=True)\n'
        'def loss(w, unused): return (w**3).sum()\n'
        'for checkpoint in (None, "reverse", "mixed"):\n'
        '    gradient = torchopt.grad(loss, argnums=(0, 1), checkpoint=checkpoint)(w, torch.ones(2))\n'
        '    print(gradient[0].tolist(), gradient[1].tolist(), torch.autograd.grad(gradient[0].sum(), w)[0].tolist())\n'
        'print(torchopt.GradientDescent(lambda x: ((x - 3) ** 2).sum()).run(torch.zeros(2)).params.round().tolist())\n'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['[3.0, 12.0] [0.0, 0.0] [6.0, 12.0]'] * 3 + ['[3.0, 3.0]']


@pytest.mark.parametrize('owner', [AutogradFunctionVariable, torch._dynamo.variables.misc])
def test_compilation_without_the_note_of_custom_functions(owner: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their backward pass might be ignored without a word."""
    name = 'call_apply' if owner is AutogradFunctionVariable else 'AutogradFunctionVariable'
    monkeypatch.delattr(owner, name)
    with pytest.raises(RuntimeError, match=r'compile: whether .* torch\.autograd\.Function.*Run it without compile'):
        scan(lambda h, _: (h.sin(), None), torch.ones(3), length=2, compile='eager')
