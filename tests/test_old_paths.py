# SPDX-License-Identifier: Apache-2.0
"""Every module path of TorchOpt 0.7.3 can be imported, with the public names that it had, or is on the porting page."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import torchopt
from torchopt.diff.implicit.nn import module as implicit_module

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'porting' / 'torchopt-0.7.3.md'

# From each module of 0.7.3 to its public names.
PATHS = {
    'accelerated_op': 'is_available',
    'accelerated_op.adam_op': 'AdamOp',
    'alias': 'adagrad radam adam adamax adadelta adamw rmsprop sgd',
    'alias.adadelta': 'adadelta',
    'alias.adagrad': 'adagrad',
    'alias.adam': 'adam',
    'alias.adamax': 'adamax',
    'alias.adamw': 'adamw',
    'alias.radam': 'radam',
    'alias.rmsprop': 'rmsprop',
    'alias.sgd': 'sgd',
    'alias.utils': 'flip_sign_and_add_weight_decay scale_by_neg_lr',
    'base': 'EmptyState UninitializedState GradientTransformation ChainedGradientTransformation identity',
    'clip': 'clip_grad_norm',
    'combine': 'chain chain_flat',
    'diff': 'implicit zero_order',
    'diff.implicit': 'custom_root ImplicitMetaGradientModule nn decorator',
    'diff.implicit.decorator': 'custom_root',
    'diff.implicit.nn': 'ImplicitMetaGradientModule module',
    'diff.implicit.nn.module': 'ImplicitMetaGradientModule enable_implicit_gradients make_optimality_from_objective',
    'diff.zero_order': 'zero_order ZeroOrderGradientModule nn decorator',
    'diff.zero_order.decorator': 'zero_order',
    'diff.zero_order.nn': 'ZeroOrderGradientModule module',
    'diff.zero_order.nn.module': 'ZeroOrderGradientModule enable_zero_order_gradients',
    'distributed': 'is_available api autograd world rpc',
    'distributed.api': 'TensorDimensionPartitioner dim_partitioner batch_partitioner exclusive_batch_partitioner '
    'mean_reducer sum_reducer remote_async_call remote_sync_call parallelize parallelize_async parallelize_sync',
    'distributed.autograd': 'is_available context DistAutogradContext get_gradients backward grad',
    'distributed.rpc': 'RRef rpc_sync rpc_async remote',
    'distributed.world': 'get_world_info get_world_rank get_rank get_world_size get_local_rank get_local_world_size '
    'get_worker_id barrier auto_init_rpc on_rank not_on_rank rank_zero_only rank_non_zero_only rank_all WorldInfo '
    'default_worker_name_format',
    'hook': 'zero_nan_hook nan_to_num_hook register_hook',
    'linalg': 'cg ns ns_inv',
    'linalg.cg': 'cg',
    'linalg.ns': 'ns ns_inv',
    'linear_solve': 'solve_cg solve_normal_cg solve_inv',
    'linear_solve.cg': 'solve_cg',
    'linear_solve.inv': 'solve_inv',
    'linear_solve.normal_cg': 'solve_normal_cg',
    'nn': 'MetaGradientModule ImplicitMetaGradientModule ZeroOrderGradientModule reparametrize reparameterize '
    'swap_state module stateless',
    'nn.module': 'MetaGradientModule',
    'nn.stateless': 'swap_state reparametrize reparameterize',
    'optim': 'SGD Adam AdamW AdaDelta Adadelta AdaGrad Adagrad AdaMax Adamax RAdam RMSProp RMSprop Optimizer '
    'FuncOptimizer meta func base adam sgd',
    'optim.adadelta': 'AdaDelta Adadelta',
    'optim.adagrad': 'AdaGrad Adagrad',
    'optim.adam': 'Adam',
    'optim.adamax': 'AdaMax Adamax',
    'optim.adamw': 'AdamW',
    'optim.base': 'Optimizer',
    'optim.func': 'FuncOptimizer base',
    'optim.func.base': 'FuncOptimizer',
    'optim.meta': 'MetaOptimizer MetaSGD MetaAdam MetaAdamW MetaAdaDelta MetaAdadelta MetaAdaGrad MetaAdagrad '
    'MetaAdaMax MetaAdamax MetaRAdam MetaRMSProp MetaRMSprop base adam',
    'optim.meta.adadelta': 'MetaAdaDelta MetaAdadelta',
    'optim.meta.adagrad': 'MetaAdaGrad MetaAdagrad',
    'optim.meta.adam': 'MetaAdam',
    'optim.meta.adamax': 'MetaAdaMax MetaAdamax',
    'optim.meta.adamw': 'MetaAdamW',
    'optim.meta.base': 'MetaOptimizer',
    'optim.meta.radam': 'MetaRAdam',
    'optim.meta.rmsprop': 'MetaRMSProp MetaRMSprop',
    'optim.meta.sgd': 'MetaSGD',
    'optim.radam': 'RAdam',
    'optim.rmsprop': 'RMSProp RMSprop',
    'optim.sgd': 'SGD',
    'pytree': 'tree_map tree_flatten_as_tuple tree_vdot_real tree_wait tree_as_rref tree_to_here tree_local_value',
    'schedule': 'exponential_decay polynomial_schedule linear_schedule',
    'schedule.exponential_decay': 'exponential_decay',
    'schedule.polynomial': 'polynomial_schedule linear_schedule',
    'transform': 'trace scale scale_by_schedule add_decayed_weights masked scale_by_adam scale_by_adamax '
    'scale_by_adadelta scale_by_radam scale_by_accelerated_adam scale_by_rss scale_by_rms scale_by_stddev nan_to_num',
    'transform.add_decayed_weights': 'masked add_decayed_weights',
    'transform.nan_to_num': 'nan_to_num',
    'transform.scale': 'scale',
    'transform.scale_by_adadelta': 'scale_by_adadelta',
    'transform.scale_by_adam': 'scale_by_adam scale_by_accelerated_adam',
    'transform.scale_by_adamax': 'scale_by_adamax',
    'transform.scale_by_radam': 'scale_by_radam',
    'transform.scale_by_rms': 'scale_by_rms',
    'transform.scale_by_rss': 'scale_by_rss',
    'transform.scale_by_schedule': 'scale_by_schedule',
    'transform.scale_by_stddev': 'scale_by_stddev',
    'transform.trace': 'trace',
    'typing': 'GradientTransformation Params Updates OptState Schedule Samplable',
    'update': 'apply_updates',
    'utils': 'ModuleState stop_gradient extract_state_dict recover_state_dict module_clone module_detach_',
    'version': '__version__',
    'visual': 'make_dot resize_graph',
}
# What is not here, with the names that were imported from it.
GONE = {
    'alias.utils': '_set_use_chain_flat _get_use_chain_flat',
    'transform.utils': 'tree_map_flat tree_map_flat_ inc_count update_moment',
    'linalg.utils': 'normalize_matvec cat_shapes',
    'linear_solve.utils': 'make_rmatvec make_normal_matvec make_ridge_matvec materialize_matvec',
    'accelerated_op._src.adam_op': '',
    '_C.adam_op': '',
}


@pytest.mark.parametrize('path', PATHS)
def test_paths_that_stay(path: str) -> None:
    module = importlib.import_module(f'torchopt.{path}')
    for name in PATHS[path].split():
        assert hasattr(module, name), name
        assert getattr(module, name) is not None


@pytest.mark.parametrize('path', [path for path in PATHS if '.' in path and not path.startswith('distributed')])
def test_the_names_are_those_of_their_package(path: str) -> None:
    parent, _, _ = path.rpartition('.')
    module, package = (importlib.import_module(f'torchopt.{p}') for p in (path, parent))
    for name in PATHS[path].split():
        if not inspect.ismodule(found := getattr(package, name, None)) and found is not None:
            assert getattr(module, name) is found


def test_importing_a_path_hides_no_function() -> None:
    import torchopt.transform.scale_by_adam as scale_by_adam

    import torchopt.alias.adam as adam

    assert adam is torchopt.alias.adam is torchopt.adam
    assert scale_by_adam is torchopt.transform.scale_by_adam
    assert callable(torchopt.transform.scale_by_adam)
    assert implicit_module.enable_implicit_gradients


@pytest.mark.long
def test_a_path_as_the_first_import() -> None:
    """Its parent is a module, not a package."""
    script = (
        'from torchopt.linalg.cg import cg; from torchopt.distributed.world import auto_init_rpc; print(cg.__name__)'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'cg'


def test_states_are_not_found_under_their_old_paths() -> None:
    """Their fields have another order: what `torch.load` made of an old file would be silently wrong."""
    assert not hasattr(importlib.import_module('torchopt.transform.scale_by_adam'), 'ScaleByAdamState')


@pytest.mark.parametrize('path', GONE)
def test_what_is_gone_is_on_the_page(path: str) -> None:
    names = GONE[path].split()
    try:
        module = importlib.import_module(f'torchopt.{path}')
    except ImportError:
        module = None
    assert not any(hasattr(module, name) for name in names)
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith('|') and f'`{path}`' in line]
    assert len(rows) == 1
    assert all(f'`{name}`' in rows[0] for name in names)
