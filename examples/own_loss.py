"""A loss of my own: captions must be nearer than others by a margin. First: `finetune prepare digits`."""

from lightning import Trainer
from torch import Tensor

from finetune import AlignTask, Batch, Embeddings, ImageTextDataModule, Objective, Table, evaluate


class Margin(Objective):
    """Mean over all pairs of how much less than 0.2 nearer an image is to its own caption than to another one."""

    def forward(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        similarity = embeddings.image_embeds @ embeddings.text_embeds.T
        others = batch.caption_ids[:, None] != batch.caption_ids
        return (similarity - similarity.diagonal()[:, None] + 0.2).relu()[others].mean()


table = Table("data/digits/digits.csv", caption="caption", split="split")
data = ImageTextDataModule(table, "align-mini", image_size=64)
task = AlignTask("align-mini", objective=Margin())
Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(task, data)
print(evaluate(task.model(None), data.test_dataloader(), data.kind.metric()).main)
