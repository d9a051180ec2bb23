"""Training in two parts: the head alone, then everything."""

from lightning import Callback, LightningModule, Trainer
from torch.nn import Parameter

from finetune.core.errors import RecipeError
from finetune.training.classification_task import ClassificationTask


class HeadFirst(Callback):
    """Keeps the adapters as they are in the first epochs, so that the head is trained alone, then trains all.

    A head that does not fit the features yet would distort them (Kumar et al. 2022, arXiv 2202.10054). While
    the head is trained alone the image tower needs no backward pass, so these epochs are cheap.

    Args:
        epochs: Epochs of the head alone, at least 1.

    Raises:
        ValueError: If `epochs` is below 1.
    """

    def __init__(self, epochs: int = 1) -> None:
        if epochs < 1:
            raise ValueError(
                f"Expected epochs to be at least 1, but got {epochs}. Remove HeadFirst to train all at once."
            )
        self.epochs = epochs
        self._adapters: list[Parameter] = []

    @staticmethod
    def require_head(task: type[LightningModule]) -> None:
        """Checks that there is a head to train.

        Args:
            task: What is trained.

        Raises:
            RecipeError: If it has none.
        """
        if not issubclass(task, ClassificationTask):
            raise RecipeError(
                f"Expected HeadFirst to be used with ClassificationTask, which has a head, but got {task.__name__}. "
                "Remove it from trainer.callbacks."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the adapters, and freezes them where the first or a resumed epoch is one of the head's.

        Raises:
            RecipeError: If the task trains no head.
        """
        self.require_head(type(pl_module))
        assert isinstance(pl_module, ClassificationTask)
        self._adapters = [parameter for parameter in pl_module.towers.parameters() if parameter.requires_grad]
        self._freeze(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Freezes or frees the adapters."""
        self._freeze(trainer)

    def _freeze(self, trainer: Trainer) -> None:
        for parameter in self._adapters:
            parameter.requires_grad_(trainer.current_epoch >= self.epochs)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Leaves all that was trained, or would have been, as trainable as it was found."""
        for parameter in self._adapters:
            parameter.requires_grad_(True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Does the same where a fit is interrupted, so that the next one finds the adapters."""
        self.on_fit_end(trainer, pl_module)
