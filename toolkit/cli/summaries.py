"""What commands say on stdout when they are done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import few

if TYPE_CHECKING:
    from toolkit.cards import Card
    from toolkit.demo import Demo
    from toolkit.ensembling import Ensemble
    from toolkit.explaining import Explanation
    from toolkit.ledger import Entry
    from toolkit.submissions import Diff, Receipt
    from toolkit.upkeep import Kept


def ensemble(made: Ensemble) -> str:
    """Members, views, vote, device, what was computed and what was stored, bad images, where it stands."""
    models = made.meta["models"]
    members = ", ".join(f"{name} ({sum(m['member'] == name for m in models)} models)" for name in made.meta["views"])
    views = {name: tuple(found) for name, found in made.meta["views"].items()}
    per_image = sum(len(views[model["member"]]) for model in models)
    outcome = made.outcome
    stored = f", {len(outcome.items) * per_image - outcome.passes:,} from the store" if outcome.finished else ""
    stopping = made.meta["stopping"] or {}
    if "mean" in stopping:
        stored = f"; labels were certain after {stopping['mean']:.2f} of {stopping['of']:g} per image"
    rate = f", {len(outcome.items) / outcome.seconds:,.0f} images/s" if outcome.passes and outcome.seconds else ""
    lines = [
        f"Members   {members}",
        f"Views     {made.meta['view_set']}"
        + (f": {', '.join(next(iter(views.values())))}" if len(set(views.values())) == 1 else ""),
        f"Vote      {made.meta['vote']}"
        + "".join(f"; {n:,} ties in {target!r}, settled by mean probability" for target, n in made.meta["ties"].items() if n),
        *_engine(outcome.device, made.meta.get("engine")),
        f"Passes    {outcome.passes:,} computed{stored} ({outcome.seconds:.1f} s{rate})",
    ]
    if any(abs(model["weight"] - 1 / len(models)) > 1e-12 for model in models):
        lines.insert(1, "Weights   " + ", ".join(f"{model['path']} {model['weight']:.4g}" for model in models))
    if outcome.bad:
        lines.append(f"Bad       {len(outcome.bad):,} images have the class prior instead of a prediction:")
        lines += [f"          {image.why}" for image in outcome.bad]
    if "off" in stopping:
        lines.append(f"Note      no passes were left out: {stopping['off']}")
    if late := made.meta["late"]:
        there = len(late) + len(models)
        lines.append(f"Warning   time was up: {len(late)} of {there} models are not in it: {few(late, limit=12)}")
        lines.append("          their finished rows are kept: the same command again goes on there")
    rows = len(next(iter(made.predictions.values())))
    lines.append(f"Wrote     {shown(made.path)} ({rows:,} rows × {', '.join(made.predictions)})")
    lines += [f"Note      {note}" for note in (*made.meta.get("tta", {}).get("notes", ()), *made.notes)]
    lines.append("Next      toolkit submit")
    if made.meta["limit"]:
        lines.append(f"Note      --limit {made.meta['limit']}: not every test row is there, so this cannot be submitted")
    return "\n".join(lines)


def _engine(device: str, record: Mapping[str, Any] | None) -> list[str]:
    """The device and the precision, why these, and what the precision changes."""
    if record is None:
        return [f"Device    {device}"]
    precision = record["precision"].partition("-")[0]
    lines = [f"Device    {device}, {precision}" + (f" ({record['why']})" if record["why"] else "")]
    return lines + [f"          {member}: {text}" for member, text in record["changes"].items()]


def shown(path: Path) -> str:
    """The path as one would type it here."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def card(said: Card) -> str:
    """A card in lines: member, targets, pixels, normalisation, score, gap, versions."""
    pixels = said.preprocess
    cut = f"shorter side to {pixels.shorter}, centre crop" if pixels.resize == "crop" else "resized whole"
    lines = [f"Model     {said.title}" + (f", split {said.split}" if said.split else "")]
    for output in said.outputs:
        names = ", ".join(output.classes[:12]) + (f", … ({len(output.classes)} classes)" if len(output.classes) > 12 else "")
        lines.append(f"Target    {output.target}: {names} ({output.activation})")
    cut = f"box {pixels.framed}, {cut}" if pixels.framed else cut
    lines.append(f"Pixels    {pixels.size[0]}×{pixels.size[1]} {pixels.colour}, {cut}, {pixels.interpolation}")
    lines.append(f"Inside    mean {_numbers(said.mean)}, std {_numbers(said.std)}")
    if said.score is not None:
        lines.append(f"Score     {said.metric} {said.score:.4f} on its own fold ({said.selected} checkpoint)")
    if said.labels_fix:
        lines.append(f"Labels    corrected by {said.labels_fix} for training; the score is against those given")
    if said.parity:
        lines.append(f"Gap       {said.parity['probability']:.1e} in probability, {said.parity['logit']:.1e} in logits")
    if said.versions:
        lines.append("Made by   " + ", ".join(f"{name} {number}" for name, number in said.versions.items()))
    return "\n".join(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def demo(done: Demo, folder: Path) -> str:
    """The demo's last page: scores by fold, out of fold and on the held-out images; files; what to type next."""
    rows = [(name, score, False) for name, score in done.folds.items()]
    rows += [(f"out of fold, --tta {name}", score, name == done.chosen) for name, score in done.out_of_fold.items()]
    rows += [(f"held-out images, --tta {name}", score, name == done.chosen) for name, score in done.held_out.items()]
    width = max(len(name) for name, _, _ in rows)
    lines = ["", f"{'':<{width}}  {done.metric}"]
    lines += [f"{name:<{width}}  {score:.4f}" + ("  ← chosen" if chosen else "") for name, score, chosen in rows]
    lines += [
        "",
        f"--tta {done.chosen} was chosen on out-of-fold images alone; the held-out ones only confirm it.",
        "",
        f"Fold models   {shown(folder / 'folds')}/*.onnx",
        f"Out of fold   {shown(folder / 'oof')}/",
        f"Submission    {shown(done.receipt.path)}   manifest {shown(done.receipt.manifest)}",
        "",
        "Next:",
        f"  cd {shown(folder)}",
        f"  toolkit ensemble folds/*.onnx --tta {done.chosen} --vote hard",
        "  toolkit submit",
    ]
    return "\n".join(lines)


def submission(done: Receipt) -> str:
    """What was submitted: predictions, score out of fold, change since the last one, warnings, files, name in the ledger."""
    from toolkit import manifests

    lines = manifests.summary(done.meta)
    if done.scores:
        low, high = done.scores["interval"] or (None, None)
        sure = f" (95 % {low:.4f} to {high:.4f})" if low is not None else ""
        rows = done.scores["rows"]
        value = f"{done.scores['metric']} {done.scores['out_of_fold']:.4f}"
        lines.append(f"Out of fold {value}{sure}, {rows:,} rows, without views")
    if done.changed is not None:
        lines.append(f"{done.changed:.1%} of rows answer otherwise than the last submission")
    lines += map(str, done.warnings)
    lines.append(f"Wrote {done.path}: {done.rows:,} rows, format {done.format}")
    lines.append(f"Wrote {done.manifest}: what it was made of")
    lines.append(f"Kept as {done.id}: `toolkit submissions score {done.id} SCORE` once the platform has scored it")
    return "\n".join(lines)


def stored(tables: Sequence[Kept]) -> str:
    """The store's tables: whose, which view, engine and precision, rows, segments, megabytes, and which nobody can use."""
    if not tables:
        return "The store is empty."
    rows: list[tuple[str, ...]] = [("model", "view", "engine", "precision", "kept as", "rows", "segments", "MB", "")]
    for kept in tables:
        key, note = kept.key, "until predictions are written" if kept.passing else ""
        note = "stale: its file is gone" if kept.stale else note
        numbers = (f"{kept.rows:,}", f"{kept.segments:,}", f"{kept.size / 1e6:,.1f}")
        rows.append((kept.title, key.view, key.engine, key.precision, key.kept_as, *numbers, note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"{len(tables)} tables, {sum(kept.size for kept in tables) / 1e6:,.1f} MB"])


def kept(entries: Sequence[Entry], link: float | None, warning: str) -> str:
    """The ledger as a table, the correlation of its scores, and the warning."""
    if not entries:
        return "No submission was written yet."

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.5f}"

    rows: list[tuple[str, ...]] = [("id", "written (UTC)", "of", "out of fold", "public", "private", "uploaded")]
    for e in entries:
        sent = f"{e.uploads[-1]['to']} {e.uploads[-1]['at'][:16].replace('T', ' ')}" if e.uploads else ""
        rows.append((e.id, f"{e.created:%Y-%m-%d %H:%M}", e.source, *map(number, (e.out_of_fold, e.public, e.private)), sent))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if link is not None:
        lines.append(f"Rank correlation of out of fold and public: {link:+.2f}")
    return "\n".join([*lines, *([warning] if warning else [])])


def diff(found: Diff, first: str, second: str) -> str:
    """How many rows two submissions answer otherwise, and from which class to which."""
    lines = [f"{found.changed:,} of {found.rows:,} rows differ ({found.share:.1%}) between {first} and {second}"]
    lines += [f"{move.count:>9,}  {move.question}: {move.before} → {move.after}" for move in found.moves]
    return "\n".join(lines + ([f"ids: {few(found.ids)}"] if found.ids else []))


def explanation(found: Explanation, path: Path) -> str:
    """Who says what of one image, the vote, and where the page is."""
    rows = [
        (one.model, one.view, found.classes[int(one.probabilities.argmax())], f"{one.probabilities.max():.4f}")
        for one in found.answers
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = f"{found.id}: {found.predicted} ({found.combined.max():.4f} by {found.vote} vote)"
    return "\n".join([head, *lines, f"Wrote {shown(path)}"])
