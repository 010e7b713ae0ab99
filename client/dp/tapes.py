"""What one weight leaves behind in a backward pass: enough for norms and for clipped sums."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from client.dp.scratch import Scratch

# Squared rounding error of a sum of products, as a part of the squared sum of their sizes.
_ROUNDING = 4 * torch.finfo(torch.float32).eps

# A gradient is kept as it is if it takes at most this many times the memory of its two factors.
KEEP = 1.6


class Tape(Protocol):
    """One weight's gradients of P patients."""

    @property
    def squared_norms(self) -> Tensor:
        """(P,) squared norm of each patient's gradient."""
        ...

    @property
    def num_bytes(self) -> int:
        """What it keeps in memory."""
        ...

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Sum over patients of ``factors`` (P,) times the gradient, in the shape of the weight."""
        ...

    def erase(self, patients: Tensor) -> None:
        """Make the gradients of the patients marked in ``patients`` (P,) bool zero."""
        ...


class KeptTape:
    """Patients' gradients (P, ...) as they are.

    What is clipped is what is summed, so the norm cannot differ from it by more than the rounding
    of one number.
    """

    def __init__(self, gradients: Tensor) -> None:
        self._gradients = gradients
        self.squared_norms = torch.linalg.vector_norm(_rows(gradients), dim=1).square()

    @property
    def num_bytes(self) -> int:
        """See `Tape`."""
        return self._gradients.nbytes

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """See `Tape`."""
        total = factors @ _rows(self._gradients)
        return total.view(self._gradients.shape[1:])

    def erase(self, patients: Tensor) -> None:
        """See `Tape`."""
        self._gradients[patients] = 0.0


class GhostTape:
    """Gradients that are products, g^T a, of which only the factors are kept.

    The squared norm is the sum over pairs of positions of (a_t . a_s) (g_t . g_s). Positions can
    cancel almost entirely, and then what is left is rounding: read as the norm, it would let a
    patient through unclipped. So the norm errs upwards by what rounding can hide (for up to 400
    positions less than 1e-4 of it).

    Args:
        a: inputs, (P, T, d).
        g: gradients of the outputs, (P, T, p).
        shape: of the weight, p times d numbers.
    """

    def __init__(self, a: Tensor, g: Tensor, shape: torch.Size) -> None:
        self._a, self._g, self._shape = a, g, shape
        pairs_a, pairs_g = torch.bmm(a, a.transpose(1, 2)), torch.bmm(g, g.transpose(1, 2))
        squares = pairs_a.diagonal(dim1=1, dim2=2) * pairs_g.diagonal(dim1=1, dim2=2)
        hidden = _ROUNDING * squares.sqrt().sum(1).square()
        self.squared_norms = pairs_a.mul_(pairs_g).sum(dim=(1, 2)).clamp_(min=0.0) + hidden

    @property
    def num_bytes(self) -> int:
        """See `Tape`."""
        return self._a.nbytes + self._g.nbytes

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """See `Tape`."""
        a, g, by_patient = self._a, self._g, factors.view(-1, 1, 1)
        if a.shape[2] <= g.shape[2]:
            a = a * by_patient
        else:
            g = g * by_patient
        return (g.flatten(0, 1).t() @ a.flatten(0, 1)).view(self._shape)

    def erase(self, patients: Tensor) -> None:
        """See `Tape`."""
        keep = ~patients.view(-1, 1, 1)
        self._a = torch.where(keep, self._a, 0.0)
        self._g = torch.where(keep, self._g, 0.0)


def _rows(gradients: Tensor) -> Tensor:
    """(P, ...) → (P, d); the gradient of a single number is a row, too."""
    return gradients.reshape(len(gradients), -1)


def product_tape(a: Tensor, g: Tensor, shape: torch.Size, scratch: Scratch | None = None) -> Tape:
    """The cheaper tape of gradients g^T a, from a (P, T, d) and g (P, T, p).

    In operations, keeping the gradient costs nothing: it is the product that training needs
    anyway, done for each patient. In memory it takes p d numbers for each patient where its
    factors take T (p + d), and writing and reading them is what it costs. So it is kept where that
    is at most ``KEEP`` times as much (many positions, small weights: the first stages of a Swin),
    or where it lives for a moment only and fits into ``scratch``. Otherwise the factors are kept
    and the norm costs T^2 (p + d), which is then less than T p d.
    """
    positions, d, p = a.shape[1], a.shape[2], g.shape[2]
    gradients = None if scratch is None else scratch.take((len(a), p, d), like=a)
    if gradients is not None:
        torch.bmm(g.transpose(1, 2), a, out=gradients)
    elif p * d <= KEEP * positions * (p + d):
        gradients = torch.bmm(g.transpose(1, 2), a)
    else:
        return GhostTape(a, g, shape)
    return KeptTape(gradients.view(-1, *shape))
