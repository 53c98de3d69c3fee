"""Where and in which precision models run: the fastest that was measured, and reduced precision only after it was compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from toolkit.base import documents
from toolkit.core.cards import Preprocess
from toolkit.errors import DeviceError, ModelError, StoreError
from toolkit.images import render
from toolkit.inference import precision_check
from toolkit.inference.execution import Execution
from toolkit.inference.exports import read_exports
from toolkit.inference.outcome import PredictOutcome
from toolkit.inference.precision_check import Difference
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store, segment_paths
from toolkit.runtime import int8, speed_trials
from toolkit.runtime.devices import PROVIDERS, available, check_precision, choose_device, engine_tag
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session
from toolkit.workspace.competition import Competition
from toolkit.workspace.image_rows import Item

MARGIN = 1.05  # an engine must be faster by this before it is preferred to the usual one: rates of short trials waver
WORTH = 5000  # passes (image × model × view) from which a trial of a few seconds is soon made up for
AUTO = "auto"


@dataclass(frozen=True, eq=False)
class Engine:
    """A device and a precision, the files to open instead of the exports, and why these.

    `key` is the precision as it stands in the store's keys: with the calibration, where there is one.
    """

    device: str
    precision: str = "fp32"
    key: str = "fp32"
    files: Mapping[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    why: str = ""
    compared: Mapping[str, Difference] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)

    def applied(self, execution: Execution) -> Execution:
        """The request with this device and precision."""
        return replace(execution, device=self.device, precision=self.key, files=self.files, cache=self.cache)

    @property
    def record(self) -> dict[str, Any]:
        """What predictions say of it."""
        return {
            "device": self.device,
            "precision": self.key,
            "why": self.why,
            "compared": {member: asdict(difference) for member, difference in self.compared.items()},
            "changes": {member: str(difference) for member, difference in self.compared.items()},
            "rates": dict(self.rates),
        }


def settle(
    competition: Competition,
    paths: Sequence[Path],
    execution: Execution,
    *,
    members: Sequence[str] = (),
    limit: int | None = None,
    min_agreement: float = 0.99,
) -> Engine:
    """The engine for what was asked of the exports at `paths`: "auto" is the fastest device, or precision that passes.

    Devices are timed for about a second each, once per machine and model. One that the store already has rows of is preferred,
    so that nothing is computed twice; and the usual one is taken where there is little to compute. `limit` is how many test
    images there will be, `min_agreement` the share of labels that a reduced precision must leave as they are.

    Raises:
        DeviceError: a device that is not there or does not compute in the precision.
        ModelError: the precision changes more labels than `min_agreement` allows, or a model cannot be had in it.
        CardError: see `read_exports`.
    """
    device, precision = execution.device, execution.precision
    devices = available() if device == AUTO else [choose_device(device)]
    if precision == "fp32" and len(devices) == 1:
        return Engine(devices[0], why=_absent() if device == AUTO else "")
    exports = read_exports(paths, competition, members=members)
    bench = _Bench(competition, exports, execution, min_agreement)
    if precision == AUTO:
        return bench.fastest(devices)
    if device == AUTO:
        devices = [name for name in devices if precision in PROVIDERS[name].precisions] or _refuse(precision)
    else:
        check_precision(devices[0], precision)
    images = len(competition.images("test")[:limit])
    chosen = bench.choose([bench.engine(name, precision) for name in devices], passes=images * len(exports))
    return chosen if precision == "fp32" else bench.gate(chosen)


def recorded(competition: Competition, paths: Sequence[Path], record: Mapping[str, Any]) -> Engine:
    """The engine that predictions were made with, from their own `Engine.record`.

    Raises:
        DeviceError: its device is not here.
        ModelError: its models cannot be had in the precision.
    """
    device, precision = choose_device(record["device"]), str(record["precision"]).partition("-")[0]
    check_precision(device, precision)
    exports = read_exports(paths, competition)
    return _Bench(competition, exports, Execution(), 0.0).engine(device, precision)


@dataclass(eq=False)
class _Bench:
    """What engines are tried with."""

    competition: Competition
    exports: Sequence[Export]
    execution: Execution
    min_agreement: float

    @property
    def heaviest(self) -> Export:
        """The model that engines are timed with."""
        return max(self.exports, key=lambda export: export.path.stat().st_size if export.path.exists() else 0)

    def engine(self, device: str, precision: str, exports: Sequence[Export] = ()) -> Engine:
        """A device in a precision; for int8 the models (or some of them) are quantised now, unless they are in the cache."""
        cache = self.competition.path("cache")
        files: dict[str, Path] = {}
        key = precision
        if precision == "int8":
            files, key = self._quantised(cache / "int8", exports or self.exports)
        return Engine(device, precision, key, files, cache / device)

    def choose(self, engines: Sequence[Engine], *, passes: int) -> Engine:
        """The one with rows in the store, else the one that is fastest in a short trial, if `passes` are worth one."""
        if len(engines) == 1:
            return engines[0]
        kept = _stored(self.competition.path("store"), {export.digest for export in self.exports})
        counts = [kept.get((engine_tag(engine.device), engine.key), 0) for engine in engines]
        if max(counts):
            return replace(engines[int(np.argmax(counts))], why="auto: the store has rows that it computed")
        usual = next((engine for engine in engines if engine.device == choose_device(AUTO)), engines[0])
        if passes < WORTH:
            return replace(usual, why="auto: too little to compute for a trial of others")
        rates = self.rates(engines)
        order = sorted(engines, key=lambda engine: -rates[_title(engine)])
        best = order[0] if rates[_title(order[0])] > MARGIN * rates[_title(usual)] else usual
        shown = ", ".join(f"{_title(engine)} {rates[_title(engine)]:,.0f}" for engine in order)
        return replace(best, why=f"auto: images/s of one model in a short trial: {shown}", rates=rates)

    def fastest(self, devices: Sequence[str]) -> Engine:
        """The fastest device and precision that changes few enough labels; fp32 changes none."""
        engines, reasons = [], []
        for name in devices:
            for precision in PROVIDERS[name].precisions:
                try:
                    engines.append(self.engine(name, precision, [self.heaviest]))
                    self.rates([engines[-1]])
                except (DeviceError, ModelError) as error:
                    engines = [engine for engine in engines if (engine.device, engine.precision) != (name, precision)]
                    reasons.append(f"{precision} on {name}: {error.message}")
        rates = self.rates(engines)
        plain = self.choose([engine for engine in engines if engine.precision == "fp32"], passes=WORTH)
        for engine in sorted(engines, key=lambda engine: -rates[_title(engine)]):
            if engine.precision == "fp32" or rates[_title(engine)] < MARGIN * rates[_title(plain)]:
                continue
            try:
                passed = self.gate(self.engine(engine.device, engine.precision))
            except (ModelError, StoreError, DeviceError) as error:
                reasons.append(error.message)
                continue
            faster = rates[_title(engine)] / rates[_title(plain)]
            return replace(passed, why="; ".join([f"auto: {faster:.2f}× the speed of {_title(plain)}", *reasons]), rates=rates)
        why = "; ".join(reasons) or "nothing else is faster here"
        return replace(plain, why=f"auto: no reduced precision: {why}", rates=rates)

    def rates(self, engines: Sequence[Engine]) -> dict[str, float]:
        """Images per second of one model by the engine's title, from the cache or a trial."""
        ways = {
            _title(engine): (f"{engine_tag(engine.device)}/{engine.key}/{self.execution.batch or 0}", self._opening(engine))
            for engine in engines
        }
        return speed_trials.rates(self.competition.path("cache", "trials.json"), self.heaviest, ways)

    def gate(self, engine: Engine) -> Engine:
        """The engine with what it changes, per member.

        Raises:
            ModelError: too many labels.
        """
        plain = self.engine(choose_device(AUTO), "fp32")
        compared = {}
        for member in dict.fromkeys(export.card.member for export in self.exports):
            group = [export for export in self.exports if export.card.member == member]
            ways = [partial(self._predict, engine=either) for either in (plain, engine)]
            compared[member] = precision_check.difference(self.competition, group, *ways)
        worst = min(compared, key=lambda member: compared[member].agreement)
        if compared[worst].agreement < self.min_agreement:
            raise ModelError(
                f"{_title(engine)} changes too many labels of {worst!r}, {self.min_agreement:.2%} must stay: {compared[worst]}",
                hint="Use fp32 or what is chosen for you, or ask for less agreement.",
                code="min-agreement",
            )
        return replace(engine, compared=compared)

    def _opening(self, engine: Engine) -> Callable[[], Session]:
        models = {self.heaviest.digest: self.heaviest.path}
        return lambda: engine.applied(self.execution).open(models, engine.device)

    def _predict(self, exports: Sequence[Export], items: Sequence[Item], engine: Engine) -> PredictOutcome:
        views = {export.digest: ("id",) for export in exports}
        alone = Execution(batch=self.execution.batch, opener=self.execution.opener)
        with Store(self.competition.path("store")) as store:
            return predict(exports, views, items, store, engine.applied(alone), boxes=self.competition.boxes)

    def _quantised(self, folder: Path, exports: Sequence[Export]) -> tuple[dict[str, Path], str]:
        """These models in int8 (by digest), and the key of the calibration."""
        images = precision_check.calibration_images(self.competition)
        paths, boxes = [path for _, path in images], self.competition.boxes
        with Store(self.competition.path("store")) as store:
            known, sure = store.images.known(paths)
        digests = [
            bytes(digest).ljust(16, b"\0") if there else render.digest(render.read(path))
            for path, digest, there in zip(paths, known, sure, strict=True)
        ]

        def seen(how: Preprocess) -> list[bytes]:
            return [boxes.key(digest, [how.box], *image) for digest, image in zip(digests, images, strict=True)]

        files = {e.digest: folder / int8.name(e.digest, seen(e.card.preprocess)) for e in exports}
        missing = [export for export in exports if not int8.whole(files[export.digest])]
        pixels: dict[Preprocess, Any] = {}
        for done, export in enumerate(missing):
            how = export.card.preprocess
            if how not in pixels:
                pixels[how] = np.stack([render.load(path, how, box=boxes.of(how.box, key, path)) for key, path in images])
            int8.quantise(export.path, files[export.digest], pixels[how])
            if self.execution.progress:
                self.execution.progress(done + 1, len(missing))
        return files, f"int8-{int8.calibration(digests)}"


def _absent() -> str:
    return "auto: the CUDA driver counts no GPU, and OpenVINO is not installed"


def _title(engine: Engine) -> str:
    return f"{engine.precision} on {engine.device}"


def _refuse(precision: str) -> NoReturn:
    able = [name for name, provider in PROVIDERS.items() if precision in provider.precisions]
    hint = "Install OpenVINO (pip install openvino), or use" if "openvino" in able else "Use"
    raise DeviceError(
        f"{precision} takes {' or '.join(able)}, which is not here",
        hint=f"{hint} fp32, or what is chosen for you.",
        code="precision-auto",
    )


def _stored(root: Path, models: set[str]) -> dict[tuple[str, str], int]:
    """How many tables of these models the store has rows in, by engine and precision."""
    tables: Counter[tuple[str, str]] = Counter()
    for path in root.glob("tables/*/key.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            key = documents.read_json(path)
            if key["model"] in models and segment_paths(path.parent):
                tables[key["engine"], key["precision"]] += 1
    return tables
