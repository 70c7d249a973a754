"""timm models: create by name, load weights, describe; refuse what is no plain ViT."""

from __future__ import annotations

import difflib
from itertools import repeat
from pathlib import Path
from typing import Any

import timm
from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer

from slimdeploy.errors import InputError, MissingError, one_line
from slimdeploy.preprocessing import Preprocessing
from slimdeploy.schedule import KeepSchedule, ModelGeometry, PrefixKind
from slimdeploy.slim.checkpoint import Checkpoint
from slimdeploy.slim.types import Vit

_REGISTER: PrefixKind = "register"
_AS_FILE = "write it as ONNX and give the file: slim --onnx FILE --pool-kept"
# Their files are slimmed: `docs/bench/matrix.md`.
_ONLY_AS_FILES = ("Beit", "Eva", "NaFlexVit", "VisionTransformerRelPos")


def load_model(
    name: str, checkpoint: Path | None, kwargs: dict[str, Any] | None = None
) -> tuple[Vit, Preprocessing]:
    """A timm model in eval mode with its weights, and the preprocessing they were trained with.

    Args:
        name: timm model name.
        checkpoint: weights file; without one, timm's pretrained weights are downloaded.
        kwargs: arguments for `timm.create_model`, as `img_size`.

    Raises:
        InputError: an unknown name, an architecture that is no plain ViT, weights that do not fit.
        MissingError: pretrained weights that cannot be downloaded.
    """
    kwargs = dict(kwargs or {})
    _check_name(name)
    if checkpoint is None:
        model = _pretrained(name, kwargs)
        preprocessing = model_preprocessing(model)
    else:
        weights = Checkpoint.read(checkpoint)
        kwargs.setdefault("num_classes", weights.num_classes)
        model = _create(name, kwargs)
        weights.load_into(model, name)
        preprocessing = weights.preprocessing or model_preprocessing(model)
    size = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    if preprocessing.input_size != size:
        raise InputError(
            f"{checkpoint}: its recorded input_size is {list(preprocessing.input_size)}, "
            f"{name} takes {list(size)}; give the right --img-size"
        )
    return model.eval(), preprocessing


def load_geometry(
    name: str, checkpoint: Path | None, num_classes: int | None, kwargs: dict[str, Any]
) -> tuple[ModelGeometry, Preprocessing]:
    """A model's geometry without needing its weights (a given checkpoint must still fit).

    Raises:
        InputError: as `load_model`, or if the checkpoint has other than `num_classes` classes.
    """
    if checkpoint is not None:
        model, preprocessing = load_model(name, checkpoint, kwargs)
        if num_classes not in (None, model.num_classes):
            raise InputError(
                f"--num-classes {num_classes}: {checkpoint} has {model.num_classes}; leave it out"
            )
    else:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        _check_name(name)
        model = _create(name, {**kwargs, **classes})
        preprocessing = model_preprocessing(model)
    return describe(model, name, kwargs), preprocessing


def load_scheduled(schedule: KeepSchedule, checkpoint: Path | None) -> tuple[Vit, Preprocessing]:
    """The model a schedule names, checked against the schedule's geometry.

    Raises:
        InputError: if the model is another than the schedule was made for.
    """
    model, preprocessing = load_model(schedule.model.name, checkpoint, dict(schedule.model.kwargs))
    found = describe(model, schedule.model.name, schedule.model.kwargs)
    for field in ModelGeometry.model_fields:
        ours, theirs = getattr(schedule.model, field), getattr(found, field)
        if field not in ("kwargs", "source") and ours != theirs:
            raise InputError(
                f"keep schedule: model.{field} is {ours}, but {schedule.model.name} has {theirs}; "
                "the schedule is for another model"
            )
    return model, schedule.preprocessing or preprocessing


def describe(model: Vit, name: str, kwargs: dict[str, Any] | None = None) -> ModelGeometry:
    """What the schedule must know of a timm ViT."""
    attn, embed = model.blocks[0].attn, model.patch_embed
    return ModelGeometry(
        name=name,
        kwargs={k: v for k, v in (kwargs or {}).items() if k != "num_classes"},
        input_size=(embed.proj.in_channels, *embed.img_size),
        patch_size=embed.patch_size,
        grid=embed.grid_size,
        prefix=_prefix(model),
        depth=len(model.blocks),
        width=model.embed_dim,
        heads=attn.num_heads,
        mlp_width=model.blocks[0].mlp.fc1.out_features,
        num_classes=model.num_classes,
        head_reads=(0, 1) if isinstance(model, VisionTransformerDistilled) else (0,),
    )


def _prefix(model: Vit) -> tuple[PrefixKind, ...]:
    if isinstance(model, VisionTransformerDistilled):
        return ("class", "distillation")
    registers = model.reg_token.shape[1] if model.reg_token is not None else 0
    kinds: tuple[PrefixKind, ...] = ("class",) if model.cls_token is not None else ()
    return (*kinds, *repeat(_REGISTER, registers))


def check_supported(model: Vit, name: str) -> None:
    """Refuse what the slim model would compute wrongly.

    Raises:
        InputError: with the part of the model that is not a plain ViT's.
    """
    reason = None
    if not isinstance(model, VisionTransformer):
        kind = type(model).__name__
        reason = f"is a {kind}, not a plain vision transformer"
        if kind in _ONLY_AS_FILES:
            reason += "; write it as ONNX and give the file: slim --onnx FILE, or plan --onnx FILE"
    elif type(model.patch_embed) is not PatchEmbed:
        reason = "has no plain patch embedding"
    elif min(model.patch_embed.grid_size) < 1:
        reason = f"has no patches at {model.patch_embed.img_size} pixels; give a larger --img-size"
    elif getattr(model, "attn_pool", None) is not None:
        reason = f"has an attention-pooling head that reads every patch; {_AS_FILE}"
    elif model.global_pool != "token":
        reason = f"pools with '{model.global_pool}' over all patches; {_AS_FILE}"
    elif model.cls_token is None:
        reason = "has no class token"
    else:
        for index, block in enumerate(model.blocks):
            parts = (block, getattr(block, "attn", None), getattr(block, "mlp", None))
            kinds = tuple(type(part) for part in parts)
            if kinds != (Block, Attention, Mlp):
                names = ", ".join(kind.__name__ for kind in kinds)
                reason = f"has {names} as block {index}, which the slim model does not know"
                break
    if reason:
        raise InputError(f"--model {name}: {reason}")


def model_preprocessing(model: Vit) -> Preprocessing:
    """The preprocessing timm records for a model."""
    config = timm.data.resolve_model_data_config(model)
    embed = model.patch_embed  # timm's record does not follow img_size
    size = (embed.proj.in_channels, *embed.img_size)
    return Preprocessing.from_timm({**config, "input_size": size})


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"--model {name}: timm has no model of that name{hint}")


def _create(name: str, kwargs: dict[str, Any], pretrained: bool = False) -> Vit:
    """The model for images of one size: which patches are kept is a question of position."""
    try:
        model: Vit = timm.create_model(name, pretrained=pretrained, **kwargs)
        if getattr(model, "dynamic_img_size", False):
            kwargs = {**kwargs, "dynamic_img_size": False}
            model = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"--model {name}: timm cannot create it: {one_line(error)}") from error
    check_supported(model, name)
    return model


def _pretrained(name: str, kwargs: dict[str, Any]) -> Vit:
    _create(name, kwargs)  # what is wrong with the name or the arguments shows without a download
    try:
        model: Vit = _create(name, kwargs, pretrained=True)
    except Exception as error:  # the hub client raises its own, httpx's and OS errors
        raise MissingError(
            f"--model {name}: pretrained weights cannot be downloaded ({one_line(error, 80)}); "
            "give a weights file with --checkpoint"
        ) from error
    return model
