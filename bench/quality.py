"""What a peer's model learned, by the definitions polytask uses: for peers that give predictions alone."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def mse(predicted: Floats, label: Floats) -> float:
    """Mean squared error of predictions [N]."""
    return float(np.square(np.asarray(predicted, np.float64).ravel() - label.ravel()).mean())


def mrr(scores: Floats, train: Ints, test: Ints) -> float:
    """Mean over users of the mean 1 / rank of their rows in ``test`` [M, 3], by scores [U, I] without ``train``."""
    scores = np.array(scores, np.float64)
    held = scores[test[:, 0], test[:, 1]]
    scores[train[:, 0], train[:, 1]] = -np.inf
    ranks = np.array([1 + (scores[u] > s).sum() for u, s in zip(test[:, 0], held, strict=True)])
    users, place = np.unique(test[:, 0], return_inverse=True)
    return float((np.bincount(place, 1 / ranks) / np.bincount(place, minlength=len(users))).mean())


def mean_auc(predicted: Floats, labels: Floats) -> float:
    """Mean over tasks of the area under the ROC curve of predictions [N, T]."""
    return float(np.mean([_auc(predicted[:, t], labels[:, t]) for t in range(labels.shape[1])]))


def _auc(score: Floats, label: Floats) -> float:
    from scipy.stats import rankdata

    positive = label > 0.5
    count = int(positive.sum())
    above = rankdata(score)[positive].sum() - count * (count + 1) / 2
    return float(above / count / (len(label) - count))
