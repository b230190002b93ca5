"""The reference exercise written the plain way: the yardstick for the stacked runs.

One model, ``nn.Embedding`` modules, a loop over batches that reads each loss, the rating network run on the
negatives too, and evaluation user by user in Python: what a student's correct solution does.
"""

import time

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, users: int, items: int, dim: int = 32) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, dim), nn.Embedding(items, dim)
        self.of_user, self.of_item = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table, scale in ((self.user, 1 / dim), (self.item, 1 / dim), (self.of_user, 0.0), (self.of_item, 0.0)):
            nn.init.normal_(table.weight, std=scale)
        self.network = nn.Sequential(nn.Linear(3 * dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u, q = self.user(users), self.item(items)
        score = (u * q).sum(dim=1) + self.of_user(users).squeeze(1) + self.of_item(items).squeeze(1)
        return score, self.network(torch.cat([u, q, u * q], dim=1)).squeeze(1)


def train_epoch(
    net: Net, adam: torch.optim.Optimizer, data: np.ndarray, items: int, random: np.random.RandomState
) -> float:
    """One pass over ``data`` [N, 3] (user, item, rating) in batches of 256; the mean loss."""
    losses = []
    data = data[random.permutation(len(data))]
    for start in range(0, len(data), 256):
        batch = data[start : start + 256]
        users, positive = torch.from_numpy(batch[:, 0]), torch.from_numpy(batch[:, 1])
        rating = torch.from_numpy(batch[:, 2]).float()
        negative = torch.from_numpy(random.randint(0, items, len(batch)))
        score, predicted = net(users, positive)
        other, _ = net(users, negative)
        loss = 0.5 * (1 - torch.sigmoid(score - other)).mean() + 0.5 * ((predicted - rating) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def evaluate(
    net: Net, seen: list[np.ndarray], held_out: list[np.ndarray], test: np.ndarray, items: int
) -> tuple[float, float]:
    """Test MSE and MRR, one user after the other; ``seen`` and ``held_out`` are each user's items."""
    _, predicted = net(torch.from_numpy(test[:, 0]), torch.from_numpy(test[:, 1]))
    mse = float(((predicted.numpy() - test[:, 2]) ** 2).mean())
    every, reciprocal = torch.arange(items), []
    for user, wanted in enumerate(held_out):
        if not len(wanted):
            continue
        score = -net(torch.full((items,), user), every)[0].numpy()
        score[seen[user]] = np.inf
        rank = np.empty(items)
        rank[np.argsort(score)] = np.arange(1, items + 1)
        reciprocal.append((1 / rank[wanted]).mean())
    return mse, float(np.mean(reciprocal))


def seconds_per_epoch(train: np.ndarray, test: np.ndarray, users: int, items: int) -> float:
    """Seconds of one epoch with its evaluation, after one to warm up."""
    torch.manual_seed(0)
    net, random = Net(users, items), np.random.RandomState(0)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    seen, held_out = ([rows[rows[:, 0] == user, 1] for user in range(users)] for rows in (train, test))
    for _ in range(2):
        start = time.perf_counter()
        train_epoch(net, adam, train, items, random)
        evaluate(net, seen, held_out, test, items)
        elapsed = time.perf_counter() - start
    return elapsed
