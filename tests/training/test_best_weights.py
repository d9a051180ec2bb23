import pytest
import torch
from lightning import LightningModule
from torch.utils.data import DataLoader

from finetune.training.best_weights import LatestBest


class Scripted(LightningModule):
    """Reaches a given validation metric after each epoch; its weight is the epoch's number."""

    def __init__(self, values):
        super().__init__()
        self.values = values
        self.epoch = torch.nn.Parameter(torch.tensor(-1.0))
        self.automatic_optimization = False

    def training_step(self, batch):
        self.optimizers().step()
        with torch.no_grad():
            self.epoch.fill_(self.current_epoch)

    def validation_step(self, batch):
        self.log("val/accuracy", self.values[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(build_trainer, folder, values, rows, **options):
    keep = LatestBest(rows, dirpath=folder, filename="best", monitor="val/accuracy", save_last=True)
    trainer = build_trainer(
        max_epochs=len(values), callbacks=[keep], num_sanity_val_steps=0, enable_checkpointing=True, **options
    )
    loader = DataLoader(torch.zeros(1))
    trainer.fit(Scripted(values), loader, loader, ckpt_path=folder / "last.ckpt" if options else None)
    return int(torch.load(keep.best_model_path, weights_only=True)["state_dict"]["epoch"])


@pytest.mark.parametrize(
    ("values", "rows", "kept"),
    [
        ([0.5, 0.6, 0.7], 10, 2),
        ([0.5, 0.8, 0.7], 10, 2),  # the standard error is 0.126
        ([0.5, 0.8, 0.7], 100, 1),  # 0.04
        ([0.8, 0.78, 0.76, 0.74], 100, 1),  # from the highest there was, not from the one kept
        ([1.0, 0.99], 10, 0),  # of what is always right the error is 0
        ([0.0, 0.0], 10, 1),
        ([0.3, 0.3, 0.3], 1000, 2),
    ],
)
def test_keeps_the_latest_within_a_standard_error_of_the_highest(build_trainer, tmp_path, values, rows, kept):
    assert train(build_trainer, tmp_path, values, rows) == kept


def test_a_resumed_fit_knows_the_highest_there_was(build_trainer, tmp_path):
    train(build_trainer, tmp_path, [0.9, 0.88], 100)
    assert train(build_trainer, tmp_path, [0.9, 0.88, 0.865], 100, enable_progress_bar=False) == 1
