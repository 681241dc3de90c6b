# SPDX-License-Identifier: Apache-2.0
"""Try an installed wheel: `python tests/smoke.py`, from any folder, with torch and torchopt and nothing else.

`make wheel` and cibuildwheel run it in a fresh environment. It tests what packaging can break: the compiled module, its
version, and that torch and the kernels share one OpenMP runtime.
"""

from __future__ import annotations

from pathlib import Path

import torch

import torchopt
from torchopt import _C


def main() -> None:
    """Raise if something is missing; say what was found."""
    info = _C.build_info()
    print(f'torchopt {torchopt.__version__} in {Path(torchopt.__file__).parent}, torch {torch.__version__}, {info}')
    assert 'site-packages' in torchopt.__file__, 'this is not an installed torchopt'
    assert info['compiled'] and torchopt.accelerated_op_available('cpu'), 'the compiled module is missing'
    assert info['version'] == torchopt.__version__, 'the compiled module is of another version'

    net, reference = torch.nn.Linear(50, 50), torch.nn.Linear(50, 50)
    reference.load_state_dict(net.state_dict())
    for module, optimizer in ((net, torchopt.Adam), (reference, torch.optim.Adam)):
        stepper = optimizer(module.parameters(), lr=1e-2)
        for _ in range(3):
            stepper.zero_grad()
            module(torch.ones(50)).square().sum().backward()
            stepper.step()
    torch.testing.assert_close(net.weight, reference.weight)

    rate = torch.tensor(0.1, requires_grad=True)
    inner = torchopt.MetaAdam(net, lr=rate)
    inner.step(net(torch.ones(50)).square().sum())
    net(torch.ones(50)).square().sum().backward()
    assert rate.grad is not None and rate.grad != 0, 'no meta-gradient'

    if info['openmp']:
        torch.set_num_threads(1)
        assert _C.build_info()['openmp_max_threads'] == 1, 'torch and the kernels use two OpenMP runtimes'
    maps = Path('/proc/self/maps')
    if maps.is_file():
        runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if 'libgomp' in line}
        assert len(runtimes) <= 1, f'more than one libgomp is loaded: {sorted(runtimes)}'
    print('the wheel works')


if __name__ == '__main__':
    main()
