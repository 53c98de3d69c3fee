"""How models are run over images: the request that travels unchanged from whoever asks to the passes themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from toolkit.inference.store.retention import Growth, Keeping
from toolkit.runtime.session import Session, open_session

Progress = Callable[[int, int], None]  # images done, images in all
Opener = Callable[..., Session]  # called as `open_session` is
OnBadImage = Literal["fail", "prior", "skip", "decode"]


@dataclass(frozen=True)
class Execution:
    """Where models run and in what precision, until when, what stays in the store, and who is told.

    - `device`: a name of PROVIDERS, or "auto".
    - `precision`: as it stands in the store's keys, which it keeps apart: "fp32", "fp16", "bf16", or "int8-" and the digest of
      its calibration. Less than fp32 is settled by `engine_choice` first.
    - `batch`: images that a model takes at a time; None: what the device takes best.
    - `implementation`: who makes the pixels, "fast" or "pillow".
    - `files`: opened instead of the exports, by model digest (quantised ones); `cache`: a folder for what runtimes build.
    - `opener`: opens sessions, as `open_session` does.
    - `runner`: one of RUNNERS brings rows into the store first, by `workers` processes (0: one per GPU where there are
      several); "": nobody does, this process runs the models.
    - `keeping`: what the store keeps of it.
    - `deadline`: seconds from the start of the passes; models that are not through by then are left out. None: no end.
    - `on_bad_image`: images that cannot be used are an error ("fail"), their rows get the class prior ("prior", where an
      ensemble is made) or are left out ("skip", where tables are). "decode" takes what is there of pictures cut short, which
      are listed; others are an error.
    - `verify_images`: every image is read, also one whose size and time are those of when it was read last.
    - `progress`: called with images done and images in all; `announce`: told before the work how much the store may grow, where
      that is worth a line.
    """

    device: str = "auto"
    precision: str = "fp32"
    batch: int | None = None
    implementation: str = "fast"
    files: Mapping[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    opener: Opener = open_session
    runner: str = ""
    workers: int = 0
    keeping: Keeping = Keeping()
    deadline: float | None = None
    on_bad_image: OnBadImage = "fail"
    verify_images: bool = False
    progress: Progress | None = None
    announce: Callable[[Growth], object] | None = None

    @property
    def computes_in(self) -> str:
        """The precision without its calibration, one of PRECISIONS."""
        return self.precision.partition("-")[0]

    def open(self, models: Mapping[str, Path], device: str) -> Session:
        """A session for exports (digest → file) of one input size on a device that was chosen.

        Raises:
            DeviceError, ModelError: see `open_session`.
        """
        files = {digest: self.files.get(digest, path) for digest, path in models.items()}
        if self.precision == "fp32":
            return self.opener(files, device=device, batch=self.batch)
        return self.opener(files, device=device, batch=self.batch, precision=self.computes_in, cache=self.cache)
