"""How a training is spread over devices and processes: `tf.distribute` strategies by the name that the flag gives them."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


@functools.cache
def strategy_named(name: str) -> tf.distribute.Strategy:
    """The strategy of this process: one for each name, as TensorFlow connects its workers once.

    TensorFlow refuses to make that of `"multi_worker"` after it has done anything else, so ask for it first. It waits until
    all workers have started.

    Args:
        name: `"none"`, one device; `"mirrored"`, all GPUs of this machine, or its logical CPUs; `"multi_worker"`, this process as
            one of those that the environment variable `TF_CONFIG` names; `"tpu"`, the TPU of this machine or of `TPU_NAME`.

    Returns:
        The strategy.

    Raises:
        ValueError: If Keras computes on another backend, which no strategy reaches, `TF_CONFIG` is missing or malformed, or there
            is no TPU.
    """
    if name != "none" and keras.backend.backend() != "tensorflow":
        raise ValueError(
            "This backend's training cannot be spread by `tf.distribute`. Expected KERAS_BACKEND=tensorflow, or `--strategy=none`. "
            f"Received: strategy={name!r}, backend {keras.backend.backend()}"
        )
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        workers, number = _workers()
        print(f"Worker {number} of {workers}, waiting for the others", flush=True)
        # It tells of every sum over the workers that it compiles.
        tf.get_logger().setLevel("WARNING")
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu_strategy()
    return tf.distribute.get_strategy()


def _workers() -> tuple[int, int]:
    """How many processes train, and which of them this is."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        valid = (
            set(config["cluster"]) == {"worker"} and task["type"] == "worker" and task["index"] in range(len(workers))
        )
        valid = valid and isinstance(workers, list) and all(isinstance(address, str) for address in workers)
    except (ValueError, LookupError, TypeError):
        valid = False
    if not valid:
        raise ValueError(
            "This process does not know its fellow workers. Expected the same list of workers in every process's environment "
            'variable TF_CONFIG: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}. '
            f"Received: TF_CONFIG={text!r}"
        )
    return len(workers), task["index"]


def _tpu_strategy() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", "local"))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, ImportError, OSError, tf.errors.OpError) as error:
        raise ValueError(
            "No TPU answers. Expected one in this machine, or its name in the environment variable TPU_NAME. "
            f"Received: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes; each is, unless it trains with others."""
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return not several or strategy.cluster_resolver.task_id == 0


def on_chief(strategy: tf.distribute.Strategy, work: Callable[[], Any]) -> None:
    """Lets the chief do something when all workers have come here, while the others wait.

    So what it changes in the folder has happened to none of them before the call, and to all of them after it.

    Args:
        strategy: As `strategy_named` gives it.
        work: What to do.

    Raises:
        ValueError: On the others, if `work` raises an error on the chief; there it is raised as it is.
    """
    _sum_over_workers(strategy, 0)
    in_step(strategy, work if is_chief(strategy) else lambda: None)


def in_step(strategy: tf.distribute.Strategy, work: Callable[[], Any]) -> None:
    """Lets every worker do something, and none go on unless all of them did it.

    Args:
        strategy: As `strategy_named` gives it.
        work: What to do.

    Raises:
        ValueError: If `work` raises an error on another worker; where it does, it is raised as it is.
    """
    failed = 1
    try:
        work()
        failed = 0
    finally:
        # In any case: without an answer the others would wait for ever.
        num_failed = _sum_over_workers(strategy, failed)
    if num_failed:
        raise ValueError(
            "Another worker gave up. Expected all workers to have the same flags, and the first one to find the folder as it must be. "
            "Received: an error, which that worker shows"
        )


def _sum_over_workers(strategy: tf.distribute.Strategy, number: int) -> int:
    """Adds a number up over all workers, and so waits for all of them."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return number
    return int(strategy.experimental_local_results(_adder(strategy)(tf.constant(number)))[0])


@functools.cache
def _adder(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    def all_reduce(number: tf.Tensor) -> tf.Tensor:
        # A tensor of this replica's own: an argument stands on no device, where TensorFlow looks for one.
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(number))

    return tf.function(lambda number: strategy.run(all_reduce, args=(number,)))


def fit(
    model: keras.Model,
    batches: Callable[..., tuple[tf.data.Dataset, int]],
    batch_size: int,
    epochs: int,
    initial_epoch: int,
    steps_per_epoch: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = 0,
) -> None:
    """What `model.fit` does, step by step, for a model that several workers train.

    Keras 3.15 fails with more than one worker when it looks at the first batch. The step itself is the model's own. A callback
    cannot end the training early: the other workers would wait for ever.

    Args:
        model: Built and compiled in the scope of its strategy.
        batches: `training_batches`, from `initial_epoch` on, with all arguments but the share.
        batch_size: Examples of a global batch; a multiple of the number of replicas.
        epochs: The epoch to end before.
        initial_epoch: The epoch to begin with.
        steps_per_epoch: Global batches of an epoch.
        callbacks: As for `model.fit`.
        verbose: As for `model.fit`; silent by default.
    """
    strategy = model.distribute_strategy

    def batches_of_replicas(context: tf.distribute.InputContext) -> tf.data.Dataset:
        share, _ = batches(share=(context.input_pipeline_id, context.num_input_pipelines))
        # Endless: else all workers would ask each other before every step whether there is one more.
        return share.rebatch(context.get_per_replica_batch_size(batch_size), drop_remainder=True).repeat()

    iterator = iter(strategy.distribute_datasets_from_function(batches_of_replicas))

    @tf.function
    def train_step(batch: Any) -> Any:
        return strategy.run(model.train_step, args=(batch,))

    calls = keras.callbacks.CallbackList(
        list(callbacks), add_progbar=verbose != 0, model=model, verbose=verbose, epochs=epochs, steps=steps_per_epoch
    )
    with strategy.scope():
        # As Keras' `fit` does: several replicas of a worker cannot make the variables of metrics and optimizer in their step.
        model._symbolic_build(data_batch=batches()[0].element_spec)
    calls.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        model.reset_metrics()
        calls.on_epoch_begin(epoch)
        for step in range(steps_per_epoch):
            calls.on_train_batch_begin(step)
            logs = train_step(next(iterator))
            # Keras' metrics are sums over all replicas: each of them knows the same result.
            calls.on_train_batch_end(
                step, {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}
            )
        calls.on_epoch_end(epoch, model.get_metrics_result())
    calls.on_train_end()
