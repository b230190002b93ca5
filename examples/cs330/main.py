"""The exercise's own command line (Stanford CS 330, Homework 0) over polytask.

    python main.py --factorization_weight 0.99 --regression_weight 0.01 --logdir run/shared=True_LF=0.99_LR=0.01

Trains one setting in exercise mode and logs training MSE, BPR and joint loss and test MSE and MRR per epoch to
TensorBoard in ``--logdir``. Interrupted, the same command goes on where it stopped.
"""

import argparse
import sys

import torch

import polytask as pt
from polytask.config import read
from polytask.console import progress
from polytask.record import Recorder


def main(options: argparse.Namespace) -> None:
    """Train as the flags say and print the last epoch's test scores."""
    torch.set_num_threads(1)
    config = (
        read("cs330")[0]
        .with_variant("handout")
        .with_overrides(
            {
                "model.share": "shared" if options.shared_embeddings else "separate",
                "data.split.test": options.test_fraction,
                "train.epochs": options.epochs,
            }
        )
    )
    data = config.load_data()
    parts = pt.split(data, "exercise", valid=0.0, test=options.test_fraction, seed=0)
    model = pt.MultiTask(parts.train, config.design())
    weights = {"watch": options.factorization_weight, "rating": options.regression_weight}
    with progress("training") as tell:
        recorder = Recorder.of(options.logdir, progress=lambda done, total: tell("", done, total))
        run = pt.fit_many(
            [model], parts.train, None, parts.test, weights=weights, config=config.train_config(), recorder=recorder
        )[0]
    scores = run.history[-1]["test"]
    print(f"epoch {run.kept}: test MSE {scores['rating']['mse']:.4f}, test MRR {scores['watch']['mrr']:.4f}")
    print(f"curves: tensorboard --logdir {options.logdir}")


def flags() -> argparse.ArgumentParser:
    """The exercise's flags with the exercise's defaults."""
    parser = argparse.ArgumentParser(description="Multitask training for recommender systems, on MovieLens 100K")
    parser.add_argument("--test_fraction", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--factorization_weight", type=float, default=0.995)
    parser.add_argument("--regression_weight", type=float, default=0.005)
    parser.add_argument("--shared_embeddings", default=True, action="store_true")
    parser.add_argument("--no_shared_embeddings", dest="shared_embeddings", action="store_false")
    parser.add_argument("--logdir", default="run/shared=True_LF=0.99_LR=0.01")
    return parser


if __name__ == "__main__":
    try:
        main(flags().parse_args())
    except pt.PolytaskError as error:
        sys.exit(f"main.py: {error}")
