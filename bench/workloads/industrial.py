"""B: an industrial shape: large tables, experts or a shared bottom, four binary tasks, labels of a planted teacher."""

from case import Aim, Case, Column, Contender, Found, Workload

NUMBERS, LATENT, POSITIVE = 8, 4, -1.2  # dense columns, width of a value's effect, log-odds of a label's constant


def make(case: Case) -> Found:
    """Save ``sizes`` [F] (a geometric series from 10 on), and of train and test rows ``ids`` [N, F] int32 (Zipf),
    ``numbers`` [N, 8] and ``labels`` [N, T].

    Each value of a field has an effect e ~ N(0, I); with z the sum of a row's effects and of a linear map of its
    numbers, scaled to variance 1, task t is positive with log-odds 1.1 a_t z + 0.6 (b_t z) (c_t z) - 1.2.
    """
    import numpy as np

    draw, tasks = np.random.default_rng(0), int(case.size["tasks"])
    sizes = [int(n) for n in np.geomspace(10, case.size["largest"], case.size["fields"])]
    np.save(case.folder / "sizes.npy", sizes)
    effects = [draw.standard_normal((n, LATENT), dtype=np.float32) for n in sizes]
    of_numbers = draw.standard_normal((NUMBERS, LATENT)) / NUMBERS**0.5
    a, b, c = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in draw.standard_normal((3, tasks, LATENT)))
    found: Found = {"table_rows": float(sum(sizes)), "tasks": tasks}
    for name in ("train", "test"):
        rows = int(case.size[name])
        ids = np.stack([zipf(draw, n, rows) for n in sizes], axis=1)
        numbers = draw.standard_normal((rows, NUMBERS), dtype=np.float32)
        z = sum(e[i] for e, i in zip(effects, ids.T, strict=True)) / len(sizes) ** 0.5 + numbers @ of_numbers
        z = z / 2**0.5
        logits = 1.1 * z @ a.T + 0.6 * (z @ b.T) * (z @ c.T) + POSITIVE
        labels = draw.random(logits.shape) < 1 / (1 + np.exp(-logits))
        np.save(case.folder / f"{name}_ids.npy", ids)
        np.save(case.folder / f"{name}_numbers.npy", numbers)
        np.save(case.folder / f"{name}_labels.npy", labels.astype(np.float32))
        found[f"{name}_positive"] = float(labels.mean())
    return found


def zipf(draw, size: int, rows: int):  # type: ignore[no-untyped-def]
    """Ids [rows] in 0..size - 1, the k-th as often as 1 / k."""
    import numpy as np

    return np.minimum(np.exp(draw.random(rows) * np.log(size + 1)) - 1, size - 1).astype(np.int32)


SHAPE = {"fields": 20, "largest": 1_385_000, "tasks": 4, "dim": 16}
SIZES = {
    "quick": {"fields": 20, "largest": 20_000, "tasks": 4, "dim": 16, "batch": 512, "train": 31_744, "test": 10_000},
    "standard": SHAPE | {"batch": 4096, "train": 217_088, "test": 100_000},
    "full": SHAPE | {"batch": 4096, "train": 819_200, "test": 100_000},
}
_PLAIN = {"probes": False, "unknown": 0.0}
OURS = "polytask, float32", "polytask, precision = auto"
LEAN = "polytask, auto, accumulate = 4"
MODELS = {
    "mmoe": ("MMoE", "8 experts [256, 128]", 4, 9),
    "ple": ("PLE, one level", "2 experts [256, 128] per task and 2 shared (10 in all)", 3, 6),
    "shared_bottom": ("shared bottom", "layers [512, 256]", 3, 6),
}
"""By polytask's name of the body: what it is called, its size, and floor and goal of the speed-up."""


def workload(body: str) -> Workload:
    """The workload of one of ``MODELS``."""
    title, size, floor, goal = MODELS[body]
    peers = "torch-rechub", "DeepCTR-Torch"
    model = {"body": body}
    memory = "B, peak memory over the tables' own size (what training adds)"
    return Workload(
        f"b-{body.replace('_', '-')}",
        f"B: industrial shape, {title}",
        f"20 categorical fields of 10 to 1,385,000 values, 2.99 million rows of width 16 in all, ids by Zipf's law, 8 "
        f"numbers, {title} with {size}, four binary towers [64], batches of 4,096. One pass over the same rows: "
        "samples/s after the first step, mean AUC on 100,000 held-out rows, and the memory that building the model and "
        "training it adds, as a multiple of the tables' own bytes (whole: of the whole process).",
        "workloads.industrial:make",
        (
            Contender(
                "polytask, float32",
                "peers.ours:industrial",
                "no probes, no values hidden",
                model | {"train": _PLAIN | {"precision": "float32"}},
            ),
            Contender(
                "polytask, precision = auto",
                "peers.ours:industrial",
                "no probes, no values hidden",
                model | {"train": _PLAIN | {"precision": "auto"}},
            ),
            *(
                [
                    Contender(
                        LEAN,
                        "peers.ours:industrial",
                        "the same, a batch in four parts for memory's sake",
                        model | {"train": _PLAIN | {"precision": "auto", "accumulate": 4}},
                    )
                ]
                if body == "mmoe"
                else []
            ),
            Contender("polytask, as it comes", "peers.ours:industrial", "with probes, 1 % of values hidden", model),
            Contender(
                "torch-rechub",
                "peers.rechub:industrial",
                "as it comes: batch normalization, Adam 1e-3, decay 1e-5",
                model,
            ),
            Contender(
                "DeepCTR-Torch",
                "peers.deepctr:industrial",
                "Adam 1e-3, without its penalty on embeddings, which halves its speed",
                model,
            ),
        ),
        (
            Column("samples_per_second", "samples/s"),
            Column("auc", "mean AUC", "{:.4f}"),
            Column("added_memory", "added memory", "{:.2f}"),
            Column("whole_memory", "whole", "{:.2f}"),
        ),
        SIZES,
        (
            Aim(
                f"B, {title}, equal AUC or better: samples/s against the better of torch-rechub and DeepCTR-Torch",
                OURS,
                peers,
                "samples_per_second",
                "speed",
                floor,
                goal,
                {"auc": "higher"},
            ),
            *([Aim(memory, (*OURS, LEAN), (), "added_memory", "value", 1.5, 1.15)] if body == "mmoe" else []),
        ),
        {"quick": 1, "standard": 2, "full": 4},
    )


WORKLOADS = tuple(workload(body) for body in MODELS)
