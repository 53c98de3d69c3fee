"""What an error's code means at the command line: the option that helps, added to the library's own hint."""

from __future__ import annotations

from toolkit.errors import ToolkitError

ADVICE: dict[str, str] = {
    "bad-images-prior": "Or use --on-bad-image prior to give them the class prior.",
    "bad-images-skip": "Or use --on-bad-image skip to leave them out.",
    "blend-soft": "Run `toolkit blend --vote soft`.",
    "device": "Or name another --device.",
    "device-cpu": "Or use --device cpu.",
    "each-member": "Use --each for a table per member.",
    "exists": "Use --force to replace it, or -o to name another.",
    "held-out-train": "Use --held-out with --on train.",
    "images-on": "That is what --on takes.",
    "in-sample": "Use --held-out, or --in-sample to go on all the same.",
    "labels-only-blend": "Leave --labels-only out.",
    "labels-only-deadline": "Use --deadline or --labels-only, not both.",
    "labels-only-keep": "With --labels-only, use --keep views or --keep none.",
    "labels-only-vote": "Leave --labels-only out, or use another --vote.",
    "members": "Use fewer with --members, or another --device.",
    "min-agreement": "Use --precision auto or fp32, or a lower --min-agreement.",
    "path-column": "Use --path-column NAME.",
    "precision": "Use another --precision.",
    "precision-auto": "Use --precision auto or fp32.",
    "precision-device": "Choose with --precision and --device.",
    "precision-fp32": "Use --precision fp32.",
    "store-space": "Use --keep folds or --keep-as float16; `toolkit store prune` frees some.",
    "timings": "Run toolkit ensemble folds --limit 200.",
    "views": "That is what --tta takes.",
    "views-oblong": "Use --tta flip or hflip.",
    "vote-soft": "Use --vote soft.",
    "weights": "That is what --weights takes: 0.2,0.8, or b4=0.7,vit=0.3, or score.",
}


def hint(error: ToolkitError) -> str:
    """The library's hint and, where the error has a code, the option that helps."""
    return " ".join(filter(None, (error.hint, ADVICE.get(error.code, ""))))
