"""Files of named data sets: in a folder, on the hub, or neither."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megatron_rapo.config.file import load_config
from megatron_rapo.data import TEMPLATES
from megatron_rapo.data.rows import DataError
from megatron_rapo.data.sources import SOURCES, find_original
from tests.patience import HANG_S

ROOT = Path(__file__).parents[2]
CONTENT, COMMIT = b'{"problem": "p", "answer": "2"}\n', "0123456789abcdef0123456789abcdef01234567"


def test_every_source_says_what_it_needs():
    for name, source in SOURCES.items():
        assert source.title and source.licence and source.rows > 0, name
        assert {"problem", "answer"} <= set(source.fields), name
        assert source.url("main") == f"https://huggingface.co/datasets/{source.repository}/resolve/main/{source.file}"


def test_the_documentation_and_the_configurations_have_them():
    text = (ROOT / "docs/data.md").read_text()
    for name, source in SOURCES.items():
        assert f"| `{name}` | {source.rows:,} | " in text and f"| {source.repository}, `{source.file}` | " in text
    for template in TEMPLATES:
        assert f"| `{template}` | " in text
    config = load_config(ROOT / "examples/simplerl/base.toml")
    assert (config.data.train, config.evaluation.data) == (
        Path("data/simplerl-zero-8k.parquet"),
        Path("data/aime24.parquet"),
    )
    assert {config.data.train.stem, config.evaluation.data.stem} <= set(SOURCES)


@pytest.mark.parametrize(
    "file",
    [
        "simplelr_qwen_level3to5/train.parquet",
        "train.parquet",
        "math_level3to5_data_processed_with_qwen_prompt.json",
    ],
)
def test_a_folder_may_hold_the_file_under_any_of_its_names(tmp_path, file):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert find_original("simplerl-zero-8k", tmp_path, "main") == path
    assert find_original("simplerl-zero-8k", path, "main") == path


def test_a_folder_without_it(tmp_path):
    with pytest.raises(DataError) as raised:
        find_original("gsm8k", tmp_path, "main")
    assert str(raised.value) == (
        f"--from {tmp_path}: holds none of main/test-00000-of-00001.parquet, test-00000-of-00001.parquet, test.jsonl; "
        "download https://huggingface.co/datasets/openai/gsm8k/resolve/main/main/test-00000-of-00001.parquet into it."
    )


class Hub(http.server.BaseHTTPRequestHandler):
    """A fake hub that answers the client's requests for one file on the branch main."""

    def do_HEAD(self):
        there = self.path == "/datasets/math-ai/aime25/resolve/main/test.jsonl"
        self.send_response(200 if there else 404)
        if there:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"etag"')
        else:
            self.send_header("X-Error-Code", "RevisionNotFound")
        self.send_header("Content-Length", str(len(CONTENT) if there else 0))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


def download(revision, home, **environment):
    """Download in a separate process, because the library reads its variables on import."""
    script = (
        "from megatron_rapo.data.sources import DataError, download_original\n"
        f"try:\n    path, commit = download_original('aime25', {revision!r})\n    print(commit, path.read_text())\n"
        "except DataError as error:\n    print(error)\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), **environment}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=variables, timeout=HANG_S
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_hub(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        online = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        assert download("main", tmp_path, **online) == f"{COMMIT} {CONTENT.decode()}\n"
        assert download("v2", tmp_path, **online) == (
            "--revision v2: math-ai/aime25 has no such branch, tag or commit; leave it out.\n"
        )
        server.shutdown()
    assert download("main", tmp_path, HF_HUB_OFFLINE="1") == f"{COMMIT} {CONTENT.decode()}\n"  # the cache has it


def test_without_a_network_it_says_what_to_download_and_where_to_put_it(tmp_path):
    said = download("main", tmp_path, HF_HUB_OFFLINE="1")
    url = "https://huggingface.co/datasets/math-ai/aime25/resolve/main/test.jsonl"
    assert said.startswith(f"aime25: {url} cannot be downloaded (LocalEntryNotFoundError: ")
    folder = "data/original/aime25"
    assert said.endswith(
        f"; download it on a machine with network access, put it into {folder} and pass --from {folder}.\n"
    )
