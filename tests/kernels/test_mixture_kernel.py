"""Mixtures by kernel: what the plain form gives, in both precisions, and nothing from experts nobody lists."""

import pytest
import torch
from torch import Tensor

from polytask.kernels import mixture

ALL = [r for r in range(3) for _ in range(4)], [0, 1, 2, 3] * 3
SOME = [0, 0, 1, 1, 1, 2], [0, 3, 1, 3, 2, 3]
PAIRS = {"every expert": ALL, "own and shared experts": SOME}


def inputs(rows: int, width: int, pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows + width)
    shares, experts = torch.rand(rows, pairs, generator=draw), torch.randn(rows, 4, width, generator=draw)
    return shares, experts.to(dtype), torch.randn(rows, 3, width, generator=draw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (33, 8), (5, 21), (130, 64)])
@pytest.mark.parametrize("pairs", list(PAIRS))
def test_the_kernel_gives_what_the_plain_form_gives(pairs: str, rows: int, width: int, dtype: torch.dtype) -> None:
    reader, expert = PAIRS[pairs]
    shares, experts, g = inputs(rows, width, len(reader), dtype)
    plain = mixture.plain_mix(shares, experts, reader, expert)
    torch.testing.assert_close(mixture.mix(shares, experts, reader, expert), plain, rtol=1e-6, atol=1e-6)
    of_shares, of_experts = mixture.mix_backward(g, shares, experts, reader, expert)
    plain_shares, plain_experts = mixture.plain_mix_backward(g, shares, experts, reader, expert)
    torch.testing.assert_close(of_shares, plain_shares, rtol=1e-5, atol=1e-4)
    assert torch.equal(of_experts, plain_experts)
    assert of_experts.dtype == dtype


def test_two_threads_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, experts, g = inputs(70, 16, len(ALL[0]), torch.bfloat16)
    one = [mixture.mix(shares, experts, *ALL), *mixture.mix_backward(g, shares, experts, *ALL)]
    monkeypatch.setattr(mixture, "_WORTH", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    two = [mixture.mix(shares, experts, *ALL), *mixture.mix_backward(g, shares, experts, *ALL)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_autograd(dtype: torch.dtype) -> None:
    shares, experts, g = inputs(6, 9, len(SOME[0]), dtype)
    leaves = [shares.requires_grad_(), experts.float().requires_grad_()]
    of_shares, of_experts = torch.autograd.grad(mixture.plain_mix(*leaves, *SOME), leaves, g)
    found = mixture.mix_backward(g, shares.detach(), experts, *SOME)
    torch.testing.assert_close(found[0], of_shares, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], of_experts.to(dtype), rtol=1e-5, atol=1e-6)


def test_an_expert_that_no_reader_lists_gives_and_gets_nothing() -> None:
    reader, expert = [0, 0, 1], [0, 1, 1]
    shares, experts, g = inputs(4, 8, 3, torch.float32)
    experts[:, 2:], g[:, 0] = torch.nan, torch.nan
    assert mixture.mix(shares, experts, reader, expert).isfinite().all()
    of_shares, of_experts = mixture.mix_backward(g[:, :2], shares, experts, reader, expert)
    assert of_shares.isnan().any(dim=0).tolist() == [True, True, False]
    assert of_experts.isnan().flatten(2).any(dim=2).all(dim=0).tolist() == [True, True, False, False]
    assert not of_experts[:, 2:].any()


def test_what_is_not_a_number_stays_so_in_bfloat16() -> None:
    shares, experts, g = inputs(2, 16, 3, torch.bfloat16)
    _, of_experts = mixture.mix_backward(torch.full_like(g, torch.nan), shares, experts, [0, 1, 2], [0, 1, 2])
    assert of_experts[:, :3].isnan().all()
    big = torch.full_like(g, torch.finfo(torch.float32).max)
    assert mixture.mix_backward(big, torch.ones(2, 3), experts, [0, 1, 2], [0, 1, 2])[1][:, :3].isinf().all()
