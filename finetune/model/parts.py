"""The memory of one part for a batch of many: a tower embeds part by part, and each part again in backward."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def embed_in_parts(
    tower: Callable[..., Tensor], rows: int | None, inputs: Sequence[Tensor], parameters: Iterable[Tensor]
) -> Tensor:
    """Returns `tower(*inputs)`, computed a part at a time, for a loss that needs the embeddings of all rows.

    Where gradients are wanted each part is computed twice: for its features, and again in backward, when the loss's
    gradient of all features is at hand (GradCache: Gao et al. 2021, arXiv 2101.06983). Both passes build a graph, so
    that they compute the same to the bit; dropout draws the same noise, and autocast is the same. Between the passes
    no graph is kept: of `torch.utils.checkpoint` one is, without its tensors, and on the CPU its thousands of small
    nodes scatter through the memory that each part frees, so that the next part cannot have it.

    Parts are computed alone: a row's features must not depend on other rows, as in a BatchNorm in training mode.

    Args:
        tower: From tensors of some rows to a tensor of as many rows.
        rows: Most rows in a part, null for all. Parts differ by at most one row.
        inputs: Tensors of B rows.
        parameters: Those of the tower, trained or not.
    """
    count = len(inputs[0])
    if rows is None or count <= rows:
        return tower(*inputs)
    parts = zip(*(tensor.tensor_split(-(-count // rows)) for tensor in inputs), strict=True)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not (torch.is_grad_enabled() and (trained or any(tensor.requires_grad for tensor in inputs))):
        return torch.cat([tower(*part) for part in parts])
    embed = cast(Callable[..., Tensor], _TwoPasses.apply)
    return torch.cat([embed(tower, len(part), *part, *trained) for part in parts])


class _TwoPasses(torch.autograd.Function):
    """A part whose graph is built for the features, dropped, and built again for the gradients."""

    @staticmethod
    def forward(context: Any, tower: Callable[..., Tensor], count: int, *tensors: Tensor) -> Tensor:
        device = tensors[0].device
        context.tower, context.count = tower, count
        context.devices = [] if device.type == "cpu" else [device]
        context.random = [torch.get_rng_state(), *(_of(device).get_rng_state(device) for device in context.devices)]
        context.precision = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        context.save_for_backward(*tensors)
        with torch.enable_grad():
            return tower(*tensors[:count]).detach()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor, ...] = context.saved_tensors
        kind = tensors[0].device.type
        with torch.random.fork_rng(context.devices, device_type=kind):
            torch.set_rng_state(context.random[0])
            for device, state in zip(context.devices, context.random[1:], strict=True):
                _of(device).set_rng_state(state, device)
            with torch.enable_grad(), torch.autocast(kind, *context.precision):
                features = context.tower(*tensors[: context.count])
        wanted = [tensor for tensor in tensors if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(features, wanted, gradient, allow_unused=True))
        return None, None, *(next(gradients) if tensor.requires_grad else None for tensor in tensors)


def _of(device: torch.device) -> Any:
    """The module of torch that has the random state of a device."""
    return torch.get_device_module(device)
