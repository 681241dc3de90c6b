# SPDX-License-Identifier: Apache-2.0
"""Remember, restore, copy and cut loose the state of modules and meta-optimizers.

An inner loop leaves a module and its optimizer connected to everything they went through. Between
two tasks the loop returns to its initial state (:func:`extract_state_dict`,
:func:`recover_state_dict`) or continues from the current state without the history (:func:`stop_gradient`).

**What keeps a graph alive.** A graph lives as long as any tensor that was computed in it is
reachable: the module's current parameters, the optimizer's moments, a state extracted by reference
or by copy after a step, a loss kept in a list (keep ``loss.item()``). To release an unrolled loop,
give *both* the module and the optimizer new tensors, by ``stop_gradient`` or
``recover_state_dict``, and drop what else refers to it. Do so after the outer backward pass: a
tensor that is detached in place no longer leads a later ``create_graph=True`` pass into its past.
"""

from torchopt.utils.cloning import module_clone
from torchopt.utils.state import (
    ModuleState,
    extract_module_containers,
    extract_state_dict,
    module_detach_,
    recover_state_dict,
    stop_gradient,
)

__all__ = [
    'ModuleState',
    'extract_module_containers',
    'extract_state_dict',
    'module_clone',
    'module_detach_',
    'recover_state_dict',
    'stop_gradient',
]
