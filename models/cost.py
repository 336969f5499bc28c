"""Equations (1)–(4) of the paper: what dilation does to a filter, and what separating a convolution saves."""

from __future__ import annotations


def filter_extent(size: int, delta: int) -> int:
    """Eq. (1): the extent in pixels of an S×S filter at dilated rate δ, (S + 1)·δ + S; 3, 7, 11, 15 for S = 3."""
    return (size + 1) * delta + size


def dilation_of(delta: int) -> int:
    """PyTorch's dilation for the paper's δ of a 3×3 filter: an extent of 2·d + 1 pixels makes d = 2δ + 1."""
    return (filter_extent(3, delta) - 1) // 2


def standard_cost(kernel: int, in_channels: int, out_channels: int, feature_size: int) -> int:
    """Eq. (2): multiply-adds of a standard K×K convolution, K²·M·N·F² with an F×F output map."""
    return kernel**2 * in_channels * out_channels * feature_size**2


def separable_cost(kernel: int, in_channels: int, out_channels: int, feature_size: int) -> int:
    """Eq. (3): multiply-adds of a depthwise separable convolution, K²·M·F² + M·N·F²."""
    return (kernel**2 + out_channels) * in_channels * feature_size**2


def cost_ratio(kernel: int, out_channels: int) -> float:
    """Eq. (4): separable ÷ standard cost, 1/N + 1/K²."""
    return 1 / out_channels + 1 / kernel**2
