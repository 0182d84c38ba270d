"""A full disk: the error says truly what is saved, and with more space the run ends in the same bits."""

from pathlib import Path

from tests.stress.running import Broken
from tests.stress.trial import Trial, mounted

_PAGE = 4096  # bytes; a tmpfs stores whole pages


def full_disk(trial: Trial) -> None:
    """Trains on a file system with too little space or too few files, which then gets more.

    Where nothing can be mounted, a limit of each file's size replaces the full disk.
    """
    paths = list(trial.reference.whole.rglob("*"))
    share = trial.rng.uniform(0.02, 1.2)
    if not trial.can_mount:
        blocks = int(share * max(path.stat().st_size for path in paths) / 1024) + 1
        trial.story.append(f"a limit of {blocks} KiB for each file")
        _fill(trial, trial.place / "run", f'ulimit -f {blocks}; exec "$@"')
        trial.resume(trial.place / "run")
        return
    disk = trial.place / "disk"
    disk.mkdir()
    if trial.rng.random() < 0.5:
        pages = sum(-(-path.stat().st_size // _PAGE) for path in paths)
        limit = f"size={int(share * pages + 2) * _PAGE}"
    else:
        limit = f"nr_inodes={int(share * len(paths)) + 3}"
    trial.story.append(f"a disk with {limit}")
    if not mounted("mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk)):
        raise Broken("the disk could not be mounted")
    try:
        _fill(trial, disk / "run")
        if not mounted("mount", "-o", "remount,size=256m,nr_inodes=100000", str(disk)):
            raise Broken("the disk could not be enlarged")
        trial.resume(disk / "run")
    finally:
        mounted("umount", "--lazy", str(disk))


def _fill(trial: Trial, folder: Path, shell: str | None = None) -> None:
    if trial.train(folder, shell).finished:
        trial.check_results(folder)
