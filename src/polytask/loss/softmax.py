"""Softmax cross-entropies of a row's item against sampled items, the items of its batch, or the whole catalogue."""

import math

import torch
from torch import Tensor, nn

from polytask.loss.base import Context, Loss, Observed, check_option, shapes
from polytask.loss.pairwise import Ranking, items_of, split_pair

_POWER = 0.75  # the popularity sampler flattens counts by this power (Mikolov et al., 2013)
_COLDEST = 1e-3


def log_share(popularity: Tensor, power: float, dtype: torch.dtype) -> Tensor:
    """log Q [I] of drawing each item in proportion to popularity [I] ^ power; items without rows count as one row."""
    counts = popularity.double().clamp(min=1) ** power
    return (counts / counts[1:].sum().clamp(min=1)).log().to(dtype)  # index 0 is never drawn


class SampledSoftmax(nn.Module):
    """-log of the observed item's share of e^(s / temperature) among itself and its n sampled negatives.

    A negative that is the row's own item is left out. ``corrected`` is for negatives drawn by popularity ^ 0.75:
    each counts as 1 / (n Q), so that their sum estimates that over the catalogue (Bengio and Senécal 2008; Jean et
    al. 2015); without it the loss is that of a choice among the drawn.
    """

    log_share: Tensor

    def __init__(self, observed: Observed, temperature: float = 1.0, corrected: bool = False) -> None:
        super().__init__()
        check_option("temperature", temperature, _COLDEST)
        self.temperature, self.corrected = temperature, corrected
        self.register_buffer("log_share", log_share(observed.popularity, _POWER, observed.label.dtype))

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """The row's cross-entropy [B] of logits [B, 1 + n]; their items must be as many, else ValueError."""
        positive, negative = split_pair(logits / self.temperature, target)
        items = items_of(context)
        if items.shape != logits.shape:
            raise ValueError(f"logits and items must both be [B, 1 + n], not {shapes(logits, items)}")
        drawn = items[:, 1:]
        if self.corrected:
            negative = negative - self.log_share[drawn] - math.log(negative.shape[1])
        negative = negative.masked_fill(drawn == items[:, :1], -math.inf)
        return torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive[:, 0]


class InBatchSoftmax(nn.Module):
    """-log of the row's item's share of e^(s / temperature) among the items of the batch's rows.

    An item comes up as often as it has training rows, Q; ``corrected`` subtracts log Q from its score, so that
    popular items are not pushed down for being drawn often (Yi et al., RecSys 2019). Repeats of the row's own item
    and unknown items (index 0) are no negatives. A row without target has no loss of its own, but its item is a
    negative for the others: Q counts every row. Other items of the row's user are not known here and count.
    """

    log_share: Tensor

    def __init__(self, observed: Observed, temperature: float = 1.0, corrected: bool = True) -> None:
        super().__init__()
        check_option("temperature", temperature, _COLDEST)
        self.temperature, self.corrected = temperature, corrected
        self.register_buffer("log_share", log_share(observed.popularity, 1.0, observed.label.dtype))

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """The row's cross-entropy [B] of logits [B, B], row's user by row's item; other shapes are a ValueError."""
        item = items_of(context)[:, 0]
        if logits.shape != (*item.shape, *item.shape):
            raise ValueError(f"in-batch logits and items must be [B, B] and [B], not {shapes(logits, item)}")
        scores = logits / self.temperature
        if self.corrected:
            scores = scores - self.log_share[item]
        own = torch.eye(len(item), dtype=torch.bool, device=logits.device)
        hidden = ((item == item[:, None]) | (item == 0)) & ~own
        return scores.masked_fill(hidden, -math.inf).logsumexp(dim=1) - scores.diagonal()


class FullSoftmax(nn.Module):
    """-log of the row's item's share of e^(s / temperature) among all items but the unknown one (index 0).

    The multinomial likelihood over the catalogue (Liang et al., WWW 2018, section 2.1): exact, for up to about 1e5
    items.
    """

    listed: Tensor

    def __init__(self, observed: Observed, temperature: float = 1.0) -> None:
        super().__init__()
        check_option("temperature", temperature, _COLDEST)
        self.temperature = temperature
        # a mask and not "all but the first": where replicas have catalogues of different size, rows of padding are 0
        self.register_buffer("listed", torch.arange(len(observed.popularity)) > 0)

    def forward(self, logits: Tensor, target: Tensor, context: Context) -> Tensor:
        """The row's cross-entropy [B] of logits [B, I]; another I than the training catalogue's is a ValueError."""
        if logits.shape[1:] != self.listed.shape:
            raise ValueError(f"logits and catalogue must be [B, I] and [I], not {shapes(logits, self.listed)}")
        scores = logits / self.temperature
        own = scores.gather(1, items_of(context)[:, :1])[:, 0]
        return scores.masked_fill(~self.listed, -math.inf).logsumexp(dim=1) - own


def _sampled(observed: Observed, *, temperature: float = 1.0, corrected: bool = False) -> Ranking:
    return Ranking(SampledSoftmax(observed, temperature, corrected))


def _in_batch(observed: Observed, *, temperature: float = 1.0, corrected: bool = True) -> Ranking:
    return Ranking(InBatchSoftmax(observed, temperature, corrected), own=True)


def _full(observed: Observed, *, temperature: float = 1.0) -> Ranking:
    return Ranking(FullSoftmax(observed, temperature), own=True)


SOFTMAX: dict[str, Loss] = {
    "softmax": Loss(_sampled, "pairwise", ("ranking",)),
    "in_batch_softmax": Loss(_in_batch, "in_batch", ("ranking",)),
    "full_softmax": Loss(_full, "catalogue", ("ranking",)),
}
