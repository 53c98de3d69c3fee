"""What commands say on stdout when they are done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.base.text.printing import Mark, Part, Table, Verbatim, facts
from toolkit.errors import counted, few

if TYPE_CHECKING:
    from toolkit.analysis.explanation import Explanation
    from toolkit.core.cards import Card
    from toolkit.ensemble.run import EnsembleRun
    from toolkit.inference.store.maintenance import Kept
    from toolkit.setup.demo import Demo
    from toolkit.submissions.difference import Diff
    from toolkit.submissions.ledger import Entry
    from toolkit.submissions.submission import Receipt

CHOSEN = "← chosen"
WARNING = Mark("Warning", "odd")


def ensemble(made: EnsembleRun) -> list[Part]:
    """Members, views, vote, device, what was computed and what was stored, bad images, where it stands."""
    models = made.meta["models"]
    members = ", ".join(
        f"{name} ({counted(sum(m['member'] == name for m in models), 'models')})" for name in made.meta["views"]
    )
    views = {name: tuple(found) for name, found in made.meta["views"].items()}
    ties = "".join(
        f"; {counted(n, 'ties')} in {target!r}, settled by mean probability" for target, n in made.meta["ties"].items() if n
    )
    rows = [
        ("Members", members),
        (
            "Views",
            made.meta["view_set"] + (f": {', '.join(next(iter(views.values())))}" if len(set(views.values())) == 1 else ""),
        ),
        ("Vote", made.meta["vote"] + ties),
        *_engine(made.outcome.device, made.meta.get("engine")),
        ("Passes", _passes(made, views)),
    ]
    if any(abs(model["weight"] - 1 / len(models)) > 1e-12 for model in models):
        rows.insert(1, ("Weights", ", ".join(f"{model['path']} {model['weight']:.4g}" for model in models)))
    if bad := made.outcome.bad:
        rows.append((Mark("Bad", "odd"), f"{counted(len(bad), 'images have')} the class prior instead of a prediction:"))
        rows += [("", image.why) for image in bad]
    return [facts([*rows, *_remarks(made)])]


def _passes(made: EnsembleRun, views: Mapping[str, Sequence[str]]) -> str:
    """How many were computed, how many taken from the store or not needed, and how fast."""
    outcome, stopping = made.outcome, made.meta["stopping"] or {}
    per_image = sum(len(views[model["member"]]) for model in made.meta["models"])
    stored = f", {len(outcome.items) * per_image - outcome.passes:,} from the store" if outcome.finished else ""
    if "mean" in stopping:
        stored = f"; labels were certain after {stopping['mean']:.2f} of {stopping['of']:g} per image"
    rate = f", {len(outcome.items) / outcome.seconds:,.0f} images/s" if outcome.passes and outcome.seconds else ""
    return f"{outcome.passes:,} computed{stored} ({outcome.seconds:.1f} s{rate})"


def _remarks(made: EnsembleRun) -> Iterator[tuple[str, str]]:
    """What is to be known of the predictions, where they are, and what comes next."""
    if "off" in (stopping := made.meta["stopping"] or {}):
        yield "Note", f"no passes were left out: {stopping['off']}"
    if late := made.meta["late"]:
        there = len(late) + len(made.meta["models"])
        yield WARNING, f"time was up: {len(late)} of {counted(there, 'models are')} not in it: {few(late, limit=12)}"
        yield "", "their finished rows are kept: the same command again goes on there"
    rows = len(next(iter(made.predictions.values())))
    from toolkit.ensemble import evidence

    yield from (("Score" if i == 0 else "", line) for i, line in enumerate(evidence.lines(made.meta.get("evidence", {}))))
    yield "Wrote", f"{shown(made.path)} ({counted(rows, 'rows')} × {', '.join(made.predictions)})"
    views = made.meta.get("tta", {})
    warned = views.get("warnings", ())  # on the terminal already, before the passes were made
    yield from (("Note", note) for note in (*views.get("notes", ()), *made.notes) if note not in warned)
    yield "Next", Verbatim("toolkit submit")
    if made.meta["limit"]:
        yield "Note", f"--limit {made.meta['limit']}: not every test row is there, so this cannot be submitted"


def _engine(device: str, record: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The device and the precision, why these, and what the precision changes."""
    if record is None:
        return [("Device", device)]
    precision = record["precision"].partition("-")[0]
    first = f"{device}, {precision}" + (f" ({record['why']})" if record["why"] else "")
    return [("Device", first), *(("", f"{member}: {text}") for member, text in record["changes"].items())]


def shown(path: Path) -> str:
    """The path as one would type it here."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def card(said: Card) -> list[tuple[str, str]]:
    """The facts of a card: member, targets, pixels, normalisation, score, rows seen, gap, versions."""
    from toolkit.core.lineage import optimistic

    pixels = said.preprocess
    cut = f"shorter side to {pixels.shorter}, centre crop" if pixels.resize == "crop" else "resized whole"
    rows = [("Model", said.title + (f", split {said.split}" if said.split else ""))]
    for output in said.outputs:
        names = ", ".join(output.classes[:12]) + (
            f", … ({counted(len(output.classes), 'classes')})" if len(output.classes) > 12 else ""
        )
        rows.append(("Target", f"{output.target}: {names} ({output.activation})"))
    cut = f"box {pixels.framed}, {cut}" if pixels.framed else cut
    rows.append(("Pixels", f"{pixels.size[0]}×{pixels.size[1]} {pixels.colour}, {cut}, {pixels.interpolation}"))
    rows.append(("Inside", f"mean {_numbers(said.mean)}, std {_numbers(said.std)}"))
    if said.score is not None:
        rows.append(("Score", f"{said.metric} {said.score:.4f} on its own fold ({said.chosen} checkpoint)"))
    if said.selected_on_heldout:
        rows.append(("Note", f"its scores are optimistic: {optimistic(said.chosen)}"))
    rows += _seen(said)
    if said.labels_fix:
        rows.append(("Labels", f"corrected by {said.labels_fix} for training; the score is against those given"))
    if said.parity:
        words = {"probability": "probability", "logit": "logits"}
        gaps = [f"{said.parity[key]:.1e} in {word}" for key, word in words.items() if key in said.parity]
        rows.append(("Gap", ", ".join(gaps) or "-"))
    if said.versions:
        rows.append(("Made by", ", ".join(f"{name} {number}" for name, number in said.versions.items())))
    return rows


def _seen(said: Card) -> list[tuple[str, str]]:
    """Which rows the weights have learned from, and what is not known of it."""
    if said.lineage is None:
        return [("Seen", "unknown beyond its fold: its card was written by an earlier version, or by others")]
    rows = [("Seen", "; ".join(map(str, said.lineage.seen)))] if said.lineage.seen else []
    return [*rows, *(("Seen", f"unknown: {name} does not say") for name in said.lineage.unknown)]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def demo(done: Demo, folder: Path) -> list[Part]:
    """The demo's last page: scores by fold, out of fold and on the held-out images; files; what to type next."""
    rows = [(name, f"{score:.4f}", "") for name, score in done.folds.items()]
    for what, scores in (("out of fold", done.out_of_fold), ("held-out images", done.held_out)):
        rows += [(f"{what}, --tta {name}", f"{score:.4f}", CHOSEN * (name == done.chosen)) for name, score in scores.items()]
    return [
        "",
        Table(("", done.metric, ""), rows, "lrp"),
        "",
        f"--tta {done.chosen} was chosen on out-of-fold images alone; the held-out ones only confirm it.",
        "",
        facts(
            [
                ("Fold models", f"{shown(folder / 'folds')}/*.onnx"),
                ("Out of fold", f"{shown(folder / 'oof')}/"),
                ("Submission", shown(done.receipt.path)),
                ("Manifest", shown(done.receipt.manifest)),
            ]
        ),
        "",
        "Next:",
        Verbatim(f"  cd {shown(folder)}"),
        Verbatim(f"  toolkit ensemble folds/*.onnx --tta {done.chosen} --vote hard"),
        Verbatim("  toolkit submit"),
    ]


def submission(done: Receipt) -> list[Part]:
    """What was submitted: predictions, score out of fold, change since the last one, warnings, files, name in the ledger."""
    from toolkit.ensemble import evidence
    from toolkit.submissions import manifest

    lines: list[Part] = [*manifest.summary(done.meta)]
    lines += evidence.lines(done.scores)
    if done.changed is not None:
        lines.append(f"{done.changed:.1%} of rows answer otherwise than the last submission")
    lines += [Mark(warning, "odd") for warning in done.warnings]
    lines.append(f"Wrote {done.path}: {counted(done.rows, 'rows')}, format {done.format}")
    lines.append(f"Wrote {done.manifest}: what it was made of")
    lines.append(f"Kept as {done.id}: `toolkit submissions score {done.id} SCORE` once the platform has scored it")
    return lines


def stored(tables: Sequence[Kept]) -> list[Part]:
    """The store's tables: whose, which view, engine and precision, rows, segments, megabytes, and which nobody can use."""
    if not tables:
        return ["The store is empty."]
    rows: list[tuple[str, ...]] = []
    for kept in tables:
        key, note = kept.key, "until predictions are written" if kept.passing else ""
        note = Mark("stale: its file is gone", "odd") if kept.stale else note
        numbers = (f"{kept.rows:,}", f"{kept.segments:,}", f"{kept.size / 1e6:,.1f}")
        rows.append((kept.title, key.view, key.engine, key.precision, key.kept_as, *numbers, note))
    head = ("model", "view", "engine", "precision", "kept as", "rows", "segments", "MB", "")
    return [
        Table(head, rows, "lllllrrrp"),
        f"{counted(len(tables), 'tables')}, {sum(kept.size for kept in tables) / 1e6:,.1f} MB",
    ]


def kept(entries: Sequence[Entry], link: float | None, warning: str) -> list[Part]:
    """The ledger as a table, the correlation of its scores, and the warning."""
    if not entries:
        return ["No submission was written yet."]

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.5f}"

    rows: list[tuple[str, ...]] = []
    for e in entries:
        sent = f"{e.uploads[-1]['to']} {e.uploads[-1]['at'][:16].replace('T', ' ')}" if e.uploads else ""
        how = (e.views, e.vote, number(e.out_of_fold), e.evidence)
        rows.append((e.id, f"{e.created:%Y-%m-%d %H:%M}", e.source, *how, *map(number, (e.public, e.private)), sent))
    head = ("id", "written (UTC)", "of", "views", "vote", "out of fold", "evidence", "public", "private", "uploaded")
    lines: list[Part] = [Table(head, rows, "llpllrprrp")]
    if link is not None:
        lines.append(f"Rank correlation of out of fold and public: {link:+.2f}")
    return [*lines, *([Mark(warning, "odd")] if warning else [])]


def diff(changes: Diff, first: str, second: str) -> list[Part]:
    """How many rows two submissions answer otherwise, and from which class to which."""
    lines: list[Part] = [
        f"{changes.changed:,} of {counted(changes.rows, 'rows differ')} ({changes.share:.1%}) between {first} and {second}"
    ]
    if changes.moves:
        moves = [(f"{move.count:,}", f"{move.question}: {move.before} → {move.after}") for move in changes.moves]
        lines.append(Table(("rows", "answer"), moves, "rp"))
    return lines + ([f"ids: {few(changes.ids)}"] if changes.ids else [])


def explanation(found: Explanation, path: Path) -> list[Part]:
    """Who says what of one image, the vote, and where the page is."""
    rows = [
        (one.model, one.view, found.classes[int(one.probabilities.argmax())], f"{one.probabilities.max():.4f}")
        for one in found.answers
    ]
    return [
        f"{found.id}: {found.predicted} ({found.combined.max():.4f} by {found.vote} vote)",
        Table(("model", "view", "answer", "probability"), rows, "llpr"),
        f"Wrote {shown(path)}",
    ]
