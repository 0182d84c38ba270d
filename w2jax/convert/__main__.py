"""python -m w2jax.convert SRC DST --format F: convert a weight file to the names and layouts of another library."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import linen as nn

from w2jax.blocks import Activation
from w2jax.convert.files import read_weights
from w2jax.convert.hub import pinned
from w2jax.convert.load_save import Loaded, load_described, parameters_in
from w2jax.convert.saving import save_described
from w2jax.convert.schema import split_variables
from w2jax.convert.state_dict import read_variables
from w2jax.convert.vit_tables import FORMATS
from w2jax.interrupt import run_main
from w2jax.text import count_of, printable
from w2jax.vit import ViT


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a file, compare two files, or both. Return the exit status.

    0: success. 1: the files differ. 2: an argument or a file is wrong.
    """
    options = _parser().parse_args(arguments)
    if options.image_size is not None:
        options.image_size = tuple(options.image_size)
    names = ("num_heads", "activation", "norm_eps", "pool", "pool_prefix", "res_post_norm", "image_size")
    fields = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    try:
        options.src = pinned(str(_path(options.src)) if options.src.startswith("~") else options.src)
        source = load_described(options.src, options.head, average=not options.raw, prefix=options.prefix, **fields)
        _print_table(_source_rows(options.src, source))
        if options.format or not options.check:
            saved = save_described(
                options.dst,
                source.module,
                source.variables,
                options.format,
                options.shard_bytes,
                options.image_size,
                source.leaves,
                source_config=source.config,
                spec=source.spec,
                overwrite=options.overwrite,
            )
            _print_table(saved.rows(options.dst))
        if options.check:
            return _compare(source, options)
    except (ValueError, OSError, ImportError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


def _path(text: str) -> Path:
    return Path(text).expanduser()  # A shell leaves a quoted ~ as it is.


def _parser() -> argparse.ArgumentParser:
    families = dict.fromkeys(form.family for form in FORMATS)
    variants = ", ".join(form.name for form in FORMATS if form.name not in families)
    parser = argparse.ArgumentParser(
        "python -m w2jax.convert",
        usage="%(prog)s SRC DST [OPTIONS]",
        description="Converts the weights of a Vision Transformer between timm, Hugging Face,\n"
        "torchvision, Google and w2jax.\n\n"
        "  python -m w2jax.convert vit.safetensors vit.npz --format google\n"
        "  python -m w2jax.convert pretrained vit-hf --format huggingface",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "src",
        metavar="SRC",
        help="file to read: .safetensors, .safetensors.index.json, .npz, or torch's .pt, .pth, .ckpt, .tar or .bin; or "
        "a folder with one of them; or a model on the Hugging Face hub, OWNER/NAME or OWNER/NAME@REVISION",
    )
    parser.add_argument(
        "dst",
        type=_path,
        metavar="DST",
        help="file to write: .safetensors, .npz, .pt or .pth; or a folder, in which model.safetensors is written",
    )
    parser.add_argument(
        "--format",
        help=f"library whose tensor names and layouts DST gets: {', '.join(families)}; or a variant: {variants}. "
        "Default: timm, or google if DST is an .npz file. If the model is not a ViT: torch (the names of torch.nn)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare DST with SRC tensor by tensor; without --format, DST must exist and nothing is written",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files even if w2jax did not write them. Otherwise the command stops with an error",
    )
    parser.add_argument("--head", choices=["drop"], help="drop: convert without the classifier. Default: with it")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="read the raw weights of a torch file that also has averaged ones (state_dict_ema, model_ema). "
        "Default: the averaged ones",
    )
    parser.add_argument(
        "--prefix",
        metavar="P",
        help='start of the names of the tensors to convert, such as "teacher.backbone.", if SRC has several models. '
        "Default: the prefix is found, and the other tensors are left out",
    )
    parser.add_argument(
        "--shard-bytes",
        type=int,
        metavar="N",
        help="if DST is a folder, split the weights into files of at most N bytes. Default: one file",
    )
    unknown = parser.add_argument_group(
        "options of the model in SRC",
        "The tensors do not always determine these options. Pass an option if the\n"
        "model differs from the default of its library.",
    )
    unknown.add_argument(
        "--num-heads",
        type=int,
        metavar="N",
        help="number of attention heads. Default: that of the published ViT of this width, else width / 64",
    )
    unknown.add_argument(
        "--activation", choices=get_args(Activation), help="activation of the MLPs. Default: the library's"
    )
    unknown.add_argument(
        "--norm-eps", type=float, metavar="E", help="epsilon of every LayerNorm. Default: the library's"
    )
    unknown.add_argument(
        "--pool",
        choices=["cls", "gap", "map"],
        help="cls: class token; gap: mean of the patches; map: attention pooling. Default: read from the tensors",
    )
    unknown.add_argument(
        "--pool-prefix",
        action="store_const",
        const=True,
        help="pools gap and map read the class token and the registers too, as pool_include_prefix in timm",
    )
    unknown.add_argument(
        "--res-post-norm",
        action="store_const",
        const=True,
        help="the norms are on the outputs of the attention and of the MLP, as in timm's models named rpn",
    )
    unknown.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the training images in pixels. Default: square images",
    )
    return parser


def _source_rows(path: str, source: Loaded) -> dict[str, str]:
    leaves = jax.tree.leaves(source.variables)
    dtypes = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    rows = {
        "read": f"{path}: {source.source}, {source.tensors} tensors, {dtypes}",
        "model": _architecture(source.module),
        "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(source.variables['params'])):,}",
    }
    if source.assumed:
        rows["assumed"] = ", ".join(f"{name} {value}" for name, value in source.assumed.items())
    return rows | ({"note": "; ".join(source.notes)} if source.notes else {})


def _architecture(module: nn.Module) -> str:
    if not isinstance(module, ViT):
        return type(module).__name__
    return (
        f"ViT with {module.depth} blocks, width {module.embed_dim}, {module.num_heads} heads, MLP width "
        f"{module.mlp_dim}, patch size {module.patch_size}, pool {module.pool}, {module.num_classes} classes"
    )


def _compare(source: Loaded, options: argparse.Namespace) -> int:
    """Return 0 if every tensor of DST, read as SRC's model, is bit for bit equal to SRC's, else 1."""
    try:
        target, _ = read_variables(source.module, parameters_in(read_weights(options.dst, not options.raw).tensors)[0])
    except ValueError as error:
        raise ValueError(f"{options.dst}: {error}") from error
    ours, theirs = (split_variables(source.leaves, side, "the file") for side in (source.variables, target))
    different = []
    for path in source.leaves:
        one, other = ours[path].read(), theirs[path].read()
        if one.dtype != other.dtype:
            different.append(f"{path}: the dtype is {one.dtype} in SRC and {other.dtype} in DST")
        elif one.tobytes() != other.tobytes():
            gap = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
            different.append(f"{path}: the values differ by at most {gap:.3g}")
    for line in different:
        _print(f"  {line}")
    count = len(different) or "none"
    _print_table({"compared": f"{count_of(len(ours), 'tensor')} of {options.src} and {options.dst}: {count} differ"})
    return 1 if different else 0


def _print_table(rows: dict[str, Any]) -> None:
    for name, text in rows.items():
        _print(f"{name:<12}{text}")


def _print(text: str) -> None:
    """Print a line. If nobody reads the output any longer, as after `| head`, the conversion continues."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_main(main)
