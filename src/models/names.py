"""What each part of a detector is called in a checkpoint: so that how parts are composed renames nothing."""

from mindspore import nn

__all__ = ["name_parameters", "parts"]


def parts(detector: nn.Cell) -> dict[str, nn.Cell]:
    """The parts of an RCNN by the names that begin their parameters' names: backbone, neck, rpn, and its RoI heads'."""
    return {
        "backbone": detector.backbone,
        "neck": detector.neck,
        "rpn": detector.rpn.head,
        **detector.roi_heads.parts(),
    }


def name_parameters(detector: nn.Cell) -> None:
    """Gives every parameter of an RCNN, whose parts name theirs alone, its full name."""
    for name, part in parts(detector).items():
        part.update_parameters_name(f"{name}.")
