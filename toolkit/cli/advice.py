"""What an error's code means at the command line: the option that helps, added to the library's own hint."""

from __future__ import annotations

from toolkit.errors import ToolkitError

ADVICE: dict[str, str] = {
    "needs-probabilities": "Use --vote soft.",
    "tables-differ": "Use --fit-on common to keep the rows that all tables share.",
    "labels-to-vote": "Labels can be voted on: toolkit blend --labels",
    "prior-of-one-target": "Leave out --test-prior.",
    "test-prior": "For example --test-prior cat=0.5,dog=0.5",
    "table-weights": "For example --weights 2,1,1 or --weights a=0.7,b=0.3",
    "truth-table": "--label and --group name columns of --truth.",
    "truth-metric": "Name it: --metric NAME",
    "label-column": "Name it: --label COLUMN",
    "id-column": "Name it: --id COLUMN",
    "class-columns": "Say which name in the file is which class: --columns theirs=ours,…",
    "logits": "If they are, say --logits.",
    "one-plan": "One plan is one --weigher, --vote and --calibrate.",
    "holdout-share": "Use for example --holdout 0.2.",
    "one-split": "Use --holdout 0.2 for it.",
    "rare-classes": "That is `toolkit split` with fewer --folds, or with --rare extra.",
    "split-exists": "Use --force for that.",
    "split-outdated": "That is: toolkit split --force",
    "factor": "Give each as --factor mask=wear,incorrect,normal.",
    "file-exists": "Use --force to write it anew.",
    "recipe-exists": "Use --force to do so.",
    "masks-missing": "For example --draw 60.",
    "vote-of-tables": "Use --vote soft.",
    "train-fresh": "That is: --fresh",
    "workers-ended": "That is the same command with a smaller --batch-size.",
}


def hint(error: ToolkitError) -> str:
    """The library's hint and, where the error has a code, the option that helps."""
    return " ".join(filter(None, (error.hint, ADVICE.get(error.code, ""))))
