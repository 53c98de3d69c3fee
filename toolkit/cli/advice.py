"""What an error's code means at the command line: the option that helps, added to the library's own hint."""

from __future__ import annotations

from toolkit.errors import ToolkitError

ADVICE: dict[str, str] = {
    # training and networks
    "another-member": "Use --member NAME.",
    "another-study": "Use --study NAME.",
    "class-map": "See --classes and --class-map.",
    "classes": "See --classes.",
    "classes-or-map": "Use --class-map to map classes, --multilabel for several labels per image.",
    "crop-pct": "See --crop-pct.",
    "device-cpu": "Use --device cpu.",
    "fewer-processes": "Use a larger --batch-size, or fewer --gpus or --processes.",
    "fold": "See --fold.",
    "gpu-per-process": "Leave --processes out, or say as many --gpus.",
    "gpus-all": "Use --gpus all.",
    "input": "Leave --input out.",
    "layer-decay": "Leave --layer-decay out.",
    "layout": "Use --layout nchw|nhwc.",
    "lower-rate": "Use --lr.",
    "mean-and-std": "Use --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225, or --timm MODEL; none: --mean 0 0 0 --std 1 1 1.",
    "more-trials": "Run the same command again with more --trials or --minutes.",
    "network": "Use --model NAME, such as --model resnet18.",
    "no-cache": "Use a smaller --size, or --no-cache.",
    "no-mean": "Leave --mean and --std out.",
    "no-rows-to-select-by": "Use --select last and no --patience for it, under a --member of its own.",
    "other-settings": "Use --fresh to train again, or --member NAME to keep both.",
    "output": "Use --output logits or --output probabilities.",
    "output-name": "Use --output-name NAME.",
    "own-pixels": "Leave --size, --resize, --interpolation, --box, --mean and --std out.",
    "precision": "See --precision.",
    "processes-on-cpu": "Use --processes N for as many processes.",
    "pseudo-folder": "See --pseudo.",
    "replace-export": "Use --force to replace it, or --member and --fold to name another.",
    "replace-soup": "Use --force to replace it, or --member to name another.",
    "sampler": "Leave --sampler weighted out.",
    "share": "See --floor and --soft-weight.",
    "size": "Use --size, such as --size 224.",
    "size-or-network": "Use another --size, or another --model.",
    "smaller-batches": "Use a smaller --batch-size.",
    "smaller-images": "Use a smaller --size or a smaller --model.",
    "soft-labels": "See --soft-labels.",
    "spread-batches": "Use --spread batches, or leave --gpus and --processes out.",
    "spread-folds": "Use --spread folds.",
    "spread-over": "Add --gpus all, or --processes N on a CPU.",
    "target": "Use --target NAME.",
    "teacher": "Use --teacher NAME beside --pseudo.",
    "train-again": "Use --fresh.",
    "train-teacher": "Use --member with the teacher's name, and --fold.",
    "tune-all": "Use --tune all.",
    "warmup": "Use --warmup 0.",
    "weights": "Use --weights model.safetensors (or .pth), or --no-pretrained.",
}


def hint(error: ToolkitError) -> str:
    """The library's hint and, where the error has a code, the option that helps."""
    return " ".join(filter(None, (error.hint, ADVICE.get(error.code, ""))))
