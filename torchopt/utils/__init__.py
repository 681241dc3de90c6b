# SPDX-License-Identifier: Apache-2.0
"""Save, restore, copy and detach the state of modules and meta-optimizers.

After an inner loop, the graph of all steps is attached to the module and its optimizer.  Between two tasks, restore
the initial state (:func:`extract_state_dict`, :func:`recover_state_dict`), or continue from the current state without
its graph (:func:`stop_gradient`).

**What keeps a graph alive.** A graph exists as long as any tensor that was computed in it is reachable: the current
parameters of the module, the moments of the optimizer, a state extracted by reference or by copy after a step, a loss
stored in a list (store ``loss.item()`` instead).  To release the graph of an inner loop, replace the tensors of *both*
the module and the optimizer, by ``stop_gradient`` or ``recover_state_dict``, and delete all other references.  Do this
after the outer backward pass: gradients do not flow through a tensor that has been detached in place.
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
