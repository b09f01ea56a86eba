"""The tar of a shard holds the bytes that Python's tarfile writes, whatever the samples."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.shards.tar import write_tar

Samples = list[tuple[str, dict[str, bytes]]]
SAMPLES = st.lists(
    st.tuples(
        st.from_regex(r"[0-9]{1,12}", fullmatch=True), st.dictionaries(st.sampled_from(["jpg", "json", "txt"]), st.binary(max_size=1500))
    )
)


def by_tarfile(samples: Samples) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for suffix in sorted(members):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mtime, info.mode = len(members[suffix]), 0, 0o444
                info.uname = info.gname = "bigdata"
                tar.addfile(info, io.BytesIO(members[suffix]))
    return out.getvalue()


@given(samples=SAMPLES)
def test_bytes_are_tarfiles(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tar") / "0.tar"
    seen = hashlib.sha256()
    lines = write_tar(path, samples, seen.update)
    body = path.read_bytes()
    assert body == by_tarfile(samples)
    assert seen.digest() == hashlib.sha256(body).digest()
    words = [line.split() for line in lines]
    told = [
        (name, body[int(offset) : int(offset) + int(size)])
        for line in words
        for offset, size, name in zip(line[1::4], line[2::4], line[3::4], strict=True)
    ]
    assert told == [(f"{key}.{suffix}", parts[suffix]) for key, parts in samples for suffix in sorted(parts)]


def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("00", {"jpg": b"x" * 513, "txt": b""})])
    listed = subprocess.run(["tar", "-tvf", str(tmp_path / "0.tar")], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [(line.split()[0], line.split()[2], line.split()[-1]) for line in listed] == [
        ("-r--r--r--", "513", "00.jpg"),
        ("-r--r--r--", "0", "00.txt"),
    ]


@pytest.mark.parametrize("key", ["0" * 97, "schlüssel"])
def test_a_name_that_does_not_fit_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of either kind: too long, not ASCII)
        write_tar(tmp_path / "0.tar", [(key, {"jpg": b""})])


def test_a_disk_that_takes_no_more_is_an_error(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from stages.shards.tar import write_tar\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "write_tar(Path(sys.argv[1]), [(str(n), {'jpg': bytes(1000)}) for n in range(200)])"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "0.tar")], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "OSError: [Errno 27] File too large")


def test_many_small_members(tmp_path: Path) -> None:
    samples: Samples = [(f"{n:05d}", {"txt": b"%d" % n}) for n in range(3000)]
    samples.append(("9", {f"{n:04d}.jpg": b"%d" % n for n in range(3000)}))  # a clip of many frames
    write_tar(tmp_path / "0.tar", samples)
    assert (tmp_path / "0.tar").read_bytes() == by_tarfile(samples)
