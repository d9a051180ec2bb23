"""The pretrained two-tower model as the task sees it: pixels and tokens in, features and temperature out."""

from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AlignModel

from finetune.core.types import Batch, Embeddings, PixelBatch, Texts
from finetune.model.base import Base
from finetune.model.batchnorm import FollowingBatchNorm2d
from finetune.model.kept_features import KeptFeatures, hash_rows, hash_texts
from finetune.model.layers import IMAGE, TEXT, TOWERS, Tower
from finetune.model.lora import ADAPTER
from finetune.model.parts import embed_in_parts
from finetune.model.pixels import PixelScale


class AlignTowers(nn.Module):
    """ALIGN's towers, the projection and the temperature, with or without adapters inside.

    BatchNorm is held in evaluation mode by a hook on each layer, so that no `.train()`, wherever it is
    called, can replace the running statistics: ALIGN's `batch_norm_momentum` of 0.99 has Keras' meaning, and
    under PyTorch's meaning a single forward pass in training mode overwrites 99 % of them. Only layers that
    were asked to follow the training images (`TowerLora.train_statistics`) are exempt.

    Args:
        model: The model, adapters already attached (`finetune.model.lora.attach_lora`) where there are any.
        train_temperature: Whether the temperature is trained.
        min_temperature: The bound above which `bound_temperature` keeps a trained temperature; it divides the logits.
        levels: How pixels are scaled that come as bytes, see `Base.levels`; None takes floats alone.
        channels_last: Whether images lie in memory channels last where a graph is built; None does so on a CPU. The
            layout changes the time of a step, and rounding.

    Attributes:
        micro_batch: Most rows that a tower embeds at a time, see `embed_in_parts`; None, as at first, for all.
        scale_pixels: Turns uint8 `pixel_values` into the floats that the checkpoint's processor makes of them.

    Raises:
        ValueError: If `min_temperature` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        train_temperature: bool = False,
        min_temperature: float = 1e-6,
        levels: Tensor | None = None,
        channels_last: bool | None = False,
    ) -> None:
        super().__init__()
        if not min_temperature > 0:
            raise ValueError(
                f"Expected min_temperature to be positive, as it divides the logits, but got {min_temperature}."
            )
        self.model = model
        self.min_temperature = min_temperature
        self.micro_batch: int | None = None
        self.scale_pixels = PixelScale(levels)
        self.channels_last = channels_last
        self.align.temperature.requires_grad_(train_temperature)
        for module in self.align.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, FollowingBatchNorm2d):
                module.register_forward_pre_hook(_hold_in_eval)

        self._kept_features: dict[str, KeptFeatures] | None = None

    @classmethod
    def of(cls, base: Base) -> Self:
        """Opens a base as it is, without adapters.

        Args:
            base: The base.

        Raises:
            CheckpointError: If its weights do not load.
        """
        return cls(base.load(), levels=base.levels)

    def keep_features(self, keep: bool) -> None:
        """Starts to keep the features that a frozen tower makes, see `KeptFeatures`; or forgets them and keeps none.

        Args:
            keep: Whether to keep them.
        """
        parts = {tower.name: [self.align.get_submodule(part) for part in tower.parts] for tower in TOWERS}
        self._kept_features = {name: KeptFeatures(modules) for name, modules in parts.items()} if keep else None

    def list_kept(self) -> dict[str, Tensor]:
        """Returns the features that are kept, by names for `restore_kept`."""
        kept = self._kept_features or {}
        return {f"{tower}.{name}": part for tower, one in kept.items() for name, part in one.list_kept().items()}

    def restore_kept(self, features: Mapping[str, Tensor]) -> None:
        """Keeps features that an earlier process has made with the same towers, once `keep_features` was called.

        Args:
            features: What `list_kept` returned there.
        """
        for tower, one in (self._kept_features or {}).items():
            parts = {name.removeprefix(f"{tower}."): part for name, part in features.items() if name.startswith(tower)}
            if "features" in parts:
                parts["features"] = parts["features"].to(self.temperature.device)
            one.restore(parts)

    @property
    def align(self) -> AlignModel:
        """The `AlignModel` itself, adapters inside."""
        unwrap = getattr(self.model, "get_base_model", None)
        return cast(AlignModel, unwrap() if unwrap else self.model)

    @property
    def has_adapters(self) -> bool:
        """Whether anything was attached that has to be merged."""
        return self.model is not self.align

    @property
    def has_magnitudes(self) -> bool:
        """Whether adapters have magnitudes beside their factors (DoRA)."""
        config = self.model.peft_config[ADAPTER] if isinstance(self.model, PeftModel) else None
        return isinstance(config, LoraConfig) and config.use_dora

    @property
    def temperature(self) -> Tensor:
        """Scalar parameter that divides the cosine similarities."""
        return cast(Tensor, self.align.temperature)

    def trained_names(self) -> set[str]:
        """Names in `state_dict()` of all that training changes: what has a gradient, and statistics that follow."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        for outer, module in self.named_modules():
            if isinstance(module, FollowingBatchNorm2d):
                names |= {f"{outer}.{name}" for name, _ in module.named_buffers()}
        return names

    @torch.no_grad()
    def bound_temperature(self) -> None:
        """Sets a trained temperature to `min_temperature` where a step took it below. Call after an optimiser step."""
        if self.temperature.requires_grad:
            self.temperature.clamp_(min=self.min_temperature)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Unnormalised image features.

        Without gradients an image that is equal to the one before it, as a row for each caption makes it, is
        computed once.

        Args:
            pixel_values: Uint8 tensor of shape (B, 3, H, W), or floats as the checkpoint's processor makes them.

        Returns:
            Tensor of shape (B, D).
        """
        if not len(pixel_values):
            return self._no_features(IMAGE)
        if self._kept_features is not None:
            return self._kept_features[IMAGE.name](self._distinct_image_features, hash_rows, pixel_values)
        return self._distinct_image_features(pixel_values)

    def _distinct_image_features(self, pixel_values: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._image_features(pixel_values)
        is_new = torch.ones(len(pixel_values), dtype=torch.bool, device=pixel_values.device)
        is_new[1:] = (pixel_values[1:] != pixel_values[:-1]).flatten(1).any(dim=1)
        return self._image_features(pixel_values[is_new])[is_new.cumsum(0) - 1]

    def _image_features(self, pixel_values: Tensor) -> Tensor:
        return embed_in_parts(self._embed_images, self.micro_batch, [pixel_values], self._parameters_of(IMAGE))

    def _no_features(self, tower: Tower) -> Tensor:
        """The features of no rows, with a gradient where those of rows would have one."""
        has_gradient = torch.is_grad_enabled() and any(one.requires_grad for one in self._parameters_of(tower))
        nothing = self.temperature.new_zeros(0, self.align.config.projection_dim)
        return nothing.requires_grad_(has_gradient)

    def _embed_images(self, pixel_values: Tensor) -> Tensor:
        images = self.scale_pixels(pixel_values)
        channels_last = images.is_cpu if self.channels_last is None else self.channels_last
        if channels_last and torch.is_grad_enabled():
            images = images.contiguous(memory_format=torch.channels_last)
        output = self.align.get_image_features(pixel_values=images)
        return cast(Tensor, output.pooler_output)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unnormalised text features: the projection of the first token's last hidden state.

        Args:
            input_ids: Int64 tensor of shape (B, T).
            attention_mask: Int64 tensor of shape (B, T).

        Returns:
            Tensor of shape (B, D).
        """
        if not len(input_ids):
            return self._no_features(TEXT)
        if self._kept_features is not None:
            return self._kept_features[TEXT.name](self._text_features, hash_texts, input_ids, attention_mask)
        return self._text_features(input_ids, attention_mask)

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        texts = [input_ids, attention_mask]
        return embed_in_parts(self._embed_texts, self.micro_batch, texts, self._parameters_of(TEXT))

    def _embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.align.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return cast(Tensor, output.pooler_output)

    def _parameters_of(self, tower: Tower) -> Iterator[Tensor]:
        return (tensor for part in tower.parts for tensor in self.align.get_submodule(part).parameters())

    def forward(self, batch: Batch) -> Embeddings:
        """Both towers on one batch."""
        return Embeddings(
            image_features=self.image_features(batch.pixel_values),
            text_features=self.text_features(batch.input_ids, batch.attention_mask),
            temperature=self.temperature,
        )

    def image_embeddings(self, batch: Batch | PixelBatch) -> Embeddings:
        """The image tower alone on one batch, or on images alone."""
        return Embeddings(self.image_features(batch.pixel_values), None, self.temperature)

    def text_embeddings(self, texts: Texts) -> Embeddings:
        """The text tower alone on token ids."""
        return Embeddings(None, self.text_features(texts.input_ids, texts.attention_mask), self.temperature)


def _hold_in_eval(module: nn.Module, _: Any) -> None:
    module.training = False
