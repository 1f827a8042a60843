"""Muon: momentum whose matrix is made orthogonal before it is applied (Moonlight, arXiv 2502.16982, section 2.2).

    m = mu m + g          d = g + mu m                                    (momentum 0.95, Nesterov)
    X = d / |d|_F         five times  X = a X + (b A + c A A) X,  A = X X^T    (Newton-Schulz)
    w = w (1 - lr * decay) - lr * 0.2 sqrt(max(rows, columns)) X

X comes near U V^T of d = U S V^T: every direction of the update gets about the same size. The polynomial's slope at 0,
a = 3.4445, is what five rounds need to lift small singular values; its price is that they end between 0.68 and 1.2 and
not at 1. The factor gives a full-rank update the root mean square 0.2 of AdamW's, so that AdamW's learning rates
and weight decay fit. One moment is kept where AdamW keeps two.

The moment and d are elementwise: a slice gets the bits of the whole, which ZeRO relies on. Only X needs whole matrices.

 1. Matrices with more rows than columns are turned, so that A is the smaller of the two products.
 2. `products` is what A and X are computed in. BF16 is enough (the polynomial does not converge anyway) and where a
    machine has BF16 products several times as fast; sums, the moment and the weight stay FP32.
 3. A matrix without a gradient (an expert that saw no token) stays zero: the norm has a floor of 1e-7.

Shapes: n matrices of r rows and c columns, one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
FLOOR = 1e-7
RMS = 0.2  # of an update's elements before the learning rate: AdamW's
CHUNK = 2**20  # elements of a batch: what is worked on stays in the caches


def plain_update(weight: Tensor, grad: Tensor, m: Tensor, *, lr: float, momentum: float, weight_decay: float) -> None:
    """The definition: one step of one matrix [r, c] in place, in whatever precision it comes."""
    m.mul_(momentum).add_(grad)
    x = grad + momentum * m
    x = x / (x.norm() + FLOOR)
    for _ in range(ROUNDS):
        a = x @ x.T
        x = A * x + (B * a + C * a @ a) @ x
    weight.mul_(1 - lr * weight_decay).sub_(lr * RMS * math.sqrt(max(weight.shape)) * x)


def orthogonal(d: Tensor, products: torch.dtype) -> Tensor:
    """[n, r, c] -> X of each, in `products`."""
    turned = d.shape[1] > d.shape[2]
    x = d.mT if turned else d
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = (x / (norm + FLOOR)).to(products)
    for _ in range(ROUNDS):
        a = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=B, alpha=C), x, beta=A)
    return x.mT if turned else x


@dataclass(frozen=True)
class Muon:
    """The rule and its constants."""

    momentum: float = 0.95
    weight_decay: float = 0.1
    moment: torch.dtype = torch.float32
    products: torch.dtype = torch.float32

    @torch.no_grad()
    def look_ahead(self, grad: Tensor, m: Tensor, scale: float = 1.0) -> None:
        """In place: the moment of `scale` times the gradient, and d where the gradient was. Flat, grad FP32."""
        grad.mul_(scale)
        if m.dtype == torch.float32:
            m.mul_(self.momentum).add_(grad)
            grad.add_(m, alpha=self.momentum)
        else:
            new = m.float().mul_(self.momentum).add_(grad)
            m.copy_(new)
            grad.add_(new, alpha=self.momentum)

    @torch.no_grad()
    def change(self, d: Tensor) -> Tensor:
        """[n, r, c] -> what `apply` subtracts, FP32, of whole matrices."""
        return orthogonal(d, self.products).float() * (RMS * math.sqrt(max(d.shape[1:])))

    @torch.no_grad()
    def apply(self, weight: Tensor, change: Tensor, lr: float) -> None:
        """In place, elementwise: any slice of weights with the same slice of `change`."""
        weight.mul_(1 - lr * self.weight_decay).sub_(change, alpha=lr)


def fast_products(device: torch.device) -> torch.dtype:
    """BF16 where batches of small BF16 products are the faster ones: GPUs, and CPUs with BF16 instructions (measured on
    one with AVX-512 BF16: 2.5 times FP32)."""
    if device.type != "cpu":
        return torch.bfloat16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
