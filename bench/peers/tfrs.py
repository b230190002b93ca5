"""TensorFlow Recommenders: ``tfrs.Model`` with ``fit``, as its tutorials have it."""

import time

import numpy as np
import quality
import tensorflow as tf
import tensorflow_recommenders as tfrs
from case import Case, Found, SkippedError
from timing import intervals

DIM, BATCH = 32, 256
Inputs = dict[str, tf.Tensor]


class Exercise(tfrs.Model):
    """The model of A, its start included; ``retrieval`` ranks by ``tasks.Retrieval`` in place of one negative."""

    def __init__(self, users: int, items: int, retrieval: bool) -> None:
        super().__init__()

        def table(rows: int, width: int, scale: float) -> tf.keras.layers.Layer:
            start = tf.keras.initializers.RandomNormal(stddev=scale) if scale else "zeros"
            return tf.keras.layers.Embedding(rows, width, embeddings_initializer=start)

        def layer(width: int, activation: str | None = None) -> tf.keras.layers.Layer:
            start = tf.keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")  # as torch.nn.Linear
            return tf.keras.layers.Dense(width, activation, kernel_initializer=start)

        self.items = items
        self.user, self.item = table(users, DIM, 1 / DIM), table(items, DIM, 1 / DIM)
        self.of_user, self.of_item = table(users, 1, 0.0), table(items, 1, 0.0)
        self.network = tf.keras.Sequential([layer(64, "relu"), layer(1)])
        self.rating = tfrs.tasks.Ranking(loss=tf.keras.losses.MeanSquaredError())
        self.retrieval = tfrs.tasks.Retrieval() if retrieval else None
        self.top: tfrs.metrics.FactorizedTopK | None = None

    def queries(self, users: tf.Tensor) -> tf.Tensor:
        """Vectors [B, 33] whose inner products with those of items rank them."""
        return tf.concat([self.user(users), tf.ones_like(self.of_user(users))], axis=1)

    def candidates(self, items: tf.Tensor) -> tf.Tensor:
        """Vectors [B, 33]: an item's embedding and its bias."""
        return tf.concat([self.item(items), self.of_item(items)], axis=1)

    def call(self, inputs: Inputs) -> tf.Tensor:
        """Ratings [B, 1]."""
        u, q = self.user(inputs["user"]), self.item(inputs["item"])
        return self.network(tf.concat([u, q, u * q], axis=1))

    def compute_loss(self, inputs: Inputs, training: bool = False) -> tf.Tensor:
        """Half of each task's loss; in evaluation the top-k metric instead of the ranking's."""
        rating = self.rating(labels=inputs["rating"], predictions=self(inputs), compute_metrics=not training)
        query, item = self.queries(inputs["user"]), self.candidates(inputs["item"])
        if self.top is not None and not training:
            self.top.update_state(query, item)
        if self.retrieval is not None:
            return 0.5 * rating + 0.5 * self.retrieval(query, item, compute_metrics=False)
        other = tf.random.uniform(tf.shape(inputs["item"]), 0, self.items, tf.int64)
        margin = tf.reduce_sum(query * (item - self.candidates(other)), axis=1)
        return 0.5 * rating + 0.5 * tf.reduce_mean(1 - tf.sigmoid(margin))


class _Ends(tf.keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.times.append(time.perf_counter())


def _start(case: Case) -> tuple[Exercise, tf.data.Dataset, np.ndarray, np.ndarray]:
    if case.device != "cpu" and not tf.config.list_physical_devices("GPU"):
        raise SkippedError(f"no {case.device} here")
    tf.config.threading.set_intra_op_parallelism_threads(case.threads)
    tf.config.threading.set_inter_op_parallelism_threads(case.threads)
    tf.keras.utils.set_random_seed(case.seed)
    train, test = (np.load(case.folder / f"{name}.npy") for name in ("train", "test"))
    users, items = (int(max(train[:, k].max(), test[:, k].max())) + 1 for k in (0, 1))
    model = Exercise(users, items, case.options.get("retrieval", False))
    model.compile(optimizer=tf.keras.optimizers.Adam(1e-3, epsilon=1e-8))
    return model, _dataset(train).shuffle(len(train), seed=case.seed).batch(BATCH).cache(), train, test


def _dataset(rows: np.ndarray) -> tf.data.Dataset:
    columns = {"user": rows[:, 0], "item": rows[:, 1], "rating": rows[:, 2:].astype(np.float32)}
    return tf.data.Dataset.from_tensor_slices(columns)


def reference(case: Case) -> Found:
    """Workload A."""
    model, batches, train, test = _start(case)
    ends = _Ends()
    model.fit(batches, epochs=case.size["epochs"], verbose=0, callbacks=[ends])
    predicted = model({"user": test[:, 0], "item": test[:, 1]}).numpy()
    every = [np.arange(table.input_dim) for table in (model.user, model.item)]
    scores = model.queries(every[0]).numpy() @ model.candidates(every[1]).numpy().T
    return {
        "samples_per_second": len(train) / intervals(ends.times),
        "mse": quality.mse(predicted, test[:, 2]),
        "mrr": quality.mrr(scores, train, test),
    }


def comparison(case: Case) -> Found:
    """An epoch and an evaluation by ``FactorizedTopK`` over all items."""
    model, batches, _, test = _start(case)
    held_out = _dataset(test).batch(4096).cache()
    items = tf.data.Dataset.range(model.items).batch(128)
    model.top = tfrs.metrics.FactorizedTopK(candidates=items.map(model.candidates))
    times = []
    for _ in range(min(5, case.size["epochs"])):
        model.fit(batches, epochs=1, verbose=0)
        model.evaluate(held_out, verbose=0)
        times.append(time.perf_counter())
    return {"seconds_per_run_epoch": intervals(times[1:])}
