"""What to use instead of the options that users know from timm, Lightning, Keras and Hugging Face's Trainer."""

from collections.abc import Collection

from train.config.options import Option, options_of
from train.config.tasks import task_config_type, task_names
from w2jax.text import nearest

# The option's name or its ending -> its names in other programs. A name that ends like an option needs no entry:
# --batch-size leads to --run.batch-size.
_NAMES = {
    "augment.flip": "hflip horizontal-flip random-flip",
    "augment.mixup": "mixup-alpha",
    "augment.rand-augment": "aa auto-augment autoaugment randaugment",
    "b1": "beta1 beta-1 adam-beta1",
    "b2": "beta2 beta-2 adam-beta2",
    "clip": "clip-grad clip-grad-norm clip-norm clipnorm grad-clip gradient-clip gradient-clip-val max-grad-norm",
    "data.name": "dataset dataset-name",
    "data.workers": "num-workers n-workers dataloader-num-workers j",
    "distributed.num-processes": "world-size",
    "label-smoothing": "smoothing label-smoothing-factor",
    "learning-rate": "lr base-lr init-lr max-lr peak-lr",
    "final-lr-fraction": "min-lr eta-min",
    "model.attention-dropout": "attn-drop attn-drop-rate",
    "model.drop-path": "drop-path-rate stochastic-depth",
    "model.depth": "num-layers n-layers layers num-hidden-layers",
    "model.dropout": "drop drop-rate dropout-rate",
    "model.embed-dim": "d-model emb-dim hidden-dim hidden-size width",
    "model.hidden-size": "hidden-dim hidden-units hidden",
    "dtype": "amp bf16 fp16 half mixed-precision precision use-amp",
    "model.num-classes": "nb-classes n-classes classes num-labels",
    "model.num-heads": "heads n-heads nhead num-attention-heads",
    "model.remat": "grad-checkpointing gradient-checkpointing",
    "optim.accumulate": "accum-iter accumulate-grad-batches grad-accum grad-accum-steps gradient-accumulation-steps",
    "optim.ema": "ema-decay model-ema model-ema-decay use-ema",
    "optim.freeze": "freeze-backbone freeze-encoder freeze-layers linear-probe",
    "optim.layer-decay": "layer-lr-decay layerwise-lr-decay llrd lr-layer-decay",
    "optim.head-lr-factor": "head-lr head-lr-mult head-lr-scale",
    "run.batch-size": "batch b bs bsz train-batch-size per-device-train-batch-size total-batch-size",
    "run.epochs": "epoch max-epochs n-epochs nb-epoch num-epochs num-train-epochs",
    "run.eval-every": "eval-interval eval-steps val-interval val-check-interval",
    "run.log-every": "log-every-n-steps log-interval log-steps logging-steps print-freq",
    "run.patience": "early-stop early-stopping early-stopping-patience es-patience",
    "run.save-every": "checkpoint-interval save-freq save-interval save-steps",
    "run.seed": "manual-seed random-seed",
    "run.steps": "iterations iters max-iter max-iters max-steps num-steps num-train-steps total-steps train-steps",
    "run.wandb": "log-wandb wandb-project use-wandb",
    "warmup-fraction": "warmup warmup-ratio warmup-steps warmup-epochs lr-warmup-epochs lr-warmup-steps",
    "weight-decay": "wd",
}

# A sentence -> the names that it answers.
_SENTENCES = {
    "Leave it out: the same command resumes its run. --run.dir chooses the run folder": (
        "resume resume-from resume-from-checkpoint resume-training auto-resume ckpt-path continue"
    ),
    "Use --run.dir for the folder of the run": (
        "output output-dir out out-dir outdir save-dir save-path log-dir logdir logging-dir default-root-dir "
        "checkpoint-dir ckpt-dir work-dir workdir experiment exp-name experiment-name run-name name"
    ),
    "Use --data.name and --data.dir. To prepare a folder of images, run python -m train.prepare --help": (
        "data-dir data data-path data-root dataroot dataset-dir dataset-path dataset-root root train-dir val-dir"
    ),
    "Use --data.image-size HEIGHT WIDTH": "img-size imgsz image-dim img-dim input-size resolution",
    "Use --data.train-split and --data.test-split, such as train[:90%] and train[90%:]": (
        "val-split validation-split valid-split val-fraction val-ratio split-ratio"
    ),
    "The program's name chooses the model, such as python -m train.vit, and --model.* changes it": (
        "model model-name model-name-or-path model-type arch a architecture net network"
    ),
    "The optimizer is AdamW, and --optim.* changes it": "opt optimizer optim",
    "The schedule is a linear warm-up and a cosine: see warmup-fraction and final-lr-fraction under --optim.*": (
        "sched schedule scheduler lr-schedule lr-scheduler lr-scheduler-type lr-decay decay-epochs"
    ),
    "All devices are used. --mesh.* divides the work, and JAX_PLATFORMS=cpu in the environment selects the CPU": (
        "device devices gpu gpus num-gpus n-gpu accelerator cuda no-cuda cpu use-cpu strategy"
    ),
    "Use --run.tensorboard or --run.wandb PROJECT": "report-to logger loggers tracker",
    "Compilation is always on. Leave the option out": "compile torch-compile torchcompile jit-compile",
    "Every run evaluates its model. To use a trained model, see python -m train.predict --help": (
        "eval evaluate evaluation eval-only test-only validate do-eval do-train do-predict"
    ),
    "The preset is the first argument, as in python -m train.vit tiny": "preset",
}
_WEIGHTS = "pretrained weights checkpoint-path initial-checkpoint init-checkpoint finetune finetune-from load-weights"


def hint(unknown: str, options: Collection[Option]) -> str | None:
    """What to use instead of an unknown option: by habit, or the nearest name. None if nothing is near.

    Args:
        unknown: the option without its value, such as --lr, --max_epochs or --trainer.max_epochs.
        options: the options of the task.
    """
    by_flag = {option.flag: option for option in options}
    group, _, name = unknown.lstrip("-").replace("_", "-").lower().rpartition(".")
    is_other_name = name == "name" and group not in ("", "run")  # --model.name is not the name of a run.
    if f"--{name}" not in by_flag and not is_other_name:
        for sentence, names in _SENTENCES.items():
            if name in names.split():
                return sentence
    if name in _WEIGHTS.split() and "--init-from" in by_flag:
        return "Use --init-from with a file, a folder or the name of a model on the Hugging Face hub"
    endings = (
        f"{group}.{name}" if is_other_name else name,
        *(ending for ending, names in _NAMES.items() if name in names.split()),
    )
    found = [flag for flag in by_flag if f".{flag[2:]}".endswith(tuple(f".{ending}" for ending in endings))]
    if not found and (owners := _tasks_with(name)):
        return f"This is an option of {', '.join(f'train.{task}' for task in owners)}"
    if not found:
        # A name far from all others gets no hint, because a wrong hint is worse than none.
        names = {flag if group else flag.rpartition(".")[2].removeprefix("--"): flag for flag in by_flag}
        near = nearest(f"--{group}.{name}" if group else name, names, cutoff=0.78)
        return f'Did you mean "{names[near[0]]}"?' if near else None
    choices = f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else found[0]
    texts = {by_flag[flag].text.partition(". ")[0].rstrip(".") for flag in found}
    return f"Use {choices}" + (f". {texts.pop()}" if len(texts) == 1 and "" not in texts else "")


def _tasks_with(name: str) -> list[str]:
    """The tasks that have an option with this last name."""
    configs = {task: task_config_type(task)() for task in task_names()}
    return [
        task
        for task, config in configs.items()
        if any(x.flag.endswith(f".{name}") for x in options_of(config).values())
    ]
