"""Parquet of the Hub as a stream, by the real client: ranges of files over HTTP, from a server on the loopback."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from stream_helpers import write_parquet

SHA = "a" * 40
CLIENT = """
import sys
sys.path[:0] = {path}
from shards import count_rows, find_shards
from speech_sources import DataArguments
from speech_stream import SpeechStream
from stream_helpers import batches

files = find_shards("someone/speech", "train")
blocks = count_rows(files)
streams = [SpeechStream(blocks, DataArguments(), 2, rank=rank, num_ranks=2) for rank in range(2)]
print([sorted(clip for batch in batches(stream, 1, 2) for clip in batch) for stream in streams])
try:
    find_shards("someone/speech", "test")
except ValueError as error:
    print(error)
"""


@pytest.fixture
def hub(tmp_path):
    """The address of a Hub that holds `someone/speech`: two shards of 13 clips under `data/`."""
    root = tmp_path / "repository"
    write_parquet(root / "data", (9, 4))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):  # noqa: N802
            path = unquote(urlsplit(self.path).path)
            if re.fullmatch(r"/api/datasets/someone/speech(/revision/\w+)?", path):
                names = [{"rfilename": str(file.relative_to(root))} for file in root.rglob("*.parquet")]
                return self.answer(200, json.dumps({"id": "someone/speech", "sha": SHA, "siblings": names}).encode())
            if found := re.fullmatch(r"/api/datasets/someone/speech/tree/\w+/?(.*)", path):
                entries = [
                    {
                        "type": "file" if entry.is_file() else "directory",
                        "path": str(entry.relative_to(root)), "oid": "0" * 40, "size": entry.stat().st_size,
                    }
                    for entry in sorted((root / found[1]).glob("*"))
                ]  # fmt: skip
                return self.answer(200, json.dumps(entries).encode())
            found = re.fullmatch(r"/datasets/someone/speech/resolve/\w+/(.+)", path)
            if found is None or not (root / found[1]).is_file():
                return self.answer(404, X_Error_Code="EntryNotFound")
            content = (root / found[1]).read_bytes()
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                start, stop = int(part[1]), min(int(part[2]) + 1, len(content))
                place = f"bytes {start}-{stop - 1}/{len(content)}"
                return self.answer(206, content[start:stop], Content_Range=place, ETag='"1"')
            return self.answer(200, content, ETag='"1"')

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_streamed_by_ranges_of_its_files(hub, tmp_path):
    here = Path(__file__).parent
    path = [str(here), str(here.parent / "examples"), str(here.parent)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")},
        "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    (tmp_path / "client.py").write_text(CLIENT.format(path=path))
    command = [sys.executable, str(tmp_path / "client.py")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr
    ranks, refused = finished.stdout.splitlines()
    clips = json.loads(ranks)
    assert [len(rank) for rank in clips] == [6, 6] and len(set(clips[0] + clips[1])) == 12
    assert "no split 'test' of parquet files; its splits are ['train']" in refused
    assert not list((tmp_path / "home").rglob("*.parquet"))  # nothing was downloaded whole
