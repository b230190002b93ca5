"""What every user has had: left out of recommendations, shown as their history, read by history fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import torch

from polytask.data.history import Log
from polytask.errors import StateError
from polytask.intact import read_table

SEEN = "seen.parquet"


@dataclass(frozen=True, eq=False)
class Seen:
    """Items by user, oldest first where times are known: ``item`` [K] int64 by ``user`` [K], which ascends.

    ``timed`` says whether there were times.
    """

    user: np.ndarray
    item: np.ndarray
    timed: bool

    @classmethod
    def of(cls, user: np.ndarray, item: np.ndarray, time: np.ndarray | None) -> Self:
        """Sort known interactions [K]; those of an unknown user or item are left out."""
        log = Log.of(torch.from_numpy(user), torch.from_numpy(item), None if time is None else torch.from_numpy(time))
        return cls(log.user.numpy(), log.item.numpy(), time is not None)

    def items(self, user: int) -> np.ndarray:
        """The items [n] of a user, oldest first; none of the unknown user."""
        first, last = np.searchsorted(self.user, [user, user + 1])
        return self.item[first:last]

    def log(self) -> Log:
        """The same as the log that history fields read."""
        user, item = torch.from_numpy(self.user), torch.from_numpy(self.item)
        return Log(user, item, torch.arange(len(user)).double() if self.timed else None)

    def write(self, folder: Path) -> None:
        """Write the table into ``folder``."""
        frame = pl.DataFrame({"user": self.user, "item": self.item}, schema={"user": pl.Int32, "item": pl.Int32})
        frame.write_parquet(folder / SEEN)

    @classmethod
    def read(cls, folder: Path, users: int, items: int, *, timed: bool) -> Self:
        """Read what :meth:`write` wrote; indices beyond the known users and items are a :class:`StateError`."""
        frame = read_table(folder / SEEN)
        if frame["user"].null_count() or frame["item"].null_count():
            raise StateError(f"{folder / SEEN}: a user or an item is missing; the bundle is damaged")
        user, item = (frame[name].cast(pl.Int64).to_numpy(writable=True) for name in ("user", "item"))
        bounded = not len(user) or (user.min() > 0 and item.min() > 0 and user.max() <= users and item.max() <= items)
        if not bounded or (np.diff(user) < 0).any():
            raise StateError(f"{folder / SEEN}: users and items do not fit the vocabulary; the bundle is damaged")
        return cls(user, item, timed)
