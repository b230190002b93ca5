"""faiss: a flat index, which compares with every vector."""

import faiss
import numpy as np
from case import Case, Found, SkippedError
from timing import repeated


def top_ten(case: Case) -> Found:
    """Exact top 10 of every user by inner product."""
    if case.device != "cpu":
        raise SkippedError(f"not measured on {case.device}")
    users, items = (np.load(case.folder / f"{name}.npy") for name in ("users", "items"))
    faiss.omp_set_num_threads(case.threads)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    seconds = repeated(lambda: index.search(users, 10))
    return {"queries_per_second": len(users) / seconds, "score": float(index.search(users, 10)[0].mean())}
