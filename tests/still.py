"""A Lightning module that learns nothing, for tests of what goes on around a training."""

import torch
from lightning import LightningModule


class Still(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch):
        return self.weight.square()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)
