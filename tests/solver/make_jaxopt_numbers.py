# SPDX-License-Identifier: Apache-2.0
"""Write ``tests/data/jaxopt_solvers.json``: what JAXopt 0.8.5 computes for the problems of ``jaxopt_problems.py``.

Run it as ``python tests/solver/make_jaxopt_numbers.py``.  JAX compiles for minutes, so the tests read the file.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    import jaxopt

sys.path.insert(0, str(Path(__file__).parent))
from jaxopt_problems import PROBLEMS, STEPS

PATH = Path(__file__).parents[1] / 'data' / 'jaxopt_solvers.json'


def main() -> None:
    jax.config.update('jax_enable_x64', True)
    found: dict[str, Any] = {}
    for name, problem in PROBLEMS.items():
        fun, start = problem.fun(jnp), None if problem.start is None else jnp.array(problem.start)
        solver = problem.make(jaxopt, fun)
        entry: dict[str, Any] = {}

        def solution(a: Any, solver: Any = solver, start: Any = start) -> Any:
            return solver.run(start, a).params

        a = jnp.array(problem.a)
        if problem.steps:
            params, state = start, solver.init_state(start, a)
            entry['steps'] = []
            for _ in range(STEPS):
                params, state = solver.update(params, state, a)
                entry['steps'].append(np.asarray(params).tolist())
        entry['params'] = np.asarray(solution(a)).tolist()
        entry['jacobian'] = np.asarray(jax.jacrev(solution)(a)).tolist()
        found[name] = entry
        print(name, entry['params'])
    PATH.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
