"""The text tower's training step without what nobody reads: padding, repeated texts, the last layer's other tokens.

The embedding of a text is its first token's hidden state after the last layer. So the last layer computes that token
alone, of each text; the layers before compute every token of every different text once, and only attention lays them
out in rows with padding.
"""

from typing import Any, NamedTuple, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.align.modeling_align import AlignTextAttention, AlignTextEncoder, AlignTextModel

from finetune.model.lora import ADAPTER, is_plain_lora


def fuse_text_layers(text_model: AlignTextModel, text_projection: nn.Module) -> None:
    """Makes the text tower compute in training what the loss depends on, and nothing else.

    That holds where a graph is built, so in training alone: without gradients the tower computes as before, to the bit.
    Loss and gradients are those of the plain tower, to rounding. Each layer is still called as a module, so adapters of
    every kind take part; those without dropout and DoRA are added in one pass. Modules and parameters keep their names,
    so adapters are saved and merged as ever. A tower whose own dropout is on computes as before. On a GPU padding and
    repeated texts are computed too, as only the values of tensors say which they are, and asking for values would make
    the program wait for the device.

    Args:
        text_model: The text tower, adapters attached; the class of its layers is changed in place.
        text_projection: The layer behind it, likewise.
    """
    for module in (*text_model.modules(), text_projection):
        if type(module) is AlignTextAttention:
            module.__class__ = _PackedAttention
        elif type(module) is LoraLinear:
            module.__class__ = _FusedLinear
    for encoder in text_model.modules():
        if isinstance(encoder, AlignTextEncoder):
            for module in encoder.layer[-1].modules():
                if isinstance(module, _PackedAttention):
                    module.__class__ = _LastAttention
    text_model.__class__ = _PackedTextModel


class _Packing(NamedTuple):
    """Where the tokens of B texts lie, which are the rows of one matrix.

    Attributes:
        places: Int64 tensor of shape (N,): where each token lies among B x T, padding counted.
        first: Int64 tensor of shape (B,): the row of each text's first token.
        mask: Bool tensor of shape (B, 1, 1, T), true on tokens and false on padding.
    """

    places: Tensor
    first: Tensor
    mask: Tensor

    def unpack(self, rows: Tensor, heads: int) -> Tensor:
        """Lays rows of shape (N, heads x D) out as (B, heads, T, D), zeros on padding."""
        texts, length = len(self.mask), self.mask.shape[-1]
        if len(rows) < texts * length:
            rows = rows.new_zeros(texts * length, rows.shape[1]).index_copy(0, self.places, rows)
        return rows.view(texts, length, heads, -1).transpose(1, 2)

    def pack(self, states: Tensor) -> Tensor:
        """Takes the N tokens' rows of (B, heads, T, D), shape (N, heads x D)."""
        rows = states.transpose(1, 2).flatten(2).flatten(0, 1)
        return rows if len(rows) == len(self.places) else rows.index_select(0, self.places)


class _PackedTextModel(AlignTextModel):
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **others: Any
    ) -> BaseModelOutputWithPooling:
        """Returns the first token's hidden state of each text alone, shape (B, 1, D), where a graph is built."""
        is_asked_more = self.config.chunk_size_feed_forward or any(value is not None for value in others.values())
        if not torch.is_grad_enabled() or self.training or is_asked_more or input_ids is None or attention_mask is None:
            return cast(BaseModelOutputWithPooling, super().forward(input_ids, attention_mask, **others))
        mask, copies = attention_mask.bool(), None
        if input_ids.device.type == "cpu" and mask[:, 0].all():  # the first token is no padding, where that is left
            if not _drops(self):
                kept, copies = torch.unique(input_ids.where(mask, -1), dim=0, return_inverse=True)
                mask = kept >= 0
                input_ids = kept.where(mask, 0)
            places = mask.flatten().nonzero()[:, 0]
            first = mask.sum(1).cumsum(0) - mask.sum(1)
        else:
            places = torch.arange(mask.numel(), device=mask.device)
            first = places[:: mask.shape[1]]
        packing = _Packing(places, first, mask[:, None, None])
        states = self.embeddings(input_ids=input_ids).flatten(0, 1).index_select(0, places)
        for layer in self.encoder.layer:
            states = layer(states, packing=packing)
        return BaseModelOutputWithPooling(last_hidden_state=(states if copies is None else states[copies])[:, None])


class _PackedAttention(AlignTextAttention):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packing: _Packing | None = None,
        **others: Any,
    ) -> Tensor:
        if packing is None:
            return super().forward(hidden_states, attention_mask, **others)
        output: Tensor = self.output(*self._attend(hidden_states, packing))
        return output

    def _attend(self, rows: Tensor, packing: _Packing) -> tuple[Tensor, Tensor]:
        """Returns what attention finds for the tokens that ask, and these tokens' own rows."""
        layers, heads = self.self, self.self.num_attention_heads
        query, key, value = (
            packing.unpack(part, heads) for part in _apply_each([layers.query, layers.key, layers.value], rows)
        )
        mask = packing.mask.expand(-1, -1, query.shape[2], -1)
        return packing.pack(scaled_dot_product_attention(query, key, value, mask, scale=layers.scaling)), rows


class _LastAttention(_PackedAttention):
    """Attention of the last layer, in which the first token of each text alone asks."""

    def _attend(self, rows: Tensor, packing: _Packing) -> tuple[Tensor, Tensor]:
        layers, heads = self.self, self.self.num_attention_heads
        asking = rows.index_select(0, packing.first)
        query = layers.query(asking).view(len(asking), 1, heads, -1).transpose(1, 2)
        key, value = (packing.unpack(part, heads) for part in _apply_each([layers.key, layers.value], rows))
        return scaled_dot_product_attention(query, key, value, packing.mask, scale=layers.scaling).flatten(1), asking


class _FusedLinear(LoraLinear):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled() or x.ndim != 2 or args or kwargs or not is_plain_lora(self):
            return super().forward(x, *args, **kwargs)
        return _add_adapter(self, self.base_layer(x), self.lora_A[ADAPTER](x))


def _add_adapter(layer: Any, rows: Tensor, inner: Tensor) -> Tensor:  # PEFT has no types
    """Adds s B (A x) to W x in one pass over memory."""
    up = layer.lora_B[ADAPTER].weight * layer.scaling[ADAPTER]
    return torch.addmm(rows, inner, up.T)


def _apply_each(layers: list[Any], rows: Tensor) -> list[Tensor]:
    """Returns what each layer makes of the same rows; of plain adapters with one product in the place of several."""
    if not all(isinstance(layer, LoraLinear) and is_plain_lora(layer) for layer in layers):
        return [layer(rows) for layer in layers]
    weights, biases = (torch.cat([getattr(it.base_layer, name) for it in layers]) for name in ("weight", "bias"))
    downs = [layer.lora_A[ADAPTER].weight for layer in layers]
    whole = linear(rows, weights, biases).split([layer.out_features for layer in layers], dim=1)
    inner = linear(rows, torch.cat(downs)).split([len(down) for down in downs], dim=1)
    return [_add_adapter(*parts) for parts in zip(layers, whole, inner, strict=True)]


def _drops(module: nn.Module) -> bool:
    """Whether equal texts come out unequal, as dropout treats them."""
    return any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in module.modules())
