"""implicit: the model's own ``recommend``, with factors that are given."""

import numpy as np
from case import Case, Found, SkippedError
from timing import repeated


def top_ten(case: Case) -> Found:
    """Exact top 10 of every user."""
    from implicit.cpu.als import AlternatingLeastSquares

    if case.device != "cpu":
        raise SkippedError(f"not measured on {case.device}")
    users, items = (np.load(case.folder / f"{name}.npy") for name in ("users", "items"))
    model = AlternatingLeastSquares(factors=users.shape[1], num_threads=case.threads)
    model.user_factors, model.item_factors = users, items

    def best() -> tuple[np.ndarray, np.ndarray]:
        found: tuple[np.ndarray, np.ndarray] = model.recommend(
            np.arange(len(users)), None, N=10, filter_already_liked_items=False
        )
        return found

    return {"queries_per_second": len(users) / repeated(best), "score": float(best()[1].mean())}
