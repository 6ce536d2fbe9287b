"""`benchmarks/contrastive_memory.py`: with chunks a batch costs no memory."""

import sys

import contrastive_memory
import pytest
from contrastive_memory import main, parse, peak_of_a_step
from example_helpers import load_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc, which Linux has")


def test_the_table_shows_chunks_beside_the_whole_batch(tmp_path, capsys, monkeypatch):
    """Chunks of an eighth need less; here in one process, which is noisier than one for each point."""

    def measure(batch: int, chunk: int, argv: list[str]) -> int:
        return peak_of_a_step(parse([*argv, "--batches", str(batch), "--chunk", str(chunk)]))

    monkeypatch.setattr(contrastive_memory, "measure", measure)
    small = ["--audio_config", "tiny", "--text_layers", "1", "--text_width", "64", "--seconds", "1", "--words", "4"]
    file = tmp_path / "memory.json"
    result = main([*small, "--batches", "128", "--chunk", "16", "--device", "cpu", "--output", str(file)])
    assert load_json(file) == result
    (point,) = result["points"]
    assert 0 < point["chunked_bytes"] < 0.7 * point["whole_bytes"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 128 | ")


@pytest.mark.slow
def test_a_batch_of_4096_needs_the_memory_of_one_of_256():
    """What chunks are for: the negatives of a large batch on the memory of a small one."""
    few, many = main(["--batches", "256", "4096", "--largest_whole", "0", "--device", "cpu"])["points"]
    assert many["chunked_bytes"] <= 1.1 * few["chunked_bytes"]
