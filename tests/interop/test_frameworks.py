# SPDX-License-Identifier: Apache-2.0
"""Our optimizers in Lightning, Accelerate and the Trainer of Transformers: as torch.optim's, and resumed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import torchopt

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def ours(params: Any) -> torch.optim.Optimizer:
    return torchopt.AdamW(params, lr=0.1)


def theirs(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.1)


pytestmark = pytest.mark.filterwarnings('ignore')


def framework(name: str) -> Any:
    pytest.importorskip(name, reason=f'{name} is in the extra `integration`', exc_type=ModuleNotFoundError)
    return importlib.import_module(name)


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 1)


def decaying(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda t: 0.9**t)


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=16)


@pytest.mark.parametrize('automatic', [True, False])
def test_lightning(automatic: bool, tmp_path: Path) -> None:
    lightning = framework('lightning')

    class Regression(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, make: Any) -> None:
            super().__init__()
            self.net, self.make, self.automatic_optimization = linear(), make, automatic

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = (self.net(batch[0]) - batch[1]).square().mean()
            if not automatic:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = self.make(self.parameters())
            return {'optimizer': optimizer, 'lr_scheduler': decaying(optimizer)}

    def fit(make: Any, epochs: int, resume: Path | None = None, save: Path | None = None) -> torch.Tensor:
        module = Regression(make)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator='cpu',
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            gradient_clip_val=0.5 if automatic else None,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, batches(), ckpt_path=resume)
        if save is not None:
            trainer.save_checkpoint(save)
        return module.net.weight.detach().clone()

    whole = fit(ours, 4)
    torch.testing.assert_close(whole, fit(theirs, 4), rtol=1e-5, atol=1e-6)
    fit(ours, 2, save=tmp_path / 'half.ckpt')
    assert torch.equal(fit(ours, 4, resume=tmp_path / 'half.ckpt'), whole)


def test_accelerate(tmp_path: Path) -> None:
    accelerate = framework('accelerate')

    def fit(make: Any, resume: bool = False) -> torch.Tensor:
        accelerator = accelerate.Accelerator(cpu=True)
        net = linear()
        plain = make(net.parameters())
        net, optimizer, schedule, data = accelerator.prepare(net, plain, decaying(plain), batches())
        assert isinstance(optimizer, accelerate.optimizer.AcceleratedOptimizer)
        for epoch in range(4):
            if resume and epoch == 2:
                accelerator.save_state(tmp_path / 'half')
                with torch.no_grad():
                    net.weight.zero_()
                plain.load_state_dict(make(net.parameters()).state_dict())
                accelerator.load_state(tmp_path / 'half')
            for x, y in data:
                optimizer.zero_grad()
                accelerator.backward((net(x) - y).square().mean())
                accelerator.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
                schedule.step()
        return net.weight.detach().clone()

    whole = fit(ours)
    torch.testing.assert_close(whole, fit(theirs), rtol=1e-5, atol=1e-6)
    assert torch.equal(fit(ours, resume=True), whole)


def test_trainer_of_transformers(tmp_path: Path) -> None:
    transformers = framework('transformers')
    framework('accelerate')  # its Trainer needs it

    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            out = self.net(x)
            return {'loss': (out - labels).square().mean(), 'logits': out}

    def fit(make: Any, steps: int, resume: str | None = None) -> torch.Tensor:
        module = Regression()
        optimizer = make(module.parameters())
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / make.__name__),
            max_steps=steps,
            save_steps=4,
            per_device_train_batch_size=8,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy='no',
        )
        data = [{'x': x, 'labels': y} for x, y in zip(X, Y, strict=True)]
        trainer = transformers.Trainer(
            module, arguments, train_dataset=data, optimizers=(optimizer, decaying(optimizer))
        )
        trainer.train(resume_from_checkpoint=resume)
        return module.net.weight.detach().clone()

    whole = fit(ours, 6)
    torch.testing.assert_close(whole, fit(theirs, 6), rtol=1e-5, atol=1e-6)
    assert torch.equal(fit(ours, 6, resume=str(tmp_path / 'ours' / 'checkpoint-4')), whole)
