"""Take images with their channels last."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from slimdeploy.errors import InputError
from slimdeploy.graph.passes.base import Pass
from slimdeploy.graph.selection.rewrite import become_identity
from slimdeploy.graph.shapes import channels_last
from slimdeploy.graph.work import Node, Tensor, Work, drop_identities, replace_uses

_TO_NCHW = (0, 3, 1, 2)


class ChannelsLast(Pass):
    """Turn every image input [B, C, H, W] into [B, H, W, C], with a Transpose behind it.

    A Transpose that follows is joined with it; if the two cancel out, both are gone.

    Example:
        before: image: [B, 3, 224, 224]; c = Conv(image, w)
        after:  image: [B, 224, 224, 3]; t = Transpose<perm=[0, 3, 1, 2]>(image); c = Conv(t, w)
    """

    def call(self, work: Work) -> None:
        images = [index for index, t in enumerate(work.graph.inputs) if _is_image(t)]
        if not images:
            raise InputError("--input-layout nhwc: the model has no image input [B, C, H, W]")
        for index in images:
            self._turn(work, index)
        drop_identities(work)

    def _turn(self, work: Work, index: int) -> None:
        old = work.graph.inputs[index]
        batch, channels, height, width = old.shape
        if channels_last((channels, height, width)):
            raise InputError(f"--input-layout nhwc: input '{old.name}' is [B, H, W, C] already")
        image = gs.Variable(old.name, old.dtype, [batch, height, width, channels])
        work.graph.inputs[index] = image
        for node in list(old.outputs):
            if node.op == "Transpose":
                _join(node, image)
        if old.outputs:
            turned = work.add("Transpose", f"{old.name}.nchw", [image], perm=list(_TO_NCHW))
            replace_uses(old, turned)


def _join(node: Node, image: Tensor) -> None:
    """Let Transpose `node`, of a [B, C, H, W] tensor, read the same as [B, H, W, C]."""
    perm = [_TO_NCHW[axis] for axis in node.attrs.get("perm", (3, 2, 1, 0))]
    if perm == [0, 1, 2, 3]:
        become_identity(node, image)
    else:
        node.attrs["perm"] = perm
        node.inputs = [image]


def _is_image(tensor: Tensor) -> bool:
    return tensor.shape is not None and len(tensor.shape) == 4
