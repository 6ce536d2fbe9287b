"""Every measurement of `make bench`: one table, one JSON.

    python examples/benchmarks/bench.py

See the scripts it runs for what is measured and how the peers are configured. Run nothing else at the same time.
"""

import encoder_memory
import encoders
import features
import inference
import loading
import training_steps
from report import parse, run

SUBJECTS = (features, encoders, encoder_memory, training_steps, loading, inference)


def main(argv: list[str] | None = None) -> dict:
    return run(parse(__doc__, argv), *(script.measure for script in SUBJECTS))


if __name__ == "__main__":
    main()
