"""The image tower's training step with fewer passes over memory: adapters in weight space, BatchNorm folded."""

from typing import Any, cast

import torch
from peft.tuners.lora import Conv2d as LoraConv2d
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu6
from torch.nn.grad import conv2d_input
from transformers.models.align.modeling_align import (
    AlignVisionDepthwiseLayer,
    AlignVisionEmbeddings,
    AlignVisionExpansionLayer,
    AlignVisionFinalBlockLayer,
    AlignVisionModel,
    AlignVisionSqueezeExciteLayer,
)

from finetune.model.lora import ADAPTER, is_plain_lora


def fuse_image_layers(vision_model: AlignVisionModel) -> None:
    """Makes each convolution of the image tower compute its adapter and its BatchNorm along with itself.

    That holds where a graph is built, so in training alone: without gradients the layers compute as before, to the bit.
    Loss and gradients are those of the layers one by one, to rounding. A layer is left as it is if its adapter has
    DoRA or dropout, if it has several adapters, if PEFT wraps the convolution or the BatchNorm itself to train it
    whole, or if its statistics follow. In a tower that is trained whole, layers are fused. Modules and parameters keep
    their names, so adapters are saved and merged as ever.

    BatchNorm is taken to be held in evaluation mode, as `finetune.model.towers.AlignTowers` does.

    Args:
        vision_model: The image tower, adapters attached; the class of its layers is changed in place.
    """
    for module in vision_model.modules():
        if isinstance(module, AlignVisionSqueezeExciteLayer):
            if _is_identity(module):
                module.__class__ = _IdentityGate
        elif (fused := _FUSED.get(type(module))) is not None:
            module.__class__ = fused


class _FusedStem(AlignVisionEmbeddings):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.activation(_convolve(self.padding(pixel_values), self.convolution, self.batchnorm)))


class _FusedExpansion(AlignVisionExpansionLayer):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return cast(Tensor, self.expand_act(_convolve(hidden_states, self.expand_conv, self.expand_bn)))


class _FusedDepthwise(AlignVisionDepthwiseLayer):
    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.stride == 2:
            hidden_states = self.depthwise_conv_pad(hidden_states)
        return cast(Tensor, self.depthwise_act(_convolve(hidden_states, self.depthwise_conv, self.depthwise_norm)))


class _FusedProjection(AlignVisionFinalBlockLayer):
    def forward(self, embeddings: Tensor, hidden_states: Tensor) -> Tensor:
        hidden_states = _convolve(hidden_states, self.project_conv, self.project_bn)
        return cast(Tensor, self.dropout(hidden_states)) + embeddings if self.apply_dropout else hidden_states


class _IdentityGate(AlignVisionSqueezeExciteLayer):
    """A gate that is 1 everywhere, as in align-mini."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class _KeepsOutput(nn.ReLU6):
    """ReLU6 that keeps for backward its output, which the next layer keeps anyway, and not its input as well."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name is torch's)
        return _relu6(input) if torch.is_grad_enabled() else super().forward(input)


def _relu6(values: Tensor) -> Tensor:
    return cast(Tensor, _ReLU6.apply(values))  # type: ignore[no-untyped-call]


class _ReLU6(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        output = relu6(values)
        context.save_for_backward(output)
        return output

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (output,) = context.saved_tensors
        # Zero where the output is 0 or 6.
        return cast(Tensor, torch.ops.aten.hardtanh_backward(gradient, output, 0.0, 6.0))


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    AlignVisionEmbeddings: _FusedStem,
    AlignVisionExpansionLayer: _FusedExpansion,
    AlignVisionDepthwiseLayer: _FusedDepthwise,
    AlignVisionFinalBlockLayer: _FusedProjection,
    nn.ReLU6: _KeepsOutput,
}


def _convolve(images: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """Returns norm(convolution(images)), with fewer passes where that is possible and a graph is built."""
    adapter: Any = convolution if isinstance(convolution, LoraConv2d) and is_plain_lora(convolution) else None
    layer = adapter.get_base_layer() if adapter else convolution
    if not (torch.is_grad_enabled() and isinstance(layer, nn.Conv2d) and type(norm) is nn.BatchNorm2d):
        return cast(Tensor, norm(convolution(images)))
    apart = adapter is not None and _is_cheaper_apart(adapter, layer)
    with torch.autocast(images.device.type, enabled=False):
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        if layer.bias is not None:
            bias = bias + layer.bias * scale
        weight = layer.weight
        if adapter and not apart:
            weight = weight + adapter.get_delta_weight(ADAPTER)
        weight = weight * scale[:, None, None, None]
    if not (weight.requires_grad or bias.requires_grad) and all(side % 2 for side in layer.kernel_size):
        output = _convolve_frozen(images, weight, bias, layer)
    else:
        output = conv2d(images, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if adapter and apart:
        up = adapter.lora_B[ADAPTER].weight * (adapter.scaling[ADAPTER] * scale)[:, None, None, None]
        output = output + conv2d(adapter.lora_A[ADAPTER](images), up)
    return output


def _convolve_frozen(images: Tensor, weight: Tensor, bias: Tensor, layer: nn.Conv2d) -> Tensor:
    padding = layer.padding
    if padding == "same":  # an odd kernel has as much on either side
        padding = tuple(step * (side // 2) for step, side in zip(layer.dilation, layer.kernel_size, strict=True))
    elif padding == "valid":
        padding = (0, 0)
    where = (layer.stride, padding, layer.dilation, layer.groups)
    return cast(Tensor, _FrozenConvolution.apply(images, weight, bias, where))  # type: ignore[no-untyped-call]


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose input alone has a gradient, so that nothing but its weight is kept for backward."""

    @staticmethod
    def forward(context: Any, images: Tensor, weight: Tensor, bias: Tensor, where: tuple[Any, ...]) -> Tensor:
        context.save_for_backward(weight)
        context.shape, context.where = images.shape, where
        return conv2d(images, weight, bias, *where)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = context.saved_tensors
        # In half precision some CPUs take a hundred times as long for the gradient of depthwise convolutions.
        dtype = torch.promote_types(gradient.dtype, torch.float32) if gradient.device.type == "cpu" else gradient.dtype
        found = conv2d_input(context.shape, weight.to(dtype), gradient.to(dtype), *context.where)
        return found.to(gradient.dtype), None, None, None


def _is_cheaper_apart(adapter: Any, layer: nn.Conv2d) -> bool:
    """Whether the gradient of the whole weight takes longer than the two thin convolutions, as in wide layers."""
    rank: int = adapter.r[ADAPTER]
    return layer.weight.numel() > 12 * rank * (layer.in_channels + layer.out_channels)


def _is_identity(gate: AlignVisionSqueezeExciteLayer) -> bool:
    """Whether a gate multiplies by exactly 1, and nothing of it is trained."""
    if any(parameter.requires_grad for parameter in gate.parameters()) or not isinstance(gate.expand, nn.Conv2d):
        return False
    is_constant = bool((gate.expand.weight == 0).all())
    return is_constant and bool(torch.all(gate.act_expand(gate.expand.bias) == 1))
