"""Downloads over bad links: each byte once, no wrong byte kept, no endless wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.exceptions import DownloadHTTPError, SlowRetrievalError

from tests.support.mirror import Link, serving
from toolchain.core.digest import sha256
from toolchain.core.errors import (
    RepositoryError,
    SlowRepositoryError,
    UsageError,
    VerificationError,
)
from toolchain.device.agent.transport import TransferLimits, Transport

DATA = bytes(range(256)) * 1000
DIGEST = sha256(DATA)


class Waits(list[float]):
    """What a transport waited; it does not really wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Link]]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "blob").write_bytes(DATA)
    with serving(folder) as (url, link):
        yield f"{url}/blob", link


def download(url: str, part: Path, limits: TransferLimits | None = None) -> Transport:
    transport = Transport(limits or TransferLimits(stall_s=0.5), wait=Waits())
    transport.download(url, part, size=len(DATA), digest=DIGEST)
    assert part.read_bytes() == DATA
    return transport


def test_a_file_comes_whole(mirror: tuple[str, Link], tmp_path: Path) -> None:
    transport = download(mirror[0], tmp_path / "part")
    assert transport.received_bytes == len(DATA) == mirror[1].sent
    # What is there already is not asked for again.
    download(mirror[0], tmp_path / "part")
    assert len(mirror[1].asked) == 1


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(20_000, 300_000))
def test_a_link_that_is_cut_costs_no_byte_twice(cut: int) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "blob").write_bytes(DATA)
        with serving(Path(folder)) as (url, link):
            link.cut_after = cut
            transport = download(f"{url}/blob", Path(folder) / "part")
            assert transport.received_bytes == len(DATA)


def test_what_an_earlier_call_brought_is_kept(mirror: tuple[str, Link], tmp_path: Path) -> None:
    url, link = mirror
    link.cut_after, link.ranges = 100_000, False
    limits = TransferLimits(attempts=1)
    with pytest.raises(RepositoryError, match="broke off"):
        download(url, tmp_path / "part", limits)
    assert (tmp_path / "part").stat().st_size == 100_000
    link.cut_after, link.ranges, link.sent = None, True, 0
    download(url, tmp_path / "part")
    assert link.sent == len(DATA) - 100_000


def test_a_server_without_ranges_sends_it_again(mirror: tuple[str, Link], tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(DATA[:1000])
    mirror[1].ranges = False
    assert download(mirror[0], tmp_path / "part").received_bytes == len(DATA)


def test_a_part_that_is_longer_than_the_file_begins_anew(
    mirror: tuple[str, Link], tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(DATA + b"more")
    download(mirror[0], tmp_path / "part")


def test_a_file_that_is_shorter_there_is_refused(mirror: tuple[str, Link], tmp_path: Path) -> None:
    transport = Transport(TransferLimits(attempts=2), wait=Waits())
    with pytest.raises(RepositoryError):
        transport.download(mirror[0], tmp_path / "part", size=len(DATA) + 5, digest=DIGEST)


def test_other_bytes_are_removed(mirror: tuple[str, Link], tmp_path: Path) -> None:
    url, link = mirror
    link.flip = 777
    with pytest.raises(VerificationError, match="changes bytes"):
        download(url, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_an_endless_answer_is_not_read_on(tmp_path: Path) -> None:
    """Attack: endless data. The file there is larger than what was signed."""
    (tmp_path / "blob").write_bytes(DATA * 40)
    with serving(tmp_path) as (url, link):
        link.piece = 1 << 12
        download(f"{url}/blob", tmp_path / "part")
        assert link.sent < 20 * len(DATA)


def test_a_range_that_begins_elsewhere_is_refused(mirror: tuple[str, Link], tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(DATA[:1000])
    mirror[1].lies = True
    with pytest.raises(RepositoryError, match="from 1000 on"):
        download(mirror[0], tmp_path / "part")


def test_a_link_that_stalls_is_left(mirror: tuple[str, Link], tmp_path: Path) -> None:
    """Attack: slow retrieval, no byte at all."""
    url, link = mirror
    link.pause_s = 1.5
    with pytest.raises(SlowRepositoryError, match="no byte came"):
        download(url, tmp_path / "part", TransferLimits(stall_s=0.1, attempts=1))


def test_a_link_that_drips_is_left(
    mirror: tuple[str, Link], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: slow retrieval, one byte at a time."""
    monkeypatch.setattr("toolchain.device.agent.transport._WINDOW_S", 0.2)
    url, link = mirror
    link.piece, link.pause_s = 1, 0.01
    with pytest.raises(SlowRepositoryError, match="at least 1024 bytes a second"):
        download(url, tmp_path / "part")


def test_a_bandwidth_is_kept(mirror: tuple[str, Link], tmp_path: Path) -> None:
    waits = Waits()
    transport = Transport(TransferLimits(bandwidth=1e6), wait=waits)
    transport.download(mirror[0], tmp_path / "part", size=len(DATA), digest=DIGEST)
    # It did not really wait, so each wait tells how far it was ahead; the last tells all of it.
    assert max(waits) == pytest.approx(len(DATA) / 1e6, rel=0.5)


def test_attempts_pause_longer_each_time(tmp_path: Path) -> None:
    waits = Waits()
    transport = Transport(TransferLimits(attempts=4, pause_s=1.0), wait=waits)
    with pytest.raises(RepositoryError) as caught:
        # Nobody listens on port 1.
        transport.download("http://127.0.0.1:1/blob", tmp_path / "part", size=1, digest=DIGEST)
    assert waits == [1.0, 2.0, 4.0]
    assert "try again" in caught.value.fix


@pytest.mark.parametrize("status", [404, 403])
def test_what_is_not_there_is_not_asked_for_again(
    mirror: tuple[str, Link], tmp_path: Path, status: int
) -> None:
    url, link = mirror
    link.status = status
    with pytest.raises(RepositoryError, match="no such file"):
        download(url, tmp_path / "part")
    assert len(link.asked) == 1


def test_a_folder_or_a_stick_serves_as_well(tmp_path: Path) -> None:
    site = tmp_path / "a stick"
    site.mkdir()
    (site / "blob").write_bytes(DATA)
    (tmp_path / "part").write_bytes(DATA[:500])
    download((site / "blob").as_uri(), tmp_path / "part")
    with pytest.raises(RepositoryError, match="no such file"):
        download((site / "missing").as_uri(), tmp_path / "other")
    (site / "pipe").mkdir()
    with pytest.raises(RepositoryError, match="regular file"):
        download((site / "pipe").as_uri(), tmp_path / "other", TransferLimits(attempts=1))


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ftp"):
        download("ftp://127.0.0.1/blob", tmp_path / "part")


def test_python_tuf_reads_through_it(mirror: tuple[str, Link]) -> None:
    url, link = mirror
    transport = Transport(TransferLimits(stall_s=0.5))
    assert transport.download_bytes(url, len(DATA)) == DATA
    with pytest.raises(DownloadHTTPError) as caught:
        transport.download_bytes(f"{url}-missing", 10)
    assert caught.value.status_code == 404
    link.pause_s = 1.5
    with pytest.raises(SlowRetrievalError):
        transport.download_bytes(url, len(DATA))


def whole(url: str) -> tuple[bytes, Transport]:
    """Fetch as python-tuf does."""
    transport = Transport(TransferLimits(stall_s=0.5), wait=Waits())
    return b"".join(transport.fetch(url)), transport


@pytest.mark.parametrize("ranges", [True, False])
def test_metadata_goes_on_where_a_link_was_cut(tmp_path: Path, ranges: bool) -> None:
    (tmp_path / "4.targets.json").write_bytes(DATA)
    with serving(tmp_path) as (url, link):
        link.cut_after, link.ranges = 100_000, ranges
        if ranges:
            data, transport = whole(f"{url}/4.targets.json")
            assert data == DATA
            assert transport.received_bytes == len(DATA)
        else:
            # It never comes further than the first cut.
            with pytest.raises(RepositoryError):
                whole(f"{url}/4.targets.json")


def test_a_file_that_changes_is_never_put_together_of_two(tmp_path: Path) -> None:
    (tmp_path / "timestamp.json").write_bytes(DATA)
    with serving(tmp_path) as (url, link):
        link.cut_after = 100_000
        with pytest.raises(RepositoryError):
            whole(f"{url}/timestamp.json")
        assert len(link.asked) == 1
