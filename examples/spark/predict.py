"""Answers of a fitted model beside the rows of a Spark table; the model is sent once, and made ready once a process.

    spark-submit predict.py MODEL IN OUT

MODEL is a model folder of this machine, which reads single texts. IN is a CSV file or folder with a column `text`, and
OUT a folder of Parquet files, both as Spark names them. Each executor needs berthead, of one version.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import berthead


def answering(shared: Any) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """What `mapInPandas` is given.

    Args:
        shared: the fitted model, broadcast.

    Returns:
        A function of the data frames of one partition.
    """

    def answers(frames: Iterator[Any]) -> Iterator[Any]:
        import torch

        torch.set_num_threads(1)  # Spark starts a process for each processor
        model = shared.value  # one object a process, whose engine is made at the first text
        for frame in frames:
            predictions = model.predict(frame["text"].tolist())
            yield frame.assign(
                prediction=[None if one.error else str(one.answer) for one in predictions],
                score=[one.score for one in predictions],
                error=[one.error for one in predictions],
            )

    return answers


def main(model: str, source: str, target: str) -> None:
    """Read a table, add the answers, write it."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("berthead").getOrCreate()
    shared = spark.sparkContext.broadcast(berthead.load(model))
    rows = spark.read.csv(source, header=True)
    columns = ", ".join(f"`{name}` string" for name in rows.columns)
    answered = rows.mapInPandas(answering(shared), f"{columns}, prediction string, score double, error string")
    answered.write.mode("overwrite").parquet(target)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
