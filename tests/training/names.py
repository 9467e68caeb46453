"""What the losses of a Mask R-CNN are called in logs."""

LOSS_NAMES = ("total_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_mask_loss")
