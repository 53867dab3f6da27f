"""Peak memory of `mm1 prepare` for inputs of several sizes: it must not grow with them.

    python benchmarks/prepare_memory.py                      # 100 and 400 MB
    python benchmarks/prepare_memory.py --megabytes 20000    # needs three times as much disk, in --folder

The input is generated: captioned pictures in tars of 200 MB, and a fiftieth of it text in JSON lines. All pictures are
the same noise of 640 x 480 pixels; they differ in bytes after the end of their data, such as cameras write, too.
"""

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image

_TAR, _PICTURE, _TEXT = 200 * 2**20, 500 * 2**10, 2**12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="100,400", help="sizes of input, comma-separated")
    parser.add_argument("--folder", type=Path, help="where input and output are written, and removed afterwards")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; one worker")
    for megabytes in map(int, options.megabytes.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(measure(Path(folder), megabytes), flush=True)


def measure(folder: Path, megabytes: int) -> str:
    """A line with the documents, the time and the peak memory for an input of this size."""
    size = megabytes * 2**20
    write_tars(folder / "tars", size * 49 // 50)
    write_text(folder / "text", size // 50)
    words = [sys.executable, "-m", "mm1", "prepare", str(folder / "tars"), str(folder / "text")]
    began = time.perf_counter()
    # without this glibc keeps up to 200 MB that Lance's threads have freed, which would count as used
    environment = os.environ | {"MALLOC_ARENA_MAX": "2"}
    process = subprocess.Popen([*words, "--to", str(folder / "out")], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"mm1 prepare ended with {os.waitstatus_to_exitcode(status)}")
    card = json.loads((folder / "out" / "card.json").read_text())
    peak = usage.ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
    shutil.rmtree(folder / "out")
    return f"{megabytes:,} MB: {card['records']['kept']:,} documents, {seconds:.0f} s, peak {peak:,} MB"


def write_tars(folder: Path, size: int) -> None:
    """Writes tars of captioned pictures, `size` bytes in total."""
    folder.mkdir()
    random = np.random.default_rng(0)
    noise = PIL.Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)).resize((640, 480))
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=90)
    count, per_tar = size // _PICTURE, _TAR // _PICTURE
    for first in range(0, count, per_tar):
        with tarfile.open(folder / f"{first:09}.tar", "w") as tar:
            for number in range(first, min(first + per_tar, count)):
                picture = file.getvalue() + random.bytes(_PICTURE - len(file.getvalue()))
                caption = " ".join(f"w{word}" for word in random.integers(0, 50_000, 12))
                for ending, data in (("jpg", picture), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:09}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_text(folder: Path, size: int) -> None:
    """Writes JSON lines of random words, `size` bytes in total."""
    folder.mkdir()
    random = np.random.default_rng(1)
    with (folder / "0.jsonl").open("w") as file:
        while file.tell() < size:
            text = " ".join(f"w{word}" for word in random.integers(0, 50_000, _TEXT // 7))
            file.write(json.dumps({"text": text}) + "\n")


if __name__ == "__main__":
    main()
