"""A real disk of a few megabytes: a tmpfs in a mount namespace of its own, which needs no rights."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

MOUNTED = "mounted"


@dataclass(frozen=True)
class SmallDisk:
    """`path` is its folder for a command that begins with `enter`, `outside` the same folder for everybody else."""

    path: Path
    outside: Path
    enter: tuple[str, ...]

    def remount(self, options: str) -> None:
        subprocess.run([*self.enter, "mount", "-o", f"remount,{options}", str(self.path)], check=True)


@contextmanager
def small_disk(path: Path, mib: int) -> Iterator[SmallDisk]:
    """`path` is made. Skips the test where the kernel does not let everybody have namespaces."""
    path.mkdir()
    keep = f"mount -t tmpfs -o size={mib}m tmpfs {path} && echo {MOUNTED} && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", keep],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin and holder.stdout and holder.stderr
    try:
        if holder.stdout.readline().strip() != MOUNTED:
            pytest.skip(f"no mount namespace can be had here: {holder.stderr.read().strip()}")
        enter = ("nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials", "--")
        enter += ("env", f"--chdir={Path.cwd()}")
        yield SmallDisk(path, Path(f"/proc/{holder.pid}/root{path}"), enter)
    finally:
        holder.stdin.close()
        holder.wait()
