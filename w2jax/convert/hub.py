"""Find models by their names on the Hugging Face hub, and download the files that the converter reads.

Only the JSON files in `_CONFIGS` and one kind of weights are downloaded. The library huggingface_hub stores them in its
cache and reads its own variables: HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from w2jax.convert.files import KNOWN, shard_map
from w2jax.text import one_line, shorten

_PREFIX = re.compile(r"hf[-_]hub:")  # as timm writes it
_WORD = r"\w(?:[\w.-]*\w)?"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@({_WORD}(?:/{_WORD})*))?", re.ASCII)
_MAX_NAME, _MAX_REVISION = 96, 200  # characters; the hub's limit of names, and a part of a path in the cache
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIGS = ("config.json", "preprocessor_config.json", "open_clip_config.json")
_INDEX = "model.safetensors.index.json"
_BIN = ("pytorch_model.bin", "open_clip_pytorch_model.bin")

_logger = logging.getLogger(__name__)
_found: dict[tuple[str, str], Path] = {}  # weights by model and commit: the hub is asked once in a process


def local_path(name_or_path: str | Path) -> Path:
    """Return the path of weights. If they are on the Hugging Face hub, download them to the library's cache first.

    If the hub cannot be reached, a model in the cache is used and a warning is logged.

    Args:
        name_or_path: a file or folder. If it does not exist, a string OWNER/NAME or OWNER/NAME@REVISION names a model
            on the hub. If there is a folder OWNER, write "hf-hub:" before it. REVISION is a branch, a tag or a commit,
            by default the branch main. A `Path` is never the name of a model.

    Returns:
        A `Path` unchanged, an existing path, or a weights file in the cache. The JSON files of the model are in the
        same folder, whose name is the commit.

    Raises:
        FileNotFoundError: there is no such path, model, revision or file.
        OSError: the model cannot be downloaded.
        ValueError: a name that begins with "hf-hub:" is malformed, or the model has no weights that w2jax reads.
        ImportError: huggingface_hub is not installed.
    """
    if isinstance(name_or_path, Path):
        return name_or_path
    name, path = _parse(name_or_path), Path(name_or_path)
    if path.exists():
        return path
    if name is None:
        raise FileNotFoundError(
            f"{shorten(name_or_path)} does not exist. Pass a weight file, a folder with one, or the name of a model on "
            "the Hugging Face hub: OWNER/NAME, or hf-hub:OWNER/NAME if there is a folder OWNER here"
        )
    repo, revision = name
    if (repo, revision) not in _found:
        path = _download(repo, revision)
        _found[repo, path.parent.name] = path
        return path
    return _found[repo, revision]


def is_name(name_or_path: str) -> bool:
    """Return whether this is the form of a name on the hub, and there is no such path."""
    return not Path(name_or_path).exists() and _parse(name_or_path) is not None


def pinned(name_or_path: str) -> str:
    """Return the name with its commit if this is a model on the hub, OWNER/NAME@COMMIT. A path is returned unchanged.

    The result is the name of the same weights also after the branch has moved. Raises as `local_path`.
    """
    path = local_path(name_or_path)
    is_local = path == Path(name_or_path)
    return name_or_path if is_local else f"{name_or_path.partition('@')[0]}@{path.parent.name}"


def _parse(text: str) -> tuple[str, str] | None:
    """Return the model and the revision if `text` has the form of a name, else None.

    Without the prefix, text that ends like a weight file is a path. So is the name of a missing file in an existing
    folder, such as a run folder with a typing error, which must not be looked up on the hub.
    """
    prefix = _PREFIX.match(text)
    match = _NAME.fullmatch(text, prefix.end() if prefix else 0)
    if match and (prefix or not (text.endswith(KNOWN) or Path(text).parent.is_dir())):
        repo, revision = match.groups(default="main")
        forbidden = re.search(r"\.\.|--", repo) or repo.endswith(".git")
        if not forbidden and len(repo) <= _MAX_NAME and len(revision) <= _MAX_REVISION:
            return repo, revision
    if prefix:
        raise ValueError(
            f"a name on the Hugging Face hub must be OWNER/NAME or OWNER/NAME@REVISION, got {shorten(one_line(text))}"
        )
    return None


def _download(repo: str, revision: str) -> Path:
    """Download a model, or find it in the cache if the hub cannot be reached. Return the path of its weights."""
    try:
        from huggingface_hub import HfApi, constants, errors, hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"{repo} does not exist here. If it is a model on the Hugging Face hub, run pip install huggingface_hub to "
            "download it"
        ) from error
    # The base of the errors of requests, httpx or httpx2: the library's version determines which.
    of_transport: Any = errors.HfHubHTTPError.__bases__[0]
    failures = (OSError, of_transport, RuntimeError)  # hf_xet raises RuntimeErrors
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        names = [sibling.rfilename for sibling in info.siblings or []]
    except (*failures, ValueError) as error:  # a ValueError: the answer is not JSON
        cached = _cached(Path(constants.HF_HUB_CACHE), repo, revision)
        if cached is None:
            raise _explained(error, repo, revision) from error
        if not isinstance(error, errors.OfflineModeIsEnabled):
            commit = cached.parent.name
            _logger.warning("cannot ask the hub for %s: %s. Using commit %s of the cache", repo, _reason(error), commit)
        return cached
    weights = _weights(names)
    if weights is None:
        raise ValueError(
            f"{repo} must have a file that w2jax reads: model.safetensors, its index and shards, one .safetensors or "
            f".npz file, or pytorch_model.bin. Got {shorten(one_line(', '.join(sorted(names))), 300) or 'no files'}"
        )
    first, *others = (*(name for name in _CONFIGS if name in names), weights)
    try:
        # This download resolves the branch and notes its commit in the cache. The others use the same commit.
        folder = Path(hf_hub_download(repo, first, revision=revision)).parent
        for name in others:
            hf_hub_download(repo, name, revision=folder.name)
        for shard in sorted(set(shard_map(folder / weights).values())) if weights == _INDEX else ():
            hf_hub_download(repo, shard, revision=folder.name)
    except failures as error:
        raise _explained(error, repo, revision) from error
    return folder / weights


def _weights(names: Iterable[str]) -> str | None:
    """Return the weights file to read among the names of a model's files."""
    top = [name for name in names if "/" not in name]
    single = [[name for name in top if name.endswith(suffix)] for suffix in (".safetensors", ".npz")]
    only = [found[0] for found in single if len(found) == 1]
    preferred = ("model.safetensors", _INDEX, "open_clip_model.safetensors", "model.npz", *only, *_BIN)
    return next((name for name in preferred if name in top), None)


def _cached(cache: Path, repo: str, revision: str) -> Path | None:
    """Return the path of a model's weights in the cache, if they are complete there."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    reference = folder / "refs" / revision
    commit = revision if _COMMIT.fullmatch(revision) or not reference.is_file() else reference.read_text().strip()
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        return None
    names = {path.name for path in snapshot.iterdir() if path.is_file()}
    weights = _weights(names)
    if weights is None or (weights == _INDEX and not names.issuperset(shard_map(snapshot / weights).values())):
        return None
    return snapshot / weights


def _explained(error: Any, repo: str, revision: str) -> OSError:
    """Return an error of one line that says what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return OSError(f"{repo} needs its authors' permission. Accept the conditions at {page} and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{repo} does not exist, neither here nor as a public model at {constants.ENDPOINT}. Correct the name, or "
            "set HF_TOKEN if the model is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{repo} has no revision {revision}. Choose a branch, tag or commit of {page}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return FileNotFoundError(
            f"{repo}@{revision} does not exist here and is not in the cache {constants.HF_HUB_CACHE}. Unset "
            "HF_HUB_OFFLINE to download it"
        )
    return OSError(
        f"{repo}@{revision} does not exist here and cannot be downloaded: {_reason(error)}. "
        "Check the connection and HF_TOKEN, and try again"
    )


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message. The library's own errors hide the cause."""
    text = str(error.__cause__ or error).split("\n")[0]
    return shorten(one_line(text.rstrip(".") or type(error).__name__), 300)
