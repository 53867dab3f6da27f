"""Memory and time of `mm1 import` and `mm1 export` on a model much larger than one of its files.

`python benchmarks/exchange.py [--layers 20]` makes a random Llama of 0.6 B parameters in fp32 (2.4 GB in files of
250 MB), imports it and exports it again, each in a process of its own. `held` is the peak of the process's own memory,
less that at the start; `mapped` is that of the mapped pages of files, which the system can free at any time. It runs on
Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mm1 import checkpoint
from mm1.config import run as config
from mm1.config.model import DecoderConfig, ModelConfig
from mm1.config.run import DataConfig, RunConfig
from mm1.data.recorded import record_text
from mm1.data.tokenizer import load_tokenizer
from mm1.exchange.export import export_run
from mm1.exchange.importing import import_model
from mm1.model.decoder import Decoder

SHARD = 250 * 10**6


def make(folder: Path, layers: int) -> None:
    """Write a run of random weights, and its export as the published model."""
    decoder = DecoderConfig(
        vocabulary=16_384, width=1536, layers=layers, heads=12, kv_heads=12, head_width=128, mlp_width=4224
    )
    weights = {f"decoder.{name}": x.normal_(std=0.02) for name, x in Decoder(decoder).state_dict().items()}
    checkpoint.save_weights(folder / "made", weights)
    run = RunConfig(model=ModelConfig(decoder=decoder), data=DataConfig(max_images=0))
    record_text(folder / "made", load_tokenizer(run.data.tokenizer))
    config.save(run, folder / "made/config.json")
    export_run(folder / "made", folder / "published", shard_bytes=SHARD)
    theirs = json.loads((folder / "published/config.json").read_text())
    del theirs["mm1"]  # or it would be imported as an export of ours
    (folder / "published/config.json").write_text(json.dumps(theirs))


def measured(work: Callable[[], object]) -> str:
    """Run `work`; the peaks of its own and of mapped memory, and its seconds."""
    before, peaks, done = memory(), {"RssAnon": 0.0, "RssFile": 0.0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            now = memory()
            for kind in peaks:
                peaks[kind] = max(peaks[kind], now[kind] - before[kind])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - start
    return f"held {peaks['RssAnon']:6,.0f} MB, mapped {peaks['RssFile']:6,.0f} MB, {seconds:5.1f} s"


def memory() -> dict[str, float]:
    """Resident megabytes of this process by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Rss")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="of 29 M parameters each")
    parser.add_argument("--step", choices=("make", "import", "export"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step == "make":
        make(options.folder, options.layers)
    elif options.step == "import":
        figures = measured(lambda: import_model(str(options.folder / "published"), options.folder / "run"))
        print(f"import: {figures}", flush=True)
    elif options.step == "export":
        run, to = options.folder / "run", options.folder / "again"
        print(f"export: {measured(lambda: export_run(run, to, shard_bytes=SHARD))}", flush=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("make", "import", "export"):
                words = ["--layers", str(options.layers), "--step", step, "--folder", folder]
                subprocess.run([sys.executable, __file__, *words], check=True)
                if step == "make":
                    files = [path.stat().st_size for path in Path(folder, "published").glob("*.safetensors")]
                    print(f"model: {sum(files) / 1e6:,.0f} MB in {len(files)} files", flush=True)


if __name__ == "__main__":
    main()
