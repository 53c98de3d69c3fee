"""Training-time augmentation: presets of torchvision's transforms per image, mixing in a batch, or the user's own Compose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base import user_functions
from toolkit.errors import TrainingError

if TYPE_CHECKING:
    import torch

Transform = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Preset:
    """A recipe of transforms: the least share of the image that a crop keeps, what follows it, and where it comes from."""

    keeps: float
    after: tuple[str, ...]
    source: str


PRESETS: Mapping[str, Preset | None] = {
    "none": None,
    "light": Preset(0.6, (), "random resized crop and mirror: Szegedy et al. 2015, arXiv:1409.4842"),
    "medium": Preset(
        0.35, ("jitter", "rotate"), "with colour jitter (Howard 2013, arXiv:1312.5402) and 10 degrees of rotation"
    ),
    "heavy": Preset(
        0.2, ("randaugment", "jitter", "blur"), "with RandAugment, strong jitter and blur (Touvron 2022, arXiv:2204.07118)"
    ),
    "randaugment": Preset(0.35, ("randaugment",), "Cubuk et al. 2020, arXiv:1909.13719"),
    "trivialaugment": Preset(0.35, ("trivial",), "Müller and Hutter 2021, arXiv:2103.10158"),
}


def make(name: str, size: tuple[int, int], *, flip: bool = True, erase: float = 0.0) -> Transform | None:
    """The augmentation of that name: uint8 (3, H, W) to uint8 (3, *size); None where nothing is to be done.

    `name` is a preset, or "file.py:function" whose result is a torchvision v2 transform, an Albumentations Compose, or any
    function of a uint8 tensor. `flip` says whether a preset mirrors: never where a mirrored image is another class. `erase` is
    the probability that a rectangle is blanked (random erasing, Zhong et al. 2017, arXiv:1708.04896).

    Raises:
        TrainingError: no such preset, or something that is no transform.
        ModelError: the user's file cannot be run.
    """
    from torchvision.transforms import v2

    steps: list[Any] = []
    if ".py:" in name:
        steps = [Own(name)]
    elif name not in PRESETS:
        raise TrainingError(f"unknown augmentation {name!r}", hint=f"Use one of: {', '.join(PRESETS)}, or file.py:function.")
    elif preset := PRESETS[name]:
        steps = [v2.RandomResizedCrop(size, scale=(preset.keeps, 1.0), antialias=True)]
        steps += [v2.RandomHorizontalFlip()] if flip else []
        steps += [_step(word, name) for word in preset.after]
    if erase:
        steps.append(v2.RandomErasing(p=erase))
    return v2.Compose(steps) if steps else None


def mixer(
    mixup: float, cutmix: float, classes: int
) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None:
    """Mix images of a batch and their labels: mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), or one of both.

    `mixup` and `cutmix` are alpha of their beta distributions, 0 for none. Labels, int64 (N,) or (N, C), become float32 (N, C).

    Raises:
        TrainingError: a negative alpha.
    """
    from torchvision.transforms import v2

    if min(mixup, cutmix) < 0:
        raise TrainingError(f"mixup and cutmix are numbers from 0 up, not {mixup} and {cutmix}")
    ways = [v2.MixUp(alpha=mixup)] if mixup else []
    ways += [v2.CutMix(alpha=cutmix)] if cutmix else []
    if not ways:
        return None
    way = v2.RandomChoice(ways)

    def mix(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        shares = torch.nn.functional.one_hot(labels, classes) if labels.ndim == 1 else labels
        mixed: tuple[torch.Tensor, torch.Tensor] = way(images, shares.float())
        return mixed

    return mix


def _step(word: str, preset: str) -> Any:
    from torchvision.transforms import v2

    strong = 0.4 if preset == "heavy" else 0.2
    return {
        "jitter": lambda: v2.ColorJitter(strong, strong, strong),
        "rotate": lambda: v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR),
        "blur": lambda: v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.2),
        "randaugment": lambda: v2.RandAugment(num_ops=2, magnitude=9),
        "trivial": v2.TrivialAugmentWide,
    }[word]()


def _transform(name: str, made: Any) -> Transform:
    """The user's transform; Albumentations is known by what it has, never imported."""
    if hasattr(made, "set_random_seed") and hasattr(made, "transforms"):
        return Albumentations(made)
    if not callable(made):
        raise TrainingError(
            f"{name} gives {type(made).__name__}, which is no transform",
            hint="The function takes nothing and returns a torchvision v2 transform or an Albumentations Compose.",
        )
    return user_functions.explained(made, name)


class Own:
    """A transform of the user's own, whose images are looked at: uint8 (3, H, W), all of one size.

    It goes to another process as its name, "file.py:function". `transforms` are the steps of a torchvision Compose.
    """

    def __init__(self, name: str) -> None:
        self.name, self.__name__ = name, name.rpartition(":")[2]
        made = user_functions.user_function(name)()
        self.transform = _transform(name, made)
        self.transforms = None if isinstance(self.transform, Albumentations) else getattr(made, "transforms", None)
        self.shape: tuple[int, ...] = ()

    def __reduce__(self) -> Any:
        return Own, (self.name,)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """One image, augmented.

        Raises:
            TrainingError: it is no image of that kind any more, or of another size than those before.
            ModelError: the user's own code failed.
        """
        import torch

        image_: Any = self.transform(image)
        shape = tuple(image_.shape) if isinstance(image_, torch.Tensor) else ()
        if len(shape) != 3 or shape[0] != 3 or image_.dtype != torch.uint8:
            kind = f"{str(image_.dtype).removeprefix('torch.')} {shape}" if shape else type(image_).__name__
            raise TrainingError(
                f"{self.name} gives {kind}, not uint8 (3, H, W)",
                hint="Leave out what makes floats or normalises (ToDtype, Normalize, ToTensorV2): the recipe does that itself.",
            )
        if self.shape not in ((), shape):
            raise TrainingError(
                f"{self.name} gives images of {self.shape[1]} × {self.shape[2]} and of {shape[1]} × {shape[2]} pixels",
                hint="End it in a resize or crop to one size.",
            )
        self.shape = shape
        return image_  # type: ignore[no-any-return]  # a tensor, as was seen


class Albumentations:
    """An Albumentations Compose between uint8 tensors (3, H, W); its draws follow torch's seed, as all others do."""

    def __init__(self, compose: Any) -> None:
        self.compose = compose

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """One image, augmented."""
        import torch

        self.compose.set_random_seed(int(torch.randint(2**31, (1,))))
        image_ = self.compose(image=np.ascontiguousarray(image.permute(1, 2, 0).numpy()))["image"]
        if isinstance(image_, torch.Tensor):  # ToTensorV2
            return image_
        return torch.from_numpy(np.ascontiguousarray(image_.transpose(2, 0, 1)))
