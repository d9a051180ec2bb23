"""Time, memory and network of a training on many devices, from what one device and one message cost.

A device embeds its rows, receives the features of all others, computes the loss of its rows against all, sends back the
gradients of features, and takes part in an all-reduce of the gradients of what is trained. Nothing overlaps. Messages
pass around a ring: of N devices, a gather is N - 1 hops and an all-reduce 2 (N - 1), and a hop takes the latency and
the time of its bytes. NCCL's trees need fewer hops for small messages, so this is too much rather than too little. The
slowest device is waited for, which is simulated: a device's time in a step is drawn from those that were measured.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scaling_costs import CHUNK, Costs

AGAIN = 1.5
"""Times as long as a step takes that embeds its rows in parts (docs/benchmarks.md, "Memory of a large batch")."""


@dataclass(frozen=True)
class Plan:
    """A training.

    Args:
        devices: How many.
        batch_size: Rows of a batch, over all devices.
        cores: Cores that the devices, which are processes here, share; None where each is by itself.
        micro_batch: Most rows that a device embeds at a time; None embeds all of its rows at once.
    """

    devices: int
    batch_size: int
    cores: int | None = None
    micro_batch: int | None = None

    @property
    def rows(self) -> float:
        """Rows of a batch on one device."""
        return self.batch_size / self.devices

    @property
    def others(self) -> int:
        """Other devices: hops around the ring."""
        return self.devices - 1


class Step(NamedTuple):
    """Seconds of a step.

    Attributes:
        compute: Embedding, backward, optimiser, and all else that one device does alone.
        loss: This device's rows against all.
        gather: Of features and ids, and of gradients back.
        reduce: Of the gradients of what is trained.
        small: Counts and logged values, each an all-reduce of some bytes.
    """

    compute: float
    loss: float
    gather: float
    reduce: float
    small: float

    @property
    def seconds(self) -> float:
        """All of it, without waiting for the slowest device."""
        return sum(self)


def predict_step(costs: Costs, plan: Plan) -> Step:
    """Predicts the seconds of a step.

    Args:
        costs: What one of each costs.
        plan: The training.
    """
    shared = max(1.0, plan.devices / plan.cores) if plan.cores else 1.0
    again = AGAIN if plan.micro_batch and plan.rows > plan.micro_batch else 1.0
    around = 2 * plan.others
    return Step(
        compute=shared * again * (costs.step + costs.image * plan.rows),
        loss=shared * (costs.loss + costs.pair * plan.rows * plan.batch_size),
        gather=plan.others * (costs.gathers * costs.hop + plan.rows * costs.gather_bytes / costs.gather_rate),
        reduce=around * (costs.reduces * costs.hop + costs.gradient_bytes / plan.devices / costs.reduce_rate),
        small=around * costs.smalls * costs.hop,
    )


def simulate_seconds(
    costs: Costs, plan: Plan, spread: npt.ArrayLike, steps: int = 1000, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Simulates steps in which all devices wait for the slowest.

    Args:
        costs: What one of each costs.
        plan: The training.
        spread: Times of one device's steps, as multiples of their median.
        steps: How many to simulate.
        seed: Of the draws.

    Returns:
        Seconds of each step, shape (steps,).
    """
    own = predict_step(costs, plan)
    drawn = np.random.default_rng(seed).choice(np.asarray(spread, float), (steps, plan.devices))
    found: npt.NDArray[np.float64] = (own.compute + own.loss) * (drawn.max(axis=1) - 1) + own.seconds
    return found


def received_bytes(costs: Costs, plan: Plan) -> float:
    """Bytes that a device receives in a step, and sends: features, ids, and the gradients of features and adapters.

    Args:
        costs: What one of each costs.
        plan: The training.
    """
    return plan.others * (plan.rows * costs.gather_bytes + 2 * costs.gradient_bytes / plan.devices)


def memory_bytes(costs: Costs, plan: Plan) -> float:
    """Bytes that a device holds at most: the model, its rows' graph, and the chunk of logits.

    Args:
        costs: What one of each costs.
        plan: The training.
    """
    rows = min(plan.rows, plan.micro_batch or plan.rows)
    return costs.memory + costs.image_memory * rows + costs.pair_memory * min(plan.rows * plan.batch_size, CHUNK)
